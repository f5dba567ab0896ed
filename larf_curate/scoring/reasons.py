"""Why rows have no score: shards have only a status, so the first such rows are read again for the reason."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset

from larf_curate.data.sources import Source
from larf_curate.data.tables import text_rows
from larf_curate.scoring.crashes import CRASHED
from larf_curate.scoring.manifest import SCORED_STATUSES, statuses
from larf_curate.scoring.run_store import run_folder
from larf_curate.scoring.shard import shard_file

if TYPE_CHECKING:
    from larf_curate.conversation.chat_template import Renderer
    from larf_curate.scoring.scorer import LarfScorer


def first_reasons(source: Source, folder: str | Path, scorer: "LarfScorer", *, most: int = 3) -> list[tuple[int, str]]:
    """Explain why the first unscored rows have no score.

    Args:
        source: The rows.
        folder: Folder that `score_source` wrote.
        scorer: The scorer.
        most: Maximum number of rows to explain.

    Returns:
        Index and reason of each of these rows.
    """
    unscored = list(islice(_unscored(source, run_folder(folder)), most))
    if not unscored:
        return []
    render = scorer.renderer()
    return [(index, _reason(row, status, render, scorer.profile.source.dtype)) for index, status, row in unscored]


def _unscored(source: Source, folder: Path) -> Iterator[tuple[int, str, Dataset]]:
    """Index, status and the row itself of each row without a score."""
    for piece in source.pieces:
        for index, status in enumerate(statuses(shard_file(folder, piece))):
            if status not in SCORED_STATUSES:
                yield piece.first + index, status, text_rows(piece.rows.select([index]))


def _reason(row: Dataset, status: str, render: "Renderer", dtype: str) -> str:
    """Why a row has no score: a shard has only its status, so the row is rendered again."""
    if status == CRASHED:
        return "it ended the process that scored it, by a crash or for lack of memory: shorten it, or leave it out"
    if status == "non_finite":
        return f"the model's states are not finite in {dtype}: build the profile with another dtype"
    [rendered] = render(list(row))
    return rendered.reason or f"it was {status} when it was scored, and can be rendered now: score it again"
