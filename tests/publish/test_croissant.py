"""``croissant.json``, read by mlcroissant: valid, complete, and it loads the published rows."""

import json
from pathlib import Path

import mlcroissant
import pytest
from datasets import Audio, ClassLabel, Features, Image, List, Value

from larf_curate.publish import publish
from larf_curate.publish.croissant import _field
from tests.fixtures.decisions_folder import kept_table, write_decisions, write_selection

RAI = ("data_collection", "data_limitations", "data_use_cases", "personal_sensitive_information", "data_biases")


def read(path: Path) -> mlcroissant.Dataset:
    return mlcroissant.Dataset(path / "croissant.json")


@pytest.mark.filterwarnings("ignore")  # of rdflib and its kin
@pytest.mark.parametrize("make", [write_decisions, write_selection])
def test_is_valid_and_describes_the_files_and_how_rows_were_chosen(tmp_path, make):
    done = publish(make(tmp_path / "rows"), tmp_path / "curated")
    dataset = read(tmp_path / "curated")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert {text.split("is recommended")[0].split('"')[-2] for text in issues.warnings} <= {
        "https://schema.org/license",
        "https://schema.org/datePublished",
        "https://schema.org/version",
    }, issues.warnings
    digests = {file.content_url: file.sha256 for file in dataset.metadata.file_objects}
    assert digests == {file.path: file.sha256 for file in done.files if file.path.endswith(".parquet")}
    for name in RAI:
        assert getattr(dataset.metadata, name), name
    assert "https://arxiv.org/abs/2507.18631" in dataset.metadata.cite_as
    assert "https://arxiv.org/abs/2505.16737" in dataset.metadata.cite_as


@pytest.mark.filterwarnings("ignore")
def test_the_rows_load_by_it(tmp_path):
    folder = write_decisions(tmp_path / "rows")
    publish(folder, tmp_path / "curated")
    dataset = read(tmp_path / "curated")
    assert [record_set.uuid for record_set in dataset.metadata.record_sets] == ["default", "removed"]
    rows = [row for row in dataset.records("removed")]
    assert [row["removed/larf_row_id"].decode() for row in rows] == [f"{i:016x}" for i in (0, 1, 4)]
    rows = [row for row in dataset.records("default")]
    assert [row["default/label"] for row in rows] == kept_table(folder)["label"].to_pylist()
    said = [[turn["default/messages/content"].decode() for turn in row["default/messages"]] for row in rows]
    assert said == [[turn["content"] for turn in row["messages"]] for row in kept_table(folder).to_pylist()]


def test_licence_and_languages_are_those_of_the_card_and_else_missing(tmp_path):
    target = tmp_path / "curated"
    folder = write_decisions(tmp_path / "rows")
    publish(folder, target)
    first = json.loads((target / "croissant.json").read_text("ascii"))
    assert not {"license", "inLanguage"} & first.keys()
    card = (target / "README.md").read_text()
    (target / "README.md").write_text(card.replace("---\n", "---\nlicense: mit\nlanguage: [de, en]\n", 1))
    publish(folder, target)
    second = json.loads((target / "croissant.json").read_text("ascii"))
    assert second["license"] == ["https://huggingface.co/docs/hub/repositories-licenses#mit"]
    assert second["inLanguage"] == ["de", "en"]
    assert publish(folder, target).changed is False


def test_columns_of_any_type_have_a_field():
    features = Features(
        {
            "messages": List({"role": Value("string"), "parts": List(Value("float32"), length=4)}),
            "label": ClassLabel(names=["a", "b"]),
            "picture": Image(),
            "sound": Audio(),
            "when": Value("timestamp[s]"),
            "count": Value("uint16"),
        }
    )
    fields = {name: _field("default", name, feature) for name, feature in features.items()}
    assert (fields["messages"]["isArray"], fields["messages"]["arrayShape"]) == (True, "-1")
    role, parts = fields["messages"]["subField"]
    assert (role["@id"], role["dataType"]) == ("default/messages/role", "sc:Text")
    assert (parts["arrayShape"], parts["dataType"]) == ("4", "cr:Float32")
    kinds = ["cr:Int64", "sc:ImageObject", "sc:AudioObject", "sc:DateTime", "cr:UInt16"]
    assert [field["dataType"] for field in list(fields.values())[1:]] == kinds


@pytest.mark.parametrize("theirs", [b"{}", b"not JSON"])
def test_a_file_of_others_stays_and_that_is_said(tmp_path, theirs):
    target = tmp_path / "curated"
    target.mkdir()
    (target / "croissant.json").write_bytes(theirs)
    done = publish(write_decisions(tmp_path / "rows"), target)
    assert (target / "croissant.json").read_bytes() == theirs
    assert "croissant.json" in done.beside
