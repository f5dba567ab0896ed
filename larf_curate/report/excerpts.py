"""Text of unknown origin made safe to look at: nothing invisible, nothing endless, always valid UTF-8."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_REPLACED = re.compile("[\x80-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


@dataclass(frozen=True)
class Excerpt:
    """The start and the end of a text, and how many characters between them are left out.

    Args:
        head: The start, or the whole text when ``hidden`` is 0.
        hidden: Characters left out.
        tail: The end.
    """

    head: str
    hidden: int = 0
    tail: str = ""


def visible(value: object) -> object:
    """Make a text's control characters visible and replace what UTF-8 cannot hold; leave other values as they are.

    Text that a template marked safe is left as it is. Directional characters are kept: the page isolates every text.
    """
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    pictures = value.replace("\r\n", "\n").translate(_PICTURES)
    return _REPLACED.sub("\N{REPLACEMENT CHARACTER}", pictures)


def excerpt(text: str, *, head: int = 3000, tail: int = 1000) -> Excerpt:
    """Keep the start and the end of a long text: a row's score comes from its end."""
    hidden = len(text) - head - tail
    return Excerpt(text[:head], hidden, text[-tail:]) if hidden > 0 else Excerpt(text)


def one_line(text: str, *, limit: int = 160) -> str:
    """The start of a text with white space folded, ended by an ellipsis when there is more."""
    words = " ".join(text[: 4 * limit].split())
    return words if len(words) <= limit and len(text) <= 4 * limit else words[:limit] + "…"


def as_json(row: Mapping[str, Any]) -> str:
    """A row that is no conversation, as ASCII JSON; values that JSON does not know are written as Python shows them."""
    return json.dumps(row, ensure_ascii=True, indent=1, default=repr)
