"""The evidence shown to reviewers beside a row: Markdown with HTML tables, in which all text of the data is escaped."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

from larf_curate.review.records.escaping import escape_markdown
from larf_curate.review.records.near_duplicates import Group
from larf_curate.review.records.reason import Rank, is_number, reason
from larf_curate.review.records.scale import Scale
from larf_curate.signals import AXES
from larf_curate.signals.words import axes_of

MAX_EXEMPLAR_CHARACTERS = 160
MAX_BESIDE_CHARACTERS = 300
MAX_TOKENS = 300
LEARNED_BLOCK = "**After people's decisions:** "
"""Beginning of the block that `with_learned` adds."""
_CELL = "padding:2px 18px 2px 0;text-align:left;vertical-align:top"
_BAR = "display:inline-block;height:9px;border-radius:2px;background:"
_BAR_WIDTH = 160
_TEXT = "line-height:1.9;margin-bottom:12px"
_UNSAFE, _SAFE, _NEITHER = "#c2410c", "#0f766e", "#9ca3af"


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """A row that is near another one.

    Args:
        title: What it is, such as "safe reference".
        text: Its text, or its id.
        cosine: Cosine similarity of the two centred states, in [-1, 1].
    """

    title: str
    text: str
    cosine: float


@dataclass(frozen=True, kw_only=True)
class Context:
    """What the evidence of a row needs besides the row.

    Args:
        signal: Name of the signal of ``larf_score``, if it is known.
        layers: Decoder blocks of ``larf_layer_scores``, in its order; default: numbered from 1.
        exemplars: Texts of exemplars by id, shown for the nearest ones; default: their ids are shown.
        scale: Scale of the bars.
        rank: The row's rank in its queue.
        group: The row's group of near-duplicates.
        kept: The nearest row that is known to be fine.
        turn: Which turn the score is of, as a sentence; empty if there is only one.
    """

    signal: str | None = None
    layers: Sequence[int] | None = None
    exemplars: Mapping[str, str] | None = None
    scale: Scale = Scale()
    rank: Rank | None = None
    group: Group | None = None
    kept: Nearest | None = None
    turn: str = ""


def evidence(row: Mapping[str, Any], context: Context = Context()) -> str:
    """Explain in Markdown why a row was flagged.

    Args:
        row: A flagged row with ``larf_*`` columns; any of them may be missing or null.
        context: What it is compared with.

    Returns:
        Short blocks: the reason in one sentence, near-duplicates, the turn that scored, score, axes, the nearest unsafe
        exemplar beside the nearest row that is fine, and, folded, tokens, layers, other signals, all nearest exemplars
        and the command that shows the row as the model reads it.
    """
    scale, signals = context.scale, row.get("larf_signals") or {}
    neighbors, texts = row.get("larf_neighbors") or [], context.exemplars or {}
    more = [
        _layer_table(row.get("larf_layer_scores") or [], context.layers, scale.layers),
        _signal_table(signals, scale.signals),
        _neighbor_table(neighbors, texts),
        f"<p>{escape_markdown(row.get('larf_reason') or '')}</p>" if row.get("larf_reason") else "",
        _preview_line(str(row.get("larf_row_id") or "")),
    ]
    blocks = [
        f"**{escape_markdown(reason(row, signal=context.signal, rank=context.rank))}**",
        _group_line(context.group) if context.group else "",
        escape_markdown(context.turn),
        _score_line(row.get("larf_score"), row.get("larf_percentile"), row.get("larf_status")),
        _axis_table(signals, scale.axes),
        _side_by_side(neighbors, texts, context.kept),
        _folded("Tokens: orange raises the score, green lowers it", _token_block(row.get("larf_tokens") or []), "open"),
        _folded("More figures", "".join(more)),
    ]
    return "\n\n".join(block for block in blocks if block)


def with_learned(shown: str, learned: str) -> str:
    """Add to the evidence of a record what was learned from decisions, in place of what was added before.

    Args:
        shown: Evidence on the server.
        learned: A Markdown text on one line, whose foreign texts are escaped; empty to take away what was added.
    """
    blocks = [block for block in shown.split("\n\n") if not block.startswith(LEARNED_BLOCK)]
    return "\n\n".join([*blocks[:1], *([LEARNED_BLOCK + learned] if learned else []), *blocks[1:]])


def learned_block(shown: str) -> str:
    """What `with_learned` added to the evidence of a record; empty if nothing was."""
    found = (block for block in shown.split("\n\n") if block.startswith(LEARNED_BLOCK))
    return next(found, "").removeprefix(LEARNED_BLOCK)


def _score_line(score: float | None, percentile: float | None, status: str | None) -> str:
    if not is_number(score):
        return ""
    rank = f" · percentile **{percentile:.1f}**" if is_number(percentile) else ""
    remark = "" if status in (None, "ok") else f" · {escape_markdown(status)}"
    return f"Score **{score:.3f}**{rank}{remark}"


def _group_line(group: Group) -> str:
    if not group.shared:
        where = f"Filters, Metadata, Near-identical rows: {group.name}"
        return f"One of **{group.size} near-identical rows** in this queue ({where})"
    others = len(group.shared)
    return (
        f"**Your decision applies to {others + 1} near-identical rows**: this one and {others} that "
        f"{'is' if others == 1 else 'are'} not shown. A corrected answer applies to exact copies only."
    )


def _preview_line(row_id: str) -> str:
    """The command that previews a row of the selection; none for an id that would have to be quoted."""
    if not re.fullmatch(r"[\w.-]{1,80}", row_id, re.ASCII):
        return ""
    return f"<p>As the model reads it: <code>larf-curate preview SELECTION --row {row_id}</code></p>"


def _axis_table(signals: Mapping[str, float | None], scale: float) -> str:
    """The three axes that a row has, in standard deviations from ordinary rows."""
    axes = axes_of(signals)
    described = [
        ("Request", "like those that the model refuses", axes.get("erosion"), (_SAFE, _UNSAFE)),
        # Only what is like a refusal counts in the score, and lowers it; an answer is what ordinary rows have.
        ("Refusal", "refuses, rather than answers", _negative(axes.get("compliance")), (_NEITHER, _SAFE)),
        ("Answer", "like known harmful answers", axes.get("harmful"), (_SAFE, _UNSAFE)),
    ]
    rows = [
        (f"<b>{name}</b>", what, f"{value:+.1f}", _bar(value, scale, colors))
        for name, what, value, colors in described
        if value is not None
    ]
    return _table(("Axis", "", "σ", f"bars up to {scale:g}"), rows)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value + 0.0  # 0.0 rather than -0.0


def _layer_table(scores: Sequence[float | None], layers: Sequence[int] | None, scale: float) -> str:
    names = layers if layers is not None and len(layers) == len(scores) else range(1, len(scores) + 1)
    bars = _bars(zip(map(str, names), scores, strict=True), scale)
    return _table(("Layer", "Score", f"bars up to {scale:g}"), bars)


def _signal_table(signals: Mapping[str, float | None], scale: float) -> str:
    """Table of the signals that are no axes; none for a single signal, which would only repeat the score."""
    others = {name: value for name, value in signals.items() if name not in AXES}
    bars = _bars(others.items(), scale)
    return _table(("Signal", "Value", f"bars up to {scale:g}"), bars) if len(signals) > 1 else ""


def _bars(values: Iterable[tuple[str, float | None]], scale: float) -> list[tuple[str, ...]]:
    """Table rows of name, value and a bar: its length is relative to the scale of the queue, its colour is the sign."""
    numbers = [(name, value) for name, value in values if is_number(value)]
    return [(escape_markdown(name), f"{value:+.3f}", _bar(value, scale)) for name, value in numbers]


def _bar(value: float, scale: float, colors: tuple[str, str] = (_SAFE, _UNSAFE)) -> str:
    """A bar in the colour of values below or above 0; one that is longer than the scale ends in a mark."""
    share = min(abs(value) / scale, 1.0)
    beyond = " ▶" if abs(value) > scale else ""
    return f'<span style="{_BAR}{colors[value > 0]};width:{max(2, round(_BAR_WIDTH * share))}px"></span>{beyond}'


def _side_by_side(neighbors: Sequence[Mapping[str, Any]], exemplars: Mapping[str, str], kept: Nearest | None) -> str:
    """The nearest unsafe exemplar beside the nearest row that is fine; only one of them if the other is not known."""
    found = [neighbor for neighbor in neighbors if is_number(neighbor["cosine"])]
    unsafe = max(found, key=lambda neighbor: float(neighbor["cosine"]), default=None)
    sides = [] if kept is None else [(f"Nearest {kept.title}", kept.text, kept.cosine)]
    if unsafe is not None:
        name = str(unsafe["id"])
        sides.insert(0, (f"Nearest unsafe exemplar ({unsafe['label']})", exemplars.get(name, name), unsafe["cosine"]))
    header = [f"{escape_markdown(title)}, cosine {cosine:.3f}" for title, _, cosine in sides]
    return _table(header, [[_cut(text, MAX_BESIDE_CHARACTERS) for _, text, _ in sides]] if sides else [], fixed=True)


def _cut(text: str, limit: int) -> str:
    """The beginning of a text, escaped; that it was cut is shown."""
    return escape_markdown(text[:limit]) + (" …" if len(text) > limit else "")


def _folded(title: str, content: str, state: str = "") -> str:
    """Content under a title that opens and closes it."""
    opened = f" {state}" if state else ""
    return f"<details{opened}><summary>{title}</summary>{content}</details>" if content else ""


def _token_block(tokens: Sequence[Mapping[str, Any]]) -> str:
    """Text of the tokens, shaded by their effect on the score; of a long row only the most influential window."""
    weighted = [(str(token["text"]), token["weight"] if is_number(token["weight"]) else 0.0) for token in tokens]
    largest = max((abs(weight) for _, weight in weighted), default=0.0)
    if largest == 0.0:
        return ""
    start = _heaviest_window([abs(weight) for _, weight in weighted], MAX_TOKENS)
    window = weighted[start : start + MAX_TOKENS]
    before, after = "… " if start else "", " …" if start + len(window) < len(weighted) else ""
    shaded = "".join(_shaded_token(text, weight / largest) for text, weight in window)
    return f'<div style="{_TEXT}">{before}{shaded}{after}</div>'


def _shaded_token(text: str, weight: float) -> str:
    """One token with its surrounding spaces, shaded by a weight in [-1, 1]; weights below 0.1 are not shaded."""
    escaped = _escape_token(text)
    left, right = (" " if edge.isspace() else "" for edge in (text[:1], text[-1:]))
    if not escaped or abs(weight) < 0.1:
        return f"{left}{escaped}{right}" if escaped else " "
    color = ("194,65,12" if weight > 0 else "15,118,110") + f",{0.6 * abs(weight):.2f}"  # _UNSAFE and _SAFE as RGB
    return f'{left}<span style="background:rgba({color})">{escaped}</span>{right}'


_escape_token = lru_cache(maxsize=20_000)(escape_markdown)  # cached: a few tokens make up most of all rows


def _heaviest_window(weights: Sequence[float], size: int) -> int:
    """Start of the ``size`` consecutive weights with the largest sum."""
    sums = list(accumulate(weights, initial=0.0))
    return max(range(max(len(weights) - size, 0) + 1), key=lambda i: sums[min(i + size, len(weights))] - sums[i])


def _neighbor_table(neighbors: Iterable[Mapping[str, Any]], exemplars: Mapping[str, str]) -> str:
    rows = [
        (
            f"{neighbor['cosine']:.3f}",
            escape_markdown(str(neighbor["label"])),
            _cut(exemplars.get(str(neighbor["id"]), str(neighbor["id"])), MAX_EXEMPLAR_CHARACTERS),
        )
        for neighbor in neighbors
        if is_number(neighbor["cosine"])
    ]
    return _table(("Cosine", "Label", "Nearest exemplar"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, fixed: bool = False) -> str:
    """An HTML table on one line, since a blank line would end an HTML block in Markdown; empty without rows.

    Args:
        header: Column titles.
        rows: Cells of each row.
        fixed: Whether all columns are of the same width.
    """
    if not rows:
        return ""
    cell = f"{_CELL};width:{100 // len(header)}%" if fixed else _CELL
    head = "".join(f'<th style="{cell}">{title}</th>' for title in header)
    body = "".join("<tr>" + "".join(f'<td style="{cell}">{text}</td>' for text in row) + "</tr>" for row in rows)
    width = ";width:100%;table-layout:fixed" if fixed else ""
    return f'<table style="margin-bottom:12px{width}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
