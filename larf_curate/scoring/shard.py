"""Score one piece of a source into one shard, the unit of work of every way to run the scoring.

Processes of one machine, array jobs and clusters differ only in who calls `ShardScorer.score` for which piece.
"""

import logging
import os
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features

from larf_curate.data.sources import Piece
from larf_curate.data.tables import GROUP_BYTES, is_media, text_rows
from larf_curate.errors import ScoringError
from larf_curate.files import place_first, prepare_to_write
from larf_curate.manifests import ShardRecord, shard_record
from larf_curate.scoring.completed import completed, read_records, record_in_store
from larf_curate.scoring.crashes import with_crashed
from larf_curate.scoring.journal import record_shard
from larf_curate.scoring.parts import Parts
from larf_curate.scoring.plan import check_plan
from larf_curate.scoring.run_store import store_of

if TYPE_CHECKING:
    from larf_curate.conversation.chat_template import Rendered
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer  # imports torch, which the command line needs only to score

logger = logging.getLogger(__name__)
BATCH_ROWS = 250
"""Number of rows that are tokenized, scored and written together; fewer for large models, see `LarfScorer.batch_rows`.
"""
BATCH_BYTES = 128 * 2**20
"""Approximate size of these rows in memory, of which there are fewer if they are large."""
TOKEN_BYTES = 4
"""Average size of a token in bytes of text."""
Report = Callable[[int], object]
"""Takes a number of newly scored rows: negative ones are to be scored again."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class ShardScorer:
    """Scores pieces of a source into shards of a folder; worker processes get a copy.

    Several processes, also of other machines, may score the same piece at once, and need no locks: each writes a file
    of its own, and the first that is complete gets the name.

    Args:
        folder: Folder of the result.
        plan: Hex SHA-256 of the run's plan in it.
        scorer: The scorer.
        guard: A guard model whose verdicts are written too; default: none.
        run: Part of the names of unfinished files, by which a process and its workers know theirs.
    """

    folder: Path
    plan: str
    scorer: "LarfScorer"
    guard: "GuardScorer | None" = None
    run: str = field(default_factory=lambda: uuid4().hex[:8])

    def score(self, piece: Piece, report: Report, *, rank: int | None = None, crashed: Collection[int] = ()) -> None:
        """Score one piece into one shard, ``folder/<name>.parquet``, which is there only when it is complete.

        A piece that another process has completed is not scored again.

        Args:
            piece: The rows.
            report: Called every few seconds with the number of newly scored rows.
            rank: Rank of this worker process, which selects the GPU; default: none.
            crashed: Indices of rows that are not scored, since that ends the process.

        Raises:
            ScoringError: If the shard cannot be written.
            InputError: If the plan in the folder has become another one.
        """
        path = shard_file(self.folder, piece)
        temporary = path.with_name(f".{path.name}.{self.run}.tmp")
        if self._completed(piece):
            report(len(piece.rows))
            return
        try:
            prepare_to_write(path)
            with Parts(self.folder, piece.name, plan=self.plan, schema=self.features().arrow_schema) as parts:
                self._write(temporary, piece, parts, _Counter(report), rank, crashed)
                self._place(temporary, piece)
            parts.remove()
        except OSError as error:
            # A run that has finished meanwhile, and has this piece too, removes all temporary files.
            if not self._completed(piece):
                raise ScoringError(
                    f"cannot write {path}: {error}; free disk space or correct the path, then continue with --resume"
                ) from error
        finally:
            temporary.unlink(missing_ok=True)

    def interrupted(self, pieces: Iterable[Piece], *, run: str = "*") -> list[Piece]:
        """Find the pieces of which killed processes, or others that are running, have left incomplete shards.

        Args:
            pieces: The pieces.
            run: The run of these processes; default: any.
        """
        names = {path.name.rsplit(".", 2)[0] for path in self.folder.glob(f".*.{run}.tmp")}
        return [piece for piece in pieces if f".{piece.name}.parquet" in names]

    def features(self, existing: Features | None = None) -> Features:
        """Return the types of the new columns; with ``existing``, after those of the rows."""
        features = self.scorer.features(existing)
        return features if self.guard is None else self.guard.features(features)

    def _write(
        self, path: Path, piece: Piece, parts: Parts, counter: "_Counter", rank: int | None, crashed: Collection[int]
    ) -> None:
        """Write a piece with its scores into a file."""
        features = self.features(piece.rows.features)
        tables = self._tables(piece, parts, counter, rank, crashed, features)
        with closing(tables), pq.ParquetWriter(path, features.arrow_schema) as writer:
            for group in _groups(tables):
                writer.write_table(group)

    def _tables(
        self,
        piece: Piece,
        parts: Parts,
        counter: "_Counter",
        rank: int | None,
        crashed: Collection[int],
        features: Features,
    ) -> Generator[pa.Table]:
        """Batches of a piece with their scores, of which those that a part has are not scored again."""
        batches = _batches(len(piece.rows), self._batch_rows(piece.rows))
        missing = [batch for batch in batches if parts.find(batch) is None]
        with closing(self._scored(piece.rows, missing, counter, rank, crashed)) as scored:
            for batch in batches:
                added = parts.find(batch)
                if added is None:
                    table, added = next(scored)
                    parts.add(batch, added)
                else:
                    table = _original(piece.rows, batch)
                yield _with_scores(table, added, features)
                counter.complete(len(batch))

    def _scored(
        self,
        rows: Dataset,
        batches: Sequence[range],
        counter: "_Counter",
        rank: int | None,
        crashed: Collection[int],
    ) -> Generator[tuple[pa.Table, pa.Table]]:
        """Score batches of rows; yields the original and the new columns of each."""
        schema = self.features().arrow_schema
        render = partial(_rendered, self.scorer, rank, rows, crashed)
        for table, texts, rendered, missing in _prefetch(render, batches) if batches else ():
            added = self.scorer.columns_of(rendered, rank, counter.add) | (self.guard(texts) if self.guard else {})
            columns = with_crashed(added, missing)
            yield table, pa.table([pa.array(list(columns[field.name]), field.type) for field in schema], schema=schema)

    def _batch_rows(self, rows: Dataset) -> int:
        """Number of rows that are scored together: fewer if they are large on average, or take long."""
        text = [name for name, feature in rows.features.items() if not is_media(feature)]
        sizes = [table.nbytes / max(table.num_rows, 1) for table in (rows.data, rows.data.select(text))]
        tokens = max(sizes[1] / TOKEN_BYTES, 1)
        return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(sizes[0], 1)), self.scorer.batch_rows(tokens)))

    def _place(self, temporary: Path, piece: Piece) -> None:
        """Give a complete shard its name, unless another process has been faster."""
        path = shard_file(self.folder, piece)
        shard = shard_record(temporary, len(piece.rows), folder=self.folder)
        shard["file"] = path.name
        first = self._completed(piece)
        if first is None:
            # Before the shard gets its name: so a run that is killed here has no shard without a digest.
            record_shard(self.folder, shard, plan=self.plan)
            if not _place_first(temporary, path):
                first = self._completed(piece)
                if first is None:  # damaged, or of another run
                    _replace(temporary, path)
        if first and first["sha256"] != shard["sha256"]:
            logger.warning(
                "%s: another process has scored these rows too, with other content, as other hardware may give: "
                "its shard, the first, is kept",
                path,
            )

    def _completed(self, piece: Piece) -> ShardRecord | None:
        """Record of the shard of a piece, if it is there, complete and of this run."""
        check_plan(self.folder, self.plan)
        path = shard_file(self.folder, piece)
        if store_of(self.folder):
            shard = record_in_store(self.folder, path.name, self.plan)
            return shard if shard and shard["rows"] == len(piece.rows) else None
        return completed(path, len(piece.rows), read_records(self.folder)) if path.exists() else None


@dataclass
class _Counter:
    """Reports rows as they are scored, and when their batch is complete those that were not reported."""

    report: Report
    reported: int = 0

    def add(self, rows: int) -> None:
        self.report(rows)
        self.reported += rows

    def complete(self, rows: int) -> None:
        self.report(rows - self.reported)
        self.reported = 0


def _place_first(temporary: Path, path: Path) -> bool:
    """Give a complete file its name, here or in the store, unless another process has been faster."""
    store = store_of(path.parent)
    return store.put_first(temporary, path.name) if store else place_first(temporary, path)


def _replace(temporary: Path, path: Path) -> None:
    """Give a complete file its name in place of a damaged one, here or in the store."""
    if store := store_of(path.parent):
        store.put(temporary.parent, temporary.name, path.name)
    else:
        os.replace(temporary, path)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to row groups: each costs every reader some memory, however few rows it has."""
    group: list[pa.Table] = []
    for table in tables:
        group.append(table)
        if sum(part.nbytes for part in group) >= GROUP_BYTES:
            yield pa.concat_tables(group).combine_chunks()
            group = []
    if group:
        yield pa.concat_tables(group).combine_chunks()


def _batches(rows: int, size: int) -> list[range]:
    return [range(start, min(start + size, rows)) for start in range(0, rows, size)]


def shard_file(folder: Path, piece: Piece) -> Path:
    """Path of the shard of a piece."""
    return folder / f"{piece.name}.parquet"


def _rendered(
    scorer: "LarfScorer", rank: int | None, rows: Dataset, crashed: Collection[int], batch: range
) -> tuple[pa.Table, dict[str, list[Any]], list["Rendered"], list[int]]:
    """Read and tokenize a batch of rows.

    Returns:
        Its original columns as an Arrow table; the rows to score as lists, without media, and tokenized; and the places
        in the batch of the rows that are not scored.
    """
    missing = [place for place, row in enumerate(batch) if row in crashed]
    texts = text_rows(rows.select([row for row in batch if row not in crashed] if missing else batch))[:]
    return _original(rows, batch), texts, scorer.render(texts, rank), missing


def _original(rows: Dataset, batch: range) -> pa.Table:
    """The columns of a batch as they were read."""
    return rows.select(batch).with_format("arrow")[:]


def _prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items, at least one, in a background thread that is one item ahead of the caller.

    So the next batch is tokenized while the model scores the current one. The first item is processed in this thread,
    since it loads the model, which sets the number of compute threads only for the thread that loads it.
    """
    remaining = iter(items)
    result = function(next(remaining))
    with ThreadPoolExecutor(1) as thread:
        for item in remaining:
            upcoming = thread.submit(function, item)
            yield result
            result = upcoming.result()
    yield result


def _with_scores(table: pa.Table, added: pa.Table, features: Features) -> pa.Table:
    """The original columns of a batch, followed by the new ones, which replace columns of the same name."""
    schema = features.arrow_schema
    columns = dict(zip(table.column_names, table.columns, strict=True))
    columns |= dict(zip(added.column_names, added.columns, strict=True))
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
