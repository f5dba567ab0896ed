"""The baselines as signals: what length and words alone say of rows that a profile scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from larf_curate.conversation.chat_template import Renderer, Tokenizer, Tokens
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile import SIDES, SafetyProfile
from larf_curate.profile.source_rows import reference_rows
from larf_curate.signals.baselines import BASELINES, Baseline
from larf_curate.states import Vectors


@dataclass(frozen=True, eq=False)
class Wording:
    """Scores conversations by their words, read from their tokens, so that no row is needed beside them.

    Args:
        tokenizer: Turns tokens into text; special tokens are left out.
        baselines: What scores the texts, by name.
    """

    tokenizer: Tokenizer
    baselines: dict[str, Baseline]

    @classmethod
    def of(cls, names: Sequence[str], profile: SafetyProfile, reader: StateReader) -> "Wording":
        """Fit baselines on the texts of a profile's references and neutral rows.

        Args:
            names: Names in `BASELINES`.
            profile: The profile.
            reader: Its model.

        Raises:
            ProfileError: If the texts are not at hand.
        """
        if not names:
            return cls(reader.tokenizer, {})
        rows, renderer = reference_rows(profile), Renderer(reader.tokenizer, reader.max_length)
        sides = [[item.tokens for item in renderer(getattr(rows, side)) if item.tokens] for side in SIDES]
        unsafe, safe, neutral = ([_texts(reader.tokenizer, item)[-1] for item in side] for side in sides)
        return cls(reader.tokenizer, {name: BASELINES[name](unsafe, safe + neutral) for name in names})

    def __call__(self, conversations: Sequence[Tokens]) -> dict[str, Vectors]:
        """Scores of every assistant turn by baseline, shape (turns,), float32, high = unsafe."""
        if not self.baselines:
            return {}
        texts = [text for item in conversations for text in _texts(self.tokenizer, item)]
        return {name: np.asarray(score(texts), np.float32) for name, score in self.baselines.items()}


def _texts(tokenizer: Tokenizer, conversation: Tokens) -> list[str]:
    """The conversation up to the end of each of its assistant turns."""
    ids = conversation.ids
    return [tokenizer.decode(ids[: turn.end + 1], skip_special_tokens=True) for turn in conversation.turns]
