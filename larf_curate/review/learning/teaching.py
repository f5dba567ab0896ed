"""A new version of a profile that learned from decisions: the decided rows join its references."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.conversation.schemas import to_messages
from larf_curate.conversation.truncation import Tokens
from larf_curate.errors import InputError
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile import SafetyProfile
from larf_curate.profile.decided import KEPT_ANSWERS, KEPT_REFUSALS, REMOVED, taken
from larf_curate.profile.versions import DecidedRows, add_decided
from larf_curate.progress import progress
from larf_curate.review.learning.judged_rows import JudgedRow, dataset_name, read_judged
from larf_curate.review.records.near_duplicates import MIN_COSINE, leaders
from larf_curate.scoring.exemplars import neutral_mean
from larf_curate.scoring.scorer import highest_turns
from larf_curate.signals.protocol import unit
from larf_curate.states import POSITIONS, States, Vectors

CHUNK_ROWS = 32
"""Rows whose states are read between two updates of the progress bar."""
NEAR_IDENTICAL = "near-identical to another row"
DECIDED_DIFFERENTLY = "near-identical rows decided differently"
KNOWN = "in the profile already"


@dataclass(frozen=True, kw_only=True)
class TaughtProfile:
    """The new version of a profile.

    Args:
        profile: It; its record ``decisions`` has the figures.
        removed: Number of removed rows that it learned from.
        kept: Number of kept and edited rows.
        left_out: Number of other decided rows, by why they are left out.
    """

    profile: SafetyProfile
    removed: int
    kept: int
    left_out: dict[str, int]


def add_decisions(
    profile: SafetyProfile,
    folders: str | Path | Sequence[str | Path],
    *,
    model: str | None = None,
    device: str | None = None,
) -> TaughtProfile:
    """Make a new version of a profile, in which the rows that people decided are references too.

    Model, template, layers, references and calibration rows stay. The model is loaded: a profile compares rows by their
    states at several positions and layers, of which scoring stores one. Of a row of several turns, the one with the
    highest score counts, as in scoring.

    Args:
        profile: The profile that scored the rows, or a later version of it.
        folders: Folder that ``review pull`` or ``review import`` wrote, or several.
        model: Model path, if it has moved since the profile was built.
        device: A torch device; default: the first available accelerator.

    Raises:
        InputError: If a folder is damaged or was added before, or no row can be used.
        ProfileMismatchError: If another profile scored the rows, or the model is not the profile's.
        ProfileError: If the profile counts some pairs of references only (``top_k``).
        ModelError: If the model cannot be loaded.
    """
    judged = read_judged([folders] if isinstance(folders, str | Path) else folders, profile)
    left_out = judged.left_out.copy()
    reader = profile.reader(model=model, device=device)
    rows, states = _read(profile, reader, judged.rows, left_out)
    new = _new_rows(profile, rows, states, left_out)
    if not len(new):
        raise InputError(f"no decided row is new to the profile ({_in_words(left_out)}): decide on others")
    rows, states = [rows[index] for index in new], taken(states, new)
    folders_added = [
        {
            "dataset": dataset_name(folder),
            "digest": folder.manifest["digest"],
            **_counts(row for row in rows if row.folder == folder.manifest["digest"]),
        }
        for folder in judged.folders
    ]
    decided = DecidedRows(
        states=states, sides=np.array([_side(row) for row in rows]), labels=tuple(row.label for row in rows)
    )
    return TaughtProfile(
        profile=add_decided(profile, decided, folders_added), **_counts(rows), left_out=dict(+left_out)
    )


def _counts(rows: Iterable[JudgedRow]) -> dict[str, int]:
    removed = Counter(row.removed for row in rows)
    return {"removed": removed[True], "kept": removed[False]}


def _in_words(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in left_out.items() if count)


def _side(row: JudgedRow) -> str:
    """The side of a profile's states on which a row is."""
    if row.removed:
        return REMOVED
    answer = to_messages(row.row, row.columns)[-1]["content"]
    return KEPT_REFUSALS if RefusalDetector()(answer) else KEPT_ANSWERS


def _read(
    profile: SafetyProfile, reader: StateReader, rows: Sequence[JudgedRow], left_out: Counter[str]
) -> tuple[list[JudgedRow], States]:
    """The rows that can be scored, and their states of shape (n, layers, d)."""
    found: list[JudgedRow] = []
    parts: list[States] = []
    signal = profile.fit()
    with progress(total=len(rows), label="Decided rows", unit="row") as bar:
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = rows[start : start + CHUNK_ROWS]
            readable = [(row, tokens) for row in chunk if (tokens := _tokens(reader, row)) is not None]
            left_out["cannot be scored"] += len(chunk) - len(readable)
            if readable:
                conversations = [tokens for _, tokens in readable]
                states = profile.fill_prompts(reader(conversations, POSITIONS), conversations)
                row_of_turn = np.repeat(np.arange(len(readable)), [len(item.turns) for item in conversations])
                highest = taken(states, highest_turns(signal(states).mean(axis=1), row_of_turn))
                finite = np.logical_and.reduce([np.isfinite(part).all(axis=(1, 2)) for part in highest.values()])
                left_out["cannot be scored"] += int((~finite).sum())
                found += [row for (row, _), ok in zip(readable, finite, strict=True) if ok]
                parts.append(taken(highest, finite))
            bar.update(len(chunk))
    if not found:
        raise InputError(f"none of the {len(rows)} decided rows can be scored: give others")
    return found, {position: np.concatenate([part[position] for part in parts]) for position in POSITIONS}


def _tokens(reader: StateReader, row: JudgedRow) -> Tokens | None:
    """The tokens of a row, of an edited one with its last turn only; None if it cannot be scored."""
    [item] = reader.renderer(row.columns)([row.row])
    if item.tokens is None:
        return None
    return replace(item.tokens, turns=item.tokens.turns[-1:]) if row.edited else item.tokens


def _new_rows(
    profile: SafetyProfile, rows: Sequence[JudgedRow], states: States, left_out: Counter[str]
) -> NDArray[np.intp]:
    """Indices of the rows to add: one of each group of near-identical ones, and none that the profile has already."""
    centre = neutral_mean(profile)
    units = unit(states["last"][:, 0] - centre)
    groups: dict[int, list[int]] = {}
    for index, leader in enumerate(leaders(units)):
        groups.setdefault(leader, []).append(index)
    chosen = []
    for leader, members in groups.items():
        if len({rows[index].removed for index in members}) > 1:
            left_out[DECIDED_DIFFERENTLY] += len(members)
        elif _is_known(profile, units[leader], centre):
            left_out[KNOWN] += len(members)
        else:
            chosen.append(leader)
            left_out[NEAR_IDENTICAL] += len(members) - 1
    return np.array(chosen, np.intp)


def _is_known(profile: SafetyProfile, row: Vectors, centre: Vectors) -> bool:
    """Whether a reference or decided row of the profile is near-identical to a row."""
    sides = [profile.states[side] for side in ("unsafe", "safe")] + list(profile.decided.values())
    return any(float((unit(side["last"][:, 0] - centre) @ row).max()) >= MIN_COSINE for side in sides)
