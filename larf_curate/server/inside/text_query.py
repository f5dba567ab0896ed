"""Parser for the search box, with the semantics of Elasticsearch's ``simple_query_string``.

Words are joined by AND; ``|`` is OR, a leading ``-`` is NOT, ``"..."`` is a phrase, ``word*`` is a prefix, and ``( )``
groups. Operators are applied from left to right. No input is an error: whatever cannot be parsed is ignored.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Scripts written without spaces between words: each character is a separate token, so that any substring is found.
_SPACELESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"  # Japanese
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Chinese characters
    "\uac00-\ud7a3"  # Korean
)
_TOKEN = re.compile(f"(?=[^\\W_])[{_SPACELESS}]|[^\\W_{_SPACELESS}]+")
_LEXEME = re.compile(r'(-*)(?:"([^"]*)"|([()|+])|([^\s()|+"]+))')
_MAX_DEPTH = 20  # of nested groups; deeper brackets are ignored, so that no input exhausts the stack


def tokenize(text: str) -> list[str]:
    """Split a text into the tokens of the index: NFKC normalized and case-folded, without marks and punctuation."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


@dataclass(frozen=True)
class Phrase:
    """Consecutive tokens.

    Args:
        tokens: At least one token.
        prefix: Whether the last token stands for all tokens that begin with it.
    """

    tokens: tuple[str, ...]
    prefix: bool = False

    @property
    def match(self) -> str:
        """MATCH expression of SQLite FTS5; needs no escaping, as tokens hold only letters and digits."""
        return f'"{" ".join(self.tokens)}"' + ("*" if self.prefix else "")


@dataclass(frozen=True)
class Not:
    """Records that do not match a query."""

    query: "Query"


@dataclass(frozen=True)
class And:
    """Records that match all queries."""

    queries: tuple["Query", ...]


@dataclass(frozen=True)
class Or:
    """Records that match at least one query."""

    queries: tuple["Query", ...]


Query = Phrase | Not | And | Or


def parse(text: str) -> Query | None:
    """Parse the text of the search box; returns None if it contains no token."""
    return _parse_group((match.groups("") for match in _LEXEME.finditer(text)), 0)


def _parse_group(lexemes: Iterator[tuple[str, ...]], depth: int) -> Query | None:
    """Parse until the lexemes end or a closing bracket."""
    result: Query | None = None
    is_or = False
    for minus, phrase, operator, word in lexemes:
        if operator == ")" and depth:
            break
        if operator in ("|", "+"):
            is_or = operator == "|"
        if operator == "(" and depth < _MAX_DEPTH:
            query = _parse_group(lexemes, depth + 1)
        else:
            query = _phrase(phrase or word, bool(word))
        if query is not None:
            query = Not(query) if len(minus) % 2 else query
            result = query if result is None else _join(result, query, is_or=is_or)
            is_or = False
    return result


def _phrase(text: str, is_word: bool) -> Query | None:
    """A phrase of the tokens of a text; None if it has no tokens."""
    tokens = tuple(tokenize(text))
    return Phrase(tokens, prefix=is_word and text.endswith("*")) if tokens else None


def _join(left: Query, right: Query, *, is_or: bool) -> Query:
    kind = Or if is_or else And
    # Runs of the same operator become one flat node: a query of thousands of words must not nest that deeply.
    return kind((*left.queries, right)) if isinstance(left, kind) else kind((left, right))


def ranking_phrases(query: Query) -> list[Phrase]:
    """The phrases that matches are ranked by: those that are not negated."""
    if isinstance(query, Phrase):
        return [query]
    return [] if isinstance(query, Not) else [phrase for inner in query.queries for phrase in ranking_phrases(inner)]


def count_phrases(query: Query) -> int:
    """Number of words and phrases of a query."""
    if isinstance(query, Phrase):
        return 1
    return count_phrases(query.query) if isinstance(query, Not) else sum(count_phrases(q) for q in query.queries)
