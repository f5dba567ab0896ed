"""The four methods of finding safety-sensitive blocks; each turns a task into a finding."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from larf_curate.conversation.refusals import REFUSAL_PATTERNS, RefusalDetector
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ModelError
from larf_curate.layers.decoding import DecodedAnswer, decode
from larf_curate.layers.gradient import block_gradients
from larf_curate.layers.grid import Cell, Grid, GridStore, evaluate_grid, rank_blocks
from larf_curate.layers.method import Method
from larf_curate.layers.openings import Openings, find_openings
from larf_curate.layers.replay import Replay
from larf_curate.layers.separation import measure_separation
from larf_curate.layers.subject import Subject
from larf_curate.models.blocks import scaled
from larf_curate.progress import progress
from larf_curate.stats import Floats, mean_interval, percentile_interval

NEW_TOKENS = 32
"""Longest answer of LARF's sweep in tokens."""

OPENING_TOKENS = 16
"""Longest answer in tokens where only the beginning matters."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Inputs of a method.

    Args:
        subject: The model, frozen.
        prompts: Over-rejection prompts.
        references: Unsafe and safe answers.
        alphas: Scales in rising order.
        refuses: Detects refusals.
        checkpoint: File of finished cells; None to store none.
    """

    subject: Subject
    prompts: Sequence[str]
    references: ReferenceSet
    alphas: tuple[float, ...]
    refuses: RefusalDetector
    checkpoint: Path | None


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockFinding:
    """Result of a method for every block.

    Args:
        scores: Score of each block, shape (blocks,), higher is more sensitive.
        low: Lower bounds of the scores' 95 % intervals, shape (blocks,).
        high: Upper bounds, shape (blocks,).
        ranking: All blocks, the most sensitive first.
        grid: Values at every scale; None if the method has no grid.
        baseline: Mean value with nothing scaled.
        refused: Number of prompts refused with nothing scaled.
        measures: Further columns by name, each of shape (blocks,).
    """

    scores: Floats
    low: Floats
    high: Floats
    ranking: list[int]
    grid: Grid | None = None
    baseline: float | None = None
    refused: int | None = None
    measures: Mapping[str, Floats] = field(default_factory=dict)


def sweep(task: Task) -> BlockFinding:
    """LARF's procedure: for every block and scale, scale the block, decode 32 tokens per prompt, count refusals."""
    subject = task.subject
    replay = Replay(subject, subject.encode_prompts(task.prompts, new_tokens=NEW_TOKENS))
    # This run also records the outputs of all blocks, which the cells replay.
    refused = _count_refusals(_decode_answers(task, replay, NEW_TOKENS), subject.name)
    key = _checkpoint_key(
        task, "sweep", replay, task.refuses.keywords or REFUSAL_PATTERNS, task.refuses.fold_apostrophes
    )
    grid = evaluate_grid(
        refusal_cell(subject, replay, task.refuses),
        len(subject.blocks),
        task.alphas,
        GridStore(task.checkpoint, key),
        title="Sweep",
    )
    return _grid_finding(grid, *grid.gains[1:], baseline=refused / len(task.prompts), refused=refused)


def refusal_cell(subject: Subject, replay: Replay, refuses: RefusalDetector) -> Cell:
    """Make the function that computes, with one block scaled, whether each prompt is refused (1) or not (0)."""

    def cell(block: int, alpha: float) -> list[float]:
        with scaled(subject.blocks[block], alpha):
            answers = decode(subject, list(replay(block)), refuses, new_tokens=NEW_TOKENS)
        return [float(answer.refused) for answer in answers]

    return cell


def forward(task: Task) -> BlockFinding:
    """The grid without decoding: log-odds of beginning a refusal, from one forward pass per cell.

    As in the sweep, the number of prompts that lean to a refusal counts: a block that only makes refused prompts even
    more likely to be refused changes nothing. A prompt leans to a refusal if its log-odds exceed the threshold at which
    the unscaled model has as many prompts as it refuses.
    """
    subject = task.subject
    prompts, openings, refused = _prepare(task)
    replay = Replay(subject, openings.extend(prompts), keep=openings.positions)
    threshold = decision_threshold(_log_odds(replay, openings, None), refused)
    store = GridStore(task.checkpoint, _checkpoint_key(task, "forward", replay, repr(openings)))

    def cell(block: int, alpha: float) -> list[float]:
        with scaled(subject.blocks[block], alpha):
            return _log_odds(replay, openings, block)

    odds = evaluate_grid(cell, len(subject.blocks), task.alphas, store, title="Forward")
    leaning = Grid(odds.alphas, (odds.values > threshold).astype(np.float64))
    gain = odds.gains[0]
    return _grid_finding(leaning, gain, baseline=refused / len(prompts), refused=refused, measures={"log_odds": gain})


def decision_threshold(odds: Sequence[float], refused: int) -> float:
    """Threshold that as many log-odds exceed as prompts are refused; 0 if possible.

    Args:
        odds: Log-odds of every prompt.
        refused: Number of refused prompts, at least one and not all.
    """
    ordered = sorted(odds, reverse=True)
    above, below = ordered[refused - 1], ordered[refused]
    return 0.0 if below <= 0 < above else (above + below) / 2


def _log_odds(replay: Replay, openings: Openings, block: int | None) -> list[float]:
    """Log-odds of every prompt, run from a block on; None to run all blocks and record them."""
    values: dict[int, float] = {}
    for item in replay(block):
        # A scaled block can overflow the dtype; a finite value keeps the cell in the grid.
        odds = torch.nan_to_num(openings.log_odds(item.logits), nan=0.0, posinf=100.0, neginf=-100.0)
        values |= zip(item.batch.rows, odds.tolist(), strict=True)
    return [values[row] for row in sorted(values)]


def gradient(task: Task) -> BlockFinding:
    """Derivative of the log-odds with respect to each block's scale, from one forward and one backward pass."""
    prompts, openings, refused = _prepare(task)
    # A prompt whose derivative is not finite counts as unaffected, so that it does not hide all others.
    effects = np.nan_to_num(block_gradients(task.subject, prompts, openings), posinf=0.0, neginf=0.0)
    scores = effects.mean(1)
    low, high = mean_interval(effects)
    return BlockFinding(scores=scores, low=low, high=high, ranking=rank_blocks(scores), refused=refused)


def separation(task: Task) -> BlockFinding:
    """Held-out separation of unsafe and safe references; nothing is scaled."""
    found = measure_separation(task.subject, task.references)
    low, high = percentile_interval(found.resampled)
    return BlockFinding(
        scores=found.fisher, low=low, high=high, ranking=rank_blocks(found.fisher), measures={"auroc": found.auroc}
    )


METHODS: dict[Method, Callable[[Task], BlockFinding]] = {
    "gradient": gradient,
    "forward": forward,
    "sweep": sweep,
    "separation": separation,
}


def _prepare(task: Task) -> tuple[list[list[int]], Openings, int]:
    """Token ids of the prompts, first tokens of refusals and helpful answers, and the number of refused prompts."""
    prompts = task.subject.encode_prompts(task.prompts, new_tokens=OPENING_TOKENS)
    answers = _decode_answers(task, Replay(task.subject, prompts), OPENING_TOKENS)
    refused = _count_refusals(answers, task.subject.name)
    return prompts, find_openings(task.subject, answers, task.references), refused


def _decode_answers(task: Task, replay: Replay, new_tokens: int) -> list[DecodedAnswer]:
    with progress(total=len(task.prompts), label="Answers to prompts", unit="prompt") as bar:
        return decode(task.subject, list(replay()), task.refuses, new_tokens=new_tokens, advance=bar.update)


def _count_refusals(answers: Sequence[DecodedAnswer], model: str) -> int:
    """Number of refusals.

    Raises:
        ModelError: If no prompt or every prompt is refused: scaling a block could not change anything measurable.
    """
    refused = sum(answer.refused for answer in answers)
    if 0 < refused < len(answers):
        return refused
    what = "none" if refused == 0 else "all"
    raise ModelError(
        f"{model} refuses {what} of {len(answers)} prompts, so refusals do not distinguish its blocks: "
        "use method='separation' (--method separation), or prompts of which it refuses some; of a model that thinks "
        "before it answers, use a chat template that turns thinking off"
    )


def _grid_finding(
    grid: Grid, *ties: Floats, baseline: float, refused: int, measures: Mapping[str, Floats] | None = None
) -> BlockFinding:
    """Rank blocks by the widest pair of scales, ties by further criteria."""
    low, high = mean_interval(grid.effects)
    return BlockFinding(
        scores=grid.gains[0],
        low=low,
        high=high,
        ranking=rank_blocks(grid.gains[0], *ties),
        grid=grid,
        baseline=baseline,
        refused=refused,
        measures=measures or {},
    )


def _checkpoint_key(task: Task, *parts: object) -> str:
    """Digest of everything that a cell's values depend on, except block and scale.

    Cells of another model, other prompts or other keywords in the same file are thus never reused.
    """
    texts = [part.texts if isinstance(part, Replay) else part for part in parts]
    return hashlib.sha256(json.dumps([task.subject.digest(), *texts]).encode()).hexdigest()
