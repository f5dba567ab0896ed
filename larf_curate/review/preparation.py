"""What a queue notes about its rows, checked before others are sent: their profile, datasets, scale and vectors."""

import logging
from collections.abc import Mapping, Sequence

from larf_curate.errors import ReviewError
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.identity import Identity, check_same
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.scale import Scale
from larf_curate.review.records.vectors import Reduction

logger = logging.getLogger(__name__)
IDENTITY, DATASETS, SCALE = "identity", "datasets", "scale"
"""Keys of what is noted about a queue on the server."""


def prepare(
    store: RecordStore, name: str, identity: Identity | None, rows: FlaggedRows, existing: Mapping[str, object]
) -> Scale:
    """Refuse rows of another profile, note whose rows the queue has, and return the scale of its bars.

    The scale is that of the first push: with another one for each, all records would have to be sent again.
    """
    notes, replaces_all = store.notes(), set(existing) <= set(rows.ids)
    if not replaces_all:
        check_same(name, Identity.from_json(notes.get(IDENTITY)), identity)
    scale = None if replaces_all and not _same_profile(notes, identity) else Scale.from_json(notes.get(SCALE))
    changed: dict[str, object] = {}
    if scale is None:
        scale = Scale.of(rows.rows)
        changed[SCALE] = scale.to_json()
    if identity and replaces_all:
        changed |= {IDENTITY: identity.to_json(), DATASETS: [identity.dataset]}
    elif identity and identity.dataset not in notes.get(DATASETS, [identity.dataset]):
        changed[DATASETS] = sorted({*notes[DATASETS], identity.dataset})
        logger.warning("the queue %s now has rows of %s", name, ", ".join(sorted({*notes[DATASETS], identity.dataset})))
    if any(notes.get(key) != value for key, value in changed.items()):
        store.note(**changed)
    return scale


def _same_profile(notes: Mapping[str, object], identity: Identity | None) -> bool:
    known = Identity.from_json(notes.get(IDENTITY))
    return known is None or identity is None or known.profile == identity.profile


def compatible(
    reduction: Reduction, store: RecordStore, existing: Mapping[str, object], row_ids: Sequence[str]
) -> Reduction | None:
    """The reduction if its vectors can be compared with those in the queue after this push, else None."""
    space = store.vector_space()
    if space is not None and space.dimensions != reduction.dimensions:
        raise ReviewError(
            f"the queue's vectors have {space.dimensions} dimensions, those of these rows {reduction.dimensions}: "
            "they were scored with another model; push them to a queue of another name"
        )
    replaces_all = set(existing) <= set(row_ids)
    if space is None or (space.name != reduction.name and replaces_all):
        store.set_vector_space(reduction.name, reduction.dimensions)
    elif space.name != reduction.name:
        logger.warning(
            "find similar will leave these rows out: the queue's vectors were made with another profile (%s, not %s)",
            space.name or "none",
            reduction.name,
        )
        return None
    return reduction
