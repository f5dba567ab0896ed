"""The users of the server, as the credentials file has them."""

from collections.abc import Mapping, Sequence
from typing import Any

_WORKSPACE = "argilla"


async def ensure(accounts: Sequence[Mapping[str, str]]) -> None:
    """Create the users that are missing, and give each the password and key of the file."""
    from argilla_server.database import AsyncSessionLocal, async_engine

    async with AsyncSessionLocal() as db:
        for account in accounts:
            await _ensure_user(db, account)
    await async_engine.dispose()


async def _ensure_user(db: Any, account: Mapping[str, str]) -> None:  # noqa: ANN401  AsyncSession
    from argilla_server.contexts.accounts import get_user_by_username, hash_password
    from argilla_server.models import User, UserRole

    user = await get_user_by_username(db, account["username"])
    if user is not None and user.api_key == account["api_key"]:
        return
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
