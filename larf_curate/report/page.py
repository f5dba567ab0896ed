"""Render the report: one self-contained HTML page about a scored dataset."""

import base64
import hashlib
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from larf_curate.diagnosis import diagnose
from larf_curate.diagnosis.guard import compare_guard
from larf_curate.errors import InputError
from larf_curate.files import atomic_path
from larf_curate.profile import SafetyProfile
from larf_curate.remote import is_url, public_name, uploaded
from larf_curate.report import plots
from larf_curate.report.examples import Example, read_examples
from larf_curate.report.excerpts import one_line, visible
from larf_curate.report.scored_rows import ReportRows, read_report_rows
from larf_curate.report.statistics import Statistics, read_statistics
from larf_curate.report.token_shading import shade_tokens
from larf_curate.scoring.exemplar_texts import exemplar_texts
from larf_curate.scoring.selection import Selection
from larf_curate.version import __version__

PAGES = (".html", ".htm")
"""Endings of pages, which no file of scored rows has."""


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
) -> Path | str:
    """Write an HTML report with score statistics and the highest-scoring rows of a dataset.

    The page is a single file without scripts or external resources, and the same input gives the same bytes. Row texts
    are escaped and shortened, so that no HTML in them takes effect.

    Args:
        scored: A scored dataset, or the folder or URL that ``larf-curate score`` or ``larf-curate select`` wrote.
        path: The HTML file to write, or its URL; an existing one is replaced atomically, other files are not.
        selection: The selection made from those rows, in memory or as a folder.
        examples: Maximum number of highest-scoring rows to show, and of rows without a score.
        profile: The profile that scored the rows, or its path; adds a diagnosis of the score, with warnings.
        tokens: Number of highest-scoring rows whose tokens are shaded by their contribution to the score; requires
            ``profile`` and loads its model.
        model: Model path, if it has moved since the profile was built; used only with ``tokens``.
        device: A torch device (default: the first accelerator available, else the CPU); used only with ``tokens``.

    Returns:
        The path of the file, or its URL.

    Raises:
        InputError: If the rows have not been scored, a folder is of neither kind, a number is negative, ``tokens`` is
            given without ``profile``, or another file than an HTML file would be replaced.
        ProfileMismatchError: If another profile scored the rows.
        ModelError: If the model is needed and cannot be loaded.
    """
    if min(examples, tokens) < 0:
        raise InputError(f"wanted examples and tokens to be 0 or more, got {min(examples, tokens)}")
    if tokens and profile is None:
        raise InputError("tokens can only be shaded with the profile that scored the rows: pass it (--profile)")
    if is_url(path) and not public_name(path).lower().endswith(PAGES):
        raise InputError(f"wanted a URL ending in .html, got {public_name(path)}: give another")
    if not is_url(path) and Path(path).exists() and Path(path).suffix.lower() not in PAGES:
        raise InputError(f"{path} exists and is no HTML file, so it is not replaced: write to another name")
    report_rows = read_report_rows(scored, selection)
    context = _context(report_rows, examples) | {"diagnosis": None}
    context["guard"] = compare_guard(report_rows.rows)
    if profile is not None:
        profile = profile if isinstance(profile, SafetyProfile) else SafetyProfile.from_pretrained(profile)
        context["diagnosis"] = diagnose(profile, report_rows.scored)
        shaded = shade_tokens(profile, report_rows, context["examples"][:tokens], model=model, device=device)
        context["examples"] = [shaded.get(example.position, example) for example in context["examples"]]
    page = _environment().get_template("report.html.j2").render(context)
    with uploaded(path) as local, atomic_path(local) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")  # the same bytes on every system
    return path if isinstance(path, str) and is_url(path) else Path(path)


def _environment() -> Environment:
    """Jinja environment that HTML-escapes every value and makes its control characters visible."""
    environment = Environment(
        loader=PackageLoader("larf_curate", "templates"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt variable is an error, not an empty cell
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = _csp_hash
    environment.filters["decimal"] = _decimal
    environment.filters["preview_command"] = _preview_command
    environment.filters["one_line"] = one_line
    return environment


def _context(report_rows: ReportRows, examples: int) -> dict[str, Any]:
    """Variables of the template."""
    statistics = read_statistics(report_rows.rows, report_rows.columns)
    highest, unscored = statistics.highest(examples), statistics.unscored()
    labels = _layer_labels(report_rows, statistics)
    return {
        "title": _title(report_rows),
        "folder": report_rows.folder,
        "facts": _summary(report_rows),
        "statistics": statistics,
        "threshold": report_rows.threshold,
        "plots": _plots(statistics, report_rows.threshold, labels) if statistics.scored.any() else {},
        "layer_labels": labels,
        "exemplars": exemplar_texts(report_rows.manifest),
        "score_range": _bar_range(statistics.scores),
        "layer_range": _bar_range(statistics.layer_scores),
        "examples": list(read_examples(report_rows.rows, highest, report_rows.columns)),
        "unscored": list(read_examples(report_rows.rows, unscored[:examples].tolist(), report_rows.columns)),
        "unscored_total": len(unscored),
        "version": __version__,
    }


def _preview_command(example: Example, folder: str) -> str:
    """The command that shows a row as the model reads it."""
    row = example.row_id or str(example.position)
    return shlex.join(["larf-curate", "preview", folder, "--row", row])


def _plots(statistics: Statistics, threshold: float | None, labels: Sequence[str]) -> dict[str, Markup | None]:
    return {
        "histogram": plots.score_histogram(statistics, threshold),
        "length": plots.score_against_length(statistics, threshold) if statistics.has_lengths else None,
        "layers": plots.layer_distributions(statistics, labels) if labels else None,
    }


def _layer_labels(report_rows: ReportRows, statistics: Statistics) -> list[str]:
    """The profile's 0-based block indices; ``#1``, ``#2``, … if they are not recorded."""
    layers = report_rows.profile.get("layers") or []
    count = statistics.layer_scores.shape[1]
    return [str(layer) for layer in layers] if len(layers) == count else [f"#{i + 1}" for i in range(count)]


def _bar_range(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Lower and upper limit of a bar chart: the finite values and 0."""
    finite = values[np.isfinite(values)]
    return min(0.0, float(finite.min(initial=0))), max(0.0, float(finite.max(initial=0)))


def _title(report_rows: ReportRows) -> str:
    return str(report_rows.source_info.get("dataset") or "Scored dataset")


def _summary(report_rows: ReportRows) -> list[tuple[str, str]]:
    """Labels and values of what was scored, with which profile and by which rule, as far as recorded."""
    profile, references = report_rows.profile, report_rows.profile.get("references") or {}
    values = {
        "Source": {key: value for key, value in report_rows.source_info.items() if key != "dataset"},
        "Model": profile.get("model"),
        "Revision": profile.get("revision"),
        "dtype": profile.get("dtype"),
        "Blocks": profile.get("layers"),
        "Blocks chosen": _layer_choice(profile.get("layer_choice") or {}),
        "Signal": profile.get("signal"),
        "References": _references(references),
        "Profile": profile.get("digest", "")[:16],  # enough to tell profiles apart
        "Rule": report_rows.rule,
        "Scored with": report_rows.manifest.get("package"),
    }
    return [(label, _format_value(value)) for label, value in values.items() if value not in (None, "", [], {})]


def _layer_choice(choice: Mapping[str, Any]) -> str | None:
    """How the blocks were chosen; a profile records ``the user`` for any that were given when it was built."""
    return "as given when the profile was built" if choice.get("by") == "the user" else choice.get("by")


def _references(references: Mapping[str, Any]) -> list[str]:
    """Source and number of references, and how many answers were cut to the length of their counterparts."""
    shown = [f"{references[key]} {key}".removesuffix(" source") for key in references if key not in ("digest", "cut")]
    return shown + [f"{count} {side} cut" for side, count in (references.get("cut") or {}).items() if count]


def _format_value(value: object) -> str:
    """Format a nested value for display."""
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_format_value(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_format_value(item) for item in value)
    return str(value)


def _csp_hash(text: str) -> str:
    """Source expression with which a Content-Security-Policy allows exactly this inline style sheet."""
    return Markup("'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'")


def _decimal(value: float | None) -> Markup:
    """Format a number with three decimals and a minus sign (not a hyphen); ``<data>`` holds the exact value."""
    if value is None or not math.isfinite(value):
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), f"{value:.3f}".replace("-", "−"))
