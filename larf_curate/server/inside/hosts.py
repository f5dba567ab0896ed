"""Check of the ``Host`` header: a web page whose name was made to lead to 127.0.0.1 must not read this server.

In that attack, DNS rebinding, the browser takes the server for a part of the page, and its header has the page's name.
Starlette's ``TrustedHostMiddleware`` does the same for names and IPv4 addresses, but cuts ``[::1]:6900`` at the first
colon.
"""

import re

from .headers import App, Message, Receive, Send

HOSTS = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
"""Names of this machine, which the server is bound to; any port, as a tunnel may have another."""
_HOST = re.compile(rb"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
_REASON = b"Invalid Host header: open the server as http://localhost or http://127.0.0.1 with its port"


def with_host_check(app: App) -> App:
    """Wrap an application so that requests for other hosts, or without a host, are answered by 400.

    Args:
        app: An ASGI application.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_allowed(scope["headers"]):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(_REASON)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": _REASON})

    return wrapped


def is_allowed(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether headers have exactly one ``Host``, and it names this machine."""
    hosts = [value for name, value in headers if name.lower() == b"host"]
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return found is not None and found.group(1).lower() in HOSTS
