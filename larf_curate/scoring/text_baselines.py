"""Text-only baselines (length, TF-IDF) as signals of scored rows: what can be predicted without hidden states."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from larf_curate.conversation.chat_template import Rendered
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile import SIDES, SafetyProfile
from larf_curate.profile.source_rows import reference_rows
from larf_curate.signals.baselines import BASELINES, Baseline
from larf_curate.states import Vectors


@dataclass(frozen=True, eq=False)
class TextBaselines:
    """Scores conversations by their text alone.

    Args:
        baselines: Fitted baselines by name.
    """

    baselines: dict[str, Baseline] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str], profile: SafetyProfile, reader: StateReader) -> "TextBaselines":
        """Fit baselines to the texts of a profile's references (unsafe) against its safe and neutral rows.

        Args:
            names: Names in `BASELINES`.
            profile: The profile.
            reader: Reader of the profile's model, whose tokenizer truncates the texts as it does when scoring.

        Raises:
            ProfileError: If the texts are not available.
        """
        if not names:
            return cls()
        rows, renderer = reference_rows(profile), reader.renderer(keep_texts=True)
        sides = [[item.texts[-1] for item in renderer(getattr(rows, side)) if item.tokens] for side in SIDES]
        unsafe, safe, neutral = sides
        return cls({name: BASELINES[name](unsafe, safe + neutral) for name in names})

    def __call__(self, rendered: Sequence[Rendered]) -> dict[str, Vectors]:
        """Score every assistant turn with every baseline.

        Args:
            rendered: Tokenized conversations with their texts, with t assistant turns in total.

        Returns:
            Scores by name of the baseline, shape (t,), float32; higher means closer to unsafe.
        """
        texts = [text for item in rendered for text in item.texts]
        return {name: np.asarray(score(texts), np.float32) for name, score in self.baselines.items()}
