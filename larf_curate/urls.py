"""Addresses of servers for messages."""

import re


def public_url(url: str) -> str:
    """An address without its user name, password, query and fragment, which may be credentials.

    It need not be well-formed: everything up to the last ``@`` is taken for a user name and password.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    return scheme + separator + re.split("[?#]", rest.rpartition("@")[2], maxsplit=1)[0]
