"""Escaping of row text for the review page: it cannot run, break the page or be rejected by the server."""

import re
from html import escape

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NUL = "\N{SYMBOL FOR NULL}"

_OVERRIDE = re.compile("[\u202d\u202e]")  # left-to-right and right-to-left override
_JOINERS = "\u200c\u200d"  # not printable to Python, but part of words and emoji
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def storable(text: str) -> str:
    """Replace what a JSON database rejects: NUL by its symbol, lone surrogates by the replacement character.

    All other text is returned unchanged.
    """
    # Through UTF-16, so that a surrogate pair of two characters becomes the one character that it encodes.
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return joined.replace("\0", NUL)


def escape_markdown(text: str) -> str:
    """Escape text for Markdown, on one line: no HTML, image, link, formula or table cell can result from it.

    Punctuation becomes character references, which no Markdown dialect reads as structure. Line breaks become spaces;
    control characters, those of text direction included, become the replacement character.
    """
    line = " ".join(storable(text).split())
    if not line.isprintable():  # text-direction controls are not printable either
        line = "".join(c if c.isprintable() or c in _JOINERS else REPLACEMENT for c in line)
    return _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", line)


def overrides_direction(text: str) -> bool:
    """Whether text contains a bidirectional override, with which it can look different from what it says."""
    return _OVERRIDE.search(text) is not None


def escape_html(text: str) -> str:
    """Escape text for HTML, so that exactly this text is shown.

    Argilla 2.8 inserts chat messages into the page as unsanitised HTML, even if Markdown is switched off.
    """
    return escape(storable(text), quote=False)


def split_html(escaped: str, size: int) -> list[str]:
    """Split the result of `escape_html` into parts of at most ``size`` characters, never within a character reference.

    Args:
        escaped: Escaped text; every ``&`` in it begins a character reference of at most 5 characters.
        size: At least 5.

    Returns:
        At least one part; joined they are ``escaped``.
    """
    parts, start = [], 0
    while len(escaped) - start > size:
        end = start + size
        reference = escaped.rfind("&", end - 4, end)
        if reference >= 0 and ";" not in escaped[reference:end]:
            end = reference
        parts.append(escaped[start:end])
        start = end
    return [*parts, escaped[start:]]


def truncate_middle(text: str, limit: int) -> str:
    """Keep the first 3/4 and the last 1/4 of ``limit`` characters of a longer text, with a note on what is missing."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 4
    missing = len(text) - limit
    note = f"[… {missing:,} characters not shown here; the row itself is complete …]"
    return f"{text[:head]}\n\n{note}\n\n{text[head + missing :]}"
