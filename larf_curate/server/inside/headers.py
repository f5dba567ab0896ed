"""Headers that keep the web page from running or loading anything that is not Argilla's own."""

import hashlib
import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def policy(pages: Iterable[Path]) -> str:
    """A Content-Security-Policy: scripts, pictures and connections from this server only.

    The scripts inside the pages themselves are allowed by their digests, so that no other inline script runs, even one
    that slipped through the escaping of row text.

    Args:
        pages: The HTML files that are served, as they are served.
    """
    inline = {script for page in pages for script in _INLINE.findall(page.read_bytes())}
    digests = sorted(b64encode(hashlib.sha256(script).digest()).decode() for script in inline)
    allowed = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
    return "; ".join(
        (
            "default-src 'self'",
            f"script-src {allowed}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data: blob:",
            "font-src 'self' data:",
            "object-src 'none'",
            "base-uri 'self'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )


def guarded(app: App, security_policy: str) -> App:
    """The same application, whose every answer carries the policy and stays out of other sites' frames.

    Args:
        app: An ASGI application.
        security_policy: What `policy` gives.
    """
    added = [
        (b"content-security-policy", security_policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def answer(scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    return answer
