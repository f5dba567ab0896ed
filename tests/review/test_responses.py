from datetime import UTC, datetime

from larf_curate.review.decisions.responses import CONTENT_DIGEST, DECIDED_TOGETHER, OUTDATED_RESPONSES, read_records

NOON = "2026-01-01T12:00:00"


def response(user="u1", decision="keep", *, number="i", status="submitted", at=NOON, **others):
    """One as the server gives it."""
    given = {"decision": decision, **others}
    values = {name: {"value": value} for name, value in given.items() if value is not None}
    return {"id": number, "user_id": user, "status": status, "updated_at": at, "values": values or None}


def record(*responses, status="completed", **metadata):
    return {
        "external_id": "r",
        "status": status,
        "metadata": {CONTENT_DIGEST: "d", **metadata},
        "responses": list(responses),
    }


def test_a_record_is_read_with_its_judgements_in_the_order_of_names():
    first = response("u2", "edit", corrected_answer="better", severity="high", category="fraud", rationale="why")
    (read,) = read_records([record(first, response("u1", "remove"))], {"u1": "bob", "u2": "ann"})
    assert (read.row_id, read.content_digest, read.done, read.shared) == ("r", "d", True, {})
    assert [(j.annotator, j.decision, j.status) for j in read.judgements] == [
        ("ann", "edit", "submitted"),
        ("bob", "remove", "submitted"),
    ]
    ann, bob = read.judgements
    assert (ann.corrected_answer, ann.severity, ann.category, ann.rationale) == ("better", "high", "fraud", "why")
    assert (bob.corrected_answer, bob.severity, bob.category, bob.rationale) == (None,) * 4
    assert ann.time == datetime(2026, 1, 1, 12)
    assert read.counted == read.judgements


def test_a_record_is_done_when_the_server_says_so():
    done, open_ = read_records([record(response()), record(response(), status="pending")], {})
    assert (done.done, open_.done) == (True, False)


def test_records_of_others_are_passed_over_and_unknown_users_keep_their_id():
    others = [{"external_id": "s", "status": "pending", "metadata": metadata} for metadata in (None, {"x": 1})]
    (read,) = read_records([*others, record(response("u9"))], {})
    assert read.judgements[0].annotator == "u9"
    assert read_records([{**record(), "responses": None}], {})[0].judgements == ()


def test_drafts_discards_and_answers_without_values_do_not_count():
    given = [response("a", status="draft"), response("b", None, status="discarded"), response("c", None), response("d")]
    (read,) = read_records([record(*given)], {})
    assert [j.decision for j in read.judgements] == ["keep", None, None, "keep"]
    assert [j.annotator for j in read.counted] == ["d"]


def test_an_answer_to_an_earlier_text_is_outdated_until_it_is_changed():
    marks = {OUTDATED_RESPONSES: {"old": NOON, "again": "2026-01-01T11:00:00"}}
    given = [response("a", number="old"), response("b", number="again"), response("c", number="new")]
    (read,) = read_records([record(*given, **marks)], {})
    assert [j.outdated for j in read.judgements] == [True, False, False]
    assert [j.annotator for j in read.counted] == ["b", "c"]


def test_times_with_a_zone_are_read_on_every_python():
    for at in ("2026-01-01T12:00:00Z", "2026-01-01T13:00:00+01:00"):
        (read,) = read_records([record(response(at=at))], {})
        assert read.judgements[0].time == datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_rows_that_a_decision_serves_are_read_with_their_digests():
    (read,) = read_records([record(response(), **{DECIDED_TOGETHER: {"s": "e"}})], {})
    assert read.shared == {"s": "e"}
