"""Slow down guesses of passwords: after some failures, sign-ins of the same account and client wait longer and longer.

Nobody is locked out: the longest pause is a minute, and the right password ends it all. API keys are not affected; they
are too long to be guessed.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from hashlib import blake2b
from typing import Any

from .headers import App, Message, Receive, Send

FREE_ATTEMPTS = 5
"""Number of attempts before the first pause."""
MAX_PAUSE = 60.0
"""Longest pause, in seconds."""
FORGET_AFTER = 900.0
"""Seconds without an attempt after which earlier ones no longer count."""
MAX_ENTRIES = 10_000
"""Maximum number of accounts and clients that are remembered."""
_client: ContextVar[str] = ContextVar("client", default="")


class Throttle:
    """Counts attempts to sign in.

    Args:
        clock: Returns seconds, such as ``time.monotonic``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._attempts: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # their number, and the time of the last

    def attempt(self, account: str, client: str) -> float:
        """Count an attempt, as a failed one until `succeed` is called, unless it comes in a pause.

        Returns:
            Seconds until the end of the pause; 0 if the attempt may be made now.
        """
        key, now = _key(account, client), self._clock()
        count, last = self._attempts.get(key, (0, now))
        if now - last > FORGET_AFTER:
            count = 0
        pause = min(2.0 ** min(count - FREE_ATTEMPTS, 30), MAX_PAUSE) if count >= FREE_ATTEMPTS else 0.0
        # Counted before the password is checked: otherwise many attempts at once would all find no failure yet.
        if (rest := last + pause - now) > 0 and pause:
            return rest
        self._attempts[key] = (count + 1, now)
        self._attempts.move_to_end(key)
        while len(self._attempts) > MAX_ENTRIES:
            self._attempts.popitem(last=False)
        return 0.0

    def succeed(self, account: str, client: str) -> None:
        """Forget the attempts of an account and client."""
        self._attempts.pop(_key(account, client), None)


def _key(account: str, client: str) -> bytes:
    """A short key, as names come from outside and may have any length."""
    return blake2b(f"{client} {account}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def apply() -> None:
    """Patch argilla-server's check of passwords; an attempt in a pause is answered by 429."""
    from argilla_server.contexts import accounts
    from fastapi import HTTPException  # type: ignore[import-not-found, unused-ignore]

    throttle, authenticate = Throttle(time.monotonic), accounts.authenticate_user

    async def authenticate_slowly(db: Any, username: str, password: str) -> Any:  # noqa: ANN401  AsyncSession, User
        client = _client.get()
        if rest := throttle.attempt(username, client):
            seconds = str(int(rest) + 1)
            raise HTTPException(429, f"Too many attempts: try again in {seconds} s", {"Retry-After": seconds})
        user = await authenticate(db, username, password)
        if user:
            throttle.succeed(username, client)
        return user

    accounts.authenticate_user = authenticate_slowly


def with_client(app: App) -> App:
    """Wrap an application so that the check of passwords knows the address of the client.

    Args:
        app: An ASGI application.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        _client.set(str((scope.get("client") or ("",))[0]))
        await app(scope, receive, send)

    return wrapped
