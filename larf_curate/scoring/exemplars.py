"""Nearest-neighbour search for known-harmful exemplars (FAISS), as evidence for the score of a row."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from larf_curate.columns import ROW_ID
from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError
from larf_curate.files import atomic_path, cache_home, write_json
from larf_curate.profile import SIDES, SafetyProfile, read_states
from larf_curate.profile.decided import REMOVED
from larf_curate.records import STRICT, read_record
from larf_curate.remote import local_copy, public_name, uploaded
from larf_curate.scoring.coverage import ConceptSpace, greedy_cover
from larf_curate.scoring.search import EXACT, VectorSearch, build_search, exact_search, is_exact
from larf_curate.signals.protocol import unit
from larf_curate.states import Vectors

CONFIG_FILE = "exemplars.json"
STATES_FILE = "exemplars.safetensors"


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """An exemplar that is near a row.

    Args:
        id: Id of the exemplar.
        label: Its hazard category.
        cosine: Cosine similarity of the two centred states, in [-1, 1].
    """

    id: str
    label: str
    cosine: float


class IndexConfig(TypedDict):
    """``exemplars.json``: what an index records except its states."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    layer: int
    centred: bool
    ids: list[str]
    labels: list[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExemplarIndex:
    """Index of known-harmful exemplars, searched by cosine similarity of states at a profile's first layer.

    The search is exact up to 100,000 exemplars, and approximate beyond; see `kind`, `recall` and
    `larf_curate.scoring.search`. It runs on all GPUs if FAISS was built with GPU support and there are any, else on the
    CPU.

    Args:
        states: States of the exemplars, shape (n, d), float32, n >= 1.
        ids: One id per exemplar.
        labels: One hazard category per exemplar.
        layer: The 0-based decoder block that the states are from.
        centre: Shape (d,), subtracted from all states before they are compared. An index built from a profile uses the
            mean state of its neutral rows, since all cosines of raw states are close to 1. None compares raw states.
        typical: States like those that will be searched for, shape (m, d), for the recall of an approximate search;
            not saved. A `LarfScorer` sets them to those of its profile.

    Raises:
        InputError: If the numbers of states, ids and labels differ or are 0, or the centre has another width.
    """

    states: Vectors = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    layer: int
    centre: Vectors | None = field(default=None, repr=False)
    typical: Vectors | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.states.ndim != 2 or not len(self.states) == len(self.ids) == len(self.labels) > 0:
            raise InputError(
                f"wanted as many states as ids and labels, at least one, got {self.states.shape}, {len(self.ids)} ids "
                f"and {len(self.labels)} labels"
            )
        if self.centre is not None and self.centre.shape != self.states.shape[1:]:
            raise InputError(f"wanted a centre of shape {self.states.shape[1:]}, got {self.centre.shape}")

    @classmethod
    def build(cls, profile: SafetyProfile, references: ReferenceSet) -> "ExemplarIndex":
        """Build an index of unsafe references; the model is not needed if the profile was built with them.

        Args:
            profile: The profile; its first layer is the layer of the index.
            references: The reference set; its safe side is not used.

        Raises:
            ReferenceSetError: If a reference cannot be scored.
            ModelError: If the model is needed but cannot be loaded.
        """
        if references.digest == profile.references["digest"]:
            return cls.of_profile(profile)
        states = read_states(profile.reader(), references.unsafe, "unsafe")["last"][:, 0]
        ids = tuple(f"reference-{index}" for index in range(len(references)))
        return cls(
            states=states, ids=ids, labels=references.labels, layer=profile.layers[0], centre=neutral_mean(profile)
        )

    @classmethod
    def of_profile(cls, profile: SafetyProfile) -> "ExemplarIndex":
        """Build an index of a profile's unsafe references and removed rows, from its stored states, without a model."""
        labels = tuple(profile.references["labels"])
        ids = tuple(f"reference-{index}" for index in range(len(labels)))
        states = profile.states["unsafe"]["last"][:, 0]
        if removed := profile.decided.get(REMOVED):
            states = np.concatenate([states, removed["last"][:, 0]])
            added = tuple((profile.decisions or {})["labels"])
            labels, ids = labels + added, ids + tuple(f"removed-{index}" for index in range(len(added)))
        return cls(states=states, ids=ids, labels=labels, layer=profile.layers[0], centre=neutral_mean(profile))

    def search(self, states: Vectors, k: int) -> list[list[Neighbor]]:
        """Find the k nearest exemplars of each state.

        Args:
            states: Shape (n, d).
            k: Number of neighbours; if the index has fewer exemplars, all are returned.

        Returns:
            One list per state, nearest first.

        Raises:
            InputError: If the width differs from that of the exemplars, or k is below 1.
        """
        if k < 1:
            raise InputError(f"wanted at least 1 neighbour, got k={k}")
        if states.ndim != 2 or states.shape[1] != self.states.shape[1]:
            raise InputError(f"wanted states of shape (n, {self.states.shape[1]}), got {states.shape}")
        queries, k = self._unit_vectors(states), min(k, len(self.ids))
        cosines, found = self._search.index.search(queries, k)
        short = (found < 0).any(axis=1)  # the inverted lists that were read have fewer exemplars
        if short.any():
            cosines[short], found[short] = exact_search(queries[short], self._unit_vectors(self.states), k)
        return [
            [Neighbor(id=self.ids[i], label=self.labels[i], cosine=float(c)) for i, c in zip(*hits, strict=True)]
            for hits in zip(found, cosines, strict=True)
        ]

    def add(
        self, rows: Sequence[Row], *, label: str = "reviewed", profile: SafetyProfile | None = None
    ) -> "ExemplarIndex":
        """Return a new index with additional exemplars.

        Args:
            rows: Scored rows with ``larf_state``, or any rows together with a profile.
            label: Hazard category of rows without a ``category``.
            profile: Profile whose model computes the states if any row has no ``larf_state``.

        Raises:
            InputError: If a row has no state and no profile is given, the profile has another first layer, or states
                are not finite or have another width.
            ReferenceSetError: If a row cannot be scored.
            ModelError: If the model is needed but cannot be loaded.
        """
        if not rows:
            return self
        if profile is not None and profile.layers[0] != self.layer:
            raise InputError(f"wanted a profile whose first layer is {self.layer}, got {profile.layers[0]}")
        stored = [row.get("larf_state") for row in rows]
        found: Any
        if all(state is not None for state in stored):
            found = stored
        elif profile is not None:
            found = read_states(profile.reader(), rows, "added")["last"][:, 0]
        else:
            raise InputError(
                "wanted rows with larf_state (score them with keep_states=True), or a profile to compute them"
            )
        if widths := set(map(len, found)) - {self.states.shape[1]}:
            raise InputError(f"wanted states of width {self.states.shape[1]}, got {sorted(widths)}")
        states = np.asarray(found, np.float32)
        if not np.isfinite(states).all():
            raise InputError("wanted finite states, got NaN or infinity: score these rows again")
        ids = [str(row.get(ROW_ID) or f"added-{len(self.ids) + i}") for i, row in enumerate(rows)]
        labels = [str(row.get("category") or label) for row in rows]
        return replace(
            self, states=np.concatenate([self.states, states]), ids=(*self.ids, *ids), labels=(*self.labels, *labels)
        )

    def covering(self, count: int, profile: SafetyProfile) -> "ExemplarIndex":
        """Return a smaller index with a high coverage, chosen greedily; see `larf_curate.scoring.coverage`.

        Args:
            count: Maximum number of exemplars; fewer are chosen if no other adds coverage.
            profile: Profile whose reference and neutral states define the concepts to cover.

        Raises:
            InputError: If the first layer or width of the profile differs from the index's, or count is below 1.
        """
        wanted, got = (self.layer, self.states.shape[1]), (profile.layers[0], profile.width)
        if count < 1 or wanted != got:
            raise InputError(
                f"wanted at least 1 exemplar and a profile of first layer and width {wanted}, got {count} and {got}"
            )
        calibration = np.concatenate([profile.states[side]["last"][:, 0] for side in SIDES])
        chosen = greedy_cover(ConceptSpace(calibration), self.states, count)
        ids, labels = (tuple(values[index] for index in chosen) for values in (self.ids, self.labels))
        return replace(self, states=self.states[chosen], ids=ids, labels=labels)

    @property
    def kind(self) -> str:
        """Kind of search: ``flat``, which is exact, or ``ivf``, which is approximate; see `recall`."""
        return EXACT if is_exact(len(self.ids)) else self._search.kind

    @property
    def recall(self) -> float:
        """Share of the 10 nearest exemplars that the search finds, measured; 1 if it is exact."""
        return 1.0 if is_exact(len(self.ids)) else self._search.recall

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of states, centre, ids, labels and layer."""
        digest = hashlib.sha256(json.dumps(self._config()).encode())
        for values in self._tensors().values():
            digest.update(values.tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the index to a folder or URL, as ``exemplars.json`` and ``exemplars.safetensors``."""
        with uploaded(folder, last=CONFIG_FILE) as local:
            with atomic_path(local / STATES_FILE) as temporary:
                save_file(self._tensors(), temporary, metadata={"digest": self.digest})
            write_json(local / CONFIG_FILE, self._config())

    @classmethod
    def load(cls, folder: str | Path) -> "ExemplarIndex":
        """Load an index from a folder, or from its URL.

        Raises:
            InputError: If the folder has no index, or it is damaged or was changed.
        """
        folder, name = local_copy(folder), public_name(folder)
        config = read_record(folder / CONFIG_FILE, IndexConfig, remedy="build the index again")
        try:
            tensors = load_file(folder / STATES_FILE)
            if not all(values.dtype == np.float32 and np.isfinite(values).all() for values in tensors.values()):
                raise TypeError("states that are not finite float32 numbers")
            index = cls(
                states=tensors["states"],
                ids=tuple(config["ids"]),
                labels=tuple(config["labels"]),
                layer=config["layer"],
                centre=tensors["centre"] if config["centred"] else None,
            )
            with safe_open(folder / STATES_FILE, framework="numpy") as file:
                recorded = (file.metadata() or {}).get("digest")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"the exemplar index in {name} is damaged ({error}): build it again") from error
        if recorded != index.digest:
            raise InputError(f"the exemplar index in {name} was changed after it was written: build it again")
        return index

    def _config(self) -> dict[str, Any]:
        centred = self.centre is not None
        return {"layer": self.layer, "centred": centred, "ids": list(self.ids), "labels": list(self.labels)}

    def _tensors(self) -> dict[str, Vectors]:
        tensors = {"states": self.states} | ({} if self.centre is None else {"centre": self.centre})
        return {name: np.ascontiguousarray(values) for name, values in tensors.items()}

    def _unit_vectors(self, states: Vectors) -> Vectors:
        """Centred states, scaled to length 1, so that their inner products are cosines."""
        return np.ascontiguousarray(unit(states if self.centre is None else states - self.centre))

    @cached_property
    def _search(self) -> VectorSearch:
        return build_search(
            self._unit_vectors(self.states), None if self.typical is None else self._unit_vectors(self.typical)
        )


def neutral_mean(profile: SafetyProfile) -> Vectors:
    """Mean state of a profile's neutral rows at its first layer, shape (d,)."""
    return np.asarray(profile.states["neutral"]["last"][:, 0].mean(axis=0), np.float32)


def cache_exemplars(index: ExemplarIndex) -> Path:
    """Store an index in the user's cache under its digest, for worker processes; returns its folder.

    A copy that is there already is read, and replaced if it is damaged.
    """
    folder = cache_home() / "exemplars" / index.digest
    if not _is_copy(folder, index):
        index.save(folder)
    return folder


def _is_copy(folder: Path, index: ExemplarIndex) -> bool:
    """Whether a folder holds an index, undamaged."""
    try:
        return ExemplarIndex.load(folder).digest == index.digest
    except InputError:
        return False
