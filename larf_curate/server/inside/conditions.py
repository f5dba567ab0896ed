"""Argilla's filters and sort orders as SQL over its tables; ``r`` is the alias of the records table."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
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

from .text_index import Parameters

_PENDING = "pending"


def filter_condition(filter_: Filter, bind: Parameters) -> str:
    """SQL condition that is true for the records that pass a filter.

    Args:
        filter_: A filter on metadata, responses, suggestions or record properties, or a conjunction of filters.
        bind: Parameters of the statement; values are added to it.
    """
    if isinstance(filter_, AndFilter):
        return " AND ".join(f"({filter_condition(inner, bind)})" for inner in filter_.filters) or "1"
    scope = filter_.scope
    if isinstance(scope, RecordFilterScope):
        return _record_condition(scope, filter_, bind)
    if isinstance(scope, ResponseFilterScope) and scope.question is None:
        return _response_status_condition(scope, filter_, bind)
    return f"EXISTS (SELECT 1 FROM {_values_source(scope, bind)} AND {_comparison('e.value', filter_, bind)})"


def order_terms(orders: Sequence[Order], bind: Parameters) -> list[str]:
    """Terms of ORDER BY; records without the value come last in both directions, as in Elasticsearch."""
    return [
        f"{_sort_expression(order, bind)} {'DESC' if order.order == 'desc' else 'ASC'} NULLS LAST" for order in orders
    ]


def _record_condition(scope: RecordFilterScope, filter_: Filter, bind: Parameters) -> str:
    column = f"r.{_record_column(scope.property)}"
    if isinstance(filter_, TermsFilter):
        # Argilla's database stores UUIDs without hyphens.
        terms = [value.replace("-", "") if scope.property == "id" else value for value in filter_.values]
        return f"{column} IN ({', '.join(bind(str(term)) for term in terms)})"
    is_time = scope.property in ("inserted_at", "updated_at")
    low, high = (
        (_timestamp(limit) if is_time else limit) if limit is not None else None for limit in (filter_.ge, filter_.le)
    )
    limits = ((">=", low), ("<=", high))
    return " AND ".join(f"{column} {operator} {bind(limit)}" for operator, limit in limits if limit is not None)


def _response_status_condition(scope: ResponseFilterScope, filter_: Filter, bind: Parameters) -> str:
    """Condition on the status of responses, by one user if the scope names one; ``pending`` means no response."""
    if not isinstance(filter_, TermsFilter):
        raise UnprocessableEntityError("Response status can only be filtered by terms.")
    responses = f"SELECT 1 FROM responses p WHERE p.record_id = r.id{_user_condition(scope, bind)}"
    statuses = [str(getattr(value, "value", value)) for value in filter_.values]
    alternatives = [f"NOT EXISTS ({responses})"] if _PENDING in statuses else []
    if given := [bind(status) for status in statuses if status != _PENDING]:
        alternatives.append(f"EXISTS ({responses} AND p.status IN ({', '.join(given)}))")
    return " OR ".join(alternatives)


def _values_source(scope: FilterScope, bind: Parameters) -> str:
    """FROM and WHERE clauses that select the values of a record in a scope, as ``e.value``."""
    if isinstance(scope, MetadataFilterScope):
        return f"json_each(r.metadata, {bind(_json_path(scope.metadata_property))}) e WHERE 1"
    if isinstance(scope, ResponseFilterScope):
        path = bind(_json_path(scope.question, "value"))
        return f'responses p, json_each(p."values", {path}) e WHERE p.record_id = r.id{_user_condition(scope, bind)}'
    suggestion = f"s.question_id = q.id AND q.name = {bind(scope.question)} AND s.record_id = r.id"
    if scope.property in ("agent", "type"):
        return f"(SELECT s.{scope.property} AS value FROM suggestions s, questions q WHERE {suggestion}) e WHERE 1"
    column = "score" if scope.property == "score" else "value"
    return f"suggestions s, questions q, json_each(s.{column}) e WHERE {suggestion}"


def _comparison(value: str, filter_: Filter, bind: Parameters) -> str:
    """SQL condition that compares an SQL expression with the terms or the limits of a filter."""
    if isinstance(filter_, TermsFilter):
        # Terms arrive as strings, but JSON values may be numbers, and in SQLite no string equals a number.
        terms: list[str | float] = [str(term) for term in filter_.values]
        terms += [number for term in terms if (number := _number(term)) is not None]
        return f"{value} IN ({', '.join(bind(term) for term in terms)})"
    limits = [
        (operator, _number(limit)) for operator, limit in ((">=", filter_.ge), ("<=", filter_.le)) if limit is not None
    ]
    if any(limit is None for _, limit in limits):
        raise UnprocessableEntityError("The limits of a range must be numbers.")
    # SQLite sorts every string after every number: without the check of the type, strings would pass ">=".
    comparisons = " AND ".join(f"{value} {operator} {bind(limit)}" for operator, limit in limits)
    return f"typeof({value}) IN ('integer', 'real') AND {comparisons}"


def _sort_expression(order: Order, bind: Parameters) -> str:
    """SQL expression to sort by; of several values, the largest counts if descending, else the smallest."""
    scope = order.scope
    extreme = "max" if order.order == "desc" else "min"
    if isinstance(scope, RecordFilterScope):
        return f"r.{_record_column(scope.property)}"
    if isinstance(scope, ResponseFilterScope):
        if scope.question is None:
            user = _user_condition(scope, bind)
            return f"(SELECT {extreme}(p.status) FROM responses p WHERE p.record_id = r.id{user})"
        mean = "avg(CASE WHEN typeof(e.value) <> 'text' THEN e.value END)"
        return f"(SELECT coalesce({mean}, {extreme}(e.value)) FROM {_values_source(scope, bind)})"
    return f"(SELECT {extreme}(e.value) FROM {_values_source(scope, bind)})"


def _user_condition(scope: ResponseFilterScope, bind: Parameters) -> str:
    return f" AND p.user_id = {bind(scope.user.id.hex)}" if scope.user is not None else ""


def _record_column(name: str) -> str:
    """Column of a record property; ``ValueError`` for any other name, which would be inserted into the SQL."""
    columns = ("id", "external_id", "inserted_at", "updated_at", "status")
    return columns[columns.index(str(getattr(name, "value", name)))]


def _json_path(*names: str) -> str:
    """JSON path of nested keys; needs no escaping, as Argilla's names hold only letters, digits, ``-`` and ``_``."""
    return "$" + "".join(f'."{name}"' for name in names)


def _number(value: Any) -> float | None:  # noqa: ANN401  text or number
    """Convert a value to a finite number; None if it is not one."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _timestamp(value: str | float) -> str:
    """Format a time as Argilla's database stores it: UTC, with microseconds.

    Args:
        value: ISO 8601, in UTC if it names no time zone, or milliseconds since 1970.
    """
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
        else:
            time = datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        raise UnprocessableEntityError("A time must be in ISO 8601 format, like 2025-01-31T10:00:00Z.") from None
    utc = time.astimezone(UTC) if time.tzinfo else time
    return utc.strftime("%Y-%m-%d %H:%M:%S.%f")
