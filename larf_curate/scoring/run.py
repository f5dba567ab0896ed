"""One piece of a dataset scored into one Parquet file, which is whole or absent."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, Image, Video

from larf_curate.data.sources import Piece
from larf_curate.errors import ScoringError
from larf_curate.files import undecoded, whole

if TYPE_CHECKING:
    from larf_curate.conversation.chat_template import Rendered
    from larf_curate.scoring.scorer import LarfScorer  # torch, which reading scored datasets needs not

BATCH_ROWS = 250
Item = TypeVar("Item")
Made = TypeVar("Made")


def score_piece(piece: Piece, scorer: "LarfScorer", folder: Path, rank: int | None = None) -> Iterator[int]:
    """Score one piece into ``folder/<name>.parquet``; yields the number of rows after each batch.

    Raises:
        ScoringError: If the file cannot be written.
    """
    features = scorer.features(piece.rows.features)
    path = piece_file(folder, piece)
    ends = range(BATCH_ROWS, len(piece.rows) + BATCH_ROWS, BATCH_ROWS)
    batches = (piece.rows.select(range(end - BATCH_ROWS, min(end, len(piece.rows)))) for end in ends)
    try:
        with whole(path) as aside, pq.ParquetWriter(aside, features.arrow_schema) as writer:
            for table, rendered in _one_ahead(partial(_rendered, scorer, rank), batches):
                writer.write_table(_with_scores(table, scorer.columns_of(rendered, rank), features))
                yield len(table)
    except OSError as error:
        raise ScoringError(f"cannot write {path}: {error}; make room, then go on with --resume") from error


def piece_file(folder: Path, piece: Piece) -> Path:
    """Where a piece is scored into."""
    return folder / f"{piece.name}.parquet"


def _rendered(scorer: "LarfScorer", rank: int | None, batch: Dataset) -> tuple[pa.Table, list["Rendered"]]:
    """A batch's own columns as they are, and its rows made ready for the model."""
    text = [name for name, feature in batch.features.items() if not isinstance(feature, Image | Audio | Video)]
    return batch.with_format("arrow")[:], scorer.render(undecoded(batch.select_columns(text))[:], rank)


def _one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Make something of every item, at least one, beside what is done with the one before.

    The first is made in this thread: what loads with it would else set the number of threads of the other one alone.
    """
    left = iter(items)
    made = make(next(left))
    with ThreadPoolExecutor(1) as thread:
        for item in left:
            upcoming = thread.submit(make, item)
            yield made
            made = upcoming.result()
    yield made


def _with_scores(table: pa.Table, added: Mapping[str, Sequence[Any]], features: Features) -> pa.Table:
    """The batch's own columns, and the scorer's behind them."""
    schema = features.arrow_schema
    own = [name for name in table.column_names if name not in added]
    columns = {name: table[name] for name in own} | {n: _array(v, schema.field(n).type) for n, v in added.items()}
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    return pa.array(list(values), dtype)
