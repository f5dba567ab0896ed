"""One self-contained HTML page about a scored dataset."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from larf_curate.diagnosis import diagnose
from larf_curate.errors import InputError
from larf_curate.files import whole
from larf_curate.profile import SafetyProfile
from larf_curate.report import plots
from larf_curate.report.examples import read_examples
from larf_curate.report.excerpts import visible
from larf_curate.report.scored_rows import Source, read_source
from larf_curate.report.statistics import Statistics, read_statistics
from larf_curate.report.token_shading import shaded
from larf_curate.scoring.selection import Selection
from larf_curate.version import __version__


def write_report(
    scored: Dataset | str | Path,
    path: str | Path,
    *,
    selection: Selection | str | Path | None = None,
    examples: int = 50,
    profile: SafetyProfile | str | Path | None = None,
    tokens: int = 0,
    model: str | None = None,
    device: str | None = None,
) -> Path:
    """Write a page that shows the scores of a dataset and its highest-scoring rows.

    The page is one file: it loads nothing, runs nothing, and looks the same for the same input. Row texts are escaped
    and cut; nothing in them is read as HTML.

    Args:
        scored: A scored dataset, or the folder that ``larf-curate score`` or ``larf-curate select`` wrote.
        path: The HTML file to write; an old one is replaced in one step.
        selection: The selection made from those rows, in memory or as a folder.
        examples: How many of the highest-scoring rows to show, and how many of the rows that could not be scored.
        profile: What scored the rows, or where it lies: the page then says what the score means, with warnings.
        tokens: Of so many of the highest-scoring rows, shade the tokens by how far each moved the score; that needs the
            profile, and loads its model.
        model: Where the model lies now, if not where it lay; for ``tokens`` alone.
        device: A torch device; for ``tokens`` alone.

    Returns:
        The path of the file.

    Raises:
        InputError: If the rows have not been scored, a folder is neither kind, a number is negative, or tokens are
            asked for without a profile.
        ProfileMismatchError: If another profile scored the rows.
        ModelError: If the model is needed and cannot be loaded.
    """
    if min(examples, tokens) < 0:
        raise InputError(f"wanted a number of examples of 0 or more, got {min(examples, tokens)}")
    if tokens and profile is None:
        raise InputError("wanted the profile that scored the rows, to tell which tokens moved a score (--profile)")
    source = read_source(scored, selection)
    context = _context(source, examples) | {"diagnosis": None, "weights": {}}
    if profile is not None:
        made = profile if isinstance(profile, SafetyProfile) else SafetyProfile.from_pretrained(profile)
        context["diagnosis"] = diagnose(made, source.scored)
        context["weights"] = shaded(made, source, context["examples"][:tokens], model=model, device=device)
    page = _environment().get_template("report.html.j2").render(context)
    with whole(Path(path)) as aside:
        aside.write_text(page, encoding="utf-8", newline="\n")
    return Path(path)


def _environment() -> Environment:
    """Templates that escape every value and make its control characters visible."""
    environment = Environment(
        loader=PackageLoader("larf_curate", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["decimal"] = _decimal
    return environment


def _context(source: Source, examples: int) -> dict[str, Any]:
    """What the template needs."""
    statistics = read_statistics(source.rows, source.columns)
    ranking, unscored = statistics.ranking(), statistics.unscored()
    labels = _layer_labels(source, statistics)
    return {
        "title": _title(source),
        "facts": _facts(source),
        "statistics": statistics,
        "threshold": source.threshold,
        "plots": _plots(statistics, source.threshold, labels) if len(ranking) else {},
        "layer_labels": labels,
        "score_range": _range(statistics.scores),
        "layer_range": _range(statistics.layer_scores),
        "examples": list(read_examples(source.rows, ranking[:examples], source.columns)),
        "unscored": list(read_examples(source.rows, unscored[:examples], source.columns)),
        "unscored_total": len(unscored),
        "version": __version__,
    }


def _plots(statistics: Statistics, threshold: float | None, labels: Sequence[str]) -> dict[str, Markup | None]:
    return {
        "histogram": plots.score_histogram(statistics, threshold),
        "length": plots.score_against_length(statistics, threshold) if statistics.has_lengths else None,
        "layers": plots.layer_distributions(statistics, labels) if labels else None,
    }


def _layer_labels(source: Source, statistics: Statistics) -> list[str]:
    """The profile's block numbers; places counted from 1 where they are not known."""
    known = source.profile.get("layers") or []
    count = statistics.layer_scores.shape[1]
    return [str(layer) for layer in known] if len(known) == count else [f"#{place + 1}" for place in range(count)]


def _range(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """The span of a bar: the finite values and 0."""
    finite = values[np.isfinite(values)]
    return min(0.0, float(finite.min(initial=0))), max(0.0, float(finite.max(initial=0)))


def _title(source: Source) -> str:
    return str(source.record.get("dataset") or "Scored dataset")


def _facts(source: Source) -> list[tuple[str, str]]:
    """What was scored, with what and by which rule, as far as the records say."""
    profile, references = source.profile, source.profile.get("references") or {}
    facts = {
        "Source": {key: value for key, value in source.record.items() if key != "dataset"},
        "Model": profile.get("model"),
        "Revision": profile.get("revision"),
        "dtype": profile.get("dtype"),
        "Blocks": profile.get("layers"),
        "Blocks by": (profile.get("layer_choice") or {}).get("by"),
        "Signal": profile.get("signal"),
        "References": _references(references),
        "Profile": profile.get("digest", "")[:16],
        "Rule": source.rule,
        "Scored with": source.manifest.get("package"),
    }
    return [(label, _words(value)) for label, value in facts.items() if value not in (None, "", [], {})]


def _references(references: Mapping[str, Any]) -> list[str]:
    """Source and counts, and how many answers were cut to the length of their counterparts."""
    told = [f"{references[key]} {key}".removesuffix(" source") for key in references if key not in ("digest", "cut")]
    return told + [f"{count} {side} cut" for side, count in (references.get("cut") or {}).items() if count]


def _words(value: object) -> str:
    """A value of a record in words."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_words(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_words(item) for item in value)
    return str(value)


def _csp_hash(text: str) -> str:
    """The source expression that lets a strict Content-Security-Policy accept this inline style sheet."""
    return Markup("'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'")


def _decimal(value: float | None) -> Markup:
    """A number with three decimals and a true minus sign; the exact value stays readable for machines."""
    if value is None or not math.isfinite(value):
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), f"{value:.3f}".replace("-", "−"))
