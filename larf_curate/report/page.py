"""Render the report: one self-contained HTML page about a scored dataset, or Markdown."""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from larf_curate.columns import DECISION
from larf_curate.data.tables import read_column
from larf_curate.diagnosis import diagnose
from larf_curate.diagnosis.guard import compare_guard
from larf_curate.errors import InputError
from larf_curate.files import atomic_path
from larf_curate.html import csp_hash
from larf_curate.profile import SafetyProfile
from larf_curate.remote import is_url, public_name, uploaded
from larf_curate.report.examples import Example, read_examples
from larf_curate.report.excerpts import one_line, visible
from larf_curate.report.plots import Plot, layer_distributions, score_against_length, score_histogram
from larf_curate.report.points import Projection, axes_plot, guard_plot, state_map
from larf_curate.report.sampling import MAP_ROWS, Indices, score_sample, table_sample
from larf_curate.report.scored_rows import ReportRows, read_report_rows
from larf_curate.report.statistics import Statistics, read_statistics
from larf_curate.report.table import embedded_json, read_table, table_json
from larf_curate.report.thresholds import RankTable
from larf_curate.report.token_shading import shade_tokens
from larf_curate.review.records.escaping import escape_markdown
from larf_curate.scoring.exemplar_texts import exemplar_texts
from larf_curate.scoring.selection import Selection
from larf_curate.version import __version__

FORMATS: Mapping[str, tuple[str, ...]] = {"html": (".html", ".htm"), "md": (".md",)}
"""Endings of the files of each format, which no file of scored rows has."""
Format = Literal["html", "md"]
# Of escaped Markdown: %, ', (, ), comma and ?; a point or colon that is in no address, and a hyphen that is in a word.
_READABLE = re.compile(r"&#(?:37|39|40|41|44|63);|&#(?:46|58);(?=[\s\d]|$)|(?<=[^\W_])&#45;(?=[^\W_])")


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
    form: Format = "html",
    plots: str | Path | None = None,
    projection: Projection = "pca",
) -> Path | str:
    """Write a report with score statistics, a table of rows and the highest-scoring rows of a dataset.

    The page is a single HTML file without external resources, and the same input gives the same bytes. Row texts are
    escaped and shortened, so that no HTML in them takes effect. Its size is bounded: of many rows it has a sample, and
    says so; all counts are of all rows.

    Args:
        scored: A scored dataset, or the folder or URL that ``larf-curate score``, ``select`` or ``review pull`` wrote.
        path: The file to write, or its URL; an existing report is replaced atomically, other files are not.
        selection: The selection made from those rows, in memory or as a folder.
        examples: Maximum number of highest-scoring rows to show, and of rows without a score.
        profile: The profile that scored the rows, or its path; adds a diagnosis of the score, with warnings, and the
            unsafe references to the map.
        tokens: Number of highest-scoring rows whose tokens are shaded by their contribution to the score; requires
            ``profile`` and loads its model.
        model: Model path, if it has moved since the profile was built; used only with ``tokens``.
        device: A torch device (default: the first accelerator available, else the CPU); used only with ``tokens``.
        form: ``html``, or ``md`` for Markdown without plots, table and tokens.
        plots: Folder to write each plot to as well, as SVG and PNG.
        projection: How stored states are drawn: ``pca``, or ``umap`` if umap-learn is installed.

    Returns:
        The path of the file, or its URL.

    Raises:
        InputError: If the rows have not been scored, a folder is of no such kind, a number is negative, ``tokens`` is
            given without ``profile`` or with ``md``, or another file than a report would be replaced.
        ProfileMismatchError: If another profile scored the rows.
        ModelError: If the model is needed and cannot be loaded.
        MissingExtraError: If ``umap`` is asked for and not installed.
    """
    if min(examples, tokens) < 0:
        raise InputError(f"wanted examples and tokens to be 0 or more, got {min(examples, tokens)}")
    if tokens and profile is None:
        raise InputError("tokens can only be shaded with the profile that scored the rows: pass it (--profile)")
    if tokens and form == "md":
        raise InputError("tokens can only be shaded on an HTML page: omit tokens, or write html")
    check_path(path, form)
    if isinstance(profile, str | Path):
        profile = SafetyProfile.from_pretrained(profile)
    report_rows = read_report_rows(scored, selection, profile)
    context = _context(report_rows, examples, profile, projection)
    if profile is not None:
        shaded = shade_tokens(profile, report_rows, context["examples"][:tokens], model=model, device=device)
        context["examples"] = [shaded.get(example.position, example) for example in context["examples"]]
    if plots is not None:
        for plot in filter(None, context["plots"].values()):
            plot.write(Path(plots))
    return render("report.html.j2" if form == "html" else "report.md.j2", context, path)


def check_path(path: str | Path, form: Format = "html") -> None:
    """Check that a report may be written to a path.

    Raises:
        InputError: If it is a URL with another ending, or an existing file with another ending.
    """
    endings, kind = FORMATS[form], "HTML" if form == "html" else "Markdown"
    if is_url(path) and not public_name(path).lower().endswith(endings):
        raise InputError(f"wanted a URL ending in {endings[0]}, got {public_name(path)}: give another")
    if not is_url(path) and Path(path).exists() and Path(path).suffix.lower() not in endings:
        raise InputError(f"{path} exists and is no {kind} file, so it is not replaced: write to another name")


def render(template: str, context: Mapping[str, Any], path: str | Path) -> Path | str:
    """Write a page.

    Args:
        template: File name of its template.
        context: Variables of the template.
        path: File to write, or its URL.

    Returns:
        The path or URL.
    """
    page = _environment(markdown=template.endswith(".md.j2")).get_template(template).render(context)
    with uploaded(path) as local, atomic_path(local) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")  # the same bytes on every system
    return path if isinstance(path, str) and is_url(path) else Path(path)


def _environment(*, markdown: bool = False) -> Environment:
    """Jinja environment that escapes every value for HTML or Markdown and makes its control characters visible."""
    environment = Environment(
        loader=PackageLoader("larf_curate", "templates"),
        autoescape=not markdown,
        undefined=StrictUndefined,  # a misspelt variable is an error, not an empty cell
        finalize=_in_markdown if markdown else visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = csp_hash
    environment.filters["decimal"] = _plain_decimal if markdown else _decimal
    environment.filters["count"] = _count
    environment.filters["preview_command"] = _preview_command
    environment.filters["one_line"] = one_line
    return environment


def _context(
    report_rows: ReportRows, examples: int, profile: SafetyProfile | None, projection: Projection
) -> dict[str, Any]:
    """Variables of the template."""
    statistics = read_statistics(report_rows.rows, report_rows.columns)
    highest, unscored = statistics.highest(examples), statistics.unscored()
    labels = _layer_labels(report_rows, statistics)
    texts = exemplar_texts(report_rows.manifest)
    drawn, made = _plots(report_rows, statistics, labels, profile, texts, projection)
    return {
        "title": _title(report_rows),
        "folder": report_rows.folder,
        "facts": facts_of(report_rows),
        "statistics": statistics,
        "threshold": report_rows.threshold,
        "plots": drawn,
        "map_made": made,
        "point_sample": _point_sample(statistics),
        "layer_labels": labels,
        "exemplars": texts,
        "score_range": _bar_range(statistics.scores),
        "layer_range": _bar_range(statistics.layer_scores),
        "examples": list(read_examples(report_rows.rows, highest, report_rows.columns)),
        "unscored": list(read_examples(report_rows.rows, unscored[:examples].tolist(), report_rows.columns)),
        "unscored_total": len(unscored),
        "decisions": _decisions(report_rows, statistics),
        "review": _review_command(report_rows),
        "guard": compare_guard(report_rows.rows),
        "diagnosis": None if profile is None else diagnose(profile, report_rows.scored),
        "version": __version__,
    } | _table(report_rows, statistics)


def _table(report_rows: ReportRows, statistics: Statistics) -> dict[str, Any]:
    """Variables of the table of rows."""
    positions, ranks = table_sample(statistics), RankTable.of(statistics.scores)
    scored = int(statistics.scored.sum())
    data = {
        "scored": scored,
        "unscored": len(statistics.scores) - scored,
        "flagged": None if statistics.flagged is None else int(statistics.flagged_scored.sum()),
        "threshold": report_rows.threshold,
        "scoredFolder": _scored_folder(report_rows),
        "ranks": ranks.to_json(),
        "table": table_json(read_table(report_rows.rows, positions, report_rows.columns)),
    }
    exact = "Counts are exact, of all rows."
    rank_note = (
        exact
        if ranks.step == 1
        else (f"Counts are of all rows: exact up to {ranks.exact:,}, beyond that within {ranks.step - 1:,} rows.")
    )
    return {"data": embedded_json(data), "rank_note": rank_note, "table_sample": _table_note(positions, statistics)}


def _scored_folder(report_rows: ReportRows) -> str:
    """The folder to select from in a command, as far as it is known."""
    known = report_rows.folder and not report_rows.rule and report_rows.decisions is None
    return shlex.quote(str(visible(report_rows.folder))) if known else "SCORED"


def _table_note(positions: Indices, statistics: Statistics) -> str:
    """What is in the table."""
    total = len(statistics.scores)
    if len(positions) == total:
        return f"All {total:,} rows are here."
    return (
        f"A sample of {len(positions):,} of {total:,} rows is here: the highest-scoring ones, rows spread evenly over "
        "the ranks of the others, and some of those without a score."
    )


def _point_sample(statistics: Statistics) -> str:
    """Which rows are drawn as points."""
    scored = int(statistics.scored.sum())
    if scored <= MAP_ROWS:
        return "all rows with a score"
    return f"a sample of {MAP_ROWS:,} of {scored:,} rows, half of them those with the highest scores"


def _decisions(report_rows: ReportRows, statistics: Statistics) -> dict[str, Any] | None:
    """Variables of the decisions after review: name, number of rows and median score of each, and categories."""
    if report_rows.decisions is None:
        return None
    codes: dict[str, int] = {}
    labels = (str(label) for label in read_column(report_rows.rows, DECISION))
    coded = np.fromiter((codes.setdefault(label, len(codes)) for label in labels), np.int8)
    rows = []
    for name, code in codes.items():
        scores = statistics.scores[(coded == code) & statistics.scored]
        rows.append((name, int((coded == code).sum()), float(np.median(scores)) if len(scores) else None))
    return {
        "merge": report_rows.decisions.merge,
        "rows": sorted(rows, key=lambda row: -row[1]),
        "categories": list(report_rows.decisions.categories.items()),
    }


def _review_command(report_rows: ReportRows) -> str | None:
    """The command that writes the review page; None if there is nothing to decide by it."""
    if not (report_rows.folder and report_rows.rule) or report_rows.decisions is not None:
        return None
    return shlex.join(["larf-curate", "review", "page", str(visible(report_rows.folder))])


def _preview_command(example: Example, folder: str) -> str:
    """The command that shows a row as the model reads it."""
    row = example.row_id or str(example.position)
    return shlex.join(["larf-curate", "preview", folder, "--row", row])


def _plots(
    report_rows: ReportRows,
    statistics: Statistics,
    labels: Sequence[str],
    profile: SafetyProfile | None,
    texts: Mapping[str, str],
    projection: Projection,
) -> tuple[dict[str, Plot | None], str]:
    """The plots by name, None for those of which there is nothing to draw, and how the map was made."""
    if not statistics.scored.any():
        return {}, ""
    threshold, scores = report_rows.threshold, statistics.scores
    sample = read_table(report_rows.rows, score_sample(statistics, MAP_ROWS), report_rows.columns)
    states = state_map(report_rows.rows, sample, scores, profile=profile, texts=texts, projection=projection)
    drawn = {
        "histogram": score_histogram(statistics, threshold),
        "length": score_against_length(statistics, threshold) if statistics.has_lengths else None,
        "layers": layer_distributions(statistics, labels) if labels else None,
        "map": states and states[0],
        "axes": axes_plot(sample, scores),
        "guard": guard_plot(sample, scores, threshold),
    }
    return drawn, states[1] if states else ""


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


def facts_of(report_rows: ReportRows) -> list[tuple[str, str]]:
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


def _in_markdown(value: object) -> object:
    """Escape a string, unless it is part of the template; punctuation without a meaning there stays readable."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _READABLE.sub(lambda found: chr(int(found[0][2:-1])), escape_markdown(value))


def _count(number: int) -> Markup:
    """Format a whole number."""
    return Markup(f"{number:,}")


def _plain_decimal(value: float | None) -> Markup:
    """Format a number with three decimals."""
    return Markup("–" if value is None or not math.isfinite(value) else f"{value:.3f}")


def _decimal(value: float | None) -> Markup:
    """Format a number with three decimals and a minus sign (not a hyphen); ``<data>`` holds the exact value."""
    if value is None or not math.isfinite(value):
        return Markup("–")
    return Markup('<data value="{}">{}</data>').format(repr(float(value)), f"{value:.3f}".replace("-", "−"))
