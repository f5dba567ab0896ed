from collections import Counter
from datetime import datetime, timedelta
from itertools import product

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from larf_curate.errors import InputError
from larf_curate.review.decisions.agreement import agreement, krippendorff_alpha
from larf_curate.review.decisions.merge import MergeRule, merge_record, merge_records
from larf_curate.review.decisions.responses import Judgement, ReviewedRecord
from larf_curate.review.decisions.status import pace, queue_status

NOON = datetime(2026, 1, 1, 12)
CHOICES = ("keep", "remove", "edit", "unsure")


def judgement(annotator, decision, **values):
    fields = {"status": "submitted", "category": None, "severity": None, "rationale": None, "time": NOON}
    corrected = "better" if decision == "edit" else None
    fields |= {"corrected_answer": corrected, "outdated": False}
    return Judgement(annotator=annotator, decision=decision, **fields | values)


def record(*judgements, done=True):
    return ReviewedRecord(row_id="r", content_digest="d", done=done, judgements=judgements)


def decide(rule, *judgements, done=True):
    return merge_record(record(*judgements, done=done), MergeRule.parse(rule))


@pytest.mark.parametrize("votes", [v for n in (1, 2, 3, 4) for v in product(CHOICES, repeat=n)])
def test_majority_unanimity_and_arbiter_equal_plain_counting(votes):
    names = ["ann", "bob", "cem", "dee"][: len(votes)]
    judgements = [judgement(name, vote) for name, vote in zip(names, votes, strict=True)]

    counts = Counter(votes)
    best = [vote for vote, count in counts.items() if count == max(counts.values())]
    wanted = {
        "majority": best[0] if len(best) == 1 else None,
        "unanimous": votes[0] if len(counts) == 1 else None,
        "arbiter:bob": votes[1] if len(votes) > 1 else votes[0],
        "arbiter:nobody": votes[0] if len(counts) == 1 else None,
    }
    for rule, decision in wanted.items():
        result = decide(rule, *judgements)
        assert (result.status, result.decision) == ("conflict" if decision is None else "decided", decision)
        assert result.annotators == tuple(names)


def test_drafts_and_discards_are_counted_and_decide_nothing():
    draft, discard = judgement("ann", "remove", status="draft"), judgement("bob", None, status="discarded")
    result = decide("majority", draft, discard, judgement("dee", "keep", status="draft"))
    assert (result.status, result.decision, result.drafts, result.discards) == ("pending", None, 2, 1)
    assert (decide("majority", discard).drafts, decide("majority", draft).discards) == (0, 0)
    assert decide("majority", draft, judgement("cem", "keep")).decision == "keep"


def test_too_few_answers_are_pending_unless_the_arbiter_gave_theirs():
    vote = judgement("ann", "remove")
    assert decide("majority", vote, done=False).status == "pending"
    assert decide("arbiter:bob", vote, done=False).status == "pending"
    assert decide("arbiter:ann", vote, done=False).decision == "remove"


def test_answers_about_an_earlier_text_are_stale_and_outvoted_by_one_about_this():
    old = judgement("ann", "remove", outdated=True)
    assert decide("majority", old).status == "stale"
    result = decide("majority", old, judgement("bob", "keep"))
    assert (result.decision, result.annotators) == ("keep", ("bob",))


def test_an_edit_needs_one_text(caplog):
    empty, blank = judgement("ann", "edit", corrected_answer=None), judgement("bob", "edit", corrected_answer=" \n")
    assert decide("majority", empty, blank).status == "pending"
    assert "an edit without a corrected answer leaves it pending" in caplog.text
    full = judgement("cem", "edit", corrected_answer="better")
    assert decide("majority", empty, full).corrected_answer == "better"
    other = judgement("dee", "edit", corrected_answer="different")
    assert decide("majority", full, other).status == "conflict"
    assert decide("arbiter:dee", full, other).corrected_answer == "different"


def test_category_severity_and_rationale_come_from_the_deciding_and_all():
    result = decide(
        "majority",
        judgement("ann", "remove", category="fraud", severity="low", rationale="a scam"),
        judgement("bob", "remove", category="fraud", severity="high"),
        judgement("cem", "keep", category="other", rationale="harmless"),
    )
    assert (result.category, result.severity) == ("fraud", "high")
    tied = decide(
        "majority", *(judgement(n, "remove", category=c) for n, c in zip("ab", ("spam", "fraud"), strict=True))
    )
    assert tied.category == "fraud", "the first by name, whoever said it"
    assert result.rationale == "ann: a scam\ncem: harmless"


@pytest.mark.parametrize("name", ["", "arbiter", "arbiter:", "majority:x", "vote"])
def test_unknown_rules_are_refused(name):
    with pytest.raises(InputError, match="majority, unanimous or arbiter"):
        MergeRule.parse(name)


def test_alpha_of_the_published_example():
    # Krippendorff (2011), section C: four observers, twelve units, nominal; alpha = 0.743
    a = "1 2 3 3 2 1 4 1 2 . . ."
    b = "1 2 3 3 2 2 4 1 2 5 . 3"
    c = ". 3 3 3 2 3 4 2 2 5 1 ."
    d = "1 2 3 3 2 4 4 1 2 5 1 ."
    units = [[v for v in unit if v != "."] for unit in zip(*(x.split() for x in (a, b, c, d)), strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_equals_the_coincidence_matrix():
    rng = np.random.default_rng(0)
    units = [[str(rng.integers(3)) for _ in range(rng.integers(0, 5))] for _ in range(60)]
    matrix = np.zeros((3, 3))
    for unit in units:
        for i, j in product(range(len(unit)), repeat=2):
            if i != j:
                matrix[int(unit[i]), int(unit[j])] += 1 / (len(unit) - 1)
    totals = matrix.sum(1)
    n = totals.sum()
    observed = (n - np.trace(matrix)) / n
    expected = sum(totals[i] * totals[j] for i, j in product(range(3), repeat=2) if i != j) / (n * (n - 1))
    assert krippendorff_alpha(units) == pytest.approx(1 - observed / expected)


def test_two_annotators_are_compared_by_kappa_on_the_rows_they_share():
    rows = [{"ann": "keep", "bob": "keep"}, {"ann": "remove", "bob": "keep"}, {"ann": "remove", "bob": "remove"}]
    found = agreement([*rows, {"ann": "keep"}, {}])
    want = cohen_kappa_score(["keep", "remove", "remove"], ["keep", "keep", "remove"])
    assert (found.name, found.rows) == ("cohen_kappa", 3)
    assert found.value == pytest.approx(want)
    assert agreement([*rows, {"cem": "keep", "bob": "keep"}]).name == "krippendorff_alpha"


def test_no_agreement_is_given_where_it_is_undefined():
    assert agreement([{"ann": "keep"}, {"bob": "remove"}]) is None
    assert agreement([{"ann": "keep", "bob": "keep"}]) is None


def test_the_pace_leaves_pauses_out():
    minutes = [0, 1, 2, 3, 600, 601]  # a night between
    work = [judgement("ann", "keep", time=NOON + timedelta(minutes=m)) for m in minutes]
    other = [judgement("bob", "keep", time=NOON + timedelta(minutes=m)) for m in (0, 3)]
    assert pace(work) == pytest.approx(60)
    assert pace(work + other) == pytest.approx(5 / 7 * 60)
    assert pace(work[:1]) is None
    for minutes, counted in ((15, 4), (15.1, None)):  # the longest gap that is no pause
        two = [judgement("ann", "keep", time=NOON + timedelta(minutes=m)) for m in (0, minutes)]
        assert pace(two) == (counted and pytest.approx(counted))


def test_the_status_counts_what_annotators_did():
    state = queue_status(
        [
            record(judgement("ann", "keep"), judgement("bob", "remove")),
            record(judgement("ann", "keep"), judgement("bob", "keep")),
            record(judgement("ann", None, status="draft"), judgement("bob", None, status="discarded"), done=False),
            record(judgement("ann", "remove", outdated=True)),
        ],
        url="u",
    )
    assert (state.rows, state.done, state.pending, state.disagreements) == (4, 2, 2, 1)
    assert state.decisions == {"keep": 3, "remove": 1}
    assert (state.drafts, state.discards, state.outdated) == (1, 1, 1)
    assert state.annotators == {"ann": 2, "bob": 2}


def leader(row_id, decision, *, serves, **given):
    judgements = (judgement("ann", decision),) if decision else ()
    shared = {name: f"d-{name}" for name in serves}
    fields = {"content_digest": f"d-{row_id}", "done": bool(decision), "shared": shared} | given
    return ReviewedRecord(row_id=row_id, judgements=judgements, **fields)


def by_row(*records):
    return {row.row_id: row for row in merge_records(records, MergeRule.parse("majority"))}


def test_a_decision_serves_the_near_identical_rows_with_their_own_content():
    rows = by_row(leader("a", "remove", serves=["b", "c"]), leader("z", "keep", serves=[]))
    assert [(r.decision, r.decided_through, r.content_digest) for r in rows.values()] == [
        ("remove", None, "d-a"),
        ("keep", None, "d-z"),
        ("remove", "a", "d-b"),
        ("remove", "a", "d-c"),
    ]


def test_without_a_decision_the_served_rows_are_pending_as_well():
    assert by_row(leader("a", None, serves=["b"]))["b"].status == "pending"
    torn = leader("a", "keep", serves=["b"])
    torn = ReviewedRecord(**vars(torn) | {"judgements": (judgement("ann", "keep"), judgement("bob", "remove"))})
    rows = by_row(torn)
    assert (rows["a"].status, rows["b"].status, rows["b"].decided_through) == ("conflict", "pending", None)


def test_rows_that_are_served_have_no_drafts_or_discards_of_their_own():
    assert {(row.drafts, row.discards) for row in by_row(leader("a", None, serves=["b"])).values()} == {(0, 0)}


def test_a_corrected_answer_serves_exact_copies_only():
    rows = by_row(leader("a", "edit", serves=["b"], shared={"b": "d-a", "c": "d-c"}))
    assert (rows["b"].decision, rows["b"].corrected_answer) == ("edit", "better")
    assert (rows["c"].status, rows["c"].decision) == ("pending", None)


def test_two_groups_that_claim_a_row_must_agree():
    assert by_row(leader("a", "keep", serves=["x"]), leader("b", "remove", serves=["x"]))["x"].status == "conflict"
    assert by_row(leader("a", "keep", serves=["x"]), leader("b", "keep", serves=["x"]))["x"].decision == "keep"
    for order in (1, -1):
        claims = (leader("a", None, serves=["x"]), leader("b", "remove", serves=["x"]))[::order]
        assert by_row(*claims)["x"].decided_through == "b"


def test_an_answer_or_discard_of_its_own_counts_more_than_the_groups():
    rows = by_row(leader("a", "remove", serves=["b"]), leader("b", "keep", serves=[]))
    assert (rows["b"].decision, rows["b"].decided_through) == ("keep", None)
    untouched = by_row(leader("a", "remove", serves=["b"]), leader("b", None, serves=[]))
    assert untouched["b"].decided_through == "a"
    discarded = leader("b", None, serves=[])
    discarded = ReviewedRecord(**vars(discarded) | {"judgements": (judgement("ann", None, status="discarded"),)})
    assert by_row(leader("a", "remove", serves=["b"]), discarded)["b"].status == "pending"
