"""Addresses of servers for messages."""

import re

CREDENTIALS = re.compile(r"(?<=://)[^\s/?#]*@|(?<=[?&])[^\s=&]*=[^\s&'\"#]*|\bhf_[A-Za-z0-9]{16,}")
"""User names and passwords in addresses, parameters of their queries, and tokens of the Hub."""


def public_url(url: str) -> str:
    """An address without its user name, password, query and fragment, which may be credentials.

    It need not be well-formed: everything up to the last ``@`` is taken for a user name and password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    return scheme + separator + re.split("[?#]", rest.rpartition("@")[2], maxsplit=1)[0]


def without_credentials(text: str) -> str:
    """A text with dots in place of what may be credentials in the addresses that it quotes."""
    return CREDENTIALS.sub("...", text)
