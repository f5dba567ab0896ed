import json
from dataclasses import replace

import pytest
from datasets import Audio, Dataset, Features, Image, List, concatenate_datasets

from larf_curate.columns import content_digest
from larf_curate.conversation.answers import answer, replace_answer
from larf_curate.conversation.schemas import to_messages
from larf_curate.data.tables import from_undecoded, read_parquet, undecoded
from larf_curate.errors import ConversationError, InputError
from larf_curate.manifests import VERSION
from larf_curate.review import Decision, Decisions
from tests.fixtures.review_rows import questions, selection

CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "last"},
]
SHAREGPT = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "last"}, {"from": "human", "value": "bye"}]
ROWS = {
    "messages": {"messages": CHAT, "id": 7},
    "messages as a dict of lists": {"messages": {"role": ["user", "assistant"], "content": ["hello", "last"]}},
    "messages as json": {"messages": [json.dumps(message) for message in CHAT]},
    "messages as one json text": {"messages": json.dumps(CHAT)},
    "parts": {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "last"}]}]},
    "conversations": {"conversations": SHAREGPT},
    "completion": {"prompt": "hello", "completion": "last"},
    "completion messages": {"prompt": CHAT[:1], "completion": CHAT[3:]},
    "chosen": {"prompt": "hello", "chosen": "last", "rejected": "no"},
    "chosen with prompt": {"prompt": CHAT[:3], "chosen": CHAT},
    "alpaca": {"instruction": "hello", "input": "", "output": "last"},
    "dolly": {"instruction": "hello", "context": "", "response": "last"},
    "question": {"question": "hello", "answer": "last"},
    "text": {"text": "last"},
}


@pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))
def test_the_last_answer_is_replaced_and_nothing_else(row):
    before = json.loads(json.dumps(row))
    assert answer(row) == "last"
    changed = replace_answer(row, "better")
    assert answer(changed) == "better"
    assert row == before
    assert replace_answer(changed, "last") == row
    rest, want = to_messages(changed), to_messages(row)
    assert [m for m in rest if m["content"] != "better"] == [m for m in want if m["content"] != "last"]


def test_answers_of_roles_that_the_user_named_are_replaced_and_texts_that_are_json_stay_texts():
    row = {"messages": [{"role": "asker", "content": "hello"}, {"role": "narrator", "content": "last"}]}
    columns = {"role:narrator": "assistant", "role:Asker": "user"}
    assert replace_answer(row, "better", columns)["messages"][-1] == {"role": "narrator", "content": "better"}
    call = {"question": "hello", "answer": '[{"name": "look"}]'}
    assert replace_answer(call, "better") == call | {"answer": "better"}


def test_named_columns_are_replaced():
    row = {"q": "hello", "a": "last", "text": "x"}
    columns = {"user": "q", "assistant": "a"}
    assert replace_answer(row, "better", columns) == row | {"a": "better"}
    assert replace_answer({"m": CHAT}, "better", {"messages": "m"})["m"][-1]["content"] == "better"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "wanted messages"),
        ({"messages": CHAT[:1]}, "wanted an assistant turn"),
        ({"x": 1}, "no known conversation format"),
        ({"question": None, "answer": None}, "wanted text"),
    ],
)
def test_a_row_without_an_answer_cannot_be_edited(row, said):
    with pytest.raises(ConversationError, match=said):
        replace_answer(row, "better")


def decisions(rows, *given, **changes):
    """One decision for each of the first rows."""
    made = []
    for row, decision in zip(rows, given, strict=False):
        values = {
            "status": "decided",
            "decision": decision,
            "corrected_answer": "better" if decision == "edit" else None,
        }
        made.append(Decision(row_id=row["larf_row_id"], content_digest=content_digest(row), **values | changes))
    return Decisions(tuple(made), "majority")


def test_every_row_goes_where_people_said():
    chosen = selection(questions(10), flagged=6)
    flagged = list(chosen.flagged)
    made = decisions(flagged, "keep", "remove", "edit", "unsure").rows
    conflict = replace(made[0], row_id=flagged[4]["larf_row_id"], status="conflict", decision=None)
    conflict = replace(conflict, content_digest=content_digest(flagged[4]))
    outcome = Decisions((*made, conflict), "majority").apply(chosen)

    approved = {flagged[0]["question"]: "keep", flagged[2]["question"]: "edit"}
    source = [row["question"] for row in questions(10)]
    kept = [question for question in source if question in {*chosen.kept["question"], *approved}]
    assert outcome.kept["question"][:] == kept
    assert outcome.kept["larf_decision"][:] == [approved.get(question, "unflagged") for question in kept]
    edited = outcome.kept[kept.index(flagged[2]["question"])]
    assert (edited["answer"], edited["larf_original_answer"]) == ("better", flagged[2]["answer"])
    assert list(outcome.removed["question"]) == [flagged[1]["question"]]
    assert outcome.removed[0]["larf_reason"] == chosen.reasons[flagged[1]["larf_row_id"]]
    assert list(outcome.withheld["larf_decision"]) == ["unsure", "conflict", "pending"]
    assert [row.row_id for row in outcome.decisions.rows] == [row["larf_row_id"] for row in flagged]
    assert outcome.counts == {
        **{"kept": 6, "removed": 1, "withheld": 3, "edited": 1, "unflagged": 4},
        **{"unsure": 1, "pending": 1, "conflict": 1, "stale": 0},
    }


def test_decisions_are_counted_by_what_was_decided_or_why_not_and_conflicts_are_listed():
    rows = [("decided", "keep"), ("decided", "keep"), ("decided", "remove"), ("conflict", None), ("pending", None)]
    made = [Decision(row_id=str(i), status=s, decision=d, content_digest="x") for i, (s, d) in enumerate(rows)]
    found = Decisions(tuple(made), "majority")
    assert found.counts == {"conflict": 1, "keep": 2, "pending": 1, "remove": 1}
    assert [row.row_id for row in found.conflicts()] == ["3"]


def test_published_columns_are_the_source_and_a_few_of_ours():
    outcome = decisions([]).apply(selection())
    ours = ["larf_row_id", "larf_score", "larf_decision", "larf_original_answer", "larf_index", "larf_percentile"]
    assert {*outcome.kept.column_names} >= {"question", "answer", *ours}
    assert not {"larf_flagged", "larf_reason", "larf_state"} & {*outcome.kept.column_names}
    assert outcome.removed.column_names == outcome.withheld.column_names == [*outcome.kept.column_names, "larf_reason"]


def test_removed_rows_keep_their_nearest_exemplars_and_no_row_its_state():
    chosen = selection(questions(6), flagged=3)
    assert {"larf_neighbors", "larf_state"} <= {*chosen.flagged.column_names}
    outcome = decisions(chosen.flagged, "remove").apply(chosen)
    assert outcome.removed["larf_neighbors"][:] == [chosen.flagged[0]["larf_neighbors"]]
    assert not any("larf_state" in getattr(outcome, part).column_names for part in ("kept", "removed", "withheld"))


def test_without_recorded_order_kept_rows_come_last_and_that_is_said(caplog):
    chosen = selection(questions(6), flagged=3)
    flagged = chosen.flagged["question"][:]
    parts = {name: getattr(chosen, name).remove_columns("larf_index") for name in ("kept", "flagged")}
    outcome = decisions(parts["flagged"], "keep").apply(replace(chosen, **parts))
    assert outcome.kept["question"][:] == [*chosen.kept["question"], flagged[0]]
    assert "does not record the order of the source" in caplog.text


def test_a_decision_about_another_text_is_stale_and_not_applied():
    chosen = selection()
    made = decisions(chosen.flagged, "remove", "remove", "remove")
    changed = chosen.flagged.map(lambda row, i: {"answer": "new"} if i == 1 else {}, with_indices=True)
    outcome = made.apply(replace(chosen, flagged=changed))
    assert [row.status for row in outcome.decisions.rows] == ["decided", "stale", "decided"]
    assert list(outcome.withheld["larf_decision"]) == ["stale"]
    assert (len(outcome.removed), len(outcome.withheld)) == (2, 1)


def test_decisions_on_rows_that_are_not_in_the_selection_change_nothing():
    chosen = selection()
    stranger = Decision(row_id="stranger", status="decided", decision="remove", content_digest="x")
    outcome = Decisions((stranger,), "majority").apply(chosen)
    assert (len(outcome.removed), len(outcome.withheld)) == (0, 3)


def test_a_row_that_cannot_be_edited_is_withheld():
    chosen = selection([{"messages": None}, {"messages": CHAT}, {"messages": CHAT}], flagged=2)
    outcome = decisions(chosen.flagged, "edit", "edit").apply(chosen)
    assert list(outcome.withheld["larf_decision"]) == ["conflict"]
    [edited] = [row for row in outcome.kept if row["larf_decision"] == "edit"]
    assert edited["messages"][-1]["content"] == "better"
    assert outcome.kept.features["messages"] == chosen.kept.features["messages"]


def test_an_edit_that_cannot_be_applied_is_in_conflict_and_all_others_are_applied(caplog):
    rows = [{"question": f"Q{i}", "answer": i} for i in range(4)]
    chosen = selection(rows, flagged=4)
    made = decisions(chosen.flagged, "keep", "edit", "remove", "edit").rows
    made = (*made[:3], replace(made[3], corrected_answer="7"))  # a number, which the column of numbers can store
    outcome = Decisions(made, "majority").apply(chosen)
    assert [row.status for row in outcome.decisions.rows] == ["decided", "conflict", "decided", "decided"]
    assert outcome.kept["answer"][:] == [0, 7]
    assert (len(outcome.removed), list(outcome.withheld["larf_decision"])) == (1, ["conflict"])
    assert made[1].row_id in caplog.text


EMPTY = {
    "question": ({"question": "Q", "answer": ""}, {"question": "Q", "answer": "A"}),
    "no answer": ({"question": "Q", "answer": None}, {"question": "Q", "answer": "A"}),
    "no messages": ({"messages": []}, {"messages": CHAT}),
    "no assistant": ({"messages": CHAT[:1]}, {"messages": CHAT}),
    "empty turn": ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, {"messages": CHAT}),
    "a null message": ({"messages": [None]}, {"messages": CHAT}),
    "unknown role": ({"messages": [{"role": "wizard", "content": "x"}]}, {"messages": CHAT}),
    "no json": ({"messages": ["{"]}, {"messages": [json.dumps(message) for message in CHAT]}),
    "conversations": ({"conversations": [{"from": None, "value": "x"}]}, {"conversations": SHAREGPT}),
    "text": ({"text": ""}, {"text": "A"}),
}


def test_an_edit_of_a_row_with_sound_needs_no_library_of_sound():
    sound = from_undecoded([{"sound": [{"bytes": b"no sound", "path": None}]}] * 5, Features({"sound": List(Audio())}))
    chosen = selection()
    parts = {"flagged": chosen.flagged, "kept": chosen.kept}
    heard = {name: concatenate_datasets([part, sound.select(range(len(part)))], axis=1) for name, part in parts.items()}
    chosen = replace(chosen, **heard)
    outcome = decisions(undecoded(chosen.flagged), "keep", "edit", "remove").apply(chosen)
    assert (outcome.counts["edited"], outcome.counts["conflict"]) == (1, 0)
    assert undecoded(outcome.kept)["sound"][:] == undecoded(sound)["sound"][:4]


@pytest.mark.parametrize(("odd", "plain"), EMPTY.values(), ids=list(EMPTY))
def test_an_edit_of_a_row_without_an_answer_does_not_block_the_queue(odd, plain):
    chosen = selection([odd, plain, plain, plain], flagged=3)
    outcome = decisions(chosen.flagged, "edit", "edit", "remove").apply(chosen)
    assert [row.status for row in outcome.decisions.rows] == ["conflict", "decided", "decided"]
    assert (len(outcome.kept), len(outcome.removed), len(outcome.withheld)) == (2, 1, 1)
    assert [answer(row) for row in outcome.kept if row["larf_decision"] == "edit"] == ["better"]


def test_decisions_of_an_earlier_review_are_replaced():
    chosen = selection(questions(6), flagged=3)
    parts = {"kept": chosen.kept, "flagged": chosen.flagged}
    old = {
        n: p.add_column("larf_decision", ["x"] * 3).add_column("larf_original_answer", ["x"] * 3)
        for n, p in parts.items()
    }
    made = decisions(chosen.flagged, "keep", "edit", "remove")
    again, once = made.apply(replace(chosen, **old)), made.apply(chosen)
    assert again.kept.to_list() == once.kept.to_list()
    assert again.kept.features == once.kept.features


def test_an_outcome_in_a_store_is_that_in_a_folder(tmp_path, memory_store, own_caches):
    outcome = decisions([]).apply(selection())
    for _ in range(2):  # replaces itself
        outcome.save("memory://bucket/decisions")
    outcome.save(tmp_path / "decisions")
    files = [path for path in (tmp_path / "decisions").rglob("*") if path.is_file()]
    names = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in files}
    assert {
        name.removeprefix("/bucket/"): memory_store.cat_file(name) for name in memory_store.find("/bucket")
    } == names
    assert Decisions.load("memory://bucket/decisions") == Decisions.load(tmp_path / "decisions")


def test_saved_and_loaded_is_the_same(tmp_path):
    chosen = selection(questions(8), flagged=5)
    outcome = decisions(chosen.flagged, "keep", "remove", "edit", "unsure").apply(chosen)
    outcome.save(tmp_path)
    outcome.save(tmp_path)  # replaces itself
    for part in ("kept", "removed", "withheld"):
        loaded = read_parquet(tmp_path / part)
        assert loaded.to_list() == getattr(outcome, part).to_list()
        assert loaded.features == getattr(outcome, part).features
    manifest = json.loads((tmp_path / "decisions.json").read_text())
    assert (manifest["kind"], manifest["version"], manifest["merge"]) == ("decisions", VERSION, "majority")
    assert manifest["counts"] == outcome.counts
    assert manifest["selection"]["rule"] == {"top_k": 5}
    assert Decisions.load(tmp_path) == outcome.decisions


@pytest.mark.parametrize("mine", ["removed/x.parquet", "withheld/part-mine.parquet", "x.parquet", "decisions.parquet"])
def test_parquet_files_of_others_are_not_replaced(tmp_path, mine):
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(InputError, match=f"{mine} is not of decisions that larf-curate wrote"):
        decisions([]).apply(selection()).save(tmp_path)
    assert (tmp_path / mine).read_text() == "mine"
    assert not (tmp_path / "kept").exists()


def test_the_types_do_not_depend_on_the_values(tmp_path):
    nothing, full = selection(flagged=0), selection(flagged=3)
    empty, other = decisions([]).apply(nothing), decisions(full.flagged, "edit", "edit", "remove").apply(full)
    assert empty.kept.features == other.kept.features
    assert empty.removed.features == other.removed.features
    assert empty.decisions.to_dataset().features == other.decisions.to_dataset().features
    empty.save(tmp_path)
    assert read_parquet(tmp_path / "kept").features == empty.kept.features


def test_a_damaged_folder_is_refused(tmp_path):
    decisions([]).apply(selection()).save(tmp_path)
    (tmp_path / "decisions.json").write_text('{"kind": "selection"}')
    with pytest.raises(InputError, match="wanted decisions in .*, got 'selection' as kind"):
        Decisions.load(tmp_path)
    (tmp_path / "decisions.json").write_text('{"kind": "decisions", "version": 2, "merge": 3, "counts": {}}')
    with pytest.raises(InputError, match="has 3 as 'merge', wanted a valid string"):
        Decisions.load(tmp_path)


def test_decisions_on_rows_with_pictures_hold_and_edit_without_decoding():
    broken = Dataset.from_list(
        [{"picture": {"bytes": b"no picture", "path": None}}] * 5, Features({"picture": Image()})
    )
    chosen = selection()
    parts = {"flagged": chosen.flagged, "kept": chosen.kept}
    pictured = {
        name: concatenate_datasets([part, broken.select(range(len(part)))], axis=1) for name, part in parts.items()
    }
    chosen = replace(chosen, **pictured)
    shown = chosen.flagged.cast_column("picture", Image(decode=False))
    outcome = decisions(shown, "keep", "edit", "remove").apply(chosen)
    assert outcome.counts["stale"] == 0
    assert (len(outcome.kept), len(outcome.removed)) == (4, 1)
    assert outcome.kept.features["picture"] == Image()
    assert (
        outcome.kept.cast_column("picture", Image(decode=False))["picture"][:]
        == [broken.data["picture"][0].as_py()] * 4
    )
