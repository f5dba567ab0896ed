"""How a model's refusals and its helpful answers begin, and the log-odds between the two.

The first token tells most of them apart. Where one token begins both (``I'm sorry``, ``I'd be glad to``), the most
frequent such token is put behind the prompt and the token after it decides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ModelError
from larf_curate.layers.decoding import Answer
from larf_curate.layers.subject import Subject

CLEAR = 4.0
"""How many times more often a token must begin one kind of answer than the other to stand for it."""


@dataclass(frozen=True)
class Openings:
    """Tokens that begin refusals and tokens that begin helpful answers.

    Args:
        refusal: First tokens of refusals.
        compliance: First tokens of helpful answers.
        shared: A first token of both, followed by one of the next two to tell them apart; None if there is none.
        shared_refusal: Tokens behind ``shared`` in refusals.
        shared_compliance: Tokens behind ``shared`` in helpful answers.
    """

    refusal: tuple[int, ...]
    compliance: tuple[int, ...]
    shared: int | None = None
    shared_refusal: tuple[int, ...] = ()
    shared_compliance: tuple[int, ...] = ()

    @classmethod
    def tell_apart(cls, refusals: Sequence[Sequence[int]], compliances: Sequence[Sequence[int]]) -> "Openings":
        """Find the tokens that tell two kinds of answers apart.

        Args:
            refusals: Token ids of refusals, at least one.
            compliances: Token ids of helpful answers, at least one.

        Raises:
            ModelError: If the two kinds begin alike.
        """
        refusal, compliance, both = _sides([r[:1] for r in refusals], [c[:1] for c in compliances])
        second: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        if both is not None:
            after = [[answer[1:2] for answer in side if answer[0] == both] for side in (refusals, compliances)]
            second = _sides(*after)[:2]
            both = both if all(second) else None
        if both is None and not (refusal and compliance):
            raise ModelError(
                "the refusals of this model begin like its helpful answers, so log-odds of the beginning say nothing: "
                "use method='sweep' or 'separation'"
            )
        return cls(refusal, compliance, both, *(second if both is not None else ((), ())))

    def extend(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Prompts with the shared token behind them, if there is one."""
        return [[*ids, self.shared] for ids in prompts] if self.shared is not None else list(prompts)

    @property
    def positions(self) -> int:
        """Number of last positions of an extended prompt whose logits are read."""
        return 1 if self.shared is None else 2

    def log_odds(self, logits: Tensor) -> Tensor:
        """Log-odds of beginning a refusal against beginning a helpful answer.

        Args:
            logits: Logits at the last ``positions`` of n extended prompts, shape (n, positions, vocabulary).

        Returns:
            Shape (n,), float32; high = refusing.
        """
        logs = torch.log_softmax(logits.float(), dim=-1)
        sides = [logs[:, 0, list(tokens)] for tokens in (self.refusal, self.compliance)]
        if self.shared is not None:
            first = logs[:, 0, self.shared, None]
            followed = (self.shared_refusal, self.shared_compliance)
            sides = [torch.cat([s, first + logs[:, 1, list(t)]], 1) for s, t in zip(sides, followed, strict=True)]
        refusing, complying = (side.logsumexp(1) for side in sides)
        return refusing - complying


def find_openings(subject: Subject, answers: Sequence[Answer], references: ReferenceSet) -> Openings:
    """Learn the openings from a model's own answers and from reference answers.

    Args:
        subject: The model.
        answers: Its answers to the prompts, some refused.
        references: Safe answers are refusals too, unsafe ones comply.

    Raises:
        ModelError: If refusals and helpful answers begin alike.
    """
    refusals = [answer.ids for answer in answers if answer.refused]
    compliances = [answer.ids for answer in answers if not answer.refused]
    safe, unsafe = (
        [ids[start:] for ids, start in subject.answers(side)] for side in (references.safe, references.unsafe)
    )
    return Openings.tell_apart(refusals + safe, compliances + unsafe)


def _sides(
    refusals: Sequence[Sequence[int]], compliances: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """Tokens of refusals, tokens of helpful answers, and the most frequent token of both."""
    counts = [Counter(answer[0] for answer in side if answer) for side in (refusals, compliances)]
    shares = [{token: n / max(side.total(), 1) for token, n in side.items()} for side in counts]
    repeated = {token for side in counts for token, n in side.items() if n > 1} or set().union(*counts)

    def ratio(token: int) -> float:
        ours, theirs = (side.get(token, 0.0) for side in shares)
        return ours / theirs if theirs else float("inf")

    ordered = sorted(repeated)
    refusing = tuple(token for token in ordered if ratio(token) >= CLEAR)
    complying = tuple(token for token in ordered if ratio(token) <= 1 / CLEAR)
    unclear = [token for token in ordered if 1 / CLEAR < ratio(token) < CLEAR]
    both = max(unclear, key=lambda token: min(side[token] for side in shares), default=None)
    return refusing, complying, both
