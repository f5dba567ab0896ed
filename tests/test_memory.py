"""Memory by row of what reads scored rows: numbers and digests of all rows, but no texts, ids or other objects."""

import tracemalloc

import numpy as np
import pytest
from datasets import Dataset, List, Value

from larf_curate.columns import GUARD
from larf_curate.diagnosis.guard import compare_guard
from larf_curate.publish.kept_rows import read_kept_rows
from larf_curate.report.statistics import read_statistics
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import select
from tests.fixtures.scored_folder import write_scored

BYTES_PER_ROW = 64
"""What may be in memory of a row at a time; a list of its numbers alone would take as much, and its id 80."""
FEW, MANY = 4_000, 24_000
pytestmark = pytest.mark.usefixtures("own_caches")


def folder(path, count):
    scores = np.random.default_rng(0).normal(size=count).astype(np.float32)
    rows = {
        "question": [f"Q{index}" for index in range(count)],
        "answer": ["A"] * count,
        "larf_score": scores,
        "larf_layer_scores": scores[:, None].repeat(2, axis=1).tolist(),
        "larf_status": ["ok"] * count,
        GUARD: [{"answer": abs(score) % 1} for score in scores.tolist()],
    }
    features = Dataset.from_dict({name: cells[:1] for name, cells in rows.items()}).features
    features |= {"larf_score": Value("float32"), "larf_layer_scores": List(Value("float32"), length=2)}
    return write_scored(path / str(count), Dataset.from_dict(rows, features=type(features)(features)))


def peak(run, *given):
    tracemalloc.start()
    try:
        run(*given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def selected(scored, target=None):
    selection = select(scored.rows, top_k=100, source=scored.source_id, scored=scored.manifest)
    return selection.save(target) if target else selection.manifest()


def report_statistics(scored):
    statistics = read_statistics(scored.rows)
    statistics.length_correlation()
    return statistics.highest(50)


@pytest.mark.parametrize("run", [selected, report_statistics, lambda scored: compare_guard(scored.rows)])
def test_a_scored_row_takes_a_few_numbers(tmp_path, monkeypatch, run):
    monkeypatch.setattr("larf_curate.stats.PART", 1000)
    few, many = (Scored.load(folder(tmp_path, count)) for count in (FEW, MANY))
    run(few)  # what is imported or cached at first use
    assert (peak(run, many) - peak(run, few)) / (MANY - FEW) < BYTES_PER_ROW


def test_a_kept_row_takes_a_few_numbers(tmp_path):
    for count in (FEW, MANY):
        selected(Scored.load(folder(tmp_path, count)), tmp_path / f"selection-{count}")
    few, many = (tmp_path / f"selection-{count}" for count in (FEW, MANY))
    read_kept_rows(few)
    assert (peak(read_kept_rows, many) - peak(read_kept_rows, few)) / (MANY - FEW) < BYTES_PER_ROW
