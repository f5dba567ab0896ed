"""Accounts of the embedded server: random secrets in one file that only its owner can read."""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from larf_curate.errors import ReviewServerError

OWNER = "argilla"
WORKSPACE = "argilla"


@dataclass(frozen=True, kw_only=True)
class Account:
    """One user of the server.

    Args:
        username: The name to sign in with.
        role: ``owner``, ``admin`` or ``annotator``.
        password: The password for the web page.
        api_key: The key for the Python client.
    """

    username: str
    role: str
    password: str = field(repr=False)
    api_key: str = field(repr=False)

    @classmethod
    def random(cls, username: str, *, role: str) -> "Account":
        """An account with a fresh password and key."""
        return cls(username=username, role=role, password=secrets.token_urlsafe(15), api_key=secrets.token_urlsafe(48))


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The secrets of one home.

    Args:
        auth_secret: Signs the web page's sessions; kept, else a restart would sign everybody out.
        accounts: The owner first, then those added later.
    """

    auth_secret: str = field(repr=False)
    accounts: tuple[Account, ...]

    @property
    def owner(self) -> Account:
        """The account that administers the server."""
        return self.accounts[0]

    def account(self, username: str) -> Account | None:
        """The account of that name, None if there is none."""
        return next((account for account in self.accounts if account.username == username), None)

    def with_account(self, account: Account) -> "Credentials":
        """The same credentials and one account more."""
        return replace(self, accounts=(*self.accounts, account))


def ensure_credentials(path: Path) -> Credentials:
    """Read the credentials, or make them.

    Raises:
        ReviewServerError: If the file is there but unreadable.
    """
    if path.exists():
        return read_credentials(path)
    fresh = Credentials(auth_secret=secrets.token_hex(32), accounts=(Account.random(OWNER, role="owner"),))
    write_credentials(path, fresh)
    return fresh


def read_credentials(path: Path) -> Credentials:
    """Read the credentials.

    Raises:
        ReviewServerError: If the file is missing or not what this package wrote.
    """
    try:
        return _parse(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ReviewServerError(
            f"no credentials in {path}: start the server once with `larf-curate review up`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        # without the cause: it could carry a part of the file into a traceback
        raise ReviewServerError(f"{path} cannot be read: remove it, the next start makes new credentials") from None


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Write the credentials in one step, mode 0600 from the first byte."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as stream:
        json.dump(asdict(credentials), stream, indent=2)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(aside, path)


def _parse(value: Mapping[str, Any]) -> Credentials:
    accounts = tuple(Account(**account) for account in value["accounts"])
    if accounts[0].role != "owner":
        raise ValueError("the first account must be the owner")
    return Credentials(auth_secret=value["auth_secret"], accounts=accounts)
