"""Users of the server, kept in line with the credentials file."""

from collections.abc import Mapping, Sequence
from typing import Any

_WORKSPACE = "argilla"


async def ensure(accounts: Sequence[Mapping[str, str]]) -> None:
    """Create missing users, and set passwords and API keys to those of the credentials file.

    The file is authoritative: if it was lost and created again, its new secrets replace those in the database.

    Args:
        accounts: ``username``, ``role``, ``password`` and ``api_key`` of each account.
    """
    from argilla_server.database import AsyncSessionLocal, async_engine

    async with AsyncSessionLocal() as db:
        for account in accounts:
            await _ensure_user(db, account)
    await async_engine.dispose()  # its connections belong to this event loop, and the server runs in another one


async def _ensure_user(db: Any, account: Mapping[str, str]) -> None:  # noqa: ANN401  AsyncSession
    from argilla_server.contexts.accounts import get_user_by_username, hash_password
    from argilla_server.models import User, UserRole

    user = await get_user_by_username(db, account["username"])
    if user is not None and user.api_key == account["api_key"]:
        return  # the password is then also up to date; hashing it takes a noticeable fraction of a second
    secrets = {"api_key": account["api_key"], "password_hash": hash_password(account["password"])}
    if user is not None:
        await user.update(db, **secrets)
        return
    await User.create(
        db,
        first_name=account["username"],
        username=account["username"],
        role=UserRole(account["role"]),
        workspaces=[await _workspace(db)],
        **secrets,
    )


async def _workspace(db: Any) -> Any:  # noqa: ANN401  AsyncSession, Workspace
    from argilla_server.contexts.accounts import create_workspace
    from argilla_server.models import Workspace

    return await Workspace.get_by(db, name=_WORKSPACE) or await create_workspace(db, {"name": _WORKSPACE})
