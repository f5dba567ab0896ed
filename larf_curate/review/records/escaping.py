"""Row text on its way to a web page: nothing in it may run, break the page or be refused by the server."""

import re
from html import escape

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NUL = "\N{SYMBOL FOR NULL}"

_OVERRIDE = re.compile("[\u202d\u202e]")
_JOINERS = "\u200c\u200d"  # within words and emoji
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def storable(text: str) -> str:
    """Replace what JSON databases refuse: NUL by its symbol, a lone surrogate by the replacement character.

    All other text is returned as it is.
    """
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", NUL)


def markdown_literal(text: str) -> str:
    """Markdown that shows one line of exactly this text: no HTML, image, link, formula or table cell comes of it.

    Punctuation becomes character references, which no Markdown dialect reads as structure. Line breaks become spaces,
    control characters and text-direction controls become the replacement character.
    """
    line = " ".join(storable(text).split())
    if not line.isprintable():  # nor is any control of text direction
        line = "".join(c if c.isprintable() or c in _JOINERS else REPLACEMENT for c in line)
    return _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", line)


def misleads(text: str) -> bool:
    """Whether a text turns the direction of others by force, so that it reads differently than it is."""
    return _OVERRIDE.search(text) is not None


def html_literal(text: str) -> str:
    """HTML that shows exactly this text.

    Argilla 2.8 puts chat messages into the page as HTML, unchecked, even where Markdown is switched off.
    """
    return escape(storable(text), quote=False)


def pieces(literal: str, size: int) -> list[str]:
    """Cut what `html_literal` gives into pieces of at most ``size`` characters; no character reference is cut.

    Args:
        literal: The text; every ``&`` in it begins a character reference of at most 5 characters.
        size: At least 5.

    Returns:
        At least one piece; joined they are the text again.
    """
    cut, start = [], 0
    while len(literal) - start > size:
        end = start + size
        reference = literal.rfind("&", end - 4, end)
        if reference >= 0 and ";" not in literal[reference:end]:
            end = reference
        cut.append(literal[start:end])
        start = end
    return [*cut, literal[start:]]


def shortened(text: str, limit: int) -> str:
    """Keep the beginning and the end of a text longer than ``limit``, and say between them how much is missing."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 4
    missing = len(text) - limit
    note = f"[… {missing:,} characters not shown here; the row itself is whole …]"
    return f"{text[:head]}\n\n{note}\n\n{text[head + missing :]}"
