"""Detection of blocks that break the model when scaled: they are not safety-sensitive, whatever refusals do.

The measure is the loss on normal answers to harmless requests. The first tokens of each answer do not count, so that a
block that only makes the model refuse more is not mistaken for one that breaks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larf_curate.data import load_rows
from larf_curate.layers.replay import Pass, Replay
from larf_curate.layers.subject import Subject
from larf_curate.models.blocks import scaled

ANSWERS = 6
"""Number of harmless answers."""
SKIPPED_TOKENS = 3
"""Tokens at the start of an answer that do not count, since a refusal would begin there."""

MAX_LOSS_GROWTH = 1.0
"""Largest increase of the loss, in nats per token, of a sound block: 2.7 times the perplexity."""

LOSS_GROWTH_CAP = 100.0
"""Increase of the loss that is reported if it is larger, or if the loss is NaN."""

_SHORTEST, _LONGEST = 8, 32
"""Length in tokens of answers that are sentences, without `SKIPPED_TOKENS`."""


@dataclass(eq=False)
class NeutralLoss:
    """Loss on harmless answers, of the unchanged model or with one block scaled.

    Args:
        subject: The model.
    """

    subject: Subject

    def __post_init__(self) -> None:
        self._texts = _short_answers(self.subject)
        self._counts = [len(ids) - start - SKIPPED_TOKENS for ids, start in self._texts]
        self._replay = Replay(self.subject, [ids for ids, _ in self._texts], keep=[count + 1 for count in self._counts])
        self._baseline = self._loss(None)

    def growth(self, block: int, alphas: Sequence[float]) -> float:
        """Increase of the loss with a block scaled, in nats per token, at the worst of the scales.

        At most `LOSS_GROWTH_CAP`.
        """
        return max(self._growth(block, alpha) for alpha in alphas)

    def _growth(self, block: int, alpha: float) -> float:
        with scaled(self.subject.blocks[block], alpha):
            increase = self._loss(block) - self._baseline
        return min(increase, LOSS_GROWTH_CAP) if increase == increase else LOSS_GROWTH_CAP  # NaN differs from itself

    def _loss(self, block: int | None) -> float:
        losses = [self._row_loss(item, index) for item in self._replay(block) for index in range(len(item.batch.rows))]
        return float(torch.stack(losses).mean())

    def _row_loss(self, item: Pass, index: int) -> Tensor:
        """Mean loss over the tokens that count of one text of a batch."""
        row = item.batch.rows[index]
        count = self._counts[row]
        logits = item.logits[index, -count - 1 : -1].float()  # each position predicts the next token
        targets = torch.tensor(self._texts[row][0][-count:], device=logits.device)
        return torch.nn.functional.cross_entropy(logits, targets)


def _short_answers(subject: Subject) -> list[tuple[list[int], int]]:
    """The shortest packaged neutral rows whose answers are sentences: token ids, and index of each answer's start."""
    rows = subject.encode_answers(load_rows("neutral"))
    texts = [(ids, start) for ids, start in rows if len(ids) - start >= SKIPPED_TOKENS + 1]
    sentences = [(ids, start) for ids, start in texts if _SHORTEST <= len(ids) - start - SKIPPED_TOKENS <= _LONGEST]
    return sorted(sentences or texts, key=lambda text: len(text[0]))[:ANSWERS]
