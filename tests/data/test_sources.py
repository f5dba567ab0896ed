"""Datasets opened by name: every kind of file, folder and Hub id, and one clear line for what cannot be read."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from larf_curate.data import sources
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError

ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}, \u00e9\u4f60."} for i in range(5)]
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def here(tmp_path):
    """A folder of a test's own, beside the caches."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def jsonl(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write(path: Path, rows=ROWS) -> Path:
    """Write rows in the format of the path's ending, without this package or `datasets`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        lines = ["question,answer", *(f'"{row["question"]}","{row["answer"]}"' for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix.lower() == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        jsonl(path, rows)
    return path


def rows_of(source):
    return [row for piece in source.pieces for row in piece.rows]


def refusal(name, **options) -> str:
    with pytest.raises(InputError) as error:
        open_source(str(name), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "A.JSONL", "a [1] *?.jsonl", "ä 你.jsonl"])
def test_a_file_of_any_format_and_name_gives_its_rows(here, name, capfd):
    path = write(here / name)
    source = open_source(str(path))
    assert rows_of(source) == ROWS
    assert [piece.name for piece in source.pieces] == [path.stem]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.description == {"dataset": name, "files": 1, "sha256": digest, "limit": None}
    assert capfd.readouterr() == ("", "")


def test_a_glob_and_a_folder_give_one_piece_a_file_in_the_order_of_names(here):
    for index in (2, 0, 1):
        write(here / "data" / f"part-{index}.jsonl", [ROWS[index]])
    (here / "data" / "README.md").write_text("not data")
    (here / "data" / ".hidden.jsonl").write_text("not data either")
    for name in ("data", "data/part-*.jsonl", "**/part-*.jsonl"):
        source = open_source(str(here / name))
        assert [piece.name for piece in source.pieces] == ["part-0", "part-1", "part-2"]
        assert rows_of(source) == ROWS[:3]


@pytest.mark.parametrize("name", ["manifest.json", "selection.json", "decisions.json", "plan.json"])
def test_what_describes_a_folder_of_ours_is_no_data(here, name):
    write(here / "scored/part-0.parquet")
    (here / "scored" / name).write_text('{"kind": "scored", "rows": 3}')
    assert rows_of(open_source(str(here / "scored"))) == ROWS


def test_files_of_one_name_in_several_folders_get_names_from_their_paths(here):
    for index, name in enumerate(("a/x.jsonl", "a/x.csv", "b/c/x.jsonl", "b/y.jsonl")):
        write(here / "data" / name, [ROWS[index]])
    source = open_source(str(here / "data"))
    assert [piece.name for piece in source.pieces] == ["a--x.csv", "a--x.jsonl", "b--c--x.jsonl", "b--y.jsonl"]
    assert rows_of(source) == [ROWS[1], ROWS[0], ROWS[2], ROWS[3]]


def test_names_that_would_still_be_one_are_refused(here):
    for name in ("a/b--x.jsonl", "a--b/x.jsonl", "c/x.jsonl"):
        write(here / name)
    assert "rename" in refusal(here)


def test_a_large_file_is_cut_and_a_limit_counts_across_files(here, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", 2)
    write(here / "a.jsonl")
    write(here / "b.jsonl", ROWS[::-1])
    whole = open_source(str(here))
    assert [(piece.name, len(piece.rows)) for piece in whole.pieces] == [
        (f"{name}-0000{i}-of-00003", rows) for name in "ab" for i, rows in enumerate((2, 2, 1))
    ]
    assert rows_of(whole) == ROWS + ROWS[::-1]
    assert whole.rows == 10
    part = open_source(str(here), limit=6)
    assert rows_of(part) == [*ROWS, ROWS[4]]
    assert part.description == whole.description | {"limit": 6}
    assert [piece.name for piece in open_source(str(here), limit=2).pieces] == ["a"]


def test_the_description_follows_the_content_and_not_the_place(here):
    for folder in ("one", "two", "other"):
        for name in "ab":
            write(here / folder / "data" / f"{name}.jsonl", ROWS if (folder, name) != ("other", "b") else ROWS[1:])
    one, two, other = (open_source(str(here / folder / "data")).description for folder in ("one", "two", "other"))
    assert one == two != other
    assert str(here) not in json.dumps(one)


def test_what_save_to_disk_wrote_is_read_with_its_features(here):
    features = Features(
        {"question": Value("string"), "answer": Value("large_string"), "kind": ClassLabel(names=["good", "bad"])}
    )
    dataset = Dataset.from_list([row | {"kind": i % 2} for i, row in enumerate(ROWS)], features=features)
    dataset.save_to_disk(here / "saved")
    source = open_source(str(here / "saved"))
    assert rows_of(source) == dataset.to_list()
    assert source.pieces[0].rows.features == features
    assert [piece.name for piece in source.pieces] == ["train"]
    assert source.description["dataset"] == "saved"
    dataset.select([4, 3, 2, 1, 0]).save_to_disk(here / "changed" / "saved")
    assert open_source(str(here / "changed" / "saved")).description != source.description


def test_a_saved_dataset_of_several_splits_needs_one_of_them(here):
    splits = DatasetDict({"train": Dataset.from_list(ROWS[:3]), "test": Dataset.from_list(ROWS[3:])})
    splits.save_to_disk(here / "saved")
    assert "train, test" in refusal(here / "saved")
    assert "train, test" in refusal(here / "saved", split="dev")
    source = open_source(str(here / "saved"), split="test")
    assert rows_of(source) == ROWS[3:]
    assert (source.pieces[0].name, source.description["split"]) == ("test", "test")
    DatasetDict({"dev": Dataset.from_list(ROWS)}).save_to_disk(here / "single")
    assert open_source(str(here / "single")).description["split"] == "dev"
    assert "dev" in refusal(here / "single", split="train")


def test_a_damaged_saved_dataset_is_one_clear_line(here):
    Dataset.from_list(ROWS).save_to_disk(here / "saved")
    next((here / "saved").glob("*.arrow")).write_bytes(b"no arrow")
    assert "save it again" in refusal(here / "saved")
    (here / "saved" / "state.json").write_text("{")
    assert "save it again" in refusal(here / "saved")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"not json\n", "as json"),
        ("a.jsonl", b'{"a": 1}\n' * 3 + b'{"a": \n', "row 3"),
        ("a.jsonl", b"\x80\xff\n", "as json"),
        ("a.jsonl", b'{"question": "\\ud800"}\n', "surrogate"),
        ("a.jsonl", b'{"a": "caf\xe9"}\n', "UTF8"),
        ("a.csv", b"a,b\n1,2\n1,2,3,4\n", "line 3"),
        ("a.csv", b"a,b\n1,2,3,4\n5\n", "loss of data"),
        ("a.csv", b"a,b\n\xe9,2\n", "utf-8"),
        ("a.parquet", b"PAR1 and no more", "as parquet"),
        ("a.txt", b"text", ".jsonl, .json, .csv, .parquet, got a.txt"),
        *((f"a.{kind}", b"", "no rows") for kind in ("jsonl", "json", "csv", "parquet")),
        ("a.jsonl", b"\n\n", "no rows"),
        ("a.json", b"[]", "no rows"),
        ("a.csv", b"a,b\n", "no rows"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(here, name, content, said, capfd):
    (here / name).write_bytes(content)
    message = refusal(here / name)
    assert said in message
    assert name in message
    assert capfd.readouterr() == ("", "")


def test_commas_at_the_ends_of_csv_lines_move_no_column(here):
    (here / "a.csv").write_text("question,answer\nWhat?,That.,\nWho?,She.,\n", encoding="utf-8")
    rows = open_source(str(here / "a.csv")).pieces[0].rows
    assert rows.to_dict() == {"question": ["What?", "Who?"], "answer": ["That.", "She."]}


def test_a_saved_dataset_without_columns_is_one_clear_line(here):
    Dataset.from_dict({}).save_to_disk(here / "saved")
    assert "save it again" in refusal(here / "saved")


def test_a_truncated_parquet_file_names_itself(here):
    write(here / "a.parquet")
    path = write(here / "b.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    assert "b.parquet" in refusal(here)


def test_empty_files_among_others_are_left_out(here):
    write(here / "b.jsonl")
    for name in ("a.jsonl", "c.jsonl"):
        (here / name).write_bytes(b"")
    pq.write_table(pa.Table.from_pylist(ROWS).slice(0, 0), here / "d.parquet")
    source = open_source(str(here))
    assert ([piece.name for piece in source.pieces], rows_of(source)) == (["b"], ROWS)


def test_columns_that_differ_between_files_are_refused_by_name(here):
    write(here / "a.jsonl")
    write(here / "b.jsonl", [{"question": "Q", "reply": "A"}])
    message = refusal(here)
    assert "b has columns ['question', 'reply']" in message
    assert "a has ['answer', 'question']" in message


def test_types_are_the_same_in_every_piece_and_what_cannot_agree_is_refused(here):
    calls = [None, [{"name": "f"}]]
    rows = [{"messages": [{"role": "user", "calls": c}], "note": n} for c, n in zip(calls, (None, "x"), strict=True)]
    for name, row in zip("ab", rows, strict=True):
        write(here / "fit" / f"{name}.jsonl", [row])
    source = open_source(str(here / "fit"))
    assert source.pieces[0].rows.features == source.pieces[1].rows.features
    assert rows_of(source) == rows
    for name, value in (("a", 1), ("b", "one")):
        write(here / "unfit" / f"{name}.jsonl", [{"value": value}])
    assert "value" in refusal(here / "unfit")


def test_what_is_not_there_says_what_may_be_named(here):
    for name in ("nothing.jsonl", "nothing-*", "nothing"):
        assert "no files match" in refusal(here / name)
    (here / "empty").mkdir()
    assert "save_to_disk did not write it" in refusal(here / "empty")


@pytest.mark.parametrize("option", ["split", "config", "revision"])
def test_options_of_the_hub_do_not_go_with_files(here, option):
    assert f"--{option}" in refusal(write(here / "a.jsonl"), **{option: "test"})


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_a_hub_dataset_is_pinned_to_its_commit(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.create("org/rows")
    hub.commit("org/rows", {"train.jsonl": lines(ROWS)})
    first = hub.history("org/rows")[0].oid
    hub.commit("org/rows", {"train.jsonl": lines(ROWS[:2])})
    second = hub.history("org/rows")[0].oid
    new, old = open_source("org/rows"), open_source("org/rows", revision=first)
    assert (rows_of(new), rows_of(old)) == (ROWS[:2], ROWS)
    assert new.description == {
        "dataset": "org/rows",
        "config": None,
        "split": "train",
        "revision": second,
        "limit": None,
    }
    assert old.description["revision"] == first
    assert "no revision 'nope'" in refusal("org/rows", revision="nope")


def test_splits_and_configurations_of_a_hub_dataset_must_be_named(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.create("org/rows")
    hub.commit("org/rows", {"train.jsonl": lines(ROWS), "test.jsonl": lines(ROWS[:1])})
    assert "train, test" in refusal("org/rows")
    assert "train, test" in refusal("org/rows", split="dev")
    assert rows_of(open_source("org/rows", split="test")) == ROWS[:1]
    assert "default" in refusal("org/rows", split="test", config="nope")
    card = "---\nconfigs:\n" + "".join(f"- config_name: {n}\n  data_files: {n}.jsonl\n" for n in "ab") + "---\n"
    hub.create("org/two")
    hub.commit("org/two", {"README.md": card, "a.jsonl": lines(ROWS), "b.jsonl": lines(ROWS[1:])})
    assert "a, b" in refusal("org/two")
    source = open_source("org/two", config="b")
    assert (rows_of(source), source.description["config"]) == (ROWS[1:], "b")


def test_what_the_hub_refuses_is_one_line_with_the_remedy(hub, monkeypatch):
    hub.create("org/private", private=True)
    hub.commit("org/private", {"train.jsonl": lines(ROWS)})
    assert "hf auth login" in refusal("org/private")
    assert "hf auth login" in refusal("org/absent")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrongwrongwrongwrong00")
    message = refusal("org/private")
    assert "HF_TOKEN" in message or "hf auth login" in message
    assert "hf_wrong" not in message
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.create("org/nothing")
    assert "org/nothing" in refusal("org/nothing")
    hub.create("org/broken")
    hub.commit("org/broken", {"train.jsonl": b"not json\n"})
    assert "org/broken" in refusal("org/broken")
    hub.create("org/script")
    hub.commit("org/script", {"script.py": b"raise SystemExit(7)\n"})
    assert "org/script" in refusal("org/script")
    assert "a/b/c" in refusal("a/b/c")


def test_without_a_network_a_missing_name_is_one_line_with_the_remedy(hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hub cannot be reached" in refusal("org/rows")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "the Hub cannot be reached" in refusal("org/rows")
