"""Argilla's filters and sort orders as SQL over its own tables; the record is ``r``."""

import math
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.search_engine.base import (
    AndFilter,
    Filter,
    FilterScope,
    MetadataFilterScope,
    Order,
    RecordFilterScope,
    ResponseFilterScope,
    TermsFilter,
)

from .text_index import Bind

_PENDING = "pending"


def condition(chosen: Filter, bind: Bind) -> str:
    """SQL that is true for a record that passes the filter."""
    if isinstance(chosen, AndFilter):
        return " AND ".join(f"({condition(inner, bind)})" for inner in chosen.filters) or "1"
    scope = chosen.scope
    if isinstance(scope, RecordFilterScope):
        return _of_record(scope, chosen, bind)
    if isinstance(scope, ResponseFilterScope) and scope.question is None:
        return _of_status(scope, chosen, bind)
    return f"EXISTS (SELECT 1 FROM {_values(scope, bind)} AND {_compared('e.value', chosen, bind)})"


def ordering(orders: Sequence[Order], bind: Bind) -> list[str]:
    """ORDER BY terms; records without the value come last in both directions."""
    return [f"{_sorted_by(order, bind)} {'DESC' if order.order == 'desc' else 'ASC'} NULLS LAST" for order in orders]


def _of_record(scope: RecordFilterScope, chosen: Filter, bind: Bind) -> str:
    column = f"r.{_column(scope.property)}"
    if isinstance(chosen, TermsFilter):
        found = [value.replace("-", "") if scope.property == "id" else value for value in chosen.values]
        return f"{column} IN ({', '.join(bind(str(value)) for value in found)})"
    timed = scope.property in ("inserted_at", "updated_at")
    low, high = ((_time(end) if timed else end) if end is not None else None for end in (chosen.ge, chosen.le))
    return " AND ".join(f"{column} {sign} {bind(end)}" for sign, end in ((">=", low), ("<=", high)) if end is not None)


def _of_status(scope: ResponseFilterScope, chosen: Filter, bind: Bind) -> str:
    """Response status; pending means that there is no response, of this user where one is named."""
    if not isinstance(chosen, TermsFilter):
        raise UnprocessableEntityError("Response status can only be filtered by terms.")
    mine = f"SELECT 1 FROM responses p WHERE p.record_id = r.id{_by_user(scope, bind)}"
    found = [str(getattr(value, "value", value)) for value in chosen.values]
    ways = [f"NOT EXISTS ({mine})"] if _PENDING in found else []
    if others := [bind(value) for value in found if value != _PENDING]:
        ways.append(f"EXISTS ({mine} AND p.status IN ({', '.join(others)}))")
    return " OR ".join(ways)


def _values(scope: FilterScope, bind: Bind) -> str:
    """FROM and WHERE of the values ``e.value`` that a record has in a scope."""
    if isinstance(scope, MetadataFilterScope):
        return f"json_each(r.metadata, {bind(_path(scope.metadata_property))}) e WHERE 1"
    if isinstance(scope, ResponseFilterScope):
        path = bind(_path(scope.question, "value"))
        return f'responses p, json_each(p."values", {path}) e WHERE p.record_id = r.id{_by_user(scope, bind)}'
    name = f"s.question_id = q.id AND q.name = {bind(scope.question)} AND s.record_id = r.id"
    if scope.property in ("agent", "type"):
        return f"(SELECT s.{scope.property} AS value FROM suggestions s, questions q WHERE {name}) e WHERE 1"
    column = "score" if scope.property == "score" else "value"
    return f"suggestions s, questions q, json_each(s.{column}) e WHERE {name}"


def _compared(value: str, chosen: Filter, bind: Bind) -> str:
    if isinstance(chosen, TermsFilter):
        wanted: list[str | float] = [str(term) for term in chosen.values]
        wanted += [number for term in wanted if (number := _number(term)) is not None]
        return f"{value} IN ({', '.join(bind(term) for term in wanted)})"
    ends = [(sign, _number(end)) for sign, end in ((">=", chosen.ge), ("<=", chosen.le)) if end is not None]
    if any(end is None for _, end in ends):
        raise UnprocessableEntityError("A range of numbers is wanted.")
    limits = " AND ".join(f"{value} {sign} {bind(end)}" for sign, end in ends)
    return f"typeof({value}) IN ('integer', 'real') AND {limits}"


def _sorted_by(order: Order, bind: Bind) -> str:
    scope = order.scope
    extreme = "max" if order.order == "desc" else "min"
    if isinstance(scope, RecordFilterScope):
        return f"r.{_column(scope.property)}"
    if isinstance(scope, ResponseFilterScope):
        if scope.question is None:
            return f"(SELECT {extreme}(p.status) FROM responses p WHERE p.record_id = r.id{_by_user(scope, bind)})"
        mean = "avg(CASE WHEN typeof(e.value) <> 'text' THEN e.value END)"
        return f"(SELECT coalesce({mean}, {extreme}(e.value)) FROM {_values(scope, bind)})"
    return f"(SELECT {extreme}(e.value) FROM {_values(scope, bind)})"


def _by_user(scope: ResponseFilterScope, bind: Bind) -> str:
    return f" AND p.user_id = {bind(scope.user.id.hex)}" if scope.user is not None else ""


def _column(name: str) -> str:
    """The column of a record's own property; only these five can be asked for."""
    known = ("id", "external_id", "inserted_at", "updated_at", "status")
    return known[known.index(str(getattr(name, "value", name)))]


def _path(*names: str) -> str:
    """JSON path; Argilla's names hold letters, digits, ``-`` and ``_`` only."""
    return "$" + "".join(f'."{name}"' for name in names)


def _number(value: Any) -> float | None:  # noqa: ANN401  text or number
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _time(value: str | float) -> str:
    """A moment as Argilla's database writes it: UTC, to the microsecond. Numbers are milliseconds since 1970."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
        else:
            moment = datetime.fromtimestamp(value / 1000, timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise UnprocessableEntityError("A time like 2025-01-31T10:00:00Z is wanted.") from None
    utc = moment.astimezone(timezone.utc) if moment.tzinfo else moment
    return utc.strftime("%Y-%m-%d %H:%M:%S.%f")
