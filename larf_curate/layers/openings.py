"""First tokens of a model's refusals and of its helpful answers, and the log-odds between the two.

The first token distinguishes most of them. If one token begins both (``I'm sorry``, ``I'd be glad to``), the most
frequent such token is appended to the prompt, and the token after it decides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ModelError
from larf_curate.layers.decoding import DecodedAnswer
from larf_curate.layers.subject import Subject

MIN_RATIO = 4.0
"""How many times more often a token must begin one kind of answer than the other to count as an opening of it."""


@dataclass(frozen=True)
class Openings:
    """Tokens that begin refusals and tokens that begin helpful answers.

    Its ``repr`` is part of the keys of checkpoint files, so renaming the class or a field invalidates them.

    Args:
        refusal: First tokens of refusals.
        compliance: First tokens of helpful answers.
        shared: A first token of both kinds, after which the next token decides; None if there is none.
        shared_refusal: Tokens that follow ``shared`` in refusals.
        shared_compliance: Tokens that follow ``shared`` in helpful answers.
    """

    refusal: tuple[int, ...]
    compliance: tuple[int, ...]
    shared: int | None = None
    shared_refusal: tuple[int, ...] = ()
    shared_compliance: tuple[int, ...] = ()

    @classmethod
    def from_answers(cls, refusals: Sequence[Sequence[int]], compliances: Sequence[Sequence[int]]) -> "Openings":
        """Find the tokens that distinguish refusals from helpful answers.

        Args:
            refusals: Token ids of refusals, at least one.
            compliances: Token ids of helpful answers, at least one.

        Raises:
            ModelError: If both kinds begin with the same tokens.
        """
        refusal, compliance, both = _distinguishing_tokens([r[:1] for r in refusals], [c[:1] for c in compliances])
        second: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        if both is not None:
            after = [[answer[1:2] for answer in side if answer[0] == both] for side in (refusals, compliances)]
            second = _distinguishing_tokens(*after)[:2]
            both = both if all(second) else None
        if both is None and not (refusal and compliance):
            raise ModelError(
                "the refusals of this model begin like its helpful answers, so first tokens do not distinguish them: "
                "use method='sweep' or 'separation'"
            )
        return cls(refusal, compliance, both, *(second if both is not None else ((), ())))

    def extend(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """Append the shared token, if there is one, to the token ids of prompts."""
        return [[*ids, self.shared] for ids in prompts] if self.shared is not None else list(prompts)

    @property
    def positions(self) -> int:
        """Number of positions at the end of an extended prompt whose logits are needed."""
        return 1 if self.shared is None else 2

    def log_odds(self, logits: Tensor) -> Tensor:
        """Log-odds of beginning a refusal rather than a helpful answer.

        Args:
            logits: Logits at the last ``positions`` of n extended prompts, shape (n, positions, vocabulary).

        Returns:
            Shape (n,), float32, unbounded; higher is more likely to refuse.
        """
        logs = torch.log_softmax(logits.float(), dim=-1)
        sides = [logs[:, 0, list(tokens)] for tokens in (self.refusal, self.compliance)]
        if self.shared is not None:
            # Probability of the shared token, times that of each token after it.
            first = logs[:, 0, self.shared, None]
            followed = (self.shared_refusal, self.shared_compliance)
            sides = [torch.cat([s, first + logs[:, 1, list(t)]], 1) for s, t in zip(sides, followed, strict=True)]
        refusing, complying = (side.logsumexp(1) for side in sides)
        return refusing - complying


def find_openings(subject: Subject, answers: Sequence[DecodedAnswer], references: ReferenceSet) -> Openings:
    """Find the openings in a model's own answers and in reference answers.

    Args:
        subject: The model.
        answers: Its answers to the prompts, some of them refusals.
        references: Their safe answers count as refusals, their unsafe ones as helpful answers.

    Raises:
        ModelError: If refusals and helpful answers begin with the same tokens.
    """
    refusals = [answer.ids for answer in answers if answer.refused]
    compliances = [answer.ids for answer in answers if not answer.refused]
    safe, unsafe = (
        [ids[start:] for ids, start in subject.encode_answers(side)] for side in (references.safe, references.unsafe)
    )
    return Openings.from_answers(refusals + safe, compliances + unsafe)


def _distinguishing_tokens(
    refusals: Sequence[Sequence[int]], compliances: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], tuple[int, ...], int | None]:
    """First tokens of refusals only, of helpful answers only, and the most frequent one of both."""
    counts = [Counter(answer[0] for answer in side if answer) for side in (refusals, compliances)]
    shares = [{token: n / max(side.total(), 1) for token, n in side.items()} for side in counts]
    # A token that occurs once is weak evidence, so it counts only if no token is repeated.
    repeated = {token for side in counts for token, n in side.items() if n > 1} or set().union(*counts)

    def ratio(token: int) -> float:
        ours, theirs = (side.get(token, 0.0) for side in shares)
        return ours / theirs if theirs else float("inf")

    ordered = sorted(repeated)
    refusing = tuple(token for token in ordered if ratio(token) >= MIN_RATIO)
    complying = tuple(token for token in ordered if ratio(token) <= 1 / MIN_RATIO)
    unclear = [token for token in ordered if 1 / MIN_RATIO < ratio(token) < MIN_RATIO]
    both = max(unclear, key=lambda token: min(side[token] for side in shares), default=None)
    return refusing, complying, both
