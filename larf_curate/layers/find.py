"""find_safety_layers: one call from a model to its safety-sensitive blocks."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from larf_curate.conversation.refusals import Keywords, RefusalDetector
from larf_curate.data.prompts import Prompts, overrejection_prompts
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError
from larf_curate.layers.grid import ALPHAS, OUTERMOST, check_alphas
from larf_curate.layers.methods import METHODS, Finding, Task
from larf_curate.layers.report import LayerReport, Method
from larf_curate.layers.soundness import ALLOWED, NeutralLoss
from larf_curate.layers.subject import Subject, load_subject
from larf_curate.models.devices import Dtype

TOP = 5
GRADIENT_PROMPTS = 48


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

    Weights are scaled in place and restored exactly, also after an error or an interrupt.

    Args:
        model: A local folder, a Hub id, or a loaded causal language model.
        method: ``gradient``: derivative of the log-odds of a refusal by each block's scale, fast. ``forward``: how
            many prompts' log-odds lean to a refusal over the grid of blocks and scales, minutes. ``sweep``: LARF's own
            procedure, refusals counted over the grid in decoded answers, slowest. ``separation``: how well states tell
            unsafe from safe references, for models that never or always refuse.
        prompts: Harmless prompts that sound harmful; see `overrejection_prompts`. The built-in set if left out.
        references: A set, or what `ReferenceSet.load` takes; for the openings of refusals, and for ``separation``.
        alphas: Scales of the grid, as many below 1 as above. If left out, those of the paper for ``sweep``, and of
            them the outermost two for the other methods.
        max_prompts: Most prompts to use, taken evenly from all. If left out, 48 for ``gradient``, whose values are
            continuous and need fewer, and all for the other methods.
        keywords: What counts as a refusal: ``default``, ``larf`` for the authors' four keywords, or phrases.
        top: Most layers to recommend.
        checkpoint: A file of finished grid cells: an interrupted ``sweep`` or ``forward`` goes on from it.
        tokenizer: The tokenizer of a loaded model, if it is not to be loaded from where the model came from.
        device: A torch device; the first accelerator there is, if left out.
        dtype: ``auto`` is bfloat16 where the hardware computes in it, float32 elsewhere.
        revision: Commit, tag or branch of a Hub id.
        trust_remote_code: Whether code from the model's repository may run.

    Returns:
        Ranked blocks; `LayerReport.layers` is empty if none stands out from chance.

    Raises:
        InputError: If the method, scales, prompts or keywords cannot be used.
        ModelError: If the model cannot be loaded or scaled, or refuses none or all of the prompts.
        ReferenceSetError: If the references cannot be used.
    """
    start = time.perf_counter()
    if method not in METHODS:
        raise InputError(f"wanted a method among {', '.join(METHODS)}, got {method!r}")
    if top < 1:
        raise InputError(f"wanted at least one layer to recommend, got top={top}")
    scales = check_alphas((ALPHAS if method == "sweep" else OUTERMOST) if alphas is None else alphas)
    refuses = RefusalDetector.named(keywords)
    texts = _evenly(overrejection_prompts(prompts), GRADIENT_PROMPTS if method == "gradient" else None, max_prompts)
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
    with subject.at_rest():
        finding = METHODS[method](task)
        growth = _neutral_losses(subject, finding, scales, top)
    count = len(refs) if method == "separation" else len(texts)
    return _report(method, subject, finding, growth, top=top, count=count, start=start)


def _evenly(prompts: list[str], usual: int | None, most: int | None) -> list[str]:
    """At most so many prompts, from everywhere in the list."""
    count = most if most is not None else usual or len(prompts)
    if count < 1:
        raise InputError(f"wanted at least one prompt, got max_prompts={count}")
    if count >= len(prompts):
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def _neutral_losses(subject: Subject, finding: Finding, scales: tuple[float, ...], top: int) -> dict[int, float]:
    """Growth of the loss on harmless answers at the outermost scales, by block.

    A grid has scaled all blocks, so all are checked. Otherwise only those that would be recommended are, from the first
    on, until enough of them are sound.
    """
    loss, growth, blocks = NeutralLoss(subject), dict[int, float](), _candidates(finding)
    wanted = len(blocks) if finding.grid else min(top, len(blocks))
    done = 0
    with tqdm(total=wanted, desc="loss on harmless answers", unit="block") as bar:
        for block in blocks:
            if done == wanted:
                break
            growth[block] = loss.growth(block, (scales[0], scales[-1]))
            counts = finding.grid is not None or growth[block] <= ALLOWED
            done += counts
            bar.update(counts)
    return growth


def _candidates(finding: Finding) -> list[int]:
    return [block for block in finding.ranking if finding.grid is not None or finding.low[block] > 0]


def _report(
    method: Method, subject: Subject, finding: Finding, growth: dict[int, float], *, top: int, count: int, start: float
) -> LayerReport:
    broken = tuple(sorted(block for block, value in growth.items() if value > ALLOWED))
    ranking = tuple(block for block in finding.ranking if block not in broken)
    grid = finding.grid
    return LayerReport(
        method=method,
        model=subject.name,
        layers=tuple(block for block in ranking if block in growth and finding.low[block] > 0)[:top],
        scores=_floats(finding.scores),
        low=_floats(finding.low),
        high=_floats(finding.high),
        ranking=ranking,
        broken=broken,
        neutral_loss=tuple(growth.get(block) for block in range(len(subject.blocks))),
        alphas=grid.alphas if grid else (),
        curves=tuple(map(_floats, grid.values.mean(-1))) if grid else (),
        baseline=finding.baseline,
        measures={name: _floats(values) for name, values in finding.measures.items()},
        prompts=count,
        refused=finding.refused,
        scaled=tuple(dict.fromkeys(name for names in subject.scaled_weights for name in names)),
        seconds=time.perf_counter() - start,
    )


def _floats(values: Any) -> tuple[float, ...]:  # noqa: ANN401  an array
    return tuple(np.asarray(values, float).tolist())
