"""Load the unsafe and safe references that rows are compared with, and the neutral rows that define what is normal."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.data import load_rows
from larf_curate.data.folders import folder_files
from larf_curate.data.formats import first_line, format_suffix, read_file
from larf_curate.data.tables import undecoded
from larf_curate.errors import ConversationError, InputError, ReferenceSetError
from larf_curate.remote import last_part, local_copy, public_name

MIN_NEUTRAL = 10
"""Fewest distinct neutral rows: z-scores need a mean and a standard deviation."""
TRAIN = "train"
"""Split that is read by default."""
PAIR_COLUMNS = ("prompt", "unsafe", "safe")


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Unsafe and safe exemplar conversations; row i of each side is a pair if the sides are of the same size.

    Args:
        unsafe: Conversations in which the assistant complies with a harmful request.
        safe: Conversations in which it refuses such a request.
        labels: Hazard category of each unsafe exemplar.
        source: Where the set was loaded from; recorded in profiles and cards.

    Raises:
        ReferenceSetError: If a side is empty or a row is not a conversation.
    """

    unsafe: tuple[Row, ...] = field(repr=False)
    safe: tuple[Row, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    source: str

    def __post_init__(self) -> None:
        for side, rows in (("unsafe", self.unsafe), ("safe", self.safe)):
            if not rows:
                raise ReferenceSetError(
                    f"wanted unsafe and safe references, got no {side} ones in {self.source}: add some"
                )
            for index, row in enumerate(rows):
                _check_row(row, f"{side} reference {index} of {self.source}")

    @classmethod
    def load(
        cls,
        name: str | Path = "builtin",
        *,
        columns: Mapping[str, str] | None = None,
        split: str = TRAIN,
        revision: str | None = None,
    ) -> "ReferenceSet":
        """Load pairs: prompts, each with an unsafe and a safe answer.

        Args:
            name: ``builtin``; a json, jsonl, ndjson, csv, tsv or parquet file; a folder of such files; a URL of
                either; or a Hub id.
            columns: Column names by role, if they differ: ``{"prompt": …, "unsafe": …, "safe": …}``, optionally
                ``category``. Datasets with two answers and a boolean for each (PKU-SafeRLHF) need no mapping.
            split: Split of a Hub dataset, or of a folder that has several.
            revision: Commit, tag or branch of a Hub dataset.

        Raises:
            ReferenceSetError: If it cannot be read or lacks a column.
        """
        if str(name) == "builtin":
            return cls._from_pairs(load_rows("references"), "builtin", {})
        return cls._from_pairs(_read(str(name), split, revision), public_name(name), columns or {})

    @classmethod
    def from_sides(cls, unsafe: str | Path, safe: str | Path) -> "ReferenceSet":
        """Load each side from a file (or Hub id) of conversations in any recognised format.

        Args:
            unsafe: Conversations in which the assistant complies with a harmful request.
            safe: Conversations in which it refuses. With as many as there are unsafe ones, row i of each side is taken
                for a pair; prompts are not compared.

        Raises:
            ReferenceSetError: If a file cannot be read, is empty, or has rows that are not conversations.
        """
        sides = [tuple(_read(str(path), TRAIN, None)) for path in (unsafe, safe)]
        labels = tuple(str(row.get("category") or "unsafe") for row in sides[0])
        return cls(unsafe=sides[0], safe=sides[1], labels=labels, source=f"{last_part(unsafe)} + {last_part(safe)}")

    @classmethod
    def _from_pairs(cls, rows: Iterable[Row], source: str, columns: Mapping[str, str]) -> "ReferenceSet":
        pairs = [_pair(row, columns, f"row {index} of {source}") for index, row in enumerate(rows)]
        usable = [pair for pair in pairs if pair]
        unsafe, safe = ([{"prompt": p[0], "response": p[side]} for p in usable] for side in (1, 2))
        return cls(unsafe=tuple(unsafe), safe=tuple(safe), labels=tuple(p[3] for p in usable), source=source)

    def __len__(self) -> int:
        """Number of unsafe references."""
        return len(self.unsafe)

    @cached_property
    def refuses(self) -> bool:
        """Whether most safe references end with a refusal; see `RefusalDetector`."""
        detector = RefusalDetector()
        answers = [to_messages(row)[-1]["content"] for row in self.safe]
        return 2 * sum(map(detector, answers)) > len(answers)

    @property
    def same_size(self) -> bool:
        """Whether both sides have equally many rows, so that row i of one is taken for the counterpart of row i."""
        return len(self.unsafe) == len(self.safe)

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the messages of both sides; columns, labels and source do not matter."""
        text = json.dumps([[to_messages(row) for row in side] for side in (self.unsafe, self.safe)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_neutral(name: str | Path | Sequence[Row] = "builtin") -> tuple[Row, ...]:
    """Load neutral rows, which define what is normal for a model.

    Args:
        name: ``builtin``; a file, a folder or a Hub dataset id with conversations in any recognised format; or rows.

    Raises:
        ReferenceSetError: If they cannot be read, fewer than 10 are distinct, or one is not a conversation.
    """
    if isinstance(name, str | Path):
        rows = load_rows("neutral") if str(name) == "builtin" else _read(str(name), TRAIN, None)
    else:
        rows = list(name)
    if len(rows) < MIN_NEUTRAL:
        raise ReferenceSetError(f"wanted at least {MIN_NEUTRAL} neutral rows, got {len(rows)}: use the built-in ones")
    for index, row in enumerate(rows):
        _check_row(row, f"neutral row {index}")
    if (distinct := len({json.dumps(to_messages(row)) for row in rows})) < MIN_NEUTRAL:
        raise ReferenceSetError(
            f"wanted at least {MIN_NEUTRAL} different neutral rows, got {distinct}: use the built-in ones"
        )
    return tuple(rows)


def _pair(row: Row, columns: Mapping[str, str], where: str) -> tuple[Any, Any, Any, str] | None:
    """Prompt, unsafe answer, safe answer and category of a row; None if both its answers are safe, or both unsafe."""
    if "is_response_0_safe" in row and not columns:
        return _pku_pair(row)
    names = [columns.get(name, name) for name in PAIR_COLUMNS]
    if missing := [name for name in names if row.get(name) is None]:
        raise ReferenceSetError(
            f"{where} has no {', '.join(missing)} (columns: {', '.join(row)}): wanted prompt, unsafe and safe, "
            "or a mapping to them (columns={'prompt': …, 'unsafe': …, 'safe': …})"
        )
    prompt, unsafe, safe = (row[name] for name in names)
    return prompt, unsafe, safe, str(row.get(columns.get("category", "category")) or "unsafe")


def _pku_pair(row: Row) -> tuple[Any, Any, Any, str] | None:
    """The same for a row of PKU-SafeRLHF, whose two answers are in no particular order."""
    answers = (row["response_0"], row["response_1"])
    safe = (row["is_response_0_safe"], row["is_response_1_safe"])
    if bool(safe[0]) == bool(safe[1]):
        return None
    return row["prompt"], answers[safe.index(False)], answers[safe.index(True)], "unsafe"


def _read(name: str, split: str, revision: str | None) -> Sequence[Row]:
    path, name = _located(name), public_name(name)
    # Without this check, a file name with a typo would be looked up as a Hub dataset.
    if format_suffix(path) and not path.exists():
        raise ReferenceSetError(f"there is no file {name}: give an existing file, a folder or a Hub dataset id")
    try:
        if path.exists():
            return [row for file in _files(path, split) for row in _read_file(file)]
        return list(load_dataset(name, split=split, revision=revision))
    except InputError as error:
        raise error if isinstance(error, ReferenceSetError) else ReferenceSetError(str(error)) from error
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        cause = first_line(error.__cause__ or error)
        raise ReferenceSetError(f"cannot read rows from {name!r}: {cause}; repair it, or give another") from error


def _located(name: str) -> Path:
    """The path of a name, which need not exist; of a URL, that of its copy."""
    try:
        return local_copy(name)
    except InputError as error:
        raise ReferenceSetError(str(error)) from error


def _files(path: Path, split: str) -> Sequence[Path]:
    if not path.is_dir():
        return (path,)
    # A folder with a single split needs no choice; "train" is only the default among several.
    return folder_files(path, split=None if split == TRAIN else split, default_split=TRAIN).files


def _read_file(path: Path) -> Sequence[Row]:
    rows = read_file(path)
    if rows is None:
        raise ReferenceSetError(f"wanted references, got an empty file: {path.name}; add rows, or give another")
    return list(undecoded(rows))


def _check_row(row: Row, where: str) -> None:
    try:
        to_messages(row)
    except ConversationError as error:
        raise ReferenceSetError(f"{where} is not a conversation: {error}") from error
