"""Rows in every stored form: JSON and media columns, several files, earlier scores; file and map agree."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from datasets import Audio, Dataset, DatasetInfo, Features, Image, Json, List, Value

from larf_curate.cli import main
from larf_curate.data.sources import open_source
from larf_curate.data.tables import read_parquet
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.explanation import explain
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import Selection, select
from tests.fixtures.models import six_pairs

pytestmark = pytest.mark.usefixtures("own_caches")
TURNS = [{"role": "user", "content": "Where is the kettle?"}, {"role": "assistant", "content": "On the shelf."}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "Where is the kettle?"}]}, TURNS[1]]
JSON_COLUMNS = {
    "whole": Json(),
    "messages": List(Json()),
    "contents": List({"role": Value("string"), "content": Json()}),
}
KEPT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(scope="module")
def profile(tiny_llama):
    refs = six_pairs()
    return SafetyProfile.build(tiny_llama, refs, layers=(1, 3), signal="larf", dtype="float32", device="cpu")


@pytest.fixture
def scorer(profile):
    return LarfScorer(profile, device="cpu")


def scores_of_folder(dataset, scorer, folder):
    dataset.save_to_disk(folder / "saved")
    score_source(open_source(str(folder / "saved")), scorer, folder / "scored")
    return Scored.load(folder / "scored").rows["larf_score"][:]


@pytest.mark.parametrize("kind", JSON_COLUMNS)
def test_json_columns_are_scored_as_the_values_they_hold(tmp_path, scorer, kind):
    rows = Dataset.from_list(
        [{"messages": TURNS}, {"messages": PARTS}], features=Features({"messages": JSON_COLUMNS[kind]})
    )
    want = scorer.score([{"messages": TURNS}])[0].score
    assert scores_of_folder(rows, scorer, tmp_path) == pytest.approx([want, want])
    assert rows.map(scorer, batched=True)["larf_score"][:] == pytest.approx([want, want])
    assert rows.map(scorer)["larf_score"][:] == pytest.approx([want, want])


@pytest.mark.parametrize("kind", [Image, Audio])
@pytest.mark.parametrize("batched", [True, False])
def test_media_that_cannot_be_decoded_change_no_score(tmp_path, scorer, kind, batched):
    cell = {"bytes": b"broken", "path": "x"}
    table = pa.table(
        {
            "instruction": ["Where?", "When?"],
            "output": ["Here.", "Now."],
            "one": pa.array([cell] * 2, KEPT),
            "many": pa.array([[cell]] * 2, pa.list_(KEPT)),
        }
    )
    text = Value("string")
    features = Features({"instruction": text, "output": text, "one": kind(), "many": List(kind())})
    rows = Dataset(table, info=DatasetInfo(features=features))
    plain = rows.select_columns(["instruction", "output"])
    want = plain.map(scorer, batched=True)["larf_score"][:]
    mapped = rows.map(scorer, batched=batched)
    assert mapped["larf_score"][:] == pytest.approx(want, abs=1e-6)
    assert mapped.features["one"] == kind()
    assert mapped.with_format("arrow")[:]["one"].to_pylist() == [cell] * 2
    assert scores_of_folder(rows, scorer, tmp_path) == pytest.approx(want)


def test_columns_that_a_function_has_replaced_before_the_scorer_are_taken(scorer):
    rows = Dataset.from_list([{"instruction": "Where?", "output": "Here."}])

    def shouted(batch):
        batch["output"] = [text.upper() for text in batch["output"]]
        return scorer(batch)

    want = scorer.score([{"instruction": "Where?", "output": "HERE."}])[0].score
    assert rows.map(shouted, batched=True, new_fingerprint="shouted")["larf_score"][:] == [want]


@pytest.mark.parametrize("rule", [{"threshold": 1000.0}, {"top_ratio": 1.0}])
def test_selections_of_json_columns_with_an_empty_part_are_saved_and_loaded(tmp_path, rule):
    features = Features(
        {"messages": JSON_COLUMNS["contents"], "larf_score": Value("float32"), "larf_status": Value("string")}
    )
    rows = [{"messages": messages, "larf_score": 1.0, "larf_status": "ok"} for messages in (TURNS, PARTS)]
    selection = select(Dataset.from_list(rows, features=features), **rule)
    selection.save(tmp_path / "out")
    again = Selection.load(tmp_path / "out")
    assert sorted((len(again.kept), len(again.flagged))) == [0, 2]
    assert again.kept.features == again.flagged.features == selection.kept.features
    full = again.kept if len(again.kept) else again.flagged
    assert full["messages"][:] == [TURNS, PARTS]
    assert read_parquet(tmp_path / "out" / "kept").features["messages"] == features["messages"]


def test_columns_of_an_earlier_scoring_are_reported_and_states_that_would_mislead_removed(
    tmp_path, profile, scorer, caplog
):
    rows = [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with_states = LarfScorer(profile, keep_states=True, device="cpu")
    score_source(open_source(str(tmp_path / "rows.jsonl")), with_states, tmp_path / "first")
    assert "earlier curation" not in caplog.text
    ids = Scored.load(tmp_path / "first").rows.add_column("larf_row_id", ["a", "b", "c"])
    ids.to_parquet(tmp_path / "again.parquet")
    score_source(open_source(str(tmp_path / "again.parquet")), scorer, tmp_path / "second")
    assert "larf_score, larf_layer_scores, larf_signals, larf_status, larf_turn replaced" in caplog.text
    assert "larf_state, larf_row_id removed" in caplog.text
    names = pq.read_schema(tmp_path / "second" / "again.parquet").names
    assert not {"larf_state", "larf_row_id"} & set(names)
    caplog.clear()
    ids.map(scorer, batched=True, batch_size=1)
    assert caplog.text.count("larf_state, larf_row_id not updated (remove it)") == 1


def test_the_command_scores_several_files_and_globs_in_their_order(tmp_path, profile):
    profile.save_pretrained(tmp_path / "profile")
    rows = [{"instruction": f"Question {i}?", "output": f"Answer {i}."} for i in range(4)]
    for index, name in enumerate(("b.jsonl", "a.jsonl", "c-0.ndjson", "c-1.ndjson")):
        (tmp_path / name).write_text(json.dumps(rows[index]) + "\n")
    names = [str(tmp_path / name) for name in ("b.jsonl", "a.jsonl", "c-*.ndjson")]
    options = ["--profile", str(tmp_path / "profile"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(main, ["score", *names, *options])
    assert result.exit_code == 0, result.output
    scored = Scored.load(tmp_path / "out")
    assert scored.rows["instruction"][:] == [row["instruction"] for row in rows]
    want = [item.score for item in LarfScorer(profile, device="cpu").score(rows)]
    np.testing.assert_allclose(scored.rows["larf_score"][:], want, atol=1e-5)
    assert CliRunner().invoke(main, ["score", *options]).exit_code == 2


FORMS = {
    "messages": {"messages": TURNS},
    "ShareGPT with a system column": {
        "conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "There."}],
        "system": "Be kind.",
    },
    "two turns, one not learned": {"messages": [*TURNS, TURNS[0], {**TURNS[1], "weight": 0}]},
    "Alpaca with input and history": {
        "instruction": "Add.",
        "input": "1 + 1",
        "output": "2",
        "history": [["Hello", "Good day."]],
    },
    "a prompt of several turns": {"prompt": [*TURNS, TURNS[0]], "completion": [TURNS[1]]},
    "text": {"text": "An ordinary paragraph."},
    "preference data": {"prompt": "Where?", "chosen": "There.", "rejected": "Here."},
}


@pytest.mark.parametrize("name", FORMS)
def test_folder_map_and_explanation_give_a_row_the_same_score(tmp_path, profile, scorer, name):
    rows = Dataset.from_list([FORMS[name]] * 2)
    [explained, _] = explain(profile, rows.to_list(), device="cpu")
    want = pytest.approx([explained.score] * 2, abs=1e-5)
    assert scores_of_folder(rows, scorer, tmp_path) == want
    assert rows.map(scorer, batched=True)["larf_score"][:] == want
    assert rows.map(scorer)["larf_score"][:] == want
    assert [row.score for row in scorer.score(rows.to_list())] == want
