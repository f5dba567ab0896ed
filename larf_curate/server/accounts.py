"""Accounts as a list says: created, and roles, passwords and workspaces brought in line with it."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.server import api
from larf_curate.server.credentials import OWNER, WORKSPACE, Account

if TYPE_CHECKING:
    from larf_curate.server.embedded import EmbeddedServer

ROLES = ("annotator", "admin")
USERNAME = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"
"""Names to sign in with; links and log lines can hold them as they are."""
MIN_PASSWORD, MAX_PASSWORD = 12, 72
"""Number of bytes of a password; the server hashes no more."""
MIN_DIFFERENT = 5
"""Least number of different characters of a password."""
SHOWN = 20
"""Faults in a message."""


@dataclass(frozen=True, kw_only=True)
class AccountEntry:
    """An account as a list wants it.

    Args:
        place: Where the entry is, for messages, as in ``line 3``.
        username: Name to sign in with.
        role: ``annotator`` or ``admin``; empty for an annotator, or for the role that an existing account has.
        workspaces: Names of all workspaces it is to be a member of; empty for the default one, or for those that an
            existing account has.
        password: Password; empty for a random one, or for the one that an existing account has.
    """

    place: str
    username: str
    role: str = ""
    workspaces: tuple[str, ...] = ()
    password: str = field(default="", repr=False)


@dataclass(frozen=True, kw_only=True)
class AccountChange:
    """What became of an account.

    Args:
        username: Name to sign in with.
        role: Its role now.
        workspaces: Names of its workspaces now.
        changes: What was changed, in words; empty if it was as wanted.
        password: The random password of a new account, to be handed over; empty otherwise.
        note: What is to be done about it; mostly empty.
    """

    username: str
    role: str
    workspaces: tuple[str, ...]
    changes: tuple[str, ...]
    password: str = field(default="", repr=False)
    note: str = ""


def check_entries(entries: Sequence[AccountEntry]) -> None:
    """Check a list of accounts before anything is changed; messages contain no password.

    Raises:
        InputError: With the place of each fault: names that the server cannot have, or that are there twice, whatever
            their case; roles and names of workspaces that there are not; and weak passwords.
    """
    names = Counter(entry.username.casefold() for entry in entries)
    found = [f"{entry.place}: {fault}" for entry in entries for fault in _faults(entry, names)]
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise InputError("no account was changed; correct these:\n" + "\n".join([*found[:SHOWN], *more]))


def _faults(entry: AccountEntry, names: Counter[str]) -> Iterator[str]:
    if not re.fullmatch(USERNAME, entry.username):
        yield f"wanted a user name of 1 to 64 letters, digits and . _ - @, got {entry.username[:80]!r}"
    elif entry.username == OWNER:
        yield f"{OWNER} is the owner of the server and stays as it is: leave it out"
    elif names[entry.username.casefold()] > 1:
        yield f"the user name {entry.username} is there twice, up to case: keep one"
    if entry.role and entry.role not in ROLES:
        near = get_close_matches(entry.role, ROLES, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        yield f"wanted the role {' or '.join(ROLES)}, got {entry.role[:80]!r}{meant}"
    for workspace in entry.workspaces:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", workspace):
            yield f"wanted a workspace of letters, digits, _ and -, got {workspace[:80]!r}"
    if entry.password and (weakness := _weakness(entry)):
        yield f"the password of {entry.username[:80]} {weakness}, or none for a random one"


def _weakness(entry: AccountEntry) -> str:
    """What makes a password easy to guess, or unusable; empty if nothing does."""
    size = len(entry.password.encode("utf-8", "surrogatepass"))
    if size < MIN_PASSWORD:
        return f"has fewer than {MIN_PASSWORD} characters: give a longer one"
    if size > MAX_PASSWORD:
        return f"has more than {MAX_PASSWORD} bytes, of which the server reads no more: give a shorter one"
    if len(set(entry.password)) < MIN_DIFFERENT:
        return f"has fewer than {MIN_DIFFERENT} different characters: give another one"
    if entry.username.casefold() in entry.password.casefold() and len(entry.username) > 2:
        return "contains the user name: give another one"
    return ""


def apply_accounts(server: "EmbeddedServer", entries: Sequence[AccountEntry]) -> list[AccountChange]:
    """Create the accounts of a list that are missing, and change those that differ; others are left as they are.

    It can be repeated, also after it was interrupted.

    Args:
        server: The running server.
        entries: The list; an account is removed from workspaces that its entry does not name, if it names any.

    Raises:
        InputError: See `check_entries`; nothing is changed then.
        ReviewServerError: If the server does not run or rejects a request.
    """
    check_entries(entries)
    url, owner = server.url, server.credentials.owner
    users = {user["username"]: user for user in api.list_users(url, owner)}
    folded = {name.casefold(): name for name in users}
    for entry in entries:
        if (name := folded.get(entry.username.casefold(), entry.username)) != entry.username:
            raise InputError(f"{entry.place}: the server has the user {name!r}: write {entry.username!r} the same way")
    return [_apply(server, entry, users.get(entry.username)) for entry in entries]


def _apply(server: "EmbeddedServer", entry: AccountEntry, user: dict[str, Any] | None) -> AccountChange:
    created = user is None
    account: Account | None
    if user is None and server.credentials.account(entry.username):
        raise ReviewServerError(
            f"the user {entry.username!r} was deleted on the server: start the server again, which creates it anew"
        )
    if user is None:
        account = server.add_user(
            entry.username,
            role=entry.role or ROLES[0],
            workspace=(entry.workspaces or (WORKSPACE,))[0],
            password=entry.password or None,
        )
        user = next(u for u in api.list_users(server.url, server.credentials.owner) if u["username"] == entry.username)
        changes = ["created"]
    else:
        account, changes = _update(server, entry, user)
    workspaces, moved = _set_workspaces(server, entry, user["id"])
    return AccountChange(
        username=entry.username,
        role=entry.role or user["role"],
        workspaces=workspaces,
        changes=tuple(changes if created and len(workspaces) < 2 else [*changes, *moved]),
        password=account.password if account and created and not entry.password else "",
        note="" if account or entry.password else "nobody knows its password here: give one in the file",
    )


def _update(server: "EmbeddedServer", entry: AccountEntry, user: dict[str, Any]) -> tuple[Account | None, list[str]]:
    """Change role and password of an account where they differ."""
    stored = server.credentials.account(entry.username)
    changed: dict[str, str] = {}
    if entry.role and entry.role != user["role"]:
        changed["role"] = entry.role
    if entry.password and (stored is None or stored.password != entry.password):
        changed["password"] = entry.password
    if changed:
        # The server first: if this is interrupted, the file still has the former password, and a repetition changes it.
        api.update_user(server.url, server.credentials.owner, user["id"], changed)
        role, password = entry.role or user["role"], entry.password or (stored.password if stored else "")
        if password:
            account = Account(username=entry.username, role=role, password=password, api_key=user["api_key"])
            server.update_credentials(lambda credentials: credentials.with_account(account))
    words = {"role": f"role {user['role']} → {entry.role}", "password": "password"}
    return stored, [words[name] for name in changed]


def _set_workspaces(server: "EmbeddedServer", entry: AccountEntry, user_id: str) -> tuple[tuple[str, ...], list[str]]:
    """Make an account a member of exactly the workspaces that its entry names, if any; returns them and the changes."""
    url, owner = server.url, server.credentials.owner
    before = api.workspaces_of(url, owner, user_id)
    if not entry.workspaces:
        return tuple(sorted(before)), []
    joined = [name for name in dict.fromkeys(entry.workspaces) if name not in before]
    left = sorted(set(before) - set(entry.workspaces))
    for name in joined:
        api.add_to_workspace(url, owner, entry.username, name)
    for name in left:
        api.remove_from_workspace(url, owner, user_id, before[name])
    return tuple(sorted(set(entry.workspaces))), [*(f"joins {n}" for n in joined), *(f"leaves {n}" for n in left)]
