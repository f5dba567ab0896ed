"""Argilla's search engine without Elasticsearch: it reads Argilla's own SQLite database.

Filters, sorts, counts and vectors are read live, so they cannot drift from the records; only full text has an index
of its own, which catches up by itself. What an answer means follows argilla-server 2.8.0's Elasticsearch engine.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
from .conditions import condition, ordering
from .similarity import VectorCache
from .text_index import Bind, TextIndex

_WORDS = 200
_VECTORS = VectorCache()
_VERIFIED: set[str] = set()  # datasets whose text index was compared record by record since this process began
Answer = TypeVar("Answer")


def register() -> None:
    """Make the engine known as ``embedded`` and its index usable."""
    SearchEngine.register("embedded")(EmbeddedSearchEngine)
    store.prepare(Path(settings.home_path))


@dataclass(frozen=True)
class _Selected:
    """WITH, FROM and WHERE of the records that a query and a filter choose, and how well the text fits."""

    parts: str
    source: str
    where: str
    score: str | None


class EmbeddedSearchEngine(SearchEngine):  # type: ignore[misc, unused-ignore]  # argilla_server is not there for mypy
    """The methods argilla-server calls; those that keep a copy up to date have nothing to do."""

    @classmethod
    async def new_instance(cls) -> "EmbeddedSearchEngine":
        """One for each request; it holds nothing."""
        return cls()

    async def close(self) -> None:
        """Nothing is open between calls."""

    async def ping(self) -> bool:
        """Whether the databases can be read."""
        return await _read(lambda db: bool(db.execute("SELECT count(*) FROM argilla.users").fetchone()))

    async def info(self) -> dict[str, Any]:
        """What the status page shows."""
        version = {"distribution": "sqlite-fts5", "number": sqlite3.sqlite_version}
        return {"name": "larf-curate", "version": version}

    async def create_index(self, dataset: Dataset) -> None:
        """Make the dataset's text index."""
        await self._indexed(dataset, lambda index: index.catch_up(thorough=True))

    async def delete_index(self, dataset: Dataset) -> None:
        """Drop the dataset's text index."""
        await self._indexed(dataset, TextIndex.drop)

    async def configure_metadata_property(self, dataset: Dataset, metadata_property: MetadataProperty) -> None:
        """Metadata is read live."""

    async def configure_index_vectors(self, vector_settings: VectorSettings) -> None:
        """Vectors are read live."""

    async def index_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Put records into the text index."""
        ids = [record.id.hex for record in records]
        await self._indexed(dataset, lambda index: index.put(ids))

    async def delete_records(self, dataset: Dataset, records: Iterable[Record]) -> None:
        """Take records out of the text index."""
        ids = [record.id.hex for record in records]
        await self._indexed(dataset, lambda index: index.remove(ids))

    async def partial_record_update(self, record: Record, **update: Any) -> None:  # noqa: ANN401  Argilla's signature
        """The record's status is read live."""

    async def update_record_response(self, response: Response) -> None:
        """Responses are read live."""

    async def delete_record_response(self, response: Response) -> None:
        """Responses are read live."""

    async def update_record_suggestion(self, suggestion: Suggestion) -> None:
        """Suggestions are read live."""

    async def delete_record_suggestion(self, suggestion: Suggestion) -> None:
        """Suggestions are read live."""

    async def get_dataset_progress(self, dataset: Dataset) -> dict[str, int]:
        """Records by status, and their ``total``; empty for a draft."""
        sql = "SELECT status, count(*) FROM records WHERE dataset_id = ? GROUP BY status"
        return {} if dataset.is_draft else await _counted(sql, dataset.id.hex)

    async def get_dataset_user_progress(self, dataset: Dataset, user: User) -> dict[str, int]:
        """A user's responses by status, and their ``total``; empty for a draft."""
        sql = (
            "SELECT p.status, count(*) FROM responses p JOIN records r ON r.id = p.record_id"
            " WHERE r.dataset_id = ? AND p.user_id = ? GROUP BY p.status"
        )
        return {} if dataset.is_draft else await _counted(sql, dataset.id.hex, user.id.hex)

    async def compute_metrics_for(self, metadata_property: MetadataProperty) -> MetadataMetrics:
        """The terms with their counts, most frequent first, or the least and greatest number."""
        values = f'$."{metadata_property.name}"', metadata_property.dataset_id.hex
        source = "FROM records r, json_each(r.metadata, ?) e WHERE r.dataset_id = ? AND e.type <> 'null'"
        if metadata_property.type == MetadataPropertyType.terms:
            sql = f"SELECT CAST(e.value AS TEXT), count(*) {source} GROUP BY 1 ORDER BY 2 DESC, 1"
            rows = await _read(lambda db: db.execute(sql, values).fetchall())
            counts = [TermsMetrics.TermCount(term=term, count=count) for term, count in rows]
            return TermsMetrics(total=sum(count for _, count in rows), values=counts)
        ends = f"SELECT min(e.value), max(e.value) {source}"
        low, high = await _read(lambda db: db.execute(ends, values).fetchone())
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
        """Records that match, in the order asked for.

        Without an order: best match first for a text query, else each user has a random order of their own that
        stays the same, so that annotators do not all begin with the same records.
        """
        fields = await _text_fields(dataset)

        def find(db: sqlite3.Connection) -> tuple[int, list[tuple[str, float]]]:
            bind = Bind()
            chosen = _select(TextIndex(db, dataset.id.hex, fields), bind, query, filter, ranked=not sort)
            counted = f"{chosen.parts} SELECT count(*) FROM {chosen.source} WHERE {chosen.where}"
            total = db.execute(counted, bind.values).fetchone()[0]
            terms = ordering(sort or (), bind)
            if not terms and chosen.score:
                terms = [f"{chosen.score} DESC"]
            elif not terms and user_id:
                terms = [f"shuffled({bind(str(user_id))}, r.id)"]
            order = ", ".join([*terms, "r.inserted_at", "r.id"])
            page = (
                f"{chosen.parts} SELECT r.id, {chosen.score or '1.0'} FROM {chosen.source} WHERE {chosen.where}"
                f" ORDER BY {order} LIMIT {bind(limit)} OFFSET {bind(offset)}"
            )
            return total, db.execute(page, bind.values).fetchall()

        total, rows = await _read(find)
        return SearchResponses(items=[_item(*row) for row in rows], total=total)

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
        """Records nearest to a vector, or to a record, which is then left out; or those farthest from it."""
        if (value is None) == (record is None):
            raise UnprocessableEntityError("A vector or a record is wanted, one of the two.")
        probe = value if record is None else record.vector_value_by_vector_settings(vector_settings)
        fields = await _text_fields(dataset)

        def find(db: sqlite3.Connection) -> list[tuple[str, float]]:
            bind = Bind()
            chosen = _select(TextIndex(db, dataset.id.hex, fields), bind, query, filter, ranked=False)
            rows = db.execute(f"{chosen.parts} SELECT r.id FROM {chosen.source} WHERE {chosen.where}", bind.values)
            allowed = {row[0] for row in rows} - ({record.id.hex} if record is not None else set())
            vectors = _VECTORS.get(db, vector_settings.id.hex)
            ranked = vectors.ranked(probe or [], least=order == SimilarityOrder.least_similar)
            found = ((near, score) for near, score in ranked if near in allowed)
            close = (pair for pair in found if threshold is None or pair[1] >= threshold)
            return [pair for _, pair in zip(range(max_results), close, strict=False)]

        rows = await _read(find)
        return SearchResponses(items=[_item(*row) for row in rows], total=len(rows))

    @staticmethod
    async def _indexed(dataset: Dataset, act: Callable[[TextIndex], None]) -> None:
        fields = await _text_fields(dataset)
        try:
            await _read(lambda db: act(TextIndex(db, dataset.id.hex, fields)))
        except BaseException:
            _VERIFIED.discard(dataset.id.hex)
            raise


def _select(
    index: TextIndex, bind: Bind, query: TextQuery | str | None, chosen: Filter | None, *, ranked: bool
) -> _Selected:
    """Put a query and a filter together; the hits of the text are found first, once, and then joined."""
    where = [f"r.dataset_id = {bind(index.dataset)}"]
    if chosen is not None:
        where.append(f"({condition(chosen, bind)})")
    if query is None:
        return _Selected("", "records r", " AND ".join(where), None)
    text, field = (query, None) if isinstance(query, str) else (query.q, query.field)
    part = text_query.parse(text)
    if part is None or (field is not None and field not in index.fields):
        return _Selected("", "records r", "0", None)
    if text_query.size(part) > _WORDS:
        raise UnprocessableEntityError(f"At most {_WORDS} words can be searched for at once.")
    index.catch_up(thorough=index.dataset not in _VERIFIED)
    _VERIFIED.add(index.dataset)
    hits = f"SELECT d.record, d.rowid AS place FROM {index.docs} d WHERE {index.condition(part, bind, field)}"
    source = "records r JOIN hits ON hits.record = r.id"
    if not ranked or not (wanted := text_query.words(part)):
        return _Selected(f"WITH hits AS MATERIALIZED ({hits})", source, " AND ".join(where), None)
    scores = f"scores AS MATERIALIZED ({index.ranked(wanted, bind, field)})"
    source += " LEFT JOIN scores ON scores.rowid = hits.place"
    parts = f"WITH hits AS MATERIALIZED ({hits}), {scores}"
    return _Selected(parts, source, " AND ".join(where), "coalesce(scores.score, 0.0)")


async def _read(act: Callable[[sqlite3.Connection], Answer]) -> Answer:
    """Run in a thread with a connection of its own, so that other requests go on."""

    def run() -> Answer:
        with store.connect(Path(settings.home_path)) as connection:
            return act(connection)

    return await asyncio.to_thread(run)


async def _counted(sql: str, *values: str) -> dict[str, int]:
    rows = await _read(lambda db: db.execute(sql, values).fetchall())
    return {"total": sum(count for _, count in rows), **dict(rows)}


async def _text_fields(dataset: Dataset) -> list[str]:
    return [field.name for field in await dataset.awaitable_attrs.fields if not field.is_image]


def _item(record: str, score: float) -> SearchResponseItem:
    return SearchResponseItem(record_id=UUID(record), score=score)
