"""Rows of an unfinished shard: saved every few seconds, so that an interruption does not lose the whole shard.

Parts are Parquet files in the journal of the run, with the new columns alone. Each is recorded there with its digest,
as shards are, and removed when its shard is complete.
"""

import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.files import atomic_path
from larf_curate.manifests import SCORED, shard_record
from larf_curate.scoring.completed import completed, read_records
from larf_curate.scoring.journal import parts_folder, record_shard

logger = logging.getLogger(__name__)
PART_SECONDS: Final = 10.0
"""Time after which the rows that were scored since the last part are saved."""


class Parts:
    """Saved rows of one shard; a context manager that also saves what is left if the shard is not completed.

    Args:
        folder: Folder of the run.
        name: Name of the piece whose shard it is.
        plan: Hex SHA-256 of the run's plan.
        schema: Names and types of the new columns; parts that have others are not read.
    """

    def __init__(self, folder: Path, name: str, *, plan: str, schema: pa.Schema) -> None:
        self.folder, self.name, self.plan, self.schema = folder, name, plan, schema
        self._parts = self._read()
        self._unsaved: list[tuple[range, pa.Table]] = []
        self._saved_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind:
            with suppress(OSError):  # such as a full disk, which may be the error already
                self._save()

    def find(self, rows: range) -> pa.Table | None:
        """The new columns of a batch, given by the places of its rows in the piece; None if they were not saved."""
        for part, table in self._parts:
            if part.start <= rows.start and rows.stop <= part.stop:
                return table.slice(rows.start - part.start, len(rows)).combine_chunks()
        return None

    def add(self, rows: range, added: pa.Table) -> None:
        """Add the new columns of a batch, which follows the batch that was added before.

        Raises:
            OSError: If a part is due and cannot be written.
        """
        if self._unsaved and self._unsaved[-1][0].stop != rows.start:  # batches between them had been saved
            self._save()
        self._unsaved.append((rows, added))
        if time.monotonic() - self._saved_at >= PART_SECONDS:
            self._save()

    def remove(self) -> None:
        """Remove the parts, of a shard that is complete."""
        shutil.rmtree(parts_folder(self.folder, self.name), ignore_errors=True)

    def _save(self) -> None:
        if not self._unsaved or (self.folder / SCORED.file).exists():  # another process has finished
            return
        rows = range(self._unsaved[0][0].start, self._unsaved[-1][0].stop)
        path = parts_folder(self.folder, self.name) / f"{rows.start:06d}-{rows.stop:06d}.parquet"
        with atomic_path(path) as temporary:
            pq.write_table(pa.concat_tables([added for _, added in self._unsaved]), temporary)
            shard = shard_record(temporary, len(rows), folder=self.folder)
            record_shard(self.folder, shard | {"file": self._key(path)}, plan=self.plan)
        self._unsaved = []
        self._saved_at = time.monotonic()

    def _read(self) -> list[tuple[range, pa.Table]]:
        """The rows and content of each part that is as it was recorded."""
        try:
            paths = sorted(parts_folder(self.folder, self.name).iterdir())
        except OSError:  # there are none, as in most runs
            return []
        records = read_records(self.folder)
        parts = [(path, _rows_of(path)) for path in paths]
        intact = [(path, rows) for path, rows in parts if rows and completed(path, len(rows), records, self._key(path))]
        tables = [(rows, _read_table(path)) for path, rows in intact]
        return [(rows, table) for rows, table in tables if table is not None and self._fits(rows, table)]

    def _fits(self, rows: range, table: pa.Table) -> bool:
        """Whether a part has the new columns of its rows: with --no-verify, its content may be another."""
        return bool(table.schema.equals(self.schema)) and table.num_rows == len(rows)

    def _key(self, path: Path) -> str:
        """Name under which a part is recorded."""
        return f"{self.name}/{path.name}"


def _rows_of(path: Path) -> range | None:
    """The rows that are named by a part's file name."""
    first, _, stop = path.stem.partition("-")
    known = path.suffix == ".parquet" and first.isdecimal() and stop.isdecimal()
    return range(int(first), int(stop)) if known else None


def _read_table(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:  # with --no-verify
        logger.warning("%s is damaged (%s): its rows are scored again", path, error)
        return None
