"""The rows that people kept and removed which are nearest to each row of a queue, in words."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from larf_curate.review.learning.snapshot import Snapshot
from larf_curate.review.records.escaping import escape_markdown
from larf_curate.review.records.excerpt import row_texts
from larf_curate.signals.protocol import unit

SIDES = {"keep": "kept", "remove": "removed"}


@dataclass(frozen=True, kw_only=True, eq=False)
class NearestDecided:
    """Directions of the decided rows, to compare others with.

    Args:
        snapshot: The queue and its ranking.
        rows: Row ids by decision, of rows with a state.
        units: Their directions, each of shape (m, k), scaled to length 1.
        texts: Beginnings of these rows, by row id.
    """

    snapshot: Snapshot
    rows: Mapping[str, list[str]]
    units: Mapping[str, NDArray[np.floating]]
    texts: Mapping[str, str]

    @classmethod
    def of(cls, snapshot: Snapshot) -> "NearestDecided":
        """The rows that people kept and removed."""
        directions = snapshot.learned.directions
        known = {row: done for row, done in snapshot.decided.items() if directions[snapshot.indices[row]].any()}
        rows = {side: [row for row, done in known.items() if done.decision == side] for side in SIDES}
        units = {side: unit(directions[[snapshot.indices[row] for row in ids]]) for side, ids in rows.items() if ids}
        return cls(snapshot=snapshot, rows=rows, units=units, texts=row_texts(snapshot.records, known))

    def __call__(self, row_id: str) -> str:
        """The nearest other rows that people kept and removed, as the end of a sentence; empty without any."""
        direction = self.snapshot.learned.directions[self.snapshot.indices[row_id]]
        if not direction.any():
            return ""
        found = [self._nearest(side, row_id, unit(direction)) for side in SIDES]
        return "".join(f"; {part}" for part in found if part)

    def _nearest(self, side: str, row_id: str, direction: NDArray[np.floating]) -> str:
        others = [index for index, row in enumerate(self.rows[side]) if row != row_id]
        if not others:
            return ""
        cosines = self.units[side][others] @ direction
        best = int(cosines.argmax())
        name = self.rows[side][others[best]]
        text = escape_markdown(self.texts.get(name, name))
        return f"nearest row that people {SIDES[side]} (cosine {cosines[best]:.2f}): “{text}”"
