"""Make untrusted text safe to display: no invisible control characters, limited length, always valid UTF-8."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
# C1 control characters and noncharacters, which HTML does not allow, and surrogates, which UTF-8 cannot encode.
_REPLACED = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Excerpt:
    """The start and the end of a text.

    Args:
        head: The start, or the complete text if ``hidden`` is 0.
        hidden: Number of characters omitted between head and tail.
        tail: The end; empty if ``hidden`` is 0.
    """

    head: str
    hidden: int = 0
    tail: str = ""


def visible(value: object) -> object:
    """Make a string's control characters visible and replace code points that UTF-8 cannot encode.

    Values that are not strings and markup that a template marked as safe are returned unchanged. Bidirectional control
    characters are kept, because right-to-left scripts need them and the page isolates every text.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    displayable = value.replace("\r\n", "\n").translate(_CONTROL_PICTURES)
    return _REPLACED.sub("\N{REPLACEMENT CHARACTER}", displayable)


def excerpt(text: str, *, head: int = 3000, tail: int = 1000) -> Excerpt:
    """Shorten a long text to its start and its end; the end is kept because scores are read at the end of turns."""
    hidden = len(text) - head - tail
    return Excerpt(text[:head], hidden, text[-tail:]) if hidden > 0 else Excerpt(text)


def one_line(text: str, *, limit: int = 160) -> str:
    """The start of a text with white space collapsed, followed by an ellipsis if it was cut."""
    words = " ".join(text[: 4 * limit].split())  # a text of megabytes need not be split for one line
    return words if len(words) <= limit and len(text) <= 4 * limit else words[:limit] + "…"


def as_json(row: Mapping[str, Any]) -> str:
    """Format a row as ASCII JSON; values that JSON cannot represent are written as their ``repr``."""
    return json.dumps(row, ensure_ascii=True, indent=1, default=repr)
