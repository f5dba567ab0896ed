"""The evidence a reviewer reads beside a row: Markdown with tables in HTML, in which all foreign text is literal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeGuard

from larf_curate.review.records.escaping import markdown_literal
from larf_curate.review.records.near_duplicates import Group

EXEMPLAR_CHARACTERS = 160
SHOWN_TOKENS = 300
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
    """Say in Markdown why a row was flagged.

    Args:
        row: A flagged row with ``larf_*`` columns; any of them may be missing or null.
        layers: The blocks of ``larf_layer_scores``, in its order; without it they are counted from 1.
        exemplars: Texts of exemplars by id, shown beside the nearest ones.
        group: The rows that are near-identical to it.

    Returns:
        A few short blocks: score, reason, near-identical rows, layers, signals, tokens, nearest exemplars.
    """
    blocks = [
        _score(row.get("larf_score"), row.get("larf_percentile"), row.get("larf_status")),
        markdown_literal(row.get("larf_reason") or ""),
        _group(group) if group else "",
        _layers(row.get("larf_layer_scores") or [], layers),
        _signals(row.get("larf_signals") or {}),
        _tokens(row.get("larf_tokens") or []),
        _neighbors(row.get("larf_neighbors") or [], exemplars or {}),
    ]
    return "\n\n".join(block for block in blocks if block)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _score(score: float | None, percentile: float | None, status: str | None) -> str:
    if not is_number(score):
        return f"**Not scored** ({markdown_literal(status or 'no score')}): look at the row itself."
    place = "" if percentile is None else f" · percentile **{percentile:.1f}**"
    remark = "" if status in (None, "ok") else f" · {markdown_literal(status)}"
    return f"Score **{score:.3f}**{place}{remark}"


def _group(group: Group) -> str:
    if not group.shared:
        where = f"Filters, Metadata, Near-identical rows: {group.name}"
        return f"One of **{group.size} near-identical rows** in this queue ({where})"
    others = len(group.shared)
    return (
        f"**Your decision serves {others + 1} near-identical rows**: this one and {others} that "
        f"{'is' if others == 1 else 'are'} not shown. A corrected answer serves exact copies only."
    )


def _layers(scores: Sequence[float | None], layers: Sequence[int] | None) -> str:
    names = layers if layers is not None and len(layers) == len(scores) else range(1, len(scores) + 1)
    return _table(("Layer", "Score", ""), _bars(zip(map(str, names), scores, strict=True)))


def _signals(signals: Mapping[str, float | None]) -> str:
    """A table of the named signals; a single one only repeats the score."""
    return _table(("Signal", "Value", ""), _bars(signals.items())) if len(signals) > 1 else ""


def _bars(values: Iterable[tuple[str, float | None]]) -> list[tuple[str, ...]]:
    """Name, value and a bar; the longest bar is the largest magnitude, its colour the sign."""
    numbers = [(name, value) for name, value in values if is_number(value)]
    largest = max((abs(value) for _, value in numbers), default=0.0) or 1.0
    return [(markdown_literal(name), f"{value:+.3f}", _bar(value / largest)) for name, value in numbers]


def _bar(part: float) -> str:
    return f'<span style="{_BAR}{_UNSAFE if part > 0 else _SAFE};width:{max(2, round(160 * abs(part)))}px"></span>'


def _tokens(tokens: Sequence[Mapping[str, Any]]) -> str:
    """The text of the tokens, shaded by how far each pulled the score; of a long row the part that pulled most."""
    weighed = [(str(token["text"]), token["weight"] if is_number(token["weight"]) else 0.0) for token in tokens]
    largest = max((abs(weight) for _, weight in weighed), default=0.0)
    if largest == 0.0:
        return ""
    start = _heaviest([abs(weight) for _, weight in weighed], SHOWN_TOKENS)
    part = weighed[start : start + SHOWN_TOKENS]
    before, after = "… " if start else "", " …" if start + len(part) < len(weighed) else ""
    shaded = "".join(_shaded(text, weight / largest) for text, weight in part)
    return f'Tokens that pulled the score:\n\n<div style="{_TEXT}">{before}{shaded}{after}</div>'


def _shaded(text: str, part: float) -> str:
    """One token, its spaces kept; the faintest pulls are left bare."""
    literal = _literal(text)
    left, right = (" " if edge.isspace() else "" for edge in (text[:1], text[-1:]))
    if not literal or abs(part) < 0.1:
        return f"{left}{literal}{right}" if literal else " "
    color = ("194,65,12" if part > 0 else "15,118,110") + f",{0.6 * abs(part):.2f}"
    return f'{left}<span style="background:rgba({color})">{literal}</span>{right}'


_literal = lru_cache(maxsize=20_000)(markdown_literal)  # a vocabulary is small, rows are many


def _heaviest(weights: Sequence[float], size: int) -> int:
    """Where the ``size`` neighbours with the largest sum begin."""
    sums = list(accumulate(weights, initial=0.0))
    return max(range(max(len(weights) - size, 0) + 1), key=lambda i: sums[min(i + size, len(weights))] - sums[i])


def _neighbors(neighbors: Iterable[Mapping[str, Any]], exemplars: Mapping[str, str]) -> str:
    rows = [
        (
            f"{neighbor['cosine']:.3f}",
            markdown_literal(str(neighbor["label"])),
            markdown_literal(exemplars.get(str(neighbor["id"]), str(neighbor["id"]))[:EXEMPLAR_CHARACTERS]),
        )
        for neighbor in neighbors
        if is_number(neighbor["cosine"])
    ]
    return _table(("Cosine", "Label", "Nearest exemplar"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table on one line, as Markdown wants it; no table without rows."""
    if not rows:
        return ""
    head = "".join(f'<th style="{_CELL}">{cell}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in row) + "</tr>" for row in rows)
    return f'<table style="margin-bottom:12px"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
