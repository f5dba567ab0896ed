"""Addresses that a server can listen on, and the names by which other machines reach it."""

import errno
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import psutil

from larf_curate.errors import InputError

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Listening:
    """Where a server listens.

    Args:
        address: An IP address of this machine; ``0.0.0.0`` and ``::`` are all of them, ``::`` with those of IPv4.
        name: Name by which the address was given, to be answered beside the machine's own; None if it was given itself.
    """

    address: str = LOOPBACK
    name: str | None = None

    @property
    def is_public(self) -> bool:
        """Whether other machines can connect."""
        return is_public(self.address)

    @property
    def names(self) -> list[str]:
        """What the ``Host`` header may name, beside ``localhost`` and, if it is public, any IP address."""
        own = [socket.gethostname(), socket.getfqdn()] if self.is_public else [self.address]
        return list(dict.fromkeys(name.lower() for name in (self.name, *own) if name))


def parse_host(host: str) -> Listening:
    """Read an address or name of this machine.

    Raises:
        InputError: If it is neither, or an IPv6 address that counts on one link only.
    """
    given = host.strip().removeprefix("[").removesuffix("]")
    parsed = _parsed(given)
    addresses, name = ([str(parsed)], None) if parsed is not None else (_resolve(given), given)
    if usable := [address for address in addresses if _is_own(address)]:
        return Listening(usable[0], name)
    raise InputError(
        f"this machine does not have the address {', '.join(addresses)}{f' of {name}' if name else ''}: give one of "
        f"{', '.join([LOOPBACK, *own_addresses()])}, or 0.0.0.0 for all"
    )


def _resolve(name: str) -> list[str]:
    """IP addresses of a name, those of IPv4 first."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"{name[:80]!r} is neither an IP address nor a name that can be resolved: give an address of this machine"
        ) from error
    return sorted({str(info[4][0]) for info in found}, key=lambda address: (":" in address, address))


def _is_own(address: str) -> bool:
    """Whether a socket that other machines connect to can be bound to the address."""
    if ip_address(address).is_multicast:
        return False
    with socket.socket(family(address), socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            # EINVAL: addresses of one link need its number, which browsers do not take.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT):
                return False
            raise
    return True


def family(address: str) -> socket.AddressFamily:
    """Family of an IP address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def is_public(address: str) -> bool:
    """Whether other machines can connect to an address of this one."""
    return not ip_address(address).is_loopback


def own_addresses() -> list[str]:
    """IP addresses of this machine that other machines can reach, those of IPv4 first."""
    found = (entry.address for entries in psutil.net_if_addrs().values() for entry in entries)
    parsed = [address for text in found if (address := _parsed(text)) is not None]
    usable = [address for address in parsed if not (address.is_loopback or address.is_link_local)]
    return [str(address) for address in sorted(usable, key=lambda address: (address.version, int(address)))]


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    """An IP address, of IPv4 if it is one in the form of IPv6; None for other texts."""
    try:
        address = ip_address(text.split("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def reachable(address: str) -> list[str]:
    """Addresses at which other machines reach a server that listens on a public address."""
    if address == "0.0.0.0":
        return [own for own in own_addresses() if family(own) == socket.AF_INET]
    return own_addresses() if address == "::" else [address]


def local_address(address: str) -> str:
    """The address at which this machine itself reaches a server that listens on an address."""
    return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address, address)


def url(address: str, port: int) -> str:
    """URL of a server at an address."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"
