import json

import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from larf_curate.errors import InputError
from larf_curate.scoring.folder import Scored
from tests.fixtures.scored_folder import write_scored

ROWS = [{"question": f"Q{i}", "larf_score": i / 8, "larf_status": "ok"} for i in range(5)]


@pytest.fixture
def folder(tmp_path):
    return write_scored(tmp_path / "scored [1]", Dataset.from_list(ROWS), source={"dataset": "d", "limit": 5})


def test_rows_and_manifest_are_read_back_in_their_order(folder):
    found = Scored.load(folder, verify=True)
    assert found.rows.to_list() == ROWS
    assert found.manifest["rows"] == 5


def test_row_ids_are_of_the_source_however_many_of_its_rows_were_scored(folder, tmp_path):
    other = write_scored(tmp_path / "more", Dataset.from_list(ROWS), source={"dataset": "d", "limit": None})
    assert Scored.load(folder).source_id == Scored.load(other).source_id == json.dumps({"dataset": "d"})
    third = write_scored(tmp_path / "third", Dataset.from_list(ROWS), source={"dataset": "e"})
    assert Scored.load(third).source_id != Scored.load(folder).source_id


def test_a_file_with_other_rows_is_found_only_by_reading_it_and_one_with_fewer_at_once(folder):
    shard = folder / "part-00000.parquet"
    table = pq.read_table(shard)
    pq.write_table(table.take([1, 0, 2, 3, 4]), shard)
    assert Scored.load(folder, verify=False).rows["question"][:2] == ["Q1", "Q0"]
    with pytest.raises(InputError, match="part-00000.parquet was changed after it was written: score again"):
        Scored.load(folder)
    pq.write_table(table.slice(0, 4), shard)
    with pytest.raises(InputError, match="has 4 rows, but its manifest has 5"):
        Scored.load(folder, verify=False)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused_with_a_remedy_that_works(folder, tmp_path):
    shard = folder / "part-00000.parquet"
    shard.rename(tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(InputError, match=r"outside of the folder: remove the link .*part-00000\.parquet, then score"):
        Scored.load(folder)


def test_a_folder_that_is_not_whole_says_how_to_go_on(folder, tmp_path):
    (folder / "part-00000.parquet").unlink()
    with pytest.raises(InputError, match="part-00000.parquet is not there: score again with --resume"):
        Scored.load(folder)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="is not finished: continue with larf-curate score --resume"):
        Scored.load(tmp_path / "begun")
    with pytest.raises(InputError, match="manifest.json is not there"):
        Scored.load(tmp_path)
