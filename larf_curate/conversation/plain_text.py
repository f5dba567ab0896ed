"""Tokens of plain text: with those that the tokenizer puts before it, such as BOS, as trainers have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, takewhile
from operator import itemgetter
from typing import Any, Self

from larf_curate.conversation.templates import Tokenizer


@dataclass(frozen=True)
class PlainEncoding:
    """Plain text as the tokenizer encodes it, with characters for the tokens before it and without those behind it.

    Args:
        ids: Token ids.
        offsets: First character of each token, and the one behind its last.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]

    @classmethod
    def of(cls, encoding: Any, before: Sequence[str]) -> Self:  # noqa: ANN401  of `tokenizers`
        """Convert the encoding of a text.

        Args:
            encoding: The text, encoded with special tokens by a fast tokenizer.
            before: The tokens before it, which stand at the start of the text that the offsets refer to.
        """
        ends = list(accumulate(map(len, before), initial=0))
        stop = len(before) + encoding.special_tokens_mask.count(0)  # special tokens of the text itself are 0 there
        shifted = [(start + ends[-1], end + ends[-1]) for start, end in encoding.offsets[len(before) : stop]]
        return cls(encoding.ids[:stop], [*pairwise(ends), *shifted])

    def token_to_chars(self, token_index: int) -> tuple[int, int]:
        """First character of a token, and the one behind its last."""
        return self.offsets[token_index]


def added_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The tokens that a tokenizer puts before plain text: BOS for many, ``[gMASK]<sop>`` for GLM, none for others."""
    [encoding] = tokenizer(["a"], add_special_tokens=True).encodings
    is_added = encoding.special_tokens_mask
    return tuple(token for token, _ in takewhile(itemgetter(1), zip(encoding.tokens, is_added, strict=True)))
