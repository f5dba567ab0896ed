import datasets
import pytest
from datasets import Dataset

from larf_curate.data import tables
from larf_curate.data.tables import read_parquet, write_parquet
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


def test_progress_bars_are_hidden_during_a_write_and_as_they_were_after_it(tmp_path, monkeypatch):
    during = []
    to_parquet = Dataset.to_parquet

    def watched(self, *arguments, **options):
        during.append(datasets.are_progress_bars_disabled())
        return to_parquet(self, *arguments, **options)

    monkeypatch.setattr(Dataset, "to_parquet", watched)
    before = datasets.are_progress_bars_disabled()
    for disable, hidden in ((datasets.enable_progress_bars, False), (datasets.disable_progress_bars, True)):
        disable()
        write_parquet(Dataset.from_dict({"a": [1]}), tmp_path)
        assert datasets.are_progress_bars_disabled() is hidden
    (datasets.disable_progress_bars if before else datasets.enable_progress_bars)()
    assert during == [True, True]


def test_fewer_shards_replace_more(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 2)
    write_parquet(Dataset.from_dict({"a": list(range(5))}), tmp_path)
    write_parquet(Dataset.from_dict({"a": [7, 8]}), tmp_path)
    assert read_parquet(tmp_path)["a"][:] == [7, 8]
