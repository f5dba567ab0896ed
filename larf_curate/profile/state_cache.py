"""Cache of reference states on this machine: one file for each group of rows that is read together.

States depend on the other rows of a forward pass by rounding. A group is therefore stored and found as a whole, so that
a profile built from the cache equals, to the last bit, one that is built without it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from larf_curate.conversation.truncation import Tokens
from larf_curate.errors import InputError
from larf_curate.files import atomic_path, cache_home, is_temporary
from larf_curate.layers.report import LayerReport
from larf_curate.records import STRICT, parse_record, read_sealed, write_sealed
from larf_curate.states import Position, States, Vectors

logger = logging.getLogger(__name__)
MAX_BYTES = 4 * 2**30
"""Maximum size of the cache; the files that have not been used for longest are removed beyond it."""
MIN_ROWS, MAX_ROWS = 8, 32
"""Fewest and most rows of a group, except for the last one of a side."""
BOUNDARY = 16
"""One row in so many ends a group, by its content: a row more or less changes its own group and no later one."""
DIGEST = "digest"
REMEDY = "remove it"


def state_folder() -> Path:
    """Folder of the cache; it may be deleted at any time."""
    return cache_home() / "states"


def groups(conversations: Sequence[Tokens]) -> list[list[Tokens]]:
    """Split conversations into groups that are read together, without changing their order.

    Args:
        conversations: n conversations.

    Returns:
        Groups of 8 to 32 conversations, the last one perhaps smaller; an empty one for no conversations.
    """
    found: list[list[Tokens]] = [[]]
    for item in conversations:
        if _ends(found[-1]):
            found.append([])
        found[-1].append(item)
    return found


def _ends(group: Sequence[Tokens]) -> bool:
    """Whether a group is complete."""
    return len(group) >= MIN_ROWS and (len(group) == MAX_ROWS or _digest([_content(group[-1])])[0] % BOUNDARY == 0)


@dataclass(frozen=True, kw_only=True)
class StateCache:
    """States of groups of conversations, by everything that they depend on.

    Args:
        model: Digest of the model; see `larf_curate.models.identity.model_digest`.
        layers: Layers that are read.
    """

    model: str
    layers: tuple[int, ...]

    def load(self, group: Sequence[Tokens], positions: Sequence[Position]) -> States | None:
        """Stored states of a group; None, with a warning if the file is damaged, if there are none.

        Args:
            group: The conversations.
            positions: Where they are read.
        """
        path = self._path(group, positions)
        try:
            states = _read(path)
            _note_use(path)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError) as error:
            logger.warning("cached states are damaged and are computed again: %s", error)
            return None
        return states

    def store(self, group: Sequence[Tokens], positions: Sequence[Position], states: States) -> None:
        """Store the states of a group, and remove old files if the cache becomes too large."""
        path = self._path(group, positions)
        tensors: States = {position: np.ascontiguousarray(values) for position, values in states.items()}
        with _tolerating(), atomic_path(path) as temporary:
            save_file(cast(dict[str, Vectors], tensors), temporary, metadata={DIGEST: _sum(path.name, tensors)})
        _shrink(path.parent)

    def _path(self, group: Sequence[Tokens], positions: Sequence[Position]) -> Path:
        content: list[object] = [self.model, list(self.layers), list(positions), [_content(item) for item in group]]
        return state_folder() / f"{_digest(content).hex()}.safetensors"


class ReportRecord(TypedDict):
    """A file of `ReportCache`: the report, and the name of the file, which says what the report is of."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    key: str
    report: dict[str, Any]
    digest: str


@dataclass(frozen=True, kw_only=True)
class ReportCache:
    """The report of what a model's refusals depend on, by everything that it depends on.

    Args:
        content: What that is, as JSON values.
    """

    content: list[object]

    def load(self) -> LayerReport | None:
        """The stored report; None, with a warning if the file is damaged, if there is none."""
        path = self._path
        try:
            if not path.exists():
                return None
            record = read_sealed(path, ReportRecord, remedy=REMEDY)
            if record["key"] != path.stem:
                raise InputError(f"{path} was renamed: {REMEDY}")
            report = parse_record(record["report"], LayerReport, path=path, remedy=REMEDY)
            _note_use(path)
        except (OSError, InputError) as error:
            logger.warning("a cached layer report is damaged and is computed again: %s", error)
            return None
        return report

    def store(self, report: LayerReport) -> None:
        """Store a report."""
        with _tolerating():
            write_sealed(self._path, {"key": self._path.stem, "report": asdict(report)})

    @property
    def _path(self) -> Path:
        return state_folder() / f"{_digest(self.content).hex()}.json"


def _note_use(path: Path) -> None:
    """Let a file count as used now, unless it cannot be changed."""
    with suppress(OSError):
        os.utime(path)


@contextmanager
def _tolerating() -> Iterator[None]:
    """Go on, with a warning, if a file of the cache cannot be written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        logger.warning("what was computed cannot be cached and will be computed again next time: %s", error)


def _content(item: Tokens) -> list[object]:
    """Everything about a conversation that is read."""
    return [item.ids, [[turn.start, turn.end] for turn in item.turns]]


def _digest(content: list[object]) -> bytes:
    return hashlib.sha256(json.dumps(content).encode()).digest()


def _read(path: Path) -> States:
    """Read a file of states; raises if it is missing or was changed."""
    states = cast(States, load_file(path))
    with safe_open(path, framework="numpy") as file:
        recorded = (file.metadata() or {}).get(DIGEST)
    if recorded != _sum(path.name, states):
        raise ValueError(f"{path} was changed after it was written")
    return states


def _sum(name: str, states: States) -> str:
    """Hex SHA-256 of states, and of the name of their file: one that was renamed holds the states of other rows."""
    digest = hashlib.sha256(name.encode())
    for position, values in sorted(states.items()):
        digest.update(f"{position} {values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _shrink(folder: Path) -> None:
    """Remove the files that have not been used for longest until the folder is no larger than `MAX_BYTES`."""
    with suppress(OSError):  # another process removes them too
        files = [(path, path.stat()) for path in folder.iterdir() if not is_temporary(path)]
        total = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda item: item[1].st_mtime_ns):
            if total <= MAX_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size
