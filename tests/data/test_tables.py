import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Audio, Dataset, DatasetInfo, Features, Image, Json, List, Value

from larf_curate.data import tables
from larf_curate.data.tables import (
    is_media,
    read_column,
    read_parquet,
    rows_at,
    text_rows,
    undecoded,
    write_parquet,
    written_aside,
)
from larf_curate.errors import InputError


@pytest.mark.parametrize(("rows", "shards"), [(0, 1), (1, 1), (4, 1), (5, 2), (13, 4)])
def test_parquet_shards_hold_every_row_in_order(tmp_path, monkeypatch, rows, shards):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 4)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"n": datasets.Value("int32"), "t": datasets.List(datasets.Value("float16"))})
    dataset = Dataset.from_dict({"n": range(rows), "t": [[1.5]] * rows}, features=features)
    paths = write_parquet(dataset, tmp_path / "out")
    assert len(paths) == shards
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [path.name for path in paths]
    again = read_parquet(tmp_path / "out")
    assert list(again["n"]) == list(range(rows))
    assert again.features == features


def test_a_folder_without_parquet_is_refused(tmp_path):
    with pytest.raises(InputError, match="no Parquet"):
        read_parquet(tmp_path)


def test_no_progress_bar_is_shown_and_the_setting_is_as_before(tmp_path, capfd):
    before = datasets.are_progress_bars_disabled()
    for set_bars, hidden in ((datasets.enable_progress_bars, False), (datasets.disable_progress_bars, True)):
        set_bars()
        write_parquet(Dataset.from_dict({"a": [1]}), tmp_path)
        assert read_parquet(tmp_path)[:] == {"a": [1]}
        assert datasets.are_progress_bars_disabled() is hidden
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()
    assert capfd.readouterr() == ("", "")


def test_rows_are_written_in_groups_of_a_size_in_bytes_whatever_was_selected(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_BYTES", 4000)
    rows = Dataset.from_dict({"a": [f"{i:100d}" for i in range(300)]})
    chosen = rows.select([*range(0, 300, 2), 1, 3])
    [path] = write_parquet(chosen, tmp_path)
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
    assert max(sizes) <= 40
    assert sum(sizes) == 152
    assert Dataset.from_parquet(str(path), cache_dir=str(tmp_path))[:] == chosen[:]


def test_tables_that_are_written_aside_are_mapped_and_not_in_memory():
    features = Features({"n": Value("int32"), "t": List(Value("string"))})
    tables_given = [pa.table({"n": [i, i + 1], "t": [[str(i)], None]}, schema=features.arrow_schema) for i in (0, 5)]
    before = pa.total_allocated_bytes()
    rows = written_aside(iter(tables_given), features)
    assert pa.total_allocated_bytes() == before
    assert rows[:] == {"n": [0, 1, 5, 6], "t": [["0"], None, ["5"], None]}
    assert rows.features == features
    assert len(rows.cache_files) == 1


@pytest.mark.parametrize("indices", [[], [3], [2, 3, 4], [9, 0, 0, 5]])
def test_rows_at_indices_are_those_that_select_gives(indices):
    rows = Dataset.from_dict({"n": range(10)}, info=DatasetInfo(description="d"), split="train")
    found = rows_at(rows, np.array(indices, np.int64))
    assert found[:] == rows.select(indices)[:] == {"n": indices}
    assert (found.info.description, str(found.split)) == ("d", "train")
    assert found.select(range(len(indices)))[::-1] == {"n": indices[::-1]}


def test_a_column_is_read_as_its_list_whatever_was_selected(monkeypatch):
    monkeypatch.setattr(tables, "BATCH_ROWS", 7)
    rows = Dataset.from_dict({"n": [None, *range(30)], "m": ["x"] * 31})
    assert list(read_column(rows.with_format("numpy"), "n")) == [None, *range(30)]
    assert list(read_column(rows.select([4, 1, 1, 0] * 5), "n")) == [3, 0, 0, None] * 5
    assert list(read_column(rows.select([]), "n")) == []


def test_media_are_left_as_stored_at_any_depth_and_json_is_decoded():
    kept = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cell = {"bytes": b"broken", "path": "x"}
    table = pa.table({"one": pa.array([cell], kept), "many": pa.array([[cell]], pa.list_(kept))})
    media = Dataset(table, info=DatasetInfo(features=Features({"one": Image(), "many": List(Audio())})))
    assert undecoded(media)[:] == {"one": [cell], "many": [[cell]]}
    values = {"whole": [{"k": [1, "x", None]}], "listed": [["a", 2]], "nested": [{"part": [{"value": {"y": 1.5}}]}]}
    features = Features({"whole": Json(), "listed": List(Json()), "nested": {"part": List({"value": Json()})}})
    rows = Dataset.from_dict(values, features=features)
    assert undecoded(rows)[:] == values == rows[:]
    assert undecoded(rows).features == features


def test_every_type_of_datasets_that_decodes_files_is_media():
    types = [type_ for type_ in datasets.features.features._FEATURE_TYPES.values() if hasattr(type_, "decode_example")]
    assert {type_.__name__ for type_ in types if not is_media(type_())} == {"Json"}
    assert not any(is_media(feature) for feature in (Value("string"), List(Image()), {"x": Image()}))


def test_json_columns_without_rows_are_written_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = Features({"a": Value("string"), "whole": Json(), "parts": List({"value": Json()}), "image": Image()})
    full = Dataset.from_list([{"a": "x", "whole": {"k": 1}, "parts": [{"value": 2}], "image": None}], features=features)
    empty = full.select([])
    write_parquet(empty, tmp_path / "out")
    again = read_parquet(tmp_path / "out")
    assert (len(again), again.features) == (0, features)
    assert undecoded(empty)[:] == {name: [] for name in features}
    assert datasets.concatenate_datasets([again, full])[:] == full[:]


def test_rows_in_memory_are_not_hashed(monkeypatch):
    rows = Dataset.from_list([{"text": "a"}])
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda _: pytest.fail("hashed"))
    assert text_rows(rows)["text"][:] == ["a"]
