"""Rows of an unfinished shard: kept at an interruption, never scored twice, never taken if damaged."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from larf_curate.data.sources import open_source
from larf_curate.errors import InputError
from larf_curate.profile import SafetyProfile
from larf_curate.scoring import parts, shard
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.journal import JOURNAL, PARTS
from larf_curate.scoring.parts import Parts
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.verification import without_verification
from tests.fixtures.models import six_pairs

ROWS = [{"question": f"How {'very ' * (i % 7)}{i}?", "answer": f"Sure, answer {i}."} for i in range(95)]
BATCH = 10
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def profile(tiny_llama):
    return SafetyProfile.build(tiny_llama, six_pairs(), layers=(1, 3), signal="larf", dtype="float32", device="cpu")


class CountingScorer(LarfScorer):
    """Notes the numbers of rows that it scores, and is interrupted before a batch."""

    def __init__(self, profile, interrupted_at=None):
        super().__init__(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True, device="cpu")
        self.interrupted_at, self.scored = interrupted_at, []

    def columns_of(self, rendered, rank=None, on_read=None):
        if len(self.scored) == self.interrupted_at:
            raise KeyboardInterrupt
        self.scored.append(len(rendered))
        return super().columns_of(rendered, rank, on_read)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A file of 95 rows, which are one piece of ten batches."""
    monkeypatch.setattr(shard, "BATCH_ROWS", BATCH)
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def plain(data, profile, tmp_path):
    """The shard of a run without an interruption."""
    score_source(open_source(str(data)), CountingScorer(profile), tmp_path / "plain")
    return (tmp_path / "plain" / "data.parquet").read_bytes()


def interrupt(data, profile, out, after, resume=False):
    scorer = CountingScorer(profile, after)
    with pytest.raises(KeyboardInterrupt):
        score_source(open_source(str(data)), scorer, out, resume=resume)
    return scorer.scored


def finish(data, profile, out):
    scorer = CountingScorer(profile)
    score_source(open_source(str(data)), scorer, out, resume=True)
    assert sorted(path.name for path in out.iterdir()) == ["data.parquet", "manifest.json", "plan.json"]
    return scorer.scored


def saved(out):
    return sorted(path.name for path in (out / JOURNAL / PARTS).rglob("*.parquet"))


def test_an_interrupted_run_goes_on_with_the_next_row_and_writes_the_same_bytes(data, profile, plain, tmp_path):
    out = tmp_path / "out"
    assert interrupt(data, profile, out, 4) == [BATCH] * 4
    assert saved(out) == ["000000-000040.parquet"]
    assert interrupt(data, profile, out, 3, resume=True) == [BATCH] * 3
    assert saved(out) == ["000000-000040.parquet", "000040-000070.parquet"]
    assert finish(data, profile, out) == [BATCH, BATCH, 5]
    assert (out / "data.parquet").read_bytes() == plain


def test_a_killed_run_has_kept_what_was_due(data, profile, plain, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(parts, "PART_SECONDS", 0.0)
        patched.setattr(Parts, "__exit__", lambda *_: None)  # a killed process does nothing at its end
        interrupt(data, profile, out, 3)
    assert len(saved(out)) == 3
    assert finish(data, profile, out) == [BATCH] * 6 + [5]
    assert (out / "data.parquet").read_bytes() == plain


def test_a_complete_run_saves_no_parts_before_their_time(data, profile, tmp_path, monkeypatch):
    monkeypatch.setattr(Parts, "_save", lambda *_: pytest.fail("a part was saved"))
    score_source(open_source(str(data)), CountingScorer(profile), tmp_path / "out")


@pytest.mark.parametrize("damage", ["cut", "changed", "renamed", "of other columns", "unknown name"])
def test_a_part_that_is_not_what_was_recorded_is_scored_again(damage, data, profile, plain, tmp_path):
    out = tmp_path / "out"
    interrupt(data, profile, out, 4)
    part = next((out / JOURNAL / PARTS).rglob("*.parquet"))
    if damage == "cut":
        part.write_bytes(part.read_bytes()[:-9])
    elif damage == "changed":
        content = bytearray(part.read_bytes())
        content[len(content) // 2] ^= 1
        part.write_bytes(content)
    elif damage == "of other columns":
        pq.write_table(pq.read_table(part).drop_columns("larf_state"), part)
    else:
        part.rename(part.with_name({"renamed": "000010-000050.parquet", "unknown name": "rows.parquet"}[damage]))
    assert finish(data, profile, out) == [BATCH] * 9 + [5]
    assert (out / "data.parquet").read_bytes() == plain


def test_a_part_that_is_not_verified_must_have_as_many_rows_as_its_name_says(data, profile, plain, tmp_path):
    out = tmp_path / "out"
    interrupt(data, profile, out, 4)
    part = next((out / JOURNAL / PARTS).rglob("*.parquet"))
    pq.write_table(pq.read_table(part).slice(0, 33), part)
    with without_verification():
        assert finish(data, profile, out) == [BATCH] * 9 + [5]
    assert (out / "data.parquet").read_bytes() == plain


def test_batches_of_another_size_use_only_parts_that_hold_them_whole(data, profile, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(data, profile, out, 4)
    monkeypatch.setattr(shard, "BATCH_ROWS", 15)
    assert finish(data, profile, out) == [15] * 4 + [5]
    assert pq.read_table(out / "data.parquet")["question"].to_pylist() == [row["question"] for row in ROWS]


def test_nothing_is_written_through_a_link(data, profile, tmp_path):
    out = tmp_path / "out"
    interrupt(data, profile, out, 0)
    (tmp_path / "elsewhere").mkdir()
    (out / JOURNAL / PARTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"parts is a link, wanted a folder: remove it"):
        score_source(open_source(str(data)), CountingScorer(profile), out, resume=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_rows_of_a_run_in_a_store_are_saved_on_this_machine(data, profile, plain, memory_store, own_caches):
    for place, left in (("here", [BATCH] * 5 + [5]), ("elsewhere", [BATCH] * 9 + [5])):
        url = f"memory://bucket/{place}"
        assert interrupt(data, profile, url, 4) == [BATCH] * 4
        if place == "elsewhere":
            shutil.rmtree(own_caches / "remote")
        scorer = CountingScorer(profile)
        score_source(open_source(str(data)), scorer, url, resume=True)
        assert scorer.scored == left
        assert memory_store.cat_file(f"/bucket/{place}/data.parquet") == plain
        written = [path.rpartition("/")[2] for path in memory_store.find(f"/bucket/{place}")]
        assert sorted(written) == ["data.parquet", "manifest.json", "plan.json"]


def test_row_groups_of_a_resumed_shard_are_those_of_one_that_was_not_interrupted(profile, tmp_path, monkeypatch):
    """Saved columns take other bytes in memory than new ones, which must not decide where a row group ends."""
    monkeypatch.setattr(shard, "BATCH_ROWS", BATCH)
    # Every seventh row has no answer and so no score: columns with nulls.
    rows = [row if i % 7 else row | {"answer": ""} for i, row in enumerate(ROWS)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    differing = []
    for size in (5000, 17_000):
        monkeypatch.setattr(shard, "GROUP_BYTES", size)
        plain, resumed = (tmp_path / f"{name}-{size}" for name in ("plain", "resumed"))
        score_source(open_source(str(data)), CountingScorer(profile), plain)
        with pytest.raises(KeyboardInterrupt):
            score_source(open_source(str(data)), CountingScorer(profile, interrupted_at=7), resumed)
        score_source(open_source(str(data)), CountingScorer(profile), resumed, resume=True)
        if (plain / "data.parquet").read_bytes() != (resumed / "data.parquet").read_bytes():
            differing.append(size)
    assert not differing
