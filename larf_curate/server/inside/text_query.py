"""What a person types into the search box, read as Elasticsearch's ``simple_query_string`` reads it.

Words are joined by AND; ``|`` is OR, a leading ``-`` is NOT, ``"..."`` a phrase, ``word*`` a prefix, ``( )`` groups;
operators apply from left to right. No text is an error: what makes no sense is left out.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Scripts written without spaces between words: each character is a token of its own, so any part of a run is found.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\uac00-\ud7a3"  # Korean
)
_TOKEN = re.compile(f"(?=[^\\W_])[{_SPACELESS}]|[^\\W_{_SPACELESS}]+")
_PART = re.compile(r'(-*)(?:"([^"]*)"|([()|+])|([^\s()|+"]+))')
_DEPTH = 20


def tokens(text: str) -> list[str]:
    """The words of a text as the index knows them: compatibility forms and case folded, marks and punctuation gone."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Words:
    """Tokens that follow each other; the last one may be only begun.

    Args:
        tokens: At least one.
        prefix: The last token stands for all that begin with it.
    """

    tokens: tuple[str, ...]
    prefix: bool = False

    @property
    def match(self) -> str:
        """The same for FTS5; tokens hold letters and digits only, so nothing needs escaping."""
        return f'"{" ".join(self.tokens)}"' + ("*" if self.prefix else "")


@dataclass(frozen=True)
class Not:
    """Records that do not match."""

    part: "Part"


@dataclass(frozen=True)
class Both:
    """Records that match all parts."""

    parts: tuple["Part", ...]


@dataclass(frozen=True)
class Either:
    """Records that match a part."""

    parts: tuple["Part", ...]


Part = Words | Not | Both | Either


def parse(query: str) -> Part | None:
    """Read a query; None if it holds no word at all."""
    return _group((match.groups("") for match in _PART.finditer(query)), 0)


def _group(parts: Iterator[tuple[str, ...]], depth: int) -> Part | None:
    """Read ``parts`` until they end or a bracket closes."""
    found: Part | None = None
    either = False
    for minus, phrase, sign, word in parts:
        if sign == ")" and depth:
            break
        if sign in ("|", "+"):
            either = sign == "|"
        part = _group(parts, depth + 1) if sign == "(" and depth < _DEPTH else _words(phrase or word, bool(word))
        if part is not None:
            part = Not(part) if len(minus) % 2 else part
            found = part if found is None else _join(found, part, either=either)
            either = False
    return found


def _words(text: str, is_word: bool) -> Words | None:
    found = tuple(tokens(text))
    return Words(found, prefix=is_word and text.endswith("*")) if found else None


def _join(left: Part, right: Part, *, either: bool) -> Part:
    kind = Either if either else Both
    return kind((*left.parts, right)) if isinstance(left, kind) else kind((left, right))


def words(part: Part) -> list[Words]:
    """The words a match must be ranked by: those not under a NOT."""
    if isinstance(part, Words):
        return [part]
    return [] if isinstance(part, Not) else [word for inner in part.parts for word in words(inner)]


def size(part: Part) -> int:
    """How many words and phrases the query has."""
    if isinstance(part, Words):
        return 1
    return size(part.part) if isinstance(part, Not) else sum(size(inner) for inner in part.parts)
