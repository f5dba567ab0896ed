"""Preview rows as the model reads them: the rendered text, its tokens, what is learned and scored, and why not.

The rows are rendered by the same `Renderer` as in scoring. Only the tokenizer is loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from datasets import Dataset, concatenate_datasets

from larf_curate.columns import PREFIX, ROW_ID
from larf_curate.conversation.chat_template import Inspection, Renderer, Status
from larf_curate.conversation.schemas import check_columns, schema_for, unused_columns
from larf_curate.data.sources import local_source, open_source
from larf_curate.data.tables import text_rows, undecoded
from larf_curate.errors import InputError
from larf_curate.manifests import PLAN, SCORED, SELECTION
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import Selection
from larf_curate.scoring.shard import BATCH_ROWS

COUNTED_ROWS = 1_000
"""Number of rows from the beginning that are counted."""
Part = Literal["prompt", "learned", "not learned"]
"""What a token belongs to: a prompt or what the template writes, an answer, or an answer excluded from training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreviewRows:
    """Rows to preview.

    Args:
        rows: The rows, at least one and those that are counted.
        manifest: Manifest of the scored dataset, if the rows are of a folder that score or select wrote; else empty.
    """

    rows: Dataset
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        data: str | Sequence[str],
        *,
        row: int = 0,
        split: str | None = None,
        config: str | None = None,
        revision: str | None = None,
    ) -> "PreviewRows":
        """Open a dataset, or a folder that score or select wrote; the rows of a selection are its flagged ones first.

        Args:
            data: One or several datasets as in `open_source`, or a result folder.
            row: A row that is needed besides those that are counted.
            split: Split of a dataset.
            config: Configuration of a Hub dataset.
            revision: Commit, tag or branch of a Hub dataset.

        Raises:
            InputError: If there is no such dataset, it has no rows, or it is a result folder that is not complete.
        """
        names = [local_source(name) for name in ([data] if isinstance(data, str) else data)]
        folder = Path(names[0])
        if len(names) == 1 and (folder / SELECTION.file).is_file():
            selection = Selection.load(folder)
            return cls(rows=concatenate_datasets([selection.flagged, selection.kept]), manifest=selection.scored)
        if len(names) == 1 and any((folder / name).is_file() for name in (SCORED.file, PLAN)):
            scored = Scored.load(folder)
            return cls(rows=scored.rows, manifest=scored.manifest)
        limit = max(row + 1, COUNTED_ROWS)
        source = open_source(names, split=split, config=config, revision=revision, limit=limit)
        return cls(rows=concatenate_datasets([piece.rows for piece in source.pieces]))

    @property
    def columns(self) -> Mapping[str, str] | None:
        """Column names by role that the rows were scored with, if any were given."""
        return (self.manifest.get("source") or {}).get("columns")

    def find(self, row: str) -> int:
        """Index of a row.

        Args:
            row: Its ``larf_row_id``, or its index; if the text is both, the id counts.

        Raises:
            InputError: If there is no such row.
        """
        ids = list(self.rows.with_format(None)[ROW_ID][:]) if ROW_ID in self.rows.column_names else []
        if row in ids:
            return ids.index(row)
        if (index := as_index(row)) is None:
            raise InputError(f"wanted the index of a row or a {ROW_ID} of the data, got {row!r:.80}")
        if index >= len(self.rows):
            raise InputError(f"wanted a row below {len(self.rows):,}, got {index:,}")
        return index

    def source_rows(self) -> Dataset:
        """The rows without ``larf_*`` columns, as they are rendered for scoring."""
        names = [name for name in self.rows.column_names if not name.startswith(PREFIX)]
        return self.rows.with_format(None).select_columns(names)


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """A token of a rendered text.

    Args:
        text: The characters since the token before; empty if it shares its character with that one.
        part: What it belongs to.
        read: Whether the model computes its state: False in the middle of a truncated row, and after the last answer.
    """

    text: str
    part: Part
    read: bool


@dataclass(frozen=True, kw_only=True)
class RowPreview:
    """A row as the model reads it.

    Args:
        row: Index of the row.
        source: Values of the row's columns.
        inspection: The row, rendered and tokenized.
    """

    row: int
    source: Mapping[str, Any]
    inspection: Inspection

    def learned(self) -> list[bool]:
        """Whether each token is learned in training."""
        mask = [False] * len(self.inspection.ids)
        for turn in self.inspection.turns:
            mask[turn.start : turn.end + 1] = [True] * (turn.end + 1 - turn.start)
        return mask

    def tokens(self) -> list[TokenView]:
        """The tokens in order; their texts together are the rendered text."""
        view, learned, texts = self.inspection, self.learned(), list(self._texts())
        others = [any(a <= start < b for a, b in view.others) for start, _ in view.offsets]
        read = [any(a <= index < b for a, b in view.read) for index in range(len(view.ids))]
        parts: list[Part] = [
            "learned" if is_learned else "not learned" if other else "prompt"
            for is_learned, other in zip(learned, others, strict=True)
        ]
        return [TokenView(text=t, part=p, read=r) for t, p, r in zip(texts, parts, read, strict=True)]

    def _texts(self) -> Iterator[str]:
        """Text of each token; characters that no token covers belong to the next one, at the end to the last one."""
        text, cursor = self.inspection.text, 0
        for number, (_, end) in enumerate(self.inspection.offsets, 1):
            stop = len(text) if number == len(self.inspection.offsets) else max(cursor, end)
            yield text[cursor:stop]
            cursor = stop

    def as_json(self) -> dict[str, Any]:
        """All that is known of the row, as JSON values; spans are half-open, of tokens and of characters."""
        view = self.inspection
        spans = zip(view.turns, view.learned, strict=True)
        turns = [{"tokens": [t.start, t.end + 1], "characters": list(span), "learned": True} for t, span in spans]
        turns += [{"tokens": self._covered(span), "characters": list(span), "learned": False} for span in view.others]
        return {
            "row": self.row,
            "status": view.rendered.status,
            "reason": view.rendered.reason,
            "text": view.text,
            "ids": list(view.ids),
            "offsets": [list(offset) for offset in view.offsets],
            "turns": sorted(turns, key=lambda turn: turn["characters"]),
            "learned": self.learned(),
            "read": [list(span) for span in view.read],
        }

    def _covered(self, span: tuple[int, int]) -> list[int]:
        """Tokens that begin within a span of characters."""
        inside = [index for index, (start, _) in enumerate(self.inspection.offsets) if span[0] <= start < span[1]]
        return [inside[0], inside[-1] + 1] if inside else [0, 0]


@dataclass(frozen=True, kw_only=True)
class StatusCount:
    """Rows of one status and reason: how many, and the first one's index.

    Truncated rows are counted together, with the first one's reason.
    """

    status: Status
    rows: int
    first_row: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """Counts over rows.

    Args:
        rows: Number of rows.
        statuses: Rows by status and reason, most frequent first.
        median_tokens: Median number of tokens of the rows that have any; None if none has.
        max_tokens: Most tokens of a row; None if no row has any.
        columns: Columns that are read.
        unused_columns: Columns that look like part of a conversation and are not read.
        left_out: What the chat template leaves out of the rows.
    """

    rows: int
    statuses: tuple[StatusCount, ...]
    median_tokens: float | None
    max_tokens: int | None
    columns: tuple[str, ...]
    unused_columns: tuple[str, ...]
    left_out: tuple[str, ...]


def as_index(row: str) -> int | None:
    """The index of a row that a text is; None if it is none."""
    return int(row) if row.isascii() and row.isdigit() and len(row) < 16 else None


def preview_row(rows: PreviewRows, index: int, renderer: Renderer) -> RowPreview:
    """Render one row.

    Args:
        rows: The rows.
        index: Index of the row.
        renderer: The renderer of scoring.

    Raises:
        ConversationError: If the columns have no recognised conversation format.
    """
    data = rows.source_rows()
    row = text_rows(data.select([index]))[0]
    [inspection] = renderer.inspect([row], schema_for(data.column_names, renderer.columns))
    return RowPreview(row=index, source=row, inspection=inspection)


def count_rows(rows: PreviewRows, renderer: Renderer) -> RowCounts:
    """Render the first `COUNTED_ROWS` rows and count their statuses, reasons and tokens.

    Args:
        rows: The rows.
        renderer: The renderer of scoring.

    Raises:
        ConversationError: If the columns have no recognised conversation format, or named ones are not there.
    """
    data = rows.source_rows()
    names = data.column_names
    if renderer.columns:
        check_columns(names, renderer.columns)
    schema = schema_for(names, renderer.columns)
    found: dict[tuple[Status, str], StatusCount] = {}
    lengths = []
    for index, inspection in enumerate(_inspected(data, renderer)):
        status, reason = inspection.rendered.status, _reason(inspection, renderer)
        key = (status, "" if status == "truncated" else reason)
        first = found.get(key) or StatusCount(status=status, rows=0, first_row=index, reason=reason)
        found[key] = replace(first, rows=first.rows + 1)
        lengths += [len(inspection.ids)] if inspection.ids else []
    unused = _with_values(data, unused_columns(names, renderer.columns))  # the renderer sees no media columns
    return RowCounts(
        rows=sum(count.rows for count in found.values()),
        statuses=tuple(sorted(found.values(), key=lambda count: -count.rows)),
        median_tokens=median(lengths) if lengths else None,
        max_tokens=max(lengths, default=None),
        columns=tuple(name for name in names if name in schema.used),
        unused_columns=tuple(sorted({*unused, *renderer.ignored_columns})),
        left_out=tuple(renderer.left_out),
    )


def _inspected(data: Dataset, renderer: Renderer) -> Iterator[Inspection]:
    schema, count = schema_for(data.column_names, renderer.columns), min(len(data), COUNTED_ROWS)
    for start in range(0, count, BATCH_ROWS):
        batch = text_rows(data.select(range(start, min(start + BATCH_ROWS, count))))
        yield from renderer.inspect(list(batch), schema)


def _with_values(data: Dataset, names: Sequence[str]) -> list[str]:
    """The columns that have a value in a row that is counted; media are not decoded."""
    rows = undecoded(data.select(range(min(len(data), COUNTED_ROWS))).select_columns(list(names)))
    return [name for name in names if any(rows[name])]


def _reason(inspection: Inspection, renderer: Renderer) -> str:
    if inspection.rendered.status == "truncated":
        return f"{len(inspection.ids):,} tokens, of which {renderer.max_length:,} are read"
    return inspection.rendered.reason
