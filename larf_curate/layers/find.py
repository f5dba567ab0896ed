"""`find_safety_layers`: find the safety-sensitive blocks of a model in one call."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from larf_curate.conversation.refusals import Keywords, RefusalDetector
from larf_curate.data.prompts import Prompts, overrejection_prompts
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError
from larf_curate.layers.grid import ALPHAS, OUTERMOST, check_alphas
from larf_curate.layers.method import Method
from larf_curate.layers.methods import METHODS, BlockFinding, Task
from larf_curate.layers.report import LayerReport
from larf_curate.layers.soundness import MAX_LOSS_GROWTH, NeutralLoss
from larf_curate.layers.subject import Subject, load_subject
from larf_curate.models.dtypes import Dtype
from larf_curate.progress import progress

TOP = 5
"""Most layers to recommend by default."""
GRADIENT_PROMPTS = 48
"""Prompts of the gradient method by default: its values are continuous, so that fewer give narrow intervals."""


def find_safety_layers(
    model: Any,  # noqa: ANN401  a path, an id, or a model of transformers or PEFT
    *,
    method: Method = "gradient",
    prompts: Prompts = None,
    references: ReferenceSet | str | Path = "builtin",
    alphas: Sequence[float] | None = None,
    max_prompts: int | None = None,
    keywords: Keywords = "default",
    top: int = TOP,
    checkpoint: str | Path | None = None,
    tokenizer: Any = None,  # noqa: ANN401
    device: str | None = None,
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LayerReport:
    """Find the decoder blocks that a model's refusals depend on most.

    Weights are scaled in place and restored exactly, even after an error or an interrupt.

    Args:
        model: A local folder, a Hub id, or a loaded causal language model.
        method: ``gradient``: derivative of the log-odds of a refusal with respect to each block's scale, fast.
            ``forward``: number of prompts whose log-odds lean to a refusal, over a grid of blocks and scales, minutes.
            ``sweep``: LARF's procedure, refusals counted in decoded answers over the grid, slowest. ``separation``: how
            well states separate unsafe from safe references, for models that never or always refuse.
        prompts: Harmless prompts that sound harmful; see `overrejection_prompts`. Default: the built-in set.
        references: A set, or an argument of `ReferenceSet.load`; used for the openings of refusals, and by
            ``separation``.
        alphas: Scales of the grid, as many below 1 as above. Default: those of the paper for ``sweep``, the outermost
            two of them for the other methods.
        max_prompts: Most prompts to use, evenly spaced in the list. Default: 48 for ``gradient``, whose values are
            continuous and need fewer, and all for the other methods.
        keywords: What counts as a refusal: ``default``, ``larf`` for the authors' four keywords, or phrases.
        top: Most layers to recommend.
        checkpoint: A file of finished grid cells, from which an interrupted ``sweep`` or ``forward`` is resumed.
        tokenizer: The tokenizer of a loaded model. Default: loaded from the model's folder or Hub id.
        device: A torch device. Default: the first available accelerator.
        dtype: ``auto`` is bfloat16 where the hardware supports it natively, float32 elsewhere.
        revision: Commit, tag or branch of a Hub id.
        trust_remote_code: Whether code from the model's repository may run.

    Returns:
        The ranked blocks; `LayerReport.layers` is empty if no block differs from chance.

    Raises:
        InputError: If the method, scales, prompts or keywords cannot be used.
        ModelError: If the model cannot be loaded or scaled, or refuses no prompt or all of them.
        ReferenceSetError: If the references cannot be used.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise InputError(f"wanted a method among {', '.join(METHODS)}, got {method!r}")
    if top < 1:
        raise InputError(f"wanted at least one layer to recommend, got top={top}")
    scales = check_alphas((ALPHAS if method == "sweep" else OUTERMOST) if alphas is None else alphas)
    refuses = RefusalDetector.named(keywords)
    texts = _subsample(overrejection_prompts(prompts), GRADIENT_PROMPTS if method == "gradient" else None, max_prompts)
    refs = references if isinstance(references, ReferenceSet) else ReferenceSet.load(references)
    subject = load_subject(
        model, tokenizer=tokenizer, device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    task = Task(
        subject=subject,
        prompts=texts,
        references=refs,
        alphas=scales,
        refuses=refuses,
        checkpoint=Path(checkpoint) if checkpoint else None,
    )
    with subject.frozen():
        finding = METHODS[method](task)
        growth = _loss_growth(subject, finding, scales, top)
    count = len(refs) if method == "separation" else len(texts)
    return _report(method, subject, finding, growth, top=top, count=count, start=start)


def _subsample(prompts: list[str], default: int | None, maximum: int | None) -> list[str]:
    """Prompts evenly spaced in the list: at most ``maximum`` if given, else ``default`` if given, else all."""
    count = maximum if maximum is not None else default or len(prompts)
    if count < 1:
        raise InputError(f"wanted at least one prompt, got max_prompts={count}")
    if count >= len(prompts):
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _loss_growth(subject: Subject, finding: BlockFinding, scales: tuple[float, ...], top: int) -> dict[int, float]:
    """Increase of the loss on harmless answers at the outermost scales, by block.

    After a grid, which has scaled all blocks, all are checked. Otherwise only candidates are, in order of rank, until
    enough of them are sound.
    """
    loss, growth, blocks = NeutralLoss(subject), dict[int, float](), _candidates(finding)
    needed = len(blocks) if finding.grid else min(top, len(blocks))
    done = 0
    with progress(total=needed, label="Loss on harmless answers", unit="block") as bar:
        for block in blocks:
            if done == needed:
                break
            growth[block] = loss.growth(block, (scales[0], scales[-1]))
            counts = finding.grid is not None or growth[block] <= MAX_LOSS_GROWTH
            done += counts
            bar.update(counts)
    return growth


def _candidates(finding: BlockFinding) -> list[int]:
    """Blocks to check, in order of rank: all of a grid, else those whose interval is above zero."""
    return [block for block in finding.ranking if finding.grid is not None or finding.low[block] > 0]


def _report(
    method: Method,
    subject: Subject,
    finding: BlockFinding,
    growth: dict[int, float],
    *,
    top: int,
    count: int,
    start: float,
) -> LayerReport:
    # Blocks that were not checked may be broken, so they stay in the ranking but are not recommended.
    broken = tuple(sorted(block for block, value in growth.items() if value > MAX_LOSS_GROWTH))
    ranking = tuple(block for block in finding.ranking if block not in broken)
    grid = finding.grid
    return LayerReport(
        method=method,
        model=subject.name,
        layers=tuple(block for block in ranking if block in growth and finding.low[block] > 0)[:top],
        scores=_as_floats(finding.scores),
        low=_as_floats(finding.low),
        high=_as_floats(finding.high),
        ranking=ranking,
        broken=broken,
        neutral_loss=tuple(growth.get(block) for block in range(len(subject.blocks))),
        alphas=grid.alphas if grid else (),
        curves=tuple(map(_as_floats, grid.values.mean(-1))) if grid else (),
        baseline=finding.baseline,
        measures={name: _as_floats(values) for name, values in finding.measures.items()},
        prompts=count,
        refused=finding.refused,
        scaled=tuple(dict.fromkeys(name for names in subject.scaled_weights for name in names)),
        seconds=time.perf_counter() - start,
    )


def _as_floats(values: Any) -> tuple[float, ...]:  # noqa: ANN401  an array
    return tuple(np.asarray(values, float).tolist())
