"""Accounts of the embedded server: random passwords and keys, in a file that only its owner can read."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.files import parse_json
from larf_curate.records import STRICT, parse_record
from larf_curate.server.private_files import read_private, write_private

REMEDY = "remove it, the next start creates new credentials"
OWNER = "argilla"
WORKSPACE = "argilla"
MIN_PASSWORD = 15
"""Minimum length of passwords if other machines can sign in: the minimum of NIST SP 800-63B for a password alone
(https://pages.nist.gov/800-63-4/sp800-63b.html#passwordver); those created here have 20 random characters."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """A user of the server.

    Args:
        username: Name to sign in with.
        role: ``owner``, ``admin`` or ``annotator``.
        password: Password for the web interface.
        api_key: API key for the Python client.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    username: str
    role: str
    password: str = field(repr=False)
    api_key: str = field(repr=False)

    @classmethod
    def random(cls, username: str, *, role: str) -> "Account":
        """Create an account with a random password and API key."""
        return cls(username=username, role=role, password=secrets.token_urlsafe(15), api_key=secrets.token_urlsafe(48))


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """The secrets of one server.

    Args:
        auth_secret: Signs the sessions of the web interface; stored, as a new one would sign everybody out.
        accounts: The owner first, then accounts added later.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    auth_secret: str = field(repr=False)
    accounts: tuple[Account, ...]

    @property
    def owner(self) -> Account:
        """The account that administers the server."""
        return self.accounts[0]

    def account(self, username: str) -> Account | None:
        """The account with that name; None if there is none."""
        return next((account for account in self.accounts if account.username == username), None)

    def with_account(self, account: Account) -> "Credentials":
        """Return a copy with this account, in place of one of the same name."""
        if self.account(account.username) is None:
            return replace(self, accounts=(*self.accounts, account))
        same = account.username
        return replace(self, accounts=tuple(account if a.username == same else a for a in self.accounts))


def weak_passwords(credentials: Credentials) -> list[str]:
    """Names of the accounts whose passwords are shorter than `MIN_PASSWORD` or have under 6 different characters."""
    found = credentials.accounts
    return [who.username for who in found if len(who.password) < MIN_PASSWORD or len(set(who.password)) < 6]


def ensure_credentials(path: Path) -> Credentials:
    """Read the credentials file; if it does not exist, create it with a new secret and an owner.

    Raises:
        ReviewServerError: If the file exists but cannot be read.
    """
    if os.path.lexists(path):  # a link to nothing is refused, not replaced
        return read_credentials(path)
    credentials = Credentials(auth_secret=secrets.token_hex(32), accounts=(Account.random(OWNER, role="owner"),))
    write_credentials(path, credentials)
    return credentials


def read_credentials(path: Path) -> Credentials:
    """Read the credentials file.

    Raises:
        ReviewServerError: If the file does not exist or is invalid.
    """
    try:
        content = parse_json(read_private(path), path)
        credentials = parse_record(content, Credentials, path=path, remedy=REMEDY, secret=True)
    except FileNotFoundError as error:
        raise ReviewServerError(
            f"no credentials in {path}: start the server once with `larf-curate review up`"
        ) from error
    except InputError as error:
        raise ReviewServerError(str(error)) from None  # without the cause, which may quote secrets
    except (OSError, ValueError):
        raise ReviewServerError(f"{path} cannot be read: {REMEDY}") from None
    if not credentials.accounts or credentials.owner.role != "owner":
        raise ReviewServerError(f"{path} does not begin with the account of the owner: {REMEDY}")
    return credentials


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Write the credentials atomically, with mode 0600."""
    write_private(path, json.dumps(asdict(credentials), indent=2))
