"""Check of the ``Host`` header: a web page whose name was made to lead to this server must not read it.

In that attack, DNS rebinding, the browser takes the server for a part of the page, and its header has the page's name.
An IP address cannot be made to lead elsewhere: on an address that other machines reach, all are answered.
Starlette's ``TrustedHostMiddleware`` does the same for names and IPv4 addresses, but cuts ``[::1]:6900`` at the first
colon.
"""

import re
from collections.abc import Callable, Iterable
from ipaddress import ip_address

from .headers import App, Message, Receive, Send

HOSTS = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
"""Names of this machine that are always answered; any port, as a tunnel may have another."""
_HOST = re.compile(rb"(\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")
_REASON = (
    b"Invalid Host header: open the server by one of its IP addresses, on its own machine as http://localhost or "
    b"http://127.0.0.1, with its port; to use a name of the machine, start it with larf-curate review up --host NAME"
)
Allowed = Callable[[bytes], bool]


def allowed(names: Iterable[str], *, public: bool) -> Allowed:
    """Make the check of a host without its port.

    Args:
        names: Names and addresses that are allowed beside `HOSTS`.
        public: Whether other machines reach the server, by IP addresses that need not be its own: a router or a
            container may have another one.
    """
    known = HOSTS | {(f"[{name}]" if ":" in name else name).lower().encode() for name in names}
    return lambda host: host in known or (public and _is_address(host))


def _is_address(host: bytes) -> bool:
    """Whether a host is an IP address, and one that leads to a machine."""
    text = host.decode("latin-1")
    try:
        address = ip_address(text[1:-1] if text.startswith("[") else text)
    except ValueError:
        return False
    return (address.version == 6) == text.startswith("[") and not address.is_unspecified


def with_host_check(app: App, allows: Allowed) -> App:
    """Wrap an application so that requests for other hosts, or without a host, are answered by 400.

    Args:
        app: An ASGI application.
        allows: From `allowed`.
    """

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_allowed(scope["headers"], allows):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(_REASON)).encode())]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": _REASON})

    return wrapped


def is_allowed(headers: list[tuple[bytes, bytes]], allows: Allowed) -> bool:
    """Whether headers have exactly one ``Host``, and it is allowed."""
    hosts = [value for name, value in headers if name.lower() == b"host"]
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return found is not None and allows(found.group(1).lower())
