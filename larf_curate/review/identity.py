"""Which dataset and profile a queue is for: its default name, and whether rows may be pushed into it."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from larf_curate.errors import InputError
from larf_curate.records import record_digest

MAX_LABEL = 40
_ENDING = re.compile(r"(\.[A-Za-z0-9]{1,8})+$")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The dataset and the profile of the rows of a queue.

    Args:
        dataset: Name of the dataset, for people.
        source: Digest of the description of the dataset.
        profile: Digest of the profile.
        model: Name of the model, for people.
    """

    dataset: str
    source: str
    profile: str
    model: str

    @classmethod
    def of(cls, scored: Mapping[str, Any]) -> "Identity | None":
        """The identity of scored rows; None if their manifest does not tell.

        Args:
            scored: Manifest of the scored dataset.
        """
        profile, source = scored.get("profile") or {}, dict(scored.get("source") or {})
        if not profile.get("digest"):
            return None
        source.pop("limit", None)  # more rows of the same dataset have the same ids
        return cls(
            dataset=str(source.get("dataset") or "rows"),
            source=record_digest(source)[:12],
            profile=str(profile["digest"])[:12],
            model=str(profile.get("model") or ""),
        )

    @classmethod
    def from_json(cls, value: object) -> "Identity | None":
        """The identity that `to_json` wrote; None if it is none."""
        if not isinstance(value, Mapping) or set(value) != {"dataset", "source", "profile", "model"}:
            return None
        return cls(**value) if all(isinstance(text, str) for text in value.values()) else None

    def to_json(self) -> dict[str, str]:
        """The identity as a JSON object."""
        return asdict(self)

    @property
    def name(self) -> str:
        """Default name of the queue, such as ``alpaca-3f2a91``; another one for each dataset and profile."""
        last = _ENDING.sub("", self.dataset.rstrip("/").rpartition("/")[2])
        label = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:MAX_LABEL].strip("-")
        return f"{label or 'rows'}-{record_digest({'source': self.source, 'profile': self.profile})[:6]}"


def check_same(queue: str, known: Identity | None, given: Identity | None) -> None:
    """Refuse rows of another profile than those of a queue: their scores and states cannot be compared.

    Args:
        queue: Name of the queue.
        known: Identity of the queue, if it is recorded.
        given: Identity of the rows, if it is known.

    Raises:
        InputError: If both are known and the profiles differ.
    """
    if known and given and known.profile != given.profile:
        raise InputError(
            f"the queue {queue!r} has rows of {known.dataset} that the profile {known.profile} scored ({known.model}), "
            f"got rows of {given.dataset} with the profile {given.profile} ({given.model}), whose scores cannot be "
            f"compared: push them to a queue of their own, such as {given.name!r}"
        )
