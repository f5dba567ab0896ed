"""ReviewQueue: push flagged rows to Argilla, pull people's decisions, and learn from them."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from larf_curate.columns import ROW_ID, SCORE
from larf_curate.conversation.schemas import SEPARATOR, with_separator
from larf_curate.errors import InputError, ReviewError
from larf_curate.profile.cache import profile_of
from larf_curate.progress import progress
from larf_curate.review.argilla.connection import Connection
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.argilla.marks import mark
from larf_curate.review.argilla.settings import CORRECTED
from larf_curate.review.argilla.submit import submit
from larf_curate.review.budget.queued import labels_of, left_of, sampling_of, update_sampling, with_sampling
from larf_curate.review.budget.rows import HarmPush, flag_planned, population_of, rows_of
from larf_curate.review.decisions.merge import MergeRule, merge_records
from larf_curate.review.decisions.outcome import Decisions
from larf_curate.review.decisions.people import people_status
from larf_curate.review.decisions.responses import ReviewedRecord, read_records
from larf_curate.review.decisions.status import QueueStatus, QueueSummary, queue_status
from larf_curate.review.identity import Identity
from larf_curate.review.learning import References
from larf_curate.review.learning.proposals import CONFLICT, Conflicts, Proposals, disagreements, propose
from larf_curate.review.learning.rerank import (
    Reranked,
    flag_more,
    overlooked,
    removed_rows,
    sorted_by_learned_score,
    update_scores,
)
from larf_curate.review.learning.snapshot import Snapshot
from larf_curate.review.people.assignment import Assignment, PeopleLinks, assign, check_people, person_links
from larf_curate.review.people.third_person import SentConflicts, send, third_person_link
from larf_curate.review.preparation import DATASETS, IDENTITY, compatible, prepare
from larf_curate.review.records.excerpt import row_texts
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.near_duplicates import NearDuplicates
from larf_curate.review.records.nearest import nearest_safe
from larf_curate.review.records.push import Push, PushResult
from larf_curate.review.records.reason import ranks
from larf_curate.review.records.record import RecordMaker
from larf_curate.review.records.vectors import Reduction, reduction_for, vectors_of
from larf_curate.review.sampling.choice import plan
from larf_curate.review.sampling.stage import EMPTY, Sampled
from larf_curate.scoring.exemplar_texts import exemplar_texts, safe_texts

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.selection import Selection


class ReviewQueue:
    """A queue of flagged rows on an Argilla server, on which people decide.

    It is a context manager that closes the connection to the server.

    Args:
        name: Name of the dataset on the server; it is created by the first push.
        workspace: Name of the workspace on the server.
        url: Address of the server; default: the environment variable ``ARGILLA_API_URL``.
        api_key: API key of an owner or admin; default: the environment variable ``ARGILLA_API_KEY``.
        min_submitted: Number of annotators who must decide each row; set when the dataset is created.
        timeout: Seconds to wait for each response of the server.

    Raises:
        InputError: If the address or the key is malformed.
        ReviewServerError: If either is missing, or the server is down, rejects the key or has no such workspace.
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
    def server_url(self) -> str:
        """Address of the server, without credentials."""
        return self._connection.url

    def queues(self) -> dict[str, str]:
        """Ids of all review queues of the workspace by name."""
        return {name: store.dataset_id for name, store in RecordStore.all(self._connection).items()}

    def named(self, name: str) -> "ReviewQueue":
        """Another queue on the same connection, which closing either of them closes."""
        other = copy(self)
        other.name = name
        return other

    def summary(self) -> QueueSummary:
        """Progress of the queue, and the dataset and profile of its rows."""
        notes, status = self._store().notes(), self.status()
        identity = Identity.from_json(notes.get(IDENTITY))
        return QueueSummary(
            name=self.name,
            rows=status.rows,
            done=status.done,
            pending=status.pending,
            datasets=tuple(notes.get(DATASETS) or ()),
            profile=identity.profile if identity else None,
            model=identity.model if identity else None,
            url=status.url,
        )

    def row_ids(self) -> set[str]:
        """Ids of the rows in the queue."""
        return {record["external_id"] for record in self._store().records(responses=False)}

    @property
    def url(self) -> str:
        """Address of the queue in the browser, sorted worst first.

        Raises:
            ReviewError: If nothing has been pushed yet.
        """
        return self._store().url

    @property
    def dataset_id(self) -> str:
        """Id of the dataset on the server.

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
        """Send flagged rows to the server.

        It can be repeated at any time: unchanged records are not sent again, changed ones are updated, and responses
        are never changed.

        Args:
            flagged: A selection, or only its flagged rows, which do not record layers, signal and profile.
            columns: Column names by role; default: those that the selection was scored with, else inferred.
            exemplars: Texts of exemplars by id, shown for the nearest ones; default: the requests of the profile's
                references, if they are available.
            profile: The profile that scored the rows; default: looked up in this machine's cache. Without it *find
                similar* is less exact, and near-duplicate rows are not found.
            group: Send only the row with the highest score of each group of near-duplicates. The decision on it applies
                to the others, and is recorded as such (`Decision.decided_through`).

        Returns:
            Counts and link; rows that the server rejects are listed with the reason.

        Raises:
            InputError: If ``larf_row_id`` is missing or not unique, or ``group`` is set without states or profile.
            ProfileMismatchError: If another profile scored the rows.
            ReviewError: If the queue's vectors have another number of dimensions, or the dataset on the server is not a
                review queue.
            ReviewServerError: If the server stops responding; what was sent stays there.
        """
        return self._push(flagged, columns=columns, exemplars=exemplars, profile=profile, group=group)

    def _push(
        self,
        flagged: "Dataset | Selection",
        *,
        columns: Mapping[str, str] | None = None,
        exemplars: Mapping[str, str] | None = None,
        profile: "SafetyProfile | None" = None,
        group: bool = False,
        among: FlaggedRows | None = None,
    ) -> PushResult:
        """Send rows; ``among`` are all rows of the queue, among which they are ranked, if these are not all."""
        rows = FlaggedRows.read(flagged if isinstance(flagged, Dataset) else flagged.flagged)
        scored = {} if isinstance(flagged, Dataset) else flagged.scored
        reduction = reduction_for(rows.states, scored, profile)
        near_duplicates = NearDuplicates.find(rows, reduction, share=group)
        return self._send(
            rows,
            near_duplicates,
            among=among or rows,
            reduction=reduction,
            scored=scored,
            columns=columns,
            exemplars=exemplars,
            profile=profile,
        )

    def push_by_harm(
        self,
        selection: "Selection",
        *,
        budget: int,
        unflagged: bool = False,
        columns: Mapping[str, str] | None = None,
        exemplars: Mapping[str, str] | None = None,
        profile: "SafetyProfile | None" = None,
    ) -> HarmPush:
        """Send the rows most worth a look, and random ones, from which `status` estimates what is left.

        Of near-identical flagged rows one is sent, whose decision applies to the others, if states and profile are
        available. A queue that has as many rows as the budget gets no others.

        Args:
            selection: The selection.
            budget: Number of rows that the queue should have, at least 1.
            unflagged: Whether unflagged rows are sent too; the estimate is then about all rows.
            columns: Column names by role; see `push`.
            exemplars: Texts of exemplars by id; see `push`.
            profile: The profile that scored the rows; default: looked up in this machine's cache.

        Raises:
            InputError: If the budget is below 1, or the queue samples other rows than these.
            ProfileMismatchError: If another profile scored the rows.
            ReviewError: See `push`.
            ReviewServerError: If the server stops responding; what was sent stays there.
        """
        if budget < 1:
            raise InputError(f"wanted a budget of at least 1 row, got {budget}")
        store = self._store(create=True)
        records = list(store.records(responses=True))
        reviewed = read_records(records, self._connection.usernames())
        decisions = merge_records(reviewed, MergeRule.parse("majority"))
        rows = FlaggedRows.read(selection.flagged)
        reduction = reduction_for(rows.states, selection.scored, profile)
        centred = reduction is not None and reduction.is_centred
        near_duplicates = NearDuplicates.find(rows, reduction, share=centred)
        available = profile_of(selection.scored, profile)
        population = population_of(
            selection,
            unflagged=unflagged,
            decisions=decisions,
            references=References.of(available) if available else None,
            groups={leader: tuple(group.shared) for leader, group in near_duplicates.by_row.items()},
        )
        queued = {record.row_id for record in reviewed}
        planned = plan(
            population,
            sampled=sampling_of(reviewed),
            queued=queued,
            shared={row for record in reviewed for row in record.shared},
            labels=labels_of(decisions),
            budget=budget,
        )
        extended = flag_planned(selection, planned, queued if unflagged else ())
        # Random rows first and in their order: what is sent before a server stops is then a sample without a gap.
        new = FlaggedRows.read(rows_of(extended, planned)).first(planned.random)
        result = self._send(
            new,
            near_duplicates.led_by(planned.chosen),
            among=FlaggedRows.read(_ranked(extended.flagged)),
            reduction=reduction,
            scored=selection.scored,
            columns=columns,
            exemplars=exemplars,
            profile=profile,
            sampled=planned.sampled,
        )
        update_sampling(store, records, planned.sampled)
        return HarmPush(push=result, plan=planned, selection=extended, grouping=centred, budget=budget)

    def _send(
        self,
        rows: FlaggedRows,
        near_duplicates: NearDuplicates,
        *,
        among: FlaggedRows,
        reduction: Reduction | None,
        scored: Mapping[str, Any],
        columns: Mapping[str, str] | None,
        exemplars: Mapping[str, str] | None,
        profile: "SafetyProfile | None",
        sampled: Sampled = EMPTY,
    ) -> PushResult:
        """Send rows, ranked among others, without those that share the decision of a near-duplicate."""
        recorded = scored.get("source", {}).get("columns") or {}
        sent = rows.without(near_duplicates.covered)
        store = self._store(create=True)
        existing = {record["external_id"]: record for record in store.records(responses=False)}
        scale = prepare(store, self.name, Identity.of(scored), rows, existing)
        store.add_missing_properties()
        maker = RecordMaker(
            columns=recorded if columns is None else with_separator(columns, recorded.get(SEPARATOR)),
            layers=scored.get("profile", {}).get("layers"),
            signal=scored.get("profile", {}).get("signal"),
            split=scored.get("source", {}).get("split"),
            exemplars=exemplar_texts(scored) if exemplars is None else exemplars,
            vectors=vectors_of(sent, reduction and compatible(reduction, store, existing, rows.ids)),
            groups=near_duplicates.by_row,
            scale=scale,
            ranks=ranks(among.ids, among.scores),
            kept=nearest_safe(sent, profile_of(scored, profile), safe_texts(scored)),
            answer_question=store.question_id(CORRECTED),
        )
        return Push(store=store, existing=existing, grouped=len(near_duplicates.covered)).run(
            with_sampling(maker(row), sampled) for row in progress(sent, label=f"Push to {self.name}", unit="row")
        )

    def annotators_per_row(self) -> int | None:
        """Number of people who must decide each row, as set when the queue was created; None if there is none yet."""
        found = RecordStore.find(self._connection, self.name)
        return None if found is None else found.min_submitted

    def assign(self, people: Sequence[str]) -> Assignment:
        """Assign the open rows that lack people, evenly; nobody loses a row, so it can be repeated with more people.

        Open rows of people whose account was deleted go to others, if the key of the queue is that of an owner.

        Each row gets as many people as must decide it, near-duplicates the same ones where possible, and each person a
        link that shows theirs. It does not restrict anybody: who opens the whole queue sees all rows, and answers of
        people to whom a row is not assigned count too.

        Args:
            people: User names of members of the workspace or owners.

        Raises:
            InputError: If there are fewer people than must decide each row, one is there twice, or has no account that
                can open the workspace.
            ReviewError: If nothing has been pushed yet.
        """
        store = self._store()
        check_people(people, self._connection.reviewers(), self._connection.workspace)
        records = list(store.records(responses=True))
        reviewed = read_records(records, self._connection.usernames())
        departed = self._connection.departed(name for record in reviewed for name in record.assigned)
        return assign(store, records, reviewed, people, departed=departed)

    def links(self) -> PeopleLinks:
        """The links of people: to their open rows, and to the conflicts that were sent to them."""
        store = self._store()
        people = people_status(self._records(store))
        return PeopleLinks(
            rows=person_links(store, [person.name for person in people if person.assigned]),
            conflicts={p.name: third_person_link(store, p.name) for p in people if p.conflicts_left},
        )

    def status(self) -> QueueStatus:
        """Progress of the review, and how many harmful rows are left after `push_by_harm`."""
        store = self._store()
        records = self._records(store)
        return replace(queue_status(records, url=store.url), left=left_of(records))

    def pull(self, *, merge: str = "majority") -> Decisions:
        """Fetch the decisions; drafts and discarded records do not count.

        Args:
            merge: Rule that merges several annotators' answers: ``majority`` (a tie is a conflict), ``unanimous``, or
                ``arbiter:USERNAME`` (that user decides; if they have not answered, the others must agree).

        Raises:
            InputError: If there is no such rule, or no such user.
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
        earlier: Sequence[str | Path] = (),
        columns: Mapping[str, str] | None = None,
    ) -> Reranked:
        """Re-rank by the decisions so far: undecided records get a learned score, by which the page sorts.

        Responses are not changed, and no model is loaded. All records show both scores. A later push keeps them, unless
        a row's machine score or content has changed.

        Args:
            selection: The selection that was pushed; its rows have ``larf_state``.
            profile: The profile that scored the rows; default: looked up in this machine's cache. Without it, only the
                decisions are learned from.
            merge: Rule that merges several annotators' answers; see `pull`.
            add: Number of unflagged rows to add to the queue, those with the highest learned scores.
            earlier: Folders of decisions on other datasets, which ``pull`` or ``import`` wrote, to learn from too.
            columns: Column names by role, for the rows to add; see `push`.

        Raises:
            InputError: If the rows have no states, or a folder of earlier decisions cannot be used.
            ProfileMismatchError: If another profile scored the rows, or those of earlier decisions.
        """
        snapshot = self._snapshot(selection, profile, merge, earlier)
        added = tuple(snapshot.row_ids[index] for index in snapshot.unqueued[:add])
        # Rows that earlier re-rankings added are flagged too, should their selection not have been saved.
        newly_flagged = flag_more(snapshot, (*snapshot.queued_unflagged, *added))
        if added:
            whole = concatenate_datasets([_ranked(part) for part in (selection.flagged, newly_flagged.flagged)])
            self._push(newly_flagged, columns=columns, profile=profile, among=FlaggedRows.read(whole))
            snapshot = replace(snapshot, records=list(snapshot.store.records(responses=True)))
        return Reranked(
            learned=snapshot.learned,
            updated=update_scores(snapshot),
            added=added,
            overlooked=overlooked(snapshot, added),
            selection=sorted_by_learned_score(snapshot, newly_flagged.flagged),
            removed=removed_rows(snapshot),
            url=snapshot.store.url,
        )

    def propose(
        self,
        selection: "Selection",
        *,
        by: str = "score",
        n: int = 10,
        profile: "SafetyProfile | None" = None,
        merge: str = "majority",
        earlier: Sequence[str | Path] = (),
    ) -> Proposals:
        """Propose what to review next, and mark it on the server so that a link shows only these records.

        Args:
            selection: The selection that was pushed; its rows have ``larf_state``.
            by: Strategy: ``score`` (highest learned score), ``uncertain`` (annotators disagree, or the probability of
                removal is closest to 1/2), ``different`` (farthest from all decided rows and from each other) or
                ``random`` (the random rows of `push_by_harm`, in their order).
            n: Number of records, at least 1.
            profile: The profile that scored the rows; default: looked up in this machine's cache.
            merge: Rule that merges several annotators' answers; see `pull`.
            earlier: Folders of decisions on other datasets, to learn from too; see `rerank`.

        Raises:
            InputError: If the rows have no states, ``by`` is not a strategy, or n is below 1.
            ProfileMismatchError: If another profile scored the rows, or those of earlier decisions.
        """
        return propose(self._snapshot(selection, profile, merge, earlier), by=by, n=n)

    def send_back(self) -> Conflicts:
        """Mark records with a disagreement or an unfinished edit, so that a link shows each annotator theirs again.

        A record that enough annotators have answered is in nobody's queue any more, so only those who answered can
        resolve a conflict, by changing their answers. Call it again to remove the marks of conflicts resolved since.
        """
        store = self._store()
        records = list(store.records(responses=True))
        reviewed = read_records(records, self._connection.usernames())
        votes = disagreements(reviewed)
        unfinished = {record.row_id: record.unfinished for record in reviewed if record.unfinished}
        mark(store, records, CONFLICT, {**votes, **unfinished})
        return Conflicts(
            votes=votes,
            unfinished=unfinished,
            texts=row_texts(records, {**votes, **unfinished}),
            url=store.link(status="submitted", proposed=CONFLICT),
        )

    def send_conflicts(self, to: str, *, merge: str = "majority") -> SentConflicts:
        """Send the conflicts to a third person, who has not answered them and decides beside those who disagree.

        They get a draft of each conflict, which a link shows; nobody else's queue changes. Their answer is one more
        vote under ``majority``, and decides under ``arbiter:`` and their name.

        Args:
            to: User name of a member of the workspace or owner.
            merge: Rule that tells which rows are in conflict; see `pull`.

        Raises:
            InputError: If there is no such rule, or no such user in the workspace.
            ReviewServerError: If the key of the queue is not that of an owner or admin.
        """
        rule, store = self._rule(merge), self._store()
        check_people([to], self._connection.reviewers(), self._connection.workspace)
        records = list(store.records(responses=True))
        reviewed = read_records(records, self._connection.usernames())
        done = {record.row_id for record in reviewed if record.done}
        merged = [decision.row_id for decision in merge_records(reviewed, rule) if decision.status == "conflict"]
        waiting = len(set(disagreements(reviewed)) - done)
        person = self._connection.as_user(to)
        try:
            return send(store, records, [row for row in merged if row in done], person, waiting=waiting)
        finally:
            person.close()

    def submit(self, decisions: Mapping[str, str], *, api_key: str) -> None:
        """Submit decisions by script, as the web page does for a person.

        Args:
            decisions: ``keep``, ``remove``, ``edit`` or ``unsure`` by row id; earlier answers of the user are replaced.
            api_key: API key of the user who decides; the key of the queue is used to find the records only.

        Raises:
            InputError: If a row is not in the queue.
            ReviewError: If the server rejects an answer.
        """
        records = {record["external_id"]: record["id"] for record in self._store().records(responses=False)}
        annotator = Connection(
            self._connection.api_url, api_key, workspace=self._connection.workspace, timeout=self._connection.timeout
        )
        try:
            submit(annotator, records, decisions)
        finally:
            annotator.close()

    def _snapshot(
        self, selection: "Selection", profile: "SafetyProfile | None", merge: str, earlier: Sequence[str | Path]
    ) -> Snapshot:
        rule, store = self._rule(merge), self._store()
        records = list(store.records(responses=True))
        reviewed = read_records(records, self._connection.usernames())
        decisions = Decisions(merge_records(reviewed, rule), merge)
        recorded = (selection.scored.get("profile") or {}).get("digest")
        profile = profile_of(selection.scored, profile)
        return Snapshot.of(
            store,
            records,
            reviewed,
            selection,
            decisions,
            References.of(profile) if profile else None,
            earlier=earlier,
            profile=profile.digest if profile else recorded,
        )

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


def _ranked(rows: Dataset) -> Dataset:
    """What rows are ranked by."""
    return rows.select_columns([ROW_ID, SCORE])
