"""Which blocks break the model when they are scaled: such a block is not safety-sensitive, whatever refusals do.

The measure is the loss on ordinary answers to harmless requests. The first tokens of each answer do not count, so that
a block that merely makes the model refuse more is not taken for one that destroys it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larf_curate.data import load_rows
from larf_curate.layers.replay import Pass, Replay
from larf_curate.layers.subject import Subject
from larf_curate.models.blocks import scaled

ROWS = 6
OPENING = 3
"""Tokens of an answer that do not count: there a refusal would begin."""

ALLOWED = 1.0
"""Largest growth of the loss, in nats a token, that a block may cause: 2.7 times the perplexity."""

HOPELESS = 100.0
"""Growth of the loss reported where it is larger, or where the model gives no numbers any more."""

_SHORTEST, _LONGEST = 8, 32


@dataclass(eq=False)
class NeutralLoss:
    """Loss on harmless answers, of the model as it is or with one block scaled.

    Args:
        subject: The model.
    """

    subject: Subject

    def __post_init__(self) -> None:
        self._texts = _short_answers(self.subject)
        self._counts = [len(ids) - start - OPENING for ids, start in self._texts]
        self._replay = Replay(self.subject, [ids for ids, _ in self._texts], keep=max(self._counts) + 1)
        self._plain = self._loss(None)

    def growth(self, block: int, alphas: Sequence[float]) -> float:
        """How much the loss grows, in nats a token, at the worst of some scales; at most `HOPELESS`."""
        return max(self._growth(block, alpha) for alpha in alphas)

    def _growth(self, block: int, alpha: float) -> float:
        with scaled(self.subject.blocks[block], alpha):
            loss = self._loss(block) - self._plain
        return min(loss, HOPELESS) if loss == loss else HOPELESS

    def _loss(self, block: int | None) -> float:
        losses = [self._row_loss(item, place) for item in self._replay(block) for place in range(len(item.batch.rows))]
        return float(torch.stack(losses).mean())

    def _row_loss(self, item: Pass, place: int) -> Tensor:
        row = item.batch.rows[place]
        count = self._counts[row]
        logits = item.logits[place, -count - 1 : -1].float()
        targets = torch.tensor(self._texts[row][0][-count:], device=logits.device)
        return torch.nn.functional.cross_entropy(logits, targets)


def _short_answers(subject: Subject) -> list[tuple[list[int], int]]:
    """Token ids of the shortest packaged neutral rows whose answers are sentences, and where each answer starts."""
    rows = subject.answers(load_rows("neutral"))
    texts = [(ids, start) for ids, start in rows if len(ids) - start >= OPENING + 1]
    sentences = [(ids, start) for ids, start in texts if _SHORTEST <= len(ids) - start - OPENING <= _LONGEST]
    return sorted(sentences or texts, key=lambda text: len(text[0]))[:ROWS]
