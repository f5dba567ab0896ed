"""Datasets opened by name: every kind of file, folder and Hub id, and one clear line for what cannot be read."""

import bz2
import gzip
import hashlib
import json
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_dataset

from larf_curate.data import formats, screening, sources
from larf_curate.data.sources import open_source
from larf_curate.data.tables import from_undecoded
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
    elif path.suffix in (".csv", ".tsv"):
        separator = "," if path.suffix == ".csv" else "\t"
        lines = [f"question{separator}answer", *(f'"{r["question"]}"{separator}"{r["answer"]}"' for r in rows)]
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


NAMES = [
    "a::b.jsonl",
    "file:a#?x=%41.csv",
    "a.jsonl",
    "a.ndjson",
    "a.json",
    "a.csv",
    "a.tsv",
    "a.parquet",
    "A.JSONL",
    "a [1] *?.jsonl",
    "ä 你.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", ["manifest.json", "selection.json", "decisions.json"])
def test_what_describes_a_folder_of_ours_is_no_data(here, name):
    write(here / "scored/part-0.parquet")
    (here / "scored" / name).write_text('{"rows": 3}')
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
        ("a.txt", b"text", "with .gz or .zst), got a.txt"),
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


def test_small_files_share_pieces_if_there_are_many_and_rows_keep_their_order(here, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", 5)
    rows = [{"question": f"What is {i}?", "answer": f"{i}."} for i in range(30)]
    sizes = [1, 2, 2, 1, 12, 4, 1, 7]
    for index, size in enumerate(sizes):
        start = sum(sizes[:index])
        jsonl(here / f"{index}.jsonl", rows[start : start + size])
    alone = open_source(str(here))
    assert [piece.name.partition("-")[0] for piece in alone.pieces] == [*"0123", *"444", "5", "6", "7", "7"]
    monkeypatch.setattr(sources, "MOST_SINGLE_FILES", 7)
    joined = open_source(str(here))
    assert [piece.name for piece in joined.pieces] == [
        *("0+2", "3", "4-00000-of-00003", "4-00001-of-00003", "4-00002-of-00003"),
        *("5+1", "7-00000-of-00002", "7-00001-of-00002"),
    ]
    assert rows_of(joined) == rows_of(alone) == rows
    assert joined.description == alone.description
    assert [piece.first for piece in joined.pieces] == [0, 5, 6, 10, 14, 18, 23, 27]
    assert rows_of(open_source(str(here), limit=4)) == rows[:4]


def test_more_shards_than_a_manifest_can_list_are_refused(here, monkeypatch):
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", 1)
    monkeypatch.setattr(sources, "MOST_PIECES", 4)
    with pytest.raises(InputError, match=r"at most 4 shards, got 5: score parts of the dataset into folders"):
        open_source(str(jsonl(here / "a.jsonl")))
    assert len(open_source(str(here / "a.jsonl"), limit=4).pieces) == 4


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


def compressed(path: Path, rows=ROWS) -> Path:
    """Write rows to a compressed file whose name has the suffix of their format before that of the compression."""
    plain = write(path.with_suffix(""), rows)
    codec = "zstd" if path.suffix == ".zst" else "gzip"
    with pa.CompressedOutputStream(str(path), codec) as stream:
        stream.write(plain.read_bytes())
    plain.unlink()
    return path


@pytest.mark.parametrize(
    "name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.tsv.zst", "a.jsonl.zst", "a [1] *.ndjson.gz", "[a].csv.zst"]
)
def test_a_compressed_file_gives_its_rows(here, name):
    path = compressed(here / name)
    source = open_source(str(path))
    assert rows_of(source) == ROWS
    assert [piece.name for piece in source.pieces] == [name.partition(".")[0]]
    assert source.description["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    compressed(here / name, ROWS[:2])
    assert rows_of(open_source(str(path))) == ROWS[:2]


def test_a_gzip_file_of_several_members_is_read_completely(here):
    (here / "a.jsonl.gz").write_bytes(b"".join(gzip.compress(lines([row])) for row in ROWS))
    assert rows_of(open_source(str(here / "a.jsonl.gz"))) == ROWS


def test_compressed_files_without_rows_are_skipped_and_damaged_ones_refused(here):
    write(here / "b.jsonl")
    compressed(here / "a.jsonl.gz", [])
    compressed(here / "c.csv.gz", [])
    assert rows_of(open_source(str(here))) == ROWS
    for content in (gzip.compress(lines(ROWS))[:-12], b"not compressed", b""):
        (here / "d.jsonl.gz").write_bytes(content)
        assert "d.jsonl.gz" in refusal(here / "d.jsonl.gz")
    (here / "d.jsonl.gz").write_bytes(b"not compressed")
    assert "d.jsonl.gz" in refusal(here)


def test_a_file_that_expands_to_more_than_its_share_of_the_disk_is_refused_and_leaves_nothing(here, monkeypatch):
    path = compressed(here / "a.jsonl.zst")
    monkeypatch.setattr(screening.shutil, "disk_usage", lambda _: SimpleNamespace(free=900))
    assert "a.jsonl.zst as json: it expands to over a third of the free disk space" in refusal(path)
    assert not list((here.parent / "home" / "rows").iterdir())
    monkeypatch.setattr(screening.shutil, "disk_usage", lambda _: SimpleNamespace(free=9000))
    assert rows_of(open_source(str(path))) == ROWS


@pytest.mark.parametrize(
    ("head", "reason"),
    [(b"", "line 1 has a NUL byte"), (b"{}\n", "line 2 has a NUL byte"), (b"x", "line 1 has a NUL byte")],
)
def test_a_file_with_a_hole_is_refused_without_reading_it_to_its_end(here, monkeypatch, head, reason):
    path, read = here / "a.jsonl", []
    path.write_bytes(head)
    os.truncate(path, 10 * 2**30)
    watched = screening.chunks_of
    monkeypatch.setattr(formats, "chunks_of", lambda path: (read.append(len(part)) or part for part in watched(path)))
    assert f"cannot read a.jsonl as json: {reason}" in refusal(path)
    assert sum(read) == screening.CHUNK_BYTES


def test_an_endless_line_is_refused_without_reading_it_to_its_end(here, monkeypatch):
    monkeypatch.setattr(screening, "MAX_LIST_BYTES", 4 * 2**20)
    path, read = here / "a.csv", []
    path.write_bytes(b"question,answer\n" + b"x" * 64 * 2**20)
    watched = screening.chunks_of
    monkeypatch.setattr(formats, "chunks_of", lambda path: (read.append(len(part)) or part for part in watched(path)))
    assert "cannot read a.csv as csv: line 2 is larger than" in refusal(path)
    assert sum(read) == 5 * 2**20


def repeated(path, value, rows):
    """A small Parquet file in which all rows have one large value, which is stored once."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))
    pq.write_table(pa.table({"text": values}), path, store_schema=False)
    return path


def test_a_parquet_file_that_expands_to_much_more_is_refused_before_it_takes_memory(here, monkeypatch):
    path = repeated(here / "a.parquet", "x" * 1_000_000, 100_000)
    assert path.stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "a.parquet as parquet: its rows are over 1,000 times as large as the file" in refusal(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800_000  # KiB, of 100 GB
    monkeypatch.setattr(screening.shutil, "disk_usage", lambda _: SimpleNamespace(free=9000))
    assert "a.parquet as parquet: it expands to over a third of the free disk space" in refusal(path)
    assert not list((here.parent / "home" / "rows").iterdir())


def test_a_parquet_file_with_a_large_row_is_refused_by_its_number(here, monkeypatch):
    monkeypatch.setattr(screening, "MAX_ROW_BYTES", 2**20)
    path = here / "a.parquet"
    pq.write_table(pa.table({"text": ["a"] * 150 + ["b" * 2**20] + ["c"]}), path)
    assert "a.parquet as parquet: row 150 is larger than 1 MiB" in refusal(path)
    pq.write_table(pa.table({"text": ["b" * 2**21]}), path)
    assert "its rows are larger than 1 MiB on average" in refusal(path)
    pq.write_table(pa.table({"text": ["b" * 2**15] * 64}), path)  # large only together
    assert len(open_source(str(path)).pieces[0].rows) == 64


def test_objects_nested_many_levels_deep_are_read_at_once(here):
    value = 1
    for _ in range(50):
        value = {"k": value}
    jsonl(here / "a.jsonl", [{"question": "a", "x": value}])
    assert rows_of(open_source(str(here / "a.jsonl"))) == [{"question": "a", "x": value}]


def test_all_text_files_of_a_folder_are_read_whatever_their_format(here):
    compressed(here / "0.jsonl.gz", ROWS[:1])
    for index, suffix in enumerate(("jsonl", "tsv", "ndjson", "csv"), start=1):
        write(here / f"{index}.{suffix}", [ROWS[index]])
    assert rows_of(open_source(str(here))) == ROWS


def test_files_of_a_folder_that_cannot_be_read_are_reported_by_name(here, caplog):
    write(here / "a.jsonl")
    (here / "README.md").write_text("no data")
    (here / "picture.png").write_bytes(b"no data")
    assert rows_of(open_source(str(here))) == ROWS
    assert caplog.text == ""
    (here / "b.jsonl.bz2").write_bytes(bz2.compress(b"{}"))
    (here / "c.xlsx").write_bytes(b"rows")
    assert rows_of(open_source(str(here))) == ROWS
    assert "b.jsonl.bz2, c.xlsx" in caplog.text
    (here / "a.jsonl").unlink()
    assert "b.jsonl.bz2, c.xlsx" in refusal(here)


def test_hidden_files_and_records_beside_the_data_are_no_data(here, caplog):
    write(here / "train.jsonl")
    hidden = (".ipynb_checkpoints/train.jsonl", ".cache/a/b.csv", "__MACOSX/train.jsonl", "x/.hidden.parquet")
    for name in hidden:
        write(here / name, ROWS[:1])
    for name in ("provenance.json", "dataset_info.json", "config.json", "croissant.json"):
        (here / name).write_text('{"not": "rows"}')
    assert rows_of(open_source(str(here))) == ROWS == load_dataset(str(here), split="train").to_list()
    assert rows_of(open_source(str(here / "**" / "*.jsonl"))) == ROWS
    assert rows_of(open_source(str(here / ".cache" / "a" / "*.csv"))) == ROWS[:1]
    assert caplog.text == ""


def test_a_folder_below_a_hidden_one_is_read(here):
    write(here / ".cache" / "__data" / "rows" / "a.jsonl")
    assert rows_of(open_source(str(here / ".cache" / "__data" / "rows"))) == ROWS
    assert rows_of(open_source(str(here / ".cache" / "__data" / "rows" / "*.jsonl"))) == ROWS


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("train/a.jsonl", "test/b.jsonl", "test/c.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("data/train-00000-of-00001.parquet", "data/odd-00000-of-00002.parquet", "data/odd-00001-of-00002.parquet"),
        ("my_train_rows.csv", "my_validation_rows.csv"),
        ("train.jsonl", "dev/x.jsonl"),
        ("rows.jsonl", "more/rows.jsonl"),
        ("latest.jsonl", "contest.jsonl"),
        ("test.jsonl",),
    ],
)
def test_the_splits_of_a_folder_are_those_that_load_dataset_sees(here, names):
    folder = here / "rows"
    for index, name in enumerate(names):
        write(folder / name, [ROWS[index]])
    want = load_dataset(str(folder))
    if len(want) > 1:
        assert all(split in refusal(folder) for split in want)
        assert "choose one" in refusal(folder, split="nope")
    for split, rows in want.items():
        source = open_source(str(folder), split=split if len(want) > 1 else None)
        assert rows_of(source) == rows.to_list()
        plain = list(want) == ["train"]
        assert source.description.get("split") == (None if plain else split)


def test_a_folder_whose_name_has_glob_characters_has_its_splits(here):
    for split in ("train", "test"):
        write(here / "rows [v2] *" / f"{split}.jsonl", ROWS if split == "test" else ROWS[:1])
    assert "train, test" in refusal(here / "rows [v2] *")
    assert rows_of(open_source(str(here / "rows [v2] *"), split="test")) == ROWS


def test_a_glob_in_a_folder_whose_name_has_glob_characters_finds_the_files_in_it(here, monkeypatch):
    write(here / "rows [v2] *" / "part-1.jsonl")
    write(here / "rows v" / "part-2.jsonl", ROWS[:1])
    for name in ("part-*.jsonl", "*.jsonl", "**/*.jsonl", "part-[12].jsonl"):
        assert rows_of(open_source(str(here / "rows [v2] *" / name))) == ROWS
    monkeypatch.chdir(here / "rows [v2] *")
    for name in ("part-*.jsonl", "./*.jsonl", "**/*.jsonl"):
        assert rows_of(open_source(name)) == ROWS


def test_the_configurations_of_a_dataset_card_are_followed(here, caplog):
    card = "---\nconfigs:\n- config_name: one\n  data_files:\n  - split: train\n    path: a/x-*\n  - split: held_out\n"
    card += "    path: [a/y.jsonl]\n- config_name: two\n  data_dir: b\n---\n# Rows\n"
    (here / "README.md").write_text(card)
    for index, name in enumerate(("a/x-0.jsonl", "a/x-1.jsonl", "a/y.jsonl", "b/z.jsonl")):
        write(here / name, [ROWS[index]])
    assert "one, two" in refusal(here)
    assert "one, two" in refusal(here, config="nope")
    assert "train, held_out" in refusal(here, config="one")
    for config, split in (("one", "train"), ("one", "held_out"), ("two", "train")):
        source = open_source(str(here), config=config, split=split)
        assert rows_of(source) == load_dataset(str(here), config, split=split).to_list()
        assert (source.description["config"], source.description["split"]) == (config, split)
    assert caplog.text == ""
    write(here / "c.jsonl")
    open_source(str(here), config="two")
    assert "c.jsonl belong to no split" in caplog.text
    (here / "README.md").write_text(card.replace("a/y.jsonl", "a/absent.jsonl"))
    assert "no existing data file" in refusal(here, config="one", split="held_out")
    (here / "README.md").write_text(card.replace("data_dir: b", "data_dir: absent"))
    assert "no existing data file" in refusal(here, config="two")
    (here / "README.md").write_text("---\nconfigs: 5\n---\n")
    assert "README.md" in refusal(here)


def test_data_files_of_no_split_are_reported(here, caplog):
    write(here / "train.jsonl")
    write(here / "more.jsonl", ROWS[:1])
    assert rows_of(open_source(str(here))) == load_dataset(str(here), split="train").to_list() == ROWS
    assert "more.jsonl belong to no split" in caplog.text


def test_several_names_give_their_files_in_the_order_given(here):
    for index, name in enumerate(("b.jsonl", "a.csv", "c-1.parquet", "c-2.parquet", "d/e.jsonl.gz")):
        (compressed if name.endswith(".gz") else write)(here / name, [ROWS[index]])
    names = [str(here / name) for name in ("b.jsonl", "a.csv", "c-*.parquet", "d")]
    source = open_source(names)
    assert rows_of(source) == ROWS
    assert [piece.name for piece in source.pieces] == ["b", "a", "c-1", "c-2", "e"]
    assert source.description["dataset"] == "b.jsonl + a.csv + c-*.parquet and 1 more"
    assert source.description["files"] == 5
    assert open_source(names[::-1]).description != source.description
    assert open_source([names[0]]).description == open_source(names[0]).description


def test_a_file_given_twice_or_a_name_that_is_no_file_is_refused(here):
    path = str(write(here / "a.jsonl"))
    assert "a.jsonl is given more than once" in refused([path, str(here / "*.jsonl")])
    assert "no files match org/rows" in refused([path, "org/rows"])
    assert "no files match" in refused([path, str(here / "b-*.jsonl")])
    Dataset.from_list(ROWS).save_to_disk(here / "saved")
    assert "save_to_disk" in refused([path, str(here / "saved")])
    assert "--split" in refused([path, str(here)], split="train")
    for name in ("x/test.jsonl", "y/validation.jsonl"):
        write(here / name)
    assert "the splits test, validation" in refused([str(here / "x"), str(here / "y")])


def refused(names, **options) -> str:
    with pytest.raises(InputError) as error:
        open_source(names, **options)
    return str(error.value)


def test_kept_and_flagged_rows_of_a_selection_are_not_mixed_again(here):
    for part in ("kept", "flagged"):
        write(here / part / "part-00000-of-00001.parquet")
    assert "kept" in refusal(here)  # even if its record is lost
    (here / "selection.json").write_text("{}")
    assert "kept" in refusal(here)
    assert rows_of(open_source(str(here / "kept"))) == ROWS


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.tsv", "\t")])
def test_words_that_look_like_missing_values_are_text_and_an_empty_field_is_missing(here, name, separator):
    words = ["None", "NA", "null", "N/A", "nan", "NULL", "<NA>", "#N/A", "", "text"]
    lines = [separator.join(("number", "word")), *(separator.join((str(i), word)) for i, word in enumerate(words))]
    (here / name).write_text("\n".join(lines) + "\n")
    rows = rows_of(open_source(str(here / name)))
    assert [row["word"] for row in rows] == [word or None for word in words]
    assert [row["number"] for row in rows] == list(range(len(words)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_a_file_of_other_content_and_the_same_time_is_read_again(here, name):
    make = compressed if name.endswith(".gz") else write
    for rows in (ROWS, ROWS[::-1], ROWS):
        path = make(here / name, rows)
        os.utime(path, ns=(10**18, 10**18))
        source = open_source(str(path))
        assert rows_of(source) == rows
        assert source.description["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_the_same_content_is_read_once_wherever_it_is(here, monkeypatch):
    open_source(str(write(here / "a.jsonl")))
    monkeypatch.setattr(formats, "_convert", None)
    assert rows_of(open_source(str(write(here / "other" / "b.jsonl")))) == ROWS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz"])
def test_a_file_that_changes_while_it_is_read_is_refused_and_not_cached(here, name, monkeypatch):
    make = compressed if name.endswith(".gz") else write
    path, convert = make(here / name), formats._convert

    def changing(*arguments):
        make(path, ROWS[:2])
        convert(*arguments)

    monkeypatch.setattr(formats, "_convert", changing)
    assert f"{name} changed while it was read" in refusal(path)
    monkeypatch.setattr(formats, "_convert", convert)
    assert rows_of(open_source(str(path))) == ROWS[:2]
    assert rows_of(open_source(str(make(path)))) == ROWS
    assert not list((here.parent / "home" / "rows").glob(".*"))


def test_a_saved_dataset_that_changes_while_it_is_scored_is_refused(here):
    Dataset.from_list(ROWS).save_to_disk(here / "saved")
    source = open_source(str(here / "saved"))
    source.check_unchanged()
    [arrow] = (here / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes().replace(b"What", b"Whom"))
    with pytest.raises(InputError, match="changed while they were read"):
        source.check_unchanged()


COLUMNS = {
    "int64": (["501", "-7", "0", "9223372036854775807"], [501, -7, 0, 2**63 - 1]),
    "float64": (["0.5", "-1.25", "3.0", "1e-07"], [0.5, -1.25, 3.0, 1e-07]),
    "bool": (["True", "False", "True", "True"], [True, False, True, True]),
    "string": (["00501", "7", "8", "9"], None),
    "plus": (["+1", "7", "8", "9"], None),
    "trailing zero": (["1.50", "1.1", "1.0", "2.25"], None),
    "too long": (["18446744073709551615", "1", "2", "3"], None),
    "too exact": (["0.1234567890123456789", "1.5", "2.5", "3.5"], None),
    "words": (["true", "false", "True", "yes"], None),
    "underscore": (["1_000", "2", "3", "4"], None),
    "infinity": (["inf", "nan", "1.5", "2.5"], None),
    "date": (["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"], None),
    "space": ([" 1", "2 ", "3", "4"], None),
}


@pytest.mark.parametrize("name", list(COLUMNS))
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_fields_are_numbers_only_if_no_character_is_lost(here, name, suffix):
    texts, want = COLUMNS[name]
    separator = "," if suffix == "csv" else "\t"
    (here / f"a.{suffix}").write_text("\n".join([f"v{separator}w", *(f"{text}{separator}x" for text in texts)]) + "\n")
    assert [row["v"] for row in rows_of(open_source(str(here / f"a.{suffix}")))] == (texts if want is None else want)


def test_strings_of_json_stay_strings(here):
    rows = [{"question": text, "answer": "x", "n": i} for i, text in enumerate(["00501", "null", "1.50", "true", ""])]
    assert rows_of(open_source(str(write(here / "a.jsonl", rows)))) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_dates_of_json_stay_as_they_are_written(here, name):
    days = ["2024-01-01", "2024-01-02T10:00:00Z", None, "2024-01-03 10:00:00"]
    rows = [
        {"n": i, "question": "Which day?", "answer": day, "turns": [{"at": day, "said": "x"}], "more": {"at": day}}
        for i, day in enumerate(days)
    ]
    assert rows_of(open_source(str((compressed if name.endswith(".gz") else write)(here / name, rows)))) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize(
    ("values", "place"),
    [
        ([1, 2**64 - 1], "id"),
        ([-(2**63) - 1, 2], "id"),
        ([0.5, 2**53 + 1], "id"),
        ([{"x": [1, 2**64]}, {"x": []}], "id.x"),
        ([10**400, 1], "id"),
    ],
)
def test_integers_that_would_be_rounded_are_refused_by_row_and_column(here, name, values, place):
    rows = [{"question": "1" * 20, "id": value} for value in values]
    assert "which would be rounded" in (said := refusal(write(here / name, rows))) or "cannot read" in said
    assert place in said or "cannot read" in said
    fine = [{"question": "1" * 20, "id": value} for value in (2**63 - 1, -(2**63), 2**53 + 1)]
    assert rows_of(open_source(str(write(here / name, fine)))) == fine
    exact = [{"question": "1" * 20, "id": value} for value in (0.5, 2**54)]
    assert rows_of(open_source(str(write(here / name, exact)))) == exact


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


def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def test_a_cached_hub_dataset_is_read_offline_with_its_commit(hub, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.create("org/Rows")
    for rows in (ROWS[:2], ROWS):
        hub.commit("org/Rows", {"train.jsonl": lines(rows), "test.jsonl": lines(rows[:1])})
        online = open_source("org/Rows", split="train")
    latest, first = (entry.oid for entry in hub.history("org/Rows")[:2])
    hub.commit("org/Rows", {"train.jsonl": lines(ROWS[:1])})
    offline(monkeypatch)
    cached = open_source("org/Rows", split="train")
    assert rows_of(cached) == rows_of(online) == ROWS
    assert cached.description == online.description
    assert latest in caplog.text
    assert rows_of(open_source("org/Rows", split="train", revision=first)) == ROWS[:2]
    assert "train, test" in refusal("org/Rows")
    assert first in refusal("org/Rows", split="train", revision="main")
    assert "nor is the dataset in the cache" in refusal("org/other")


def test_a_cached_configuration_is_chosen_offline_as_with_a_connection(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    card = "---\nconfigs:\n" + "".join(f"- config_name: {n}\n  data_files: {n}.jsonl\n" for n in "ab") + "---\n"
    hub.create("org/two")
    hub.commit("org/two", {"README.md": card, "a.jsonl": lines(ROWS), "b.jsonl": lines(ROWS[1:])})
    online = {config: open_source("org/two", config=config) for config in "ab"}
    offline(monkeypatch)
    assert "choose one (--config)" in refusal("org/two")
    assert "choose one (--config)" in refusal("org/two", config="c")
    for config, source in online.items():
        cached = open_source("org/two", config=config)
        assert (rows_of(cached), cached.description) == (rows_of(source), source.description)


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


def test_files_that_media_refer_to_are_not_read(tmp_path):
    (tmp_path / "secret.txt").write_text("not for others")
    cell = {"bytes": None, "path": str(tmp_path / "secret.txt")}
    features = Features({"text": Value("string"), "image": Image(), "more": List(Image())})
    rows = from_undecoded([{"text": "a", "image": cell, "more": [cell]}] * 3, features)
    pq.write_table(rows.data.table, tmp_path / "rows.parquet")
    for _ in range(2):  # the second time from the cache
        [piece] = open_source(str(tmp_path / "rows.parquet")).pieces
        assert piece.rows.features == features
        assert piece.rows.with_format("arrow")[:].to_pylist() == [{"text": "a", "image": cell, "more": [cell]}] * 3
