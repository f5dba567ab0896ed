"""The review queue: flagged rows to Argilla, people's decisions back."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from datasets import Dataset
from tqdm import tqdm

from larf_curate.errors import InputError, ReviewError
from larf_curate.profile.cache import profile_of
from larf_curate.review.argilla.connection import Connection
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.argilla.marks import mark
from larf_curate.review.argilla.submit import submit
from larf_curate.review.decisions.merge import MergeRule, merge_records
from larf_curate.review.decisions.outcome import Decisions
from larf_curate.review.decisions.responses import ReviewedRecord, read_records
from larf_curate.review.decisions.status import QueueStatus, queue_status
from larf_curate.review.learning import References
from larf_curate.review.learning.proposals import CONFLICT, Conflicts, Proposals, disagreements, propose
from larf_curate.review.learning.rerank import Reranked, flag_more, overlooked, removed_rows, resorted, update_scores
from larf_curate.review.learning.snapshot import Standing
from larf_curate.review.records.exemplar_texts import exemplar_texts
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.near_duplicates import NearDuplicates
from larf_curate.review.records.push import Push, PushResult
from larf_curate.review.records.record import RecordMaker
from larf_curate.review.records.vectors import Reduction, reduction_for, vectors_of

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.selection import Selection

logger = logging.getLogger(__name__)


class ReviewQueue:
    """A queue of flagged rows that people decide on, in an Argilla server; usable in a ``with`` statement.

    Args:
        name: Name of the dataset on the server; it is created at the first push.
        workspace: Workspace of the server.
        url: Address of the server; default: the environment's ``ARGILLA_API_URL``.
        api_key: Key of an owner or admin; default: the environment's ``ARGILLA_API_KEY``.
        min_submitted: How many annotators must decide a row; used when the dataset is created.
        timeout: Seconds to wait for one answer of the server.

    Raises:
        ReviewServerError: If the server is not given, down, refuses the key, or has no such workspace.
    """

    def __init__(
        self,
        name: str = "larf-review",
        *,
        workspace: str = "argilla",
        url: str | None = None,
        api_key: str | None = None,
        min_submitted: int = 1,
        timeout: int = 120,
    ) -> None:
        self.name = name
        self.min_submitted = min_submitted
        self._connection = Connection(url, api_key, workspace=workspace, timeout=timeout)

    def __enter__(self) -> "ReviewQueue":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection to the server."""
        self._connection.close()

    def __repr__(self) -> str:
        return f"ReviewQueue({self.name!r}, workspace={self._connection.workspace!r}, url={self._connection.url!r})"

    @property
    def url(self) -> str:
        """The queue in the browser, worst first.

        Raises:
            ReviewError: If nothing has been pushed yet.
        """
        return self._store().url

    @property
    def dataset_id(self) -> str:
        """The id of the dataset on the server.

        Raises:
            ReviewError: If nothing has been pushed yet.
        """
        return self._store().dataset_id

    def push(
        self,
        flagged: "Dataset | Selection",
        *,
        columns: Mapping[str, str] | None = None,
        exemplars: Mapping[str, str] | None = None,
        profile: "SafetyProfile | None" = None,
        group: bool = False,
    ) -> PushResult:
        """Send flagged rows to the server; run it again at any time: nothing is doubled, no response is touched.

        Args:
            flagged: A selection, or its flagged rows alone; only a selection says which layers and signal were used.
            columns: Column names by role, where the rows' format is not found from the names alone.
            exemplars: Texts of exemplars by id, shown beside the nearest ones; by default those of the profile's
                references.
            profile: The profile that scored the rows, if this machine does not have it; *find similar* and
                near-identical rows follow from it.
            group: Send only the worst of near-identical rows; the decision on it serves the others, which say so.

        Returns:
            What was done; rows that the server refuses are in it, with the reason.

        Raises:
            InputError: If the rows have no unique ``larf_row_id``, or are to be grouped without states or profile.
            ProfileMismatchError: If another profile scored the rows.
            ReviewServerError: If the server stops answering; what was sent stays there.
        """
        rows = FlaggedRows.read(flagged if isinstance(flagged, Dataset) else flagged.flagged)
        scored = {} if isinstance(flagged, Dataset) else flagged.scored
        reduction = reduction_for(rows.states, scored, profile)
        near_duplicates = NearDuplicates.find(rows, reduction, share=group)
        sent = rows.without(near_duplicates.covered)
        store = self._store(create=True)
        store.add_missing_properties()
        existing = {record["external_id"]: record for record in store.records(responses=False)}
        maker = RecordMaker(
            columns=columns,
            layers=scored.get("profile", {}).get("layers"),
            signal=scored.get("profile", {}).get("signal"),
            split=scored.get("source", {}).get("split"),
            exemplars=exemplar_texts(scored) if exemplars is None else exemplars,
            vectors=vectors_of(sent, reduction and _compatible(reduction, store, existing, rows.ids)),
            groups=near_duplicates.by_row,
        )
        progress = tqdm(sent, desc=f"push to {self.name}", unit="row", disable=None)
        return Push(store=store, existing=existing, grouped=len(near_duplicates.covered)).run(
            maker(row) for row in progress
        )

    def status(self) -> QueueStatus:
        """How far the review has come."""
        store = self._store()
        return queue_status(self._records(store), url=store.url)

    def pull(self, *, merge: str = "majority") -> Decisions:
        """Read what people decided; drafts and discarded records are not decisions.

        Args:
            merge: How several annotators' answers become one: ``majority`` (a tie is a conflict), ``unanimous``, or
                ``arbiter:USERNAME`` (that user decides; where they have not, the others must agree).
        """
        rule = self._rule(merge)
        return Decisions(merge_records(self._records(self._store()), rule), merge)

    def rerank(
        self,
        selection: "Selection",
        *,
        profile: "SafetyProfile | None" = None,
        merge: str = "majority",
        add: int = 0,
    ) -> Reranked:
        """Learn from what people decided so far: undecided records get a learned score, by which the page sorts.

        No response is touched, no model is needed. A record that is pushed anew has the machine's score again.

        Args:
            selection: The selection that was pushed; its rows have ``larf_state``.
            profile: The profile that scored the rows, if this machine does not have it; without one the decisions teach
                alone.
            merge: How several annotators' answers become one; see `pull`.
            add: So many rows that are not flagged, those with the highest learned score, join the queue.

        Raises:
            InputError: If the rows have no states.
            ProfileMismatchError: If another profile scored the rows.
        """
        standing = self._standing(selection, profile, merge)
        added = tuple(standing.row_ids[place] for place in standing.outside[:add])
        moved = flag_more(standing, (*standing.queued_unflagged, *added))
        if added:
            self.push(moved, profile=profile)
            standing = replace(standing, records=list(standing.store.records(responses=True)))
        return Reranked(
            learned=standing.learned,
            updated=update_scores(standing),
            added=added,
            overlooked=overlooked(standing, added),
            selection=resorted(standing, moved.flagged),
            removed=removed_rows(standing),
            url=standing.store.url,
        )

    def propose(
        self,
        selection: "Selection",
        *,
        by: str = "score",
        n: int = 10,
        profile: "SafetyProfile | None" = None,
        merge: str = "majority",
    ) -> Proposals:
        """Say what to look at next, and mark it on the server so that a link shows it alone.

        Args:
            selection: The selection that was pushed; its rows have ``larf_state``.
            by: ``score`` (highest learned score), ``uncertain`` (annotators disagree, or the chance of removal is
                nearest to one half) or ``different`` (farthest from all decided rows and from each other).
            n: How many.
            profile: The profile that scored the rows, if this machine does not have it.
            merge: How several annotators' answers become one; see `pull`.

        Raises:
            InputError: If the rows have no states, or there is no such way.
            ProfileMismatchError: If another profile scored the rows.
        """
        return propose(self._standing(selection, profile, merge), by=by, n=n)

    def send_back(self) -> Conflicts:
        """Mark the records on which annotators disagree, and no others; a link shows each annotator theirs again.

        A record that enough annotators have answered leaves everybody's queue, so those who answered decide it anew;
        run it again to drop what they agree on by then.
        """
        store = self._store()
        records = list(store.records(responses=True))
        votes = disagreements(read_records(records, self._connection.usernames()))
        mark(store, records, CONFLICT, votes)
        return Conflicts(votes=votes, url=store.link(status="submitted", proposed=CONFLICT))

    def submit(self, decisions: Mapping[str, str], *, api_key: str) -> None:
        """Submit decisions by script, as the web page does for a person.

        Args:
            decisions: ``keep``, ``remove``, ``edit`` or ``unsure`` by row id; rows answered before are answered anew.
            api_key: Key of the user who decides; the queue's own key only finds the records.

        Raises:
            InputError: If a row is not in the queue.
            ReviewError: If the server refuses an answer.
        """
        records = {record["external_id"]: record["id"] for record in self._store().records(responses=False)}
        annotator = Connection(
            self._connection.url, api_key, workspace=self._connection.workspace, timeout=self._connection.timeout
        )
        try:
            submit(annotator, records, decisions)
        finally:
            annotator.close()

    def _standing(self, selection: "Selection", profile: "SafetyProfile | None", merge: str) -> Standing:
        rule, store = self._rule(merge), self._store()
        records = list(store.records(responses=True))
        reviewed = read_records(records, self._connection.usernames())
        decisions = Decisions(merge_records(reviewed, rule), merge)
        known = profile_of(selection.scored, profile)
        references = References.of(known) if known else None
        return Standing.of(store, records, reviewed, selection, decisions, references)

    def _rule(self, merge: str) -> MergeRule:
        rule = MergeRule.parse(merge)
        if rule.arbiter and rule.arbiter not in (names := sorted(self._connection.usernames().values())):
            raise InputError(f"wanted an arbiter among {', '.join(names)}, got {rule.arbiter!r}")
        return rule

    def _records(self, store: RecordStore) -> list[ReviewedRecord]:
        return read_records(store.records(responses=True), self._connection.usernames())

    def _store(self, *, create: bool = False) -> RecordStore:
        found = RecordStore.find(self._connection, self.name)
        if found is None and create:
            found = RecordStore.create(self._connection, self.name, min_submitted=self.min_submitted)
        if found is None:
            raise ReviewError(f"no review queue {self.name!r} on {self._connection.url}: push a selection first")
        return found


def _compatible(
    reduction: Reduction, store: RecordStore, known: Mapping[str, object], row_ids: Sequence[str]
) -> Reduction | None:
    """The reduction if its vectors can stand beside those that the queue keeps, else None."""
    space = store.vector_space()
    if space is not None and space.dimensions != reduction.dimensions:
        raise ReviewError(
            f"the queue has vectors of {space.dimensions} dimensions, these rows give {reduction.dimensions}: "
            "they were scored with another model; push them to a queue of another name"
        )
    if space is None or (space.name != reduction.name and set(known) <= set(row_ids)):  # all vectors are replaced
        store.set_vector_space(reduction.name, reduction.dimensions)
    elif space.name != reduction.name:
        logger.warning(
            "find similar will leave these rows out: the queue's vectors were made with another profile (%s, not %s)",
            space.name or "none",
            reduction.name,
        )
        return None
    return reduction
