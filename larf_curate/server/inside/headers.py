"""HTTP headers that keep the web interface from running scripts or loading resources other than Argilla's."""

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


def content_security_policy(pages: Iterable[Path]) -> str:
    """Build a Content-Security-Policy that allows scripts, images and connections from this server only.

    Inline scripts of the pages are allowed by their SHA-256. So no other inline script runs, not even one in a row text
    that was not escaped.

    Args:
        pages: The HTML files, exactly as they are served.
    """
    scripts = {script for page in pages for script in _INLINE.findall(page.read_bytes())}
    digests = sorted(b64encode(hashlib.sha256(script).digest()).decode() for script in scripts)
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


def with_security_headers(app: App, policy: str) -> App:
    """Wrap an application so that every response has the policy and further security headers.

    Args:
        app: An ASGI application.
        policy: Value of the ``Content-Security-Policy`` header.
    """
    added = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        await app(scope, receive, send_with_headers if scope["type"] == "http" else send)

    return wrapped
