"""A search engine for Argilla that needs no Elasticsearch: it queries Argilla's SQLite database.

Filters, sort orders, counts and vectors are read from the records themselves and cannot become outdated; only full text
has a separate index, which updates itself. Results follow the semantics of argilla-server 2.8.0's Elasticsearch engine.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from argilla_server.enums import MetadataPropertyType, SimilarityOrder
from argilla_server.errors.future import UnprocessableEntityError
from argilla_server.models import Dataset, MetadataProperty, Record, Response, Suggestion, User, VectorSettings
from argilla_server.search_engine.base import (
    Filter,
    FloatMetadataMetrics,
    IntegerMetadataMetrics,
    MetadataMetrics,
    Order,
    SearchEngine,
    SearchResponseItem,
    SearchResponses,
    TermsMetrics,
    TextQuery,
)
from argilla_server.settings import settings

from . import store, text_query
from .conditions import filter_condition, order_terms
from .similarity import VectorCache
from .text_index import Parameters, TextIndex

_MAX_CHARACTERS = 2_000
_MAX_PHRASES = 200
_VECTORS = VectorCache()
_VERSION = store.DataVersion(Path(settings.home_path))
# For each dataset, the version of Argilla's database with which its text index was compared record by record.
_SYNCHRONIZED: dict[str, int] = {}
Result = TypeVar("Result")


def register() -> None:
    """Register the engine as ``embedded`` and prepare its text index."""
    SearchEngine.register("embedded")(EmbeddedSearchEngine)
    store.prepare(Path(settings.home_path))


@dataclass(frozen=True)
class _SelectedRecords:
    """SQL of the records that a query and a filter select.

    Args:
        with_clause: WITH clause, or empty.
        source: FROM clause.
        where: WHERE clause.
        score: Expression of the text score (higher is a better match); None if records are not ranked by it.
    """

    with_clause: str
    source: str
    where: str
    score: str | None


class EmbeddedSearchEngine(SearchEngine):  # type: ignore[misc, unused-ignore]  # mypy runs without argilla_server
    """The methods that argilla-server calls; most of those that update an index have nothing to do."""

    @classmethod
    async def new_instance(cls) -> "EmbeddedSearchEngine":
        """Create an engine; argilla-server calls this for each request."""
        return cls()

    async def close(self) -> None:
        """Do nothing: no connection is open between calls."""

    async def ping(self) -> bool:
        """Whether the databases can be read."""
        return await _run_in_thread(lambda db: bool(db.execute("SELECT count(*) FROM argilla.users").fetchone()))

    async def info(self) -> dict[str, Any]:
        """Name and version for the status endpoint."""
        version = {"distribution": "sqlite-fts5", "number": sqlite3.sqlite_version}
        return {"name": "larf-curate", "version": version}

    async def create_index(self, dataset: Dataset) -> None:
        """Create the text index of a dataset."""
        await self._with_index(dataset, lambda index: index.synchronize(thorough=True))

    async def delete_index(self, dataset: Dataset) -> None:
        """Delete the text index of a dataset."""
        await self._with_index(dataset, TextIndex.drop)

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
        """Do nothing: metadata is read from the records."""

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        """Do nothing: vectors are read from the records."""

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Add records to the text index."""
        ids = [record.id.hex for record in records]
        await self._with_index(dataset, lambda index: index.update(ids))

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Remove records from the text index."""
        ids = [record.id.hex for record in records]
        await self._with_index(dataset, lambda index: index.remove(ids))

    async def partial_record_update(self, record: Record, **update: Any) -> None:  # noqa: ANN401  Argilla's signature
        """Do nothing: the status is read from the record."""

    async def update_record_response(self, response: Response) -> None:
        """Do nothing: responses are read from Argilla's tables."""

    async def delete_record_response(self, response: Response) -> None:
        """Do nothing: responses are read from Argilla's tables."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """Do nothing: suggestions are read from Argilla's tables."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """Do nothing: suggestions are read from Argilla's tables."""

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """Number of records by status, and their ``total``; empty for a draft."""
        sql = "SELECT status, count(*) FROM records WHERE dataset_id = ? GROUP BY status"
        return {} if dataset.is_draft else await _count_by_status(sql, dataset.id.hex)

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """Number of a user's responses by status, and their ``total``; empty for a draft."""
        sql = (
            "SELECT p.status, count(*) FROM responses p JOIN records r ON r.id = p.record_id"
            " WHERE r.dataset_id = ? AND p.user_id = ? GROUP BY p.status"
        )
        return {} if dataset.is_draft else await _count_by_status(sql, dataset.id.hex, user.id.hex)

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """The terms of a metadata property with their counts, most frequent first, or its minimum and maximum."""
        values = f'$."{metadata_property.name}"', metadata_property.dataset_id.hex
        source = "FROM records r, json_each(r.metadata, ?) e WHERE r.dataset_id = ? AND e.type <> 'null'"
        if metadata_property.type == MetadataPropertyType.terms:
            sql = f"SELECT CAST(e.value AS TEXT), count(*) {source} GROUP BY 1 ORDER BY 2 DESC, 1"
            rows = await _run_in_thread(lambda db: db.execute(sql, values).fetchall())
            counts = [TermsMetrics.TermCount(term=term, count=count) for term, count in rows]
            return TermsMetrics(total=sum(count for _, count in rows), values=counts)
        extremes = f"SELECT min(e.value), max(e.value) {source}"
        low, high = await _run_in_thread(lambda db: db.execute(extremes, values).fetchone())
        integer = metadata_property.type == MetadataPropertyType.integer
        return (IntegerMetadataMetrics if integer else FloatMetadataMetrics)(min=low, max=high)

    async def search(
        self,
        dataset: Dataset,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,  # noqa: A002  Argilla's signature
        sort: Sequence[Order] | None = None,
        offset: int = 0,
        limit: int = 100,
        user_id: UUID | str | None = None,
    ) -> SearchResponses:
        """Find the records that match a query and a filter.

        Without ``sort``, a text query returns the best match first. Without a text query, each user gets a random but
        stable order, so that annotators do not all begin with the same records.

        Args:
            dataset: The dataset to search.
            query: Text to search for, in one field or in all.
            filter: Conditions on metadata, responses, suggestions or record properties.
            sort: Sort orders, the most important first.
            offset: Number of records to skip.
            limit: Maximum number of records to return.
            user_id: The user for whom records without an order are shuffled.

        Returns:
            The requested page, and the total number of matching records.
        """
        fields = await _text_fields(dataset)

        def find(db: sqlite3.Connection) -> tuple[int, list[tuple[str, float]]]:
            bind = Parameters()
            selected = _select(TextIndex(db, dataset.id.hex, fields), bind, query, filter, ranked=not sort)
            count_sql = f"{selected.with_clause} SELECT count(*) FROM {selected.source} WHERE {selected.where}"
            total = db.execute(count_sql, bind.values).fetchone()[0]
            terms = order_terms(sort or (), bind)
            if not terms and selected.score:
                terms = [f"{selected.score} DESC"]
            elif not terms and user_id:
                terms = [f"shuffle_key({bind(str(user_id))}, r.id)"]
            # The last two terms make the order total, so that pages neither overlap nor leave gaps.
            order = ", ".join([*terms, "r.inserted_at", "r.id"])
            page = (
                f"{selected.with_clause} SELECT r.id, {selected.score or '1.0'}"
                f" FROM {selected.source} WHERE {selected.where}"
                f" ORDER BY {order} LIMIT {bind(limit)} OFFSET {bind(offset)}"
            )
            return total, db.execute(page, bind.values).fetchall()

        total, rows = await _run_in_thread(find)
        return SearchResponses(items=[_response_item(*row) for row in rows], total=total)

    async def similarity_search(
        self,
        dataset: Dataset,
        vector_settings: VectorSettings,
        value: list[float] | None = None,
        record: Record | None = None,
        query: TextQuery | str | None = None,
        filter: Filter | None = None,  # noqa: A002  Argilla's signature
        max_results: int = 100,
        order: SimilarityOrder = SimilarityOrder.most_similar,
        threshold: float | None = None,
    ) -> SearchResponses:
        """Find the records most or least similar to a vector or to a record, which is then not returned.

        Args:
            dataset: The dataset to search.
            vector_settings: The vectors to compare.
            value: A vector of the same length.
            record: A record whose vector is used instead of ``value``.
            query: Text that records must match.
            filter: Conditions that records must meet.
            max_results: Maximum number of records to return.
            order: Most or least similar records first.
            threshold: Minimum score, in [0, 1].

        Returns:
            The records with their scores, see ``VectorIndex.ranked``.
        """
        if (value is None) == (record is None):
            raise UnprocessableEntityError("Exactly one of a vector and a record must be given.")
        probe = value if record is None else record.vector_value_by_vector_settings(vector_settings)
        fields = await _text_fields(dataset)

        def find(db: sqlite3.Connection) -> list[tuple[str, float]]:
            bind = Parameters()
            selected = _select(TextIndex(db, dataset.id.hex, fields), bind, query, filter, ranked=False)
            rows = db.execute(
                f"{selected.with_clause} SELECT r.id FROM {selected.source} WHERE {selected.where}", bind.values
            )
            allowed = {row[0] for row in rows} - ({record.id.hex} if record is not None else set())
            vectors = _VECTORS.get(db, vector_settings.id.hex)
            ranked = vectors.ranked(probe or [], least=order == SimilarityOrder.least_similar)
            matches = ((record_id, score) for record_id, score in ranked if record_id in allowed)
            close = (match for match in matches if threshold is None or match[1] >= threshold)
            return list(islice(close, max_results))

        rows = await _run_in_thread(find)
        return SearchResponses(items=[_response_item(*row) for row in rows], total=len(rows))

    @staticmethod
    async def _with_index(dataset: Dataset, action: Callable[[TextIndex], None]) -> None:
        """Run an action on the text index of a dataset."""
        fields = await _text_fields(dataset)
        await _run_in_thread(lambda db: action(TextIndex(db, dataset.id.hex, fields)))


def _select(
    index: TextIndex, bind: Parameters, query: TextQuery | str | None, filter_: Filter | None, *, ranked: bool
) -> _SelectedRecords:
    """Build the SQL of a query and a filter.

    Text matches are materialized once and joined with the records: as conditions on each record, the full-text queries
    would run again for each of them.
    """
    where = [f"r.dataset_id = {bind(index.dataset)}"]
    if filter_ is not None:
        where.append(f"({filter_condition(filter_, bind)})")
    if query is None:
        return _SelectedRecords("", "records r", " AND ".join(where), None)
    text, field = (query, None) if isinstance(query, str) else (query.q, query.field)
    if len(text) > _MAX_CHARACTERS:  # before it is parsed, in quadratic time
        raise UnprocessableEntityError(f"A search can have at most {_MAX_CHARACTERS} characters.")
    parsed = text_query.parse(text)
    if parsed is None or (field is not None and field not in index.fields):
        return _SelectedRecords("", "records r", "0", None)
    if text_query.count_phrases(parsed) > _MAX_PHRASES:
        raise UnprocessableEntityError(f"A search can have at most {_MAX_PHRASES} words and phrases.")
    version = _VERSION.read()  # before the comparison: a change during it makes the next search compare again
    index.synchronize(thorough=_SYNCHRONIZED.get(index.dataset) != version)
    _SYNCHRONIZED[index.dataset] = version
    hits = f"SELECT d.record, d.rowid AS doc FROM {index.docs} d WHERE {index.condition(parsed, bind, field)}"
    source = "records r JOIN hits ON hits.record = r.id"
    if not ranked or not (phrases := text_query.ranking_phrases(parsed)):
        return _SelectedRecords(f"WITH hits AS MATERIALIZED ({hits})", source, " AND ".join(where), None)
    scores = f"scores AS MATERIALIZED ({index.select_scores(phrases, bind, field)})"
    source += " LEFT JOIN scores ON scores.rowid = hits.doc"
    with_clause = f"WITH hits AS MATERIALIZED ({hits}), {scores}"
    return _SelectedRecords(with_clause, source, " AND ".join(where), "coalesce(scores.score, 0.0)")


async def _run_in_thread(action: Callable[[sqlite3.Connection], Result]) -> Result:
    """Run an action in a thread with a new connection, so that it does not block other requests."""

    def run() -> Result:
        with store.connect(Path(settings.home_path)) as connection:
            return action(connection)

    return await asyncio.to_thread(run)


async def _count_by_status(sql: str, *values: str) -> dict[str, int]:
    """Run a query of (status, count) and add the ``total``."""
    rows = await _run_in_thread(lambda db: db.execute(sql, values).fetchall())
    return {"total": sum(count for _, count in rows), **dict(rows)}


async def _text_fields(dataset: Dataset) -> list[str]:
    return [field.name for field in await dataset.awaitable_attrs.fields if not field.is_image]


def _response_item(record: str, score: float) -> SearchResponseItem:
    return SearchResponseItem(record_id=UUID(record), score=score)
