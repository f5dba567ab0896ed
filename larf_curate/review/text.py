"""Row text on its way to a web page: nothing in it may run, break the page or be refused by the server."""

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NUL = "\N{SYMBOL FOR NULL}"

_BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
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
    line = "".join(c if c.isprintable() else REPLACEMENT for c in _BIDI.sub(REPLACEMENT, line))
    return _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", line)


def pieces(text: str, size: int) -> list[str]:
    """Cut a text into pieces of at most ``size`` characters; joined they are the text again."""
    return [text[start : start + size] for start in range(0, len(text), size)] or [""]


def shortened(text: str, limit: int) -> str:
    """Keep the beginning and the end of a text longer than ``limit``, and say between them how much is missing."""
    if len(text) <= limit:
        return text
    head = limit * 3 // 4
    missing = len(text) - limit
    note = f"[… {missing:,} characters not shown here; the row itself is whole …]"
    return f"{text[:head]}\n\n{note}\n\n{text[head + missing :]}"
