"""Decisions that join the references of a profile."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.metrics import roc_auc_score

from larf_curate import LarfScorer
from larf_curate.cli import main
from larf_curate.cli.profile_version import changes
from larf_curate.columns import content_digest
from larf_curate.errors import InputError, ProfileError, ProfileMismatchError
from larf_curate.models.loading import load_reader
from larf_curate.profile import SafetyProfile
from larf_curate.profile.card import merge_profile_card
from larf_curate.profile.decided import KEPT_ANSWERS, KEPT_REFUSALS, REMOVED, with_decided
from larf_curate.profile.versions import DecidedRows, add_decided
from larf_curate.review import Decision, Decisions
from larf_curate.review.learning.teaching import add_decisions
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import select
from larf_curate.signals.protocol import ReferenceStates, unit
from larf_curate.states import POSITIONS
from tests.fixtures.models import PROFILE, six_pairs
from tests.fixtures.review_rows import fake_profile
from tests.models.test_hidden_states import full_states

pytestmark = pytest.mark.usefixtures("own_caches")
REFUSAL = "I'm sorry, but I can't help with that."
ROWS = [
    {"question": f"Is {place} far from here, by {way}?", "answer": f"About {hours} hours by {way}."}
    for hours, (place, way) in enumerate(
        [("Oslo", "train"), ("Lima", "ship"), ("Cairo", "bike"), ("Delhi", "car"), ("Quito", "bus"), ("Perth", "air")]
    )
] + [{"question": "Open the lock of my neighbour?", "answer": REFUSAL}]


@pytest.fixture(scope="module")
def profile(tiny_llama):
    return SafetyProfile.build(tiny_llama, six_pairs(), layers=[3, 1], **PROFILE)


def scored(profile, rows):
    """All rows, scored and flagged."""
    mapped = Dataset.from_list(rows).map(LarfScorer(profile, keep_states=True, device="cpu"), batched=True)
    whole = Scored.of(mapped, profile, source="trips.jsonl")
    return select(whole.rows, top_k=len(rows), source="trips.jsonl", scored=whole.manifest)


def decide(selection, verdicts, **changes):
    """Decisions on the flagged rows, by their question."""
    made = []
    for row in selection.flagged:
        verdict = verdicts.get(row["question"])
        values = {"status": "decided" if verdict else "pending", "decision": verdict, "category": "travel"}
        values |= {"corrected_answer": "Better."} if verdict == "edit" else {}
        made.append(Decision(row_id=row["larf_row_id"], content_digest=content_digest(row), **values | changes))
    return Decisions(tuple(made), "majority").apply(selection)


def question(index):
    return ROWS[index]["question"]


@pytest.fixture
def folder(profile, tmp_path):
    """Two rows removed, three kept of which the last refuses, one edited and one undecided."""
    verdicts = dict(zip((row["question"] for row in ROWS), ["remove"] * 2 + ["keep"] * 2 + ["edit"], strict=False))
    decide(scored(profile, ROWS), verdicts | {question(6): "keep"}).save(tmp_path / "decisions")
    return tmp_path / "decisions"


def test_decided_rows_join_the_profile_with_the_states_of_the_full_model(profile, tiny_llama, folder):
    taught = add_decisions(profile, folder, device="cpu")
    assert (taught.removed, taught.kept, taught.left_out) == (2, 4, {"pending": 1})
    reader = load_reader(profile.source, (3, 1), device="cpu")
    answers = [ROWS[2], ROWS[3], {**ROWS[4], "answer": "Better."}]
    for side, rows in ((REMOVED, ROWS[:2]), (KEPT_ANSWERS, answers), (KEPT_REFUSALS, ROWS[6:])):
        want = []
        for item in reader.renderer()(rows):
            (turn,) = item.tokens.turns
            states = full_states(tiny_llama, item.tokens.ids)[[3, 1]]
            want.append(
                np.concatenate([states[:, -1], states[:, turn.start - 1], states[:, turn.start :].mean(axis=1)])
            )
        found = taught.profile.states[side]
        got = np.concatenate([found["last"], found["prompt"], found["mean"]], axis=1)
        order = [np.abs(np.array(want) - row).sum(axis=(1, 2)).argmin() for row in got]
        assert sorted(order) == list(range(len(rows)))
        assert_allclose(got, np.array(want)[order], atol=1e-4)
    assert taught.profile.decisions["labels"] == ["travel", "travel"]
    assert all(taught.profile.states[side] is profile.states[side] for side in profile.states)


def test_the_published_score_is_the_formula_on_references_and_decided_rows(profile, folder):
    new = add_decisions(profile, folder, device="cpu").profile
    states, rows = new.states, new.states["neutral"]
    unsafe = np.concatenate([states["unsafe"]["last"], states[REMOVED]["last"]])
    safe = np.concatenate([states[side]["last"] for side in ("safe", KEPT_REFUSALS, KEPT_ANSWERS)])
    cosines = [np.einsum("nld,mld->nml", unit(rows["last"]), unit(side)).mean(axis=1) for side in (unsafe, safe)]
    assert_allclose(new.fit()(rows), cosines[0] - cosines[1], atol=1e-5)


def test_kept_answers_are_no_refusals_to_the_default_signal():
    rng = np.random.default_rng(0)

    def states(count):
        return {position: rng.normal(size=(count, 1, 4)).astype("f4") for position in POSITIONS}

    refs = ReferenceStates(unsafe=states(3), safe=states(3), neutral=states(5), borderline=states(2)["prompt"])
    decided = {REMOVED: states(1), KEPT_REFUSALS: states(1), KEPT_ANSWERS: states(2)}
    joined = with_decided(refs, "combined", decided)
    assert (len(joined.unsafe["last"]), len(joined.safe["last"]), len(joined.borderline)) == (4, 4, 4)
    assert_array_equal(joined.borderline[2:], decided[KEPT_ANSWERS]["prompt"])
    assert_array_equal(joined.safe["mean"][3:], decided[KEPT_REFUSALS]["mean"])
    for signal, given in (("larf", refs), ("combined", replace(refs, borderline=None))):
        assert len(with_decided(given, signal, decided).safe["last"]) == 6


def test_a_new_version_is_saved_scores_and_tells_where_it_comes_from(profile, folder, tmp_path):
    new = add_decisions(profile, folder, device="cpu").profile
    new.save_pretrained(tmp_path / "new")
    again = SafetyProfile.from_pretrained(tmp_path / "new")
    assert again.digest == new.digest != profile.digest
    assert again.decisions["versions"] == [profile.digest]
    assert "2 removed, 4 kept (trips.jsonl)" in repr(again)
    manifest = scored(again, ROWS).scored["profile"]
    assert (manifest["digest"], manifest["decisions"]["rows"]) == (
        new.digest,
        {REMOVED: 2, KEPT_REFUSALS: 1, KEPT_ANSWERS: 3},
    )
    index = ExemplarIndex.of_profile(again)
    assert index.ids[-2:] == ("removed-0", "removed-1")
    assert index.labels[-2:] == ("travel", "travel")
    card = merge_profile_card(None, again.summary(), repo_id="org/new")
    assert "2 removed, 4 kept" in card
    assert profile.digest in card
    text = json.dumps(again.summary())
    assert not any(row["answer"] in text or row["question"] in text for row in ROWS)
    stored = (tmp_path / "new" / "larf_profile.json").read_text()
    assert not any(row["answer"] in stored or row["question"] in stored for row in ROWS)


def test_versions_follow_each_other_and_no_decision_counts_twice(profile, folder, tmp_path):
    second = add_decisions(profile, folder, device="cpu").profile
    with pytest.raises(InputError, match="in the profile already"):
        add_decisions(second, folder, device="cpu")
    with pytest.raises(InputError, match="given twice"):
        add_decisions(profile, [folder, folder], device="cpu")
    more = [{"question": "Is Rome far from here, by foot?", "answer": "Weeks by foot."}, ROWS[0]]
    decide(scored(profile, more), {row["question"]: "remove" for row in more}).save(tmp_path / "more")
    third = add_decisions(second, tmp_path / "more", device="cpu")
    assert third.left_out == {"in the profile already": 1}
    assert third.profile.decisions["versions"] == [profile.digest, second.digest]
    assert third.profile.decisions["rows"][REMOVED] == 3
    assert len(third.profile.decisions["labels"]) == 3
    with pytest.raises(ProfileMismatchError, match="wanted .* or a version before it"):
        add_decisions(replace(second, signal="knn", decisions=None), folder, device="cpu")


def test_contradictions_and_repeated_rows_are_left_out_and_counted(profile, tmp_path):
    rows = [ROWS[0], ROWS[1], ROWS[2]]
    first, second = scored(profile, rows), scored(profile, [*rows, ROWS[3]])
    decide(first, {question(0): "remove", question(1): "remove", question(2): "unsure"}).save(tmp_path / "one")
    given = {question(0): "keep", question(1): "remove", question(3): "keep"}
    decide(second, given).save(tmp_path / "two")
    taught = add_decisions(profile, [tmp_path / "one", tmp_path / "two"], device="cpu")
    assert (taught.removed, taught.kept) == (1, 1)
    assert taught.left_out == {
        "unsure": 1,
        "pending": 1,
        "same text decided differently": 2,
        "same text as another row": 1,
    }
    decide(scored(profile, ROWS[:1]), {}).save(tmp_path / "none")
    with pytest.raises(InputError, match="no decided row to add .*1 pending"):
        add_decisions(profile, tmp_path / "none", device="cpu")


def test_decisions_through_a_near_identical_row_do_not_count(profile, tmp_path):
    decide(scored(profile, ROWS[:2]), {question(0): "remove", question(1): "keep"}, decided_through="x").save(
        tmp_path / "d"
    )
    with pytest.raises(InputError, match="2 near-identical"):
        add_decisions(profile, tmp_path / "d", device="cpu")


def planted(count, width=6, seed=0):
    """A profile whose references say nothing, and decided rows that differ along one direction."""
    rng = np.random.default_rng(seed)

    def states(n):
        made = {position: rng.normal(size=(n, 1, width)).astype("f4") for position in POSITIONS}
        return made | {"length": np.full((n, 1, 1), 9, np.float32)}

    sides = {"unsafe": states(20), "safe": states(20), "neutral": states(20)}
    base = fake_profile(np.zeros((60, width)))
    base = replace(base, states=sides, signal="larf", references={**base.references, "unsafe": 20, "safe": 20})
    rows, removed = states(count), np.arange(count) % 2 == 0
    rows["last"][removed, 0, 0] += 3
    names = np.where(removed, REMOVED, KEPT_ANSWERS)
    return base, DecidedRows(states=rows, sides=names, labels=tuple(map(str, range(count)))), removed


def test_the_figures_are_of_rows_that_the_new_version_had_not_seen():
    base, rows, removed = planted(60)
    figures = add_decided(base, rows, []).decisions["figures"]
    before = base.fit()(rows.states).mean(axis=1)
    assert figures["decided"]["before"] == pytest.approx(roc_auc_score(removed, before), abs=1e-3)
    assert figures["decided"]["after"] > 0.95 > figures["decided"]["before"]
    assert figures["decided"]["low"] > 0.1
    same, wide, _ = planted(60, width=200)
    shuffled = replace(wide, sides=np.random.default_rng(3).permutation(wide.sides))
    chance = add_decided(same, shuffled, []).decisions["figures"]["decided"]
    assert 0.3 < chance["after"] < 0.7  # seen rows would rank far above
    few = DecidedRows(
        states={p: v[:18] for p, v in rows.states.items()}, sides=rows.sides[:18], labels=rows.labels[:18]
    )
    assert add_decided(base, few, []).decisions["figures"]["decided"] is None


def test_many_decisions_do_not_outweigh_the_references():
    base, rows, _ = planted(200)
    new = add_decided(base, rows, [])
    assert new.decisions["rows"] == {REMOVED: 20, KEPT_ANSWERS: 20}
    chosen = new.states[REMOVED]["last"][:, 0]
    source = rows.states["last"][[int(label) for label in new.decisions["labels"]], 0]
    assert_array_equal(chosen, source)
    backwards = DecidedRows(
        states={p: v[::-1] for p, v in rows.states.items()}, sides=rows.sides[::-1], labels=rows.labels[::-1]
    )
    again = add_decided(base, backwards, [])
    assert set(again.decisions["labels"]) == set(new.decisions["labels"])
    with pytest.raises(ProfileError, match="top_k"):
        add_decided(replace(base, top_k=3), rows, [])


def test_the_command_writes_a_new_folder_and_says_what_changed(profile, folder, tmp_path):
    profile.save_pretrained(tmp_path / "old")

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, ["profile", *map(str, arguments), "--device", "cpu"])
        assert result.exit_code == code, result.output
        return result.output

    given = (tmp_path / "old", "--add-decisions", folder)
    told = run(*given, "-o", tmp_path / "new")
    assert "too few to tell" in told
    assert "not their texts" in told
    assert "Only 6 rows" in told
    assert "has a profile already" in run(*given, "-o", tmp_path / "old", code=2)
    assert "--layers, --signal cannot be given" in run(
        *given, "-o", tmp_path / "other", "--layers", "1", "--signal", "knn", code=2
    )
    assert "--model is for --add-decisions" in run("nothing", "--model", "x", "-o", tmp_path / "other", code=2)
    told = json.loads(run(*given, "-o", tmp_path / "json", "--json"))
    assert (told["removed"], told["kept"], told["before"]) == (2, 4, profile.digest)
    assert told["digest"] == SafetyProfile.from_pretrained(tmp_path / "json").digest
    assert told["decisions"]["figures"] == {"decided": None, "safe": None, "neutral": None}


def test_decisions_against_the_references_are_told():
    base, rows, _ = planted(60)
    base.states["unsafe"]["last"][:, 0, 0] += 3
    against = replace(rows, sides=np.where(rows.sides == REMOVED, KEPT_ANSWERS, REMOVED))
    figures = add_decided(base, against, []).decisions["figures"]
    assert figures["safe"]["before"] > 0.9 > figures["safe"]["after"]
    told = changes(figures)
    assert [("WORSE" in line, "better" in line) for line in told] == [(False, True), (True, False), (True, False)]
    assert "No change" in changes({name: dict.fromkeys(("before", "after", "low", "high"), 0.0) for name in figures})[0]
