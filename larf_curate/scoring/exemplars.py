"""ExemplarIndex: the nearest known-harmful exemplars of a row, as evidence, by FAISS."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError
from larf_curate.extras import require
from larf_curate.files import atomic_path, cache_home, read_json, write_json
from larf_curate.models.threads import worker_threads
from larf_curate.profile import SIDES, SafetyProfile, read_states
from larf_curate.scoring.coverage import ConceptSpace, greedy
from larf_curate.signals.protocol import unit
from larf_curate.states import Vectors

CONFIG_FILE = "exemplars.json"
STATES_FILE = "exemplars.safetensors"


@dataclass(frozen=True, kw_only=True)
class Neighbor:
    """One exemplar near a row.

    Args:
        id: The exemplar's id.
        label: Its hazard category.
        cosine: Cosine similarity of the two states less the index's centre, in [-1, 1].
    """

    id: str
    label: str
    cosine: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ExemplarIndex:
    """States of known-harmful exemplars at a profile's first layer, searched exactly by cosine similarity.

    The search runs on all GPUs where the FAISS build and the machine have them, on the CPU elsewhere.

    Args:
        states: Shape (n, d), float32, n >= 1.
        ids: One id an exemplar.
        labels: One hazard category an exemplar.
        layer: The 0-based decoder block the states are from.
        centre: Shape (d,): what is taken off every state before it is compared, the mean state of the neutral rows in
            an index made from a profile. Without it all cosines lie close to 1. None to compare states as they are.
    """

    states: Vectors
    ids: tuple[str, ...]
    labels: tuple[str, ...]
    layer: int
    centre: Vectors | None = None

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
        """Index the unsafe references; states that the profile holds are not computed again.

        Raises:
            ReferenceSetError: If a reference cannot be scored.
            ModelError: If the model is needed and cannot be loaded.
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
        """Index the unsafe references that a profile was built with; no model is needed."""
        labels = tuple(profile.references["labels"])
        ids = tuple(f"reference-{index}" for index in range(len(labels)))
        states = profile.states["unsafe"]["last"][:, 0]
        return cls(states=states, ids=ids, labels=labels, layer=profile.layers[0], centre=neutral_mean(profile))

    def search(self, states: Vectors, k: int) -> list[list[Neighbor]]:
        """Find the nearest exemplars of each state.

        Args:
            states: Shape (n, d).
            k: How many; all of them if there are fewer.

        Returns:
            For each state its neighbours, nearest first.

        Raises:
            InputError: If the width is another than the exemplars', or k is below 1.
        """
        if k < 1:
            raise InputError(f"wanted at least 1 neighbour, got k={k}")
        if states.ndim != 2 or states.shape[1] != self.states.shape[1]:
            raise InputError(f"wanted states of shape (n, {self.states.shape[1]}), got {states.shape}")
        cosines, found = self._index.search(self._directions(states), min(k, len(self.ids)))
        return [
            [Neighbor(id=self.ids[i], label=self.labels[i], cosine=float(c)) for i, c in zip(*hits, strict=True)]
            for hits in zip(found, cosines, strict=True)
        ]

    def add(
        self, rows: Sequence[Row], *, label: str = "reviewed", profile: SafetyProfile | None = None
    ) -> "ExemplarIndex":
        """An index with more exemplars.

        Args:
            rows: Scored rows with their ``larf_state``, or any rows together with a profile.
            label: Their hazard category, where a row has no ``category`` of its own.
            profile: Its model reads the states of rows without ``larf_state``.

        Raises:
            InputError: If a row has no state and no profile is given, or the states do not suit the index.
        """
        if not rows:
            return self
        if profile is not None and profile.layers[0] != self.layer:
            raise InputError(f"wanted a profile whose first layer is {self.layer}, got {profile.layers[0]}")
        known = [row.get("larf_state") for row in rows]
        found: Any
        if all(state is not None for state in known):
            found = known
        elif profile is not None:
            found = read_states(profile.reader(), rows, "added")["last"][:, 0]
        else:
            raise InputError(
                "wanted rows with larf_state (score them with keep_states=True), or a profile to read them"
            )
        if widths := set(map(len, found)) - {self.states.shape[1]}:
            raise InputError(f"wanted states of width {self.states.shape[1]}, got {sorted(widths)}")
        states = np.asarray(found, np.float32)
        if not np.isfinite(states).all():
            raise InputError("wanted finite states, got NaN or infinite ones: score those rows again")
        ids = [str(row.get("larf_row_id") or f"added-{len(self.ids) + i}") for i, row in enumerate(rows)]
        labels = [str(row.get("category") or label) for row in rows]
        return replace(
            self, states=np.concatenate([self.states, states]), ids=(*self.ids, *ids), labels=(*self.labels, *labels)
        )

    def covering(self, count: int, profile: SafetyProfile) -> "ExemplarIndex":
        """A smaller index that covers most of what this one does; see `larf_curate.scoring.coverage`.

        Args:
            count: How many exemplars, each the one that adds most to those before; fewer if no other adds anything.
            profile: Its references and neutral rows say what there is to cover.

        Raises:
            InputError: If the profile's first layer or width is another than the index's, or count is below 1.
        """
        wanted, got = (self.layer, self.states.shape[1]), (profile.layers[0], profile.width)
        if count < 1 or wanted != got:
            raise InputError(
                f"wanted at least 1 exemplar and a profile of first layer and width {wanted}, got {count} and {got}"
            )
        known = np.concatenate([profile.states[side]["last"][:, 0] for side in SIDES])
        places = greedy(ConceptSpace(known), self.states, count)
        ids, labels = (tuple(values[place] for place in places) for values in (self.ids, self.labels))
        return replace(self, states=self.states[places], ids=ids, labels=labels)

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of states, centre, ids and labels."""
        digest = hashlib.sha256(json.dumps(self._config()).encode())
        for values in self._tensors().values():
            digest.update(values.tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder, as ``exemplars.json`` and ``exemplars.safetensors``."""
        with atomic_path(Path(folder) / STATES_FILE) as aside:
            save_file(self._tensors(), aside)
        write_json(Path(folder) / CONFIG_FILE, self._config())

    @classmethod
    def load(cls, folder: str | Path) -> "ExemplarIndex":
        """Read an index from a folder.

        Raises:
            InputError: If there is none or it is damaged.
        """
        config: Mapping[str, Any] = read_json(Path(folder) / CONFIG_FILE)
        try:
            tensors = load_file(Path(folder) / STATES_FILE)
            return cls(
                states=tensors["states"],
                ids=tuple(config["ids"]),
                labels=tuple(config["labels"]),
                layer=config["layer"],
                centre=tensors["centre"] if config["centred"] else None,
            )
        except (OSError, SafetensorError, KeyError, TypeError) as error:
            raise InputError(f"the exemplar index in {folder} is damaged ({error}): build it again") from error

    def _config(self) -> dict[str, Any]:
        centred = self.centre is not None
        return {"layer": self.layer, "centred": centred, "ids": list(self.ids), "labels": list(self.labels)}

    def _tensors(self) -> dict[str, Vectors]:
        tensors = {"states": self.states} | ({} if self.centre is None else {"centre": self.centre})
        return {name: np.ascontiguousarray(values) for name, values in tensors.items()}

    def _directions(self, states: Vectors) -> Vectors:
        """Unit vectors of states less the centre."""
        return np.ascontiguousarray(unit(states if self.centre is None else states - self.centre))

    @cached_property
    def _index(self) -> Any:  # noqa: ANN401  faiss has no types
        faiss = require("faiss", extra="cpu")
        if threads := worker_threads():
            faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(self.states.shape[1])
        index.add(self._directions(self.states))
        on_gpu = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
        return faiss.index_cpu_to_all_gpus(index) if on_gpu else index


def neutral_mean(profile: SafetyProfile) -> Vectors:
    """Mean state of a profile's neutral rows at its first layer, shape (d,)."""
    return np.asarray(profile.states["neutral"]["last"][:, 0].mean(axis=0), np.float32)


def cache_exemplars(index: ExemplarIndex) -> Path:
    """Keep an index under its digest in the user's cache, where worker processes find it; returns the folder."""
    folder = cache_home() / "exemplars" / index.digest
    if not (folder / CONFIG_FILE).exists():
        index.save(folder)
    return folder
