"""The four ways of finding safety-sensitive blocks; each takes a task and gives a finding."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from larf_curate.conversation.refusals import REFUSING, RefusalDetector
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ModelError
from larf_curate.layers.decoding import Answer, decode
from larf_curate.layers.gradient import block_gradients
from larf_curate.layers.grid import Cell, Grid, GridStore, fill, ranking
from larf_curate.layers.openings import Openings, find_openings
from larf_curate.layers.replay import Replay
from larf_curate.layers.report import Method
from larf_curate.layers.separation import separate
from larf_curate.layers.subject import Subject
from larf_curate.models.blocks import scaled
from larf_curate.stats import Floats, interval, mean_interval

NEW_TOKENS = 32
"""Length of an answer in LARF's sweep."""

OPENING_TOKENS = 16
"""Length of an answer where only its beginning matters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What layers are sought with.

    Args:
        subject: The model, at rest.
        prompts: Over-rejection prompts.
        references: Unsafe and safe answers.
        alphas: Scales in rising order.
        refuses: Finds refusals.
        checkpoint: File of finished cells, if they are kept.
    """

    subject: Subject
    prompts: Sequence[str]
    references: ReferenceSet
    alphas: tuple[float, ...]
    refuses: RefusalDetector
    checkpoint: Path | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """What a method says of every block.

    Args:
        scores: Shape (blocks,).
        low: Lower bounds of their intervals, shape (blocks,).
        high: Upper bounds, shape (blocks,).
        ranking: All blocks, the most sensitive first.
        grid: Values at every scale, if there are several.
        baseline: Mean value with nothing scaled.
        refused: Prompts refused with nothing scaled.
        measures: Further columns, each of shape (blocks,).
    """

    scores: Floats
    low: Floats
    high: Floats
    ranking: list[int]
    grid: Grid | None = None
    baseline: float | None = None
    refused: int | None = None
    measures: Mapping[str, Floats] = field(default_factory=dict)


def sweep(task: Task) -> Finding:
    """LARF's procedure: scale one block, decode 32 tokens, count refusals; all blocks, all scales."""
    subject = task.subject
    replay = Replay(subject, subject.ask(task.prompts, room=NEW_TOKENS))
    refused = _count(_answers(task, replay, NEW_TOKENS), subject.name)
    key = _key(task, "sweep", replay, task.refuses.keywords or REFUSING, task.refuses.fold_apostrophes)
    grid = fill(
        refusal_cell(subject, replay, task.refuses),
        len(subject.blocks),
        task.alphas,
        GridStore(task.checkpoint, key),
        title="sweep",
    )
    return _of_grid(grid, *grid.gains[1:], baseline=refused / len(task.prompts), refused=refused)


def refusal_cell(subject: Subject, replay: Replay, refuses: RefusalDetector) -> Cell:
    """Make the function that says of each prompt whether it is refused (1) or not (0) with one block scaled."""

    def cell(block: int, alpha: float) -> list[float]:
        with scaled(subject.blocks[block], alpha):
            answers = decode(subject, list(replay(block)), refuses, new_tokens=NEW_TOKENS)
        return [float(answer.refused) for answer in answers]

    return cell


def forward(task: Task) -> Finding:
    """The grid without decoding: log-odds of beginning a refusal, from one pass a cell.

    What counts is how many prompts lean to a refusal, as in the sweep: a block that pushes prompts further that are
    refused anyway changes nothing. The border is where the model as it is has as many above it as it refuses.
    """
    subject = task.subject
    prompts, openings, refused = _begin(task)
    replay = Replay(subject, openings.extend(prompts), keep=openings.positions)
    border = border_of(_log_odds(replay, openings, None), refused)
    store = GridStore(task.checkpoint, _key(task, "forward", replay, repr(openings)))

    def cell(block: int, alpha: float) -> list[float]:
        with scaled(subject.blocks[block], alpha):
            return _log_odds(replay, openings, block)

    odds = fill(cell, len(subject.blocks), task.alphas, store, title="forward")
    leaning = Grid(odds.alphas, (odds.values > border).astype(np.float64))
    gain = odds.gains[0]
    return _of_grid(leaning, gain, baseline=refused / len(prompts), refused=refused, measures={"log_odds": gain})


def border_of(odds: Sequence[float], refused: int) -> float:
    """A value that as many log-odds lie above as prompts are refused, 0 if it may be; 0 < refused < all."""
    ordered = sorted(odds, reverse=True)
    above, below = ordered[refused - 1], ordered[refused]
    return 0.0 if below <= 0 < above else (above + below) / 2


def _log_odds(replay: Replay, openings: Openings, block: int | None) -> list[float]:
    """Each prompt's log-odds, run from a block on."""
    values: dict[int, float] = {}
    for item in replay(block):
        odds = torch.nan_to_num(openings.log_odds(item.logits), nan=0.0, posinf=100.0, neginf=-100.0)
        values |= zip(item.batch.rows, odds.tolist(), strict=True)
    return [values[row] for row in sorted(values)]


def gradient(task: Task) -> Finding:
    """The derivative of the log-odds by every block's scale, from one forward and one backward pass."""
    prompts, openings, refused = _begin(task)
    effects = np.nan_to_num(block_gradients(task.subject, prompts, openings), posinf=0.0, neginf=0.0)
    scores = effects.mean(1)
    low, high = mean_interval(effects)
    return Finding(scores=scores, low=low, high=high, ranking=ranking(scores), refused=refused)


def separation(task: Task) -> Finding:
    """Held-out separation of unsafe and safe references; nothing is scaled."""
    found = separate(task.subject, task.references)
    low, high = interval(found.resampled)
    return Finding(
        scores=found.fisher, low=low, high=high, ranking=ranking(found.fisher), measures={"auroc": found.auroc}
    )


METHODS: dict[Method, Callable[[Task], Finding]] = {
    "gradient": gradient,
    "forward": forward,
    "sweep": sweep,
    "separation": separation,
}


def _begin(task: Task) -> tuple[list[list[int]], Openings, int]:
    """Token ids of the prompts, what tells refusals from helpful answers, and how many prompts are refused."""
    prompts = task.subject.ask(task.prompts, room=OPENING_TOKENS)
    answers = _answers(task, Replay(task.subject, prompts), OPENING_TOKENS)
    refused = _count(answers, task.subject.name)
    return prompts, find_openings(task.subject, answers, task.references), refused


def _answers(task: Task, replay: Replay, new_tokens: int) -> list[Answer]:
    return decode(task.subject, list(replay()), task.refuses, new_tokens=new_tokens)


def _count(answers: Sequence[Answer], model: str) -> int:
    """Number of refusals.

    Raises:
        ModelError: If nothing or everything is refused: then there is nothing to react to a scale.
    """
    refused = sum(answer.refused for answer in answers)
    if 0 < refused < len(answers):
        return refused
    what = "none" if refused == 0 else "all"
    raise ModelError(
        f"{model} refuses {what} of {len(answers)} prompts, so no block can be told by its refusals: "
        "use method='separation' (--method separation), or prompts that it refuses now and then"
    )


def _of_grid(
    grid: Grid, *ties: Floats, baseline: float, refused: int, measures: Mapping[str, Floats] | None = None
) -> Finding:
    """Judge blocks by the widest pair of scales, ties by further criteria."""
    low, high = mean_interval(grid.effects)
    return Finding(
        scores=grid.gains[0],
        low=low,
        high=high,
        ranking=ranking(grid.gains[0], *ties),
        grid=grid,
        baseline=baseline,
        refused=refused,
        measures=measures or {},
    )


def _key(task: Task, *parts: object) -> str:
    """Digest of what a cell's values depend on beside block and scale."""
    texts = [part.texts if isinstance(part, Replay) else part for part in parts]
    return hashlib.sha256(json.dumps([task.subject.digest(), *texts]).encode()).hexdigest()
