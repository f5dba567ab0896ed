"""The evidence shown to reviewers beside a row: Markdown with HTML tables, in which all text of the data is escaped."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeGuard

from larf_curate.review.records.escaping import escape_markdown
from larf_curate.review.records.near_duplicates import Group
from larf_curate.signals.words import in_words

MAX_EXEMPLAR_CHARACTERS = 160
MAX_TOKENS = 300
_CELL = "padding:2px 18px 2px 0;text-align:left;vertical-align:top"
_BAR = "display:inline-block;height:9px;border-radius:2px;background:"
_TEXT = "line-height:1.9;margin-bottom:12px"
_UNSAFE, _SAFE = "#c2410c", "#0f766e"


def evidence(
    row: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    exemplars: Mapping[str, str] | None = None,
    group: Group | None = None,
) -> str:
    """Explain in Markdown why a row was flagged.

    Args:
        row: A flagged row with ``larf_*`` columns; any of them may be missing or null.
        layers: Decoder blocks of ``larf_layer_scores``, in its order; default: numbered from 1.
        exemplars: Texts of exemplars by id, shown for the nearest ones; default: their ids are shown.
        group: The row's group of near-duplicates.

    Returns:
        Short blocks: score, the axes in words, reason, near-duplicates, layers, signals, tokens, nearest exemplars, and
        the command that shows the row as the model reads it.
    """
    blocks = [
        _score_line(row.get("larf_score"), row.get("larf_percentile"), row.get("larf_status")),
        _words_line(row.get("larf_signals")),
        escape_markdown(row.get("larf_reason") or ""),
        _group_line(group) if group else "",
        _layer_table(row.get("larf_layer_scores") or [], layers),
        _signal_table(row.get("larf_signals") or {}),
        _token_block(row.get("larf_tokens") or []),
        _neighbor_table(row.get("larf_neighbors") or [], exemplars or {}),
        _preview_line(str(row.get("larf_row_id") or "")),
    ]
    return "\n\n".join(block for block in blocks if block)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _score_line(score: float | None, percentile: float | None, status: str | None) -> str:
    if not is_number(score):
        return f"**Not scored** ({escape_markdown(status or 'no score')}): look at the row itself."
    rank = "" if percentile is None else f" · percentile **{percentile:.1f}**"
    remark = "" if status in (None, "ok") else f" · {escape_markdown(status)}"
    return f"Score **{score:.3f}**{rank}{remark}"


def _words_line(signals: Mapping[str, float | None] | None) -> str:
    words = in_words(signals)
    return f"**{escape_markdown(words)}**" if words else ""


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
    return f"As the model reads it: `larf-curate preview SELECTION --row {row_id}`"


def _layer_table(scores: Sequence[float | None], layers: Sequence[int] | None) -> str:
    names = layers if layers is not None and len(layers) == len(scores) else range(1, len(scores) + 1)
    return _table(("Layer", "Score", ""), _bars(zip(map(str, names), scores, strict=True)))


def _signal_table(signals: Mapping[str, float | None]) -> str:
    """Table of the named signals; none for a single signal, which would only repeat the score."""
    return _table(("Signal", "Value", ""), _bars(signals.items())) if len(signals) > 1 else ""


def _bars(values: Iterable[tuple[str, float | None]]) -> list[tuple[str, ...]]:
    """Table rows of name, value and a bar: its length is relative to the largest magnitude, its colour is the sign."""
    numbers = [(name, value) for name, value in values if is_number(value)]
    largest = max((abs(value) for _, value in numbers), default=0.0) or 1.0
    return [(escape_markdown(name), f"{value:+.3f}", _bar(value / largest)) for name, value in numbers]


def _bar(value: float) -> str:
    """A bar for a value in [-1, 1]."""
    return f'<span style="{_BAR}{_UNSAFE if value > 0 else _SAFE};width:{max(2, round(160 * abs(value)))}px"></span>'


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
    return f'Tokens that pulled the score:\n\n<div style="{_TEXT}">{before}{shaded}{after}</div>'


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
            escape_markdown(exemplars.get(str(neighbor["id"]), str(neighbor["id"]))[:MAX_EXEMPLAR_CHARACTERS]),
        )
        for neighbor in neighbors
        if is_number(neighbor["cosine"])
    ]
    return _table(("Cosine", "Label", "Nearest exemplar"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table on one line, since a blank line would end an HTML block in Markdown; empty without rows."""
    if not rows:
        return ""
    head = "".join(f'<th style="{_CELL}">{cell}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<table style="margin-bottom:12px"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
