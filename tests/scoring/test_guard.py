"""The column ``larf_guard``: every turn is judged, the highest counts, and what is not judged is not 0."""

import json
import pickle

import pytest
from click.testing import CliRunner
from datasets import Dataset

from larf_curate.cli import main
from larf_curate.diagnosis import diagnose
from larf_curate.diagnosis.guard import compare_guard
from larf_curate.errors import InputError
from larf_curate.models.guards import Verdict
from larf_curate.profile import SafetyProfile
from larf_curate.report import write_report
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.guard import GuardScorer
from larf_curate.training.arms import Arm, choose, signal_values
from tests.fixtures.models import PROFILE, six_pairs
from tests.fixtures.tiny import byte_tokenizer, save
from tests.models.test_guards import classifier

pytestmark = pytest.mark.usefixtures("own_caches")


def judged(monkeypatch, rows, verdict_of):
    """The column of rows whose last messages get verdicts by their text; and the chats that were asked."""
    asked = []

    def load(model, *, device):
        return lambda chats: asked.extend(chats) or [verdict_of(chat[-1]["content"]) for chat in chats]

    monkeypatch.setattr("larf_curate.scoring.guard.load_guard", load)
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    return GuardScorer("guard")(batch)["larf_guard"], asked


def test_each_turn_is_judged_with_what_precedes_it_and_the_highest_counts(monkeypatch):
    turns = [("system", "S"), ("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2")]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]}]
    values = {"q1": 0.1, "a1": 0.9, "q2": 0.3, "a2": 0.2}
    column, asked = judged(monkeypatch, rows, lambda text: Verdict("ok", values[text]))
    assert column == [{"request": 0.3, "answer": 0.9, "status": "ok"}]
    assert [[each["content"] for each in chat] for chat in asked] == [
        ["q1"],
        ["q1", "a1"],
        ["q1", "a1", "q2"],
        ["q1", "a1", "q2", "a2"],
    ]


def test_what_has_no_probability_is_null_with_its_reason(monkeypatch):
    rows = [
        {"question": q, "answer": a} for q, a in [("q", "odd"), ("long", "a"), ("q", None), ("q", "cut"), ("", "a")]
    ]
    verdicts = {"odd": Verdict("nonsense"), "long": Verdict("too_long"), "cut": Verdict("truncated", 0.25)}
    column, _ = judged(monkeypatch, rows, lambda text: verdicts.get(text, Verdict("ok", 0.5)))
    assert column == [
        {"request": 0.5, "answer": None, "status": "nonsense"},
        {"request": None, "answer": 0.5, "status": "too_long"},
        {"request": None, "answer": None, "status": "empty"},
        {"request": 0.5, "answer": 0.25, "status": "truncated"},
        {"request": None, "answer": 0.5, "status": "ok"},
    ]


def test_a_pickled_guard_is_only_its_settings():
    copy = pickle.loads(pickle.dumps(GuardScorer("guard", columns={"user": "q"}, device="cpu")))
    assert (copy.model, copy.columns, copy.device) == ("guard", {"user": "q"}, "cpu")


@pytest.fixture
def scored(tiny_llama, tmp_path):
    """A folder that the command wrote with a tiny classifier as guard, and its profile."""
    refs = six_pairs()
    profile = SafetyProfile.build(tiny_llama, refs, layers=(1, 3), **PROFILE)
    profile.save_pretrained(tmp_path / "profile")
    save(classifier(["safe", "unsafe"]), byte_tokenizer(), tmp_path / "guard")
    rows = [{"question": f"Question {i}", "answer": None if i == 3 else f"Sure, {i * 'so '}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = ["score", "rows.jsonl", "--profile", "profile", "-o", "out", "--guard", "guard"]
    paths = [str(tmp_path / name) if (tmp_path / name).exists() or name == "out" else name for name in names]
    result = CliRunner().invoke(main, [*paths, "--device", "cpu", "--json"])
    assert result.exit_code == 0, result.output
    return tmp_path, json.loads(result.stdout), paths


def test_the_command_writes_the_column_and_counts_it(scored):
    folder, manifest, paths = scored
    assert manifest["guard"]["status"] == {"empty": 1, "ok": 11}
    rows = Scored.load(folder / "out").rows
    want = GuardScorer(str(folder / "guard"), device="cpu")(rows.select_columns(["question", "answer"])[:])
    assert rows["larf_guard"][:] == Dataset.from_dict(want, features=GuardScorer("").features())["larf_guard"][:]
    assert all(0 < cell["answer"] < 1 for i, cell in enumerate(rows["larf_guard"]) if i != 3)
    resumed = CliRunner().invoke(main, [*paths[:6], "--device", "cpu", "--resume"])
    assert "was started with guard " in resumed.output


def test_diagnosis_and_report_compare_both(scored):
    folder, _, _ = scored
    profile = SafetyProfile.from_pretrained(folder / "profile")
    diagnosis = diagnose(profile, folder / "out")
    assert diagnosis.scored.guard == compare_guard(Scored.load(folder / "out").rows)
    assert diagnosis.scored.guard.unjudged == 1
    assert "by the guard alone" in str(diagnosis)
    assert any("no probability for 1 of 12 rows" in warning for warning in diagnosis.warnings)
    for options in ({}, {"profile": profile}):
        page = write_report(folder / "out", folder / "page.html", **options).read_text()
        assert page.count("by the guard alone") == 1


def test_rows_are_counted_by_who_flags_them():
    unsafe = [0.9, 0.5, 0.4, None, 0.8, 0.1]
    rows = {
        "larf_guard": [{"request": 0.0, "answer": value, "status": "ok"} for value in unsafe],
        "larf_score": [3.0, 0.0, 2.0, 9.0, None, 1.0],
    }
    found = compare_guard(Dataset.from_dict(rows))
    assert (found.both, found.guard, found.score, found.neither, found.unjudged) == (1, 1, 1, 1, 1)
    found = compare_guard(Dataset.from_dict(rows | {"larf_flagged": [True, True, False, True, True, False]}))
    assert (found.both, found.guard, found.score, found.neither, found.by_selection) == (2, 0, 0, 2, True)
    assert compare_guard(Dataset.from_dict({"larf_score": [1.0]})) is None


def test_an_arm_removes_the_rows_that_the_guard_ranks_highest():
    cells = [{"request": 1.0 - value, "answer": value, "status": "ok"} for value in (0.1, 0.9, 0.3, 0.2)]
    rows = Dataset.from_dict({"larf_guard": [*cells, {"request": None, "answer": None, "status": "nonsense"}]})
    values = signal_values(rows, "larf_guard")
    kept = choose(Arm.parse("kept:larf_guard"), values, [5] * 5, count=1, removed=0.4)
    assert kept.tolist() == [0, 2, 3]  # the unjudged row is removed first, like one without a score
    assert signal_values(rows, "larf_guard.request")[:4] == pytest.approx([0.9, 0.1, 0.7, 0.8])
    with pytest.raises(InputError, match="no signal 'larf_guard.other'"):
        signal_values(rows, "larf_guard.other")
