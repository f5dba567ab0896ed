"""Rows that are not published as data: the configuration ``removed``, in which no text is unless asked for."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, List, Value, get_dataset_config_names, load_dataset

from larf_curate.errors import PublishError
from larf_curate.publish import publish
from larf_curate.publish.removed import FEATURES
from tests.fixtures.decisions_folder import DECIDED_SCORES, reseal, write_decisions, write_selection

MARKER = "a text of a removed row"
REPO = "org/curated"


def marked(tmp_path: Path, **changes) -> Path:
    """Decisions in which each text of a removed or withheld row, and each that was edited away, is the marker."""
    folder = write_decisions(tmp_path / "decisions")
    neighbors = List({"id": Value("string"), "label": Value("string"), "cosine": Value("float32")})
    for part in ("kept", "removed", "withheld"):
        path = next((folder / part).glob("*.parquet"))
        rows = Dataset.from_parquet(str(path)).to_list()
        nearest = [{"id": "reference-3", "label": "weapons", "cosine": 0.5}, {"id": "x", "label": "y", "cosine": 0.25}]
        for row in rows:
            row["larf_original_answer"] = MARKER
            row["larf_neighbors"] = nearest if row["label"] != 1 else []
            if part != "kept":
                row["messages"] = [{"role": turn["role"], "content": MARKER} for turn in row["messages"]]
                row["larf_decision"] = {"removed": "remove", "withheld": "pending"}[part]
        features = Dataset.from_parquet(str(path)).features.copy()
        features |= {"larf_original_answer": Value("string"), "larf_neighbors": neighbors}
        features |= {"larf_decision": Value("string")}
        Dataset.from_list(rows, features=features).to_parquet(path)
    decisions = folder / "decisions.parquet"
    table = Dataset.from_parquet(str(decisions))
    written = table.map(lambda _: {"rationale": MARKER, "corrected_answer": MARKER}, features=table.features)
    written.to_parquet(decisions)
    reseal(folder, "decisions.json", **changes)
    return folder


def everything(folder: Path) -> dict[str, str]:
    """All files of a folder as text, Parquet files decompressed."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path): repr(pq.read_table(path).to_pylist()) + repr(pq.read_schema(path).metadata)
        if path.suffix == ".parquet"
        else path.read_bytes().decode("utf-8", "replace")
        for path in files
    }


def test_every_row_that_is_not_published_is_listed_with_its_score_and_reason(tmp_path):
    publish(marked(tmp_path), tmp_path / "curated")
    assert get_dataset_config_names(str(tmp_path / "curated")) == ["default", "removed"]
    rows = load_dataset(str(tmp_path / "curated"), "removed", split="train")
    assert rows.features == FEATURES
    assert rows["larf_row_id"][:] == [f"{i:016x}" for i in (0, 1, 4)]
    assert rows["larf_score"][:] == pytest.approx([DECIDED_SCORES[0], DECIDED_SCORES[1], None])
    assert rows["larf_reason"][:] == ["top 5 %", "top 5 %", "pending"]
    assert rows["larf_decision"][:] == ["remove", "remove", "pending"]
    nearest = {name: rows[name][:] for name in FEATURES if "nearest" in name}
    assert nearest == {
        "larf_nearest_id": ["reference-3", None, "reference-3"],
        "larf_nearest_label": ["weapons", None, "weapons"],
        "larf_nearest_cosine": [0.5, None, 0.5],
    }
    default = load_dataset(str(tmp_path / "curated"), split="train")
    assert len(default) + len(rows) == 12


@pytest.mark.parametrize("columns", ["source", "scores", "all"])
def test_no_text_of_a_removed_row_leaves_unless_asked_for(tmp_path, columns, capfd, caplog):
    done = publish(marked(tmp_path), tmp_path / "curated", columns=columns)
    assert not [name for name, text in everything(tmp_path / "curated").items() if MARKER in text]
    assert MARKER not in repr(done) + caplog.text + "".join(capfd.readouterr())
    assert "without their texts" in done.card


def test_the_texts_are_published_when_asked_for(tmp_path):
    folder = marked(tmp_path)
    done = publish(folder, tmp_path / "curated", include_removed_text=True)
    rows = load_dataset(str(tmp_path / "curated"), "removed", split="train")
    assert rows.column_names == ["messages", "label", *FEATURES]
    assert rows["label"][:] == [0, 1, 4]
    assert {turn["content"] for row in rows for turn in row["messages"]} == {MARKER}
    assert "and with their texts" in done.card
    assert "the texts of 3 rows that are not published as data are published too" in done.notes
    publish(folder, tmp_path / "curated")  # and they go again
    assert not [name for name, text in everything(tmp_path / "curated").items() if MARKER in text]


def test_flagged_rows_that_nobody_reviewed_are_listed_as_such(tmp_path):
    publish(write_selection(tmp_path / "rows"), tmp_path / "curated")
    rows = load_dataset(str(tmp_path / "curated"), "removed", split="train")
    assert rows["larf_decision"][:] == ["not reviewed"] * 3
    assert rows["larf_row_id"][:] == [f"{i:016x}" for i in (9, 10, 11)]


def test_the_configuration_goes_when_all_rows_are_published(tmp_path):
    publish(write_selection(tmp_path / "some"), tmp_path / "curated")
    folder = write_selection(tmp_path / "all", flagged=0)
    done = publish(folder, tmp_path / "curated")
    assert done.deleted == ("removed/train-00000-of-00001.parquet",)
    assert get_dataset_config_names(str(tmp_path / "curated")) == ["default"]
    assert len(load_dataset(str(tmp_path / "curated"), split="train")) == 12


THEIRS = "---\nconfigs:\n- config_name: removed\n  data_files: theirs/*.csv\n---\n"


def test_a_configuration_removed_of_others_is_refused_and_replaced_only_when_asked(tmp_path):
    target = tmp_path / "curated"
    (target / "theirs").mkdir(parents=True)
    (target / "theirs/a.csv").write_text("a\n1\n")
    (target / "README.md").write_text(THEIRS)
    folder = write_decisions(tmp_path / "decisions")
    with pytest.raises(PublishError, match="has a configuration removed of other files"):
        publish(folder, target)
    assert (target / "README.md").read_text() == THEIRS
    done = publish(folder, target, replace=True)
    assert done.replaced == ("theirs/a.csv",)
    assert len(load_dataset(str(target), "removed", split="train")) == 3


def test_a_provenance_of_others_is_refused(tmp_path):
    target = tmp_path / "curated"
    target.mkdir()
    (target / "provenance.json").write_text(json.dumps({"kind": "web"}))
    with pytest.raises(PublishError, match="provenance.json"):
        publish(write_decisions(tmp_path / "decisions"), target)
    assert json.loads((target / "provenance.json").read_text()) == {"kind": "web"}
