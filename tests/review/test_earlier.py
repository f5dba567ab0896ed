"""Folders of decisions on one dataset, from which the ranking of another one learns."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.testing import assert_array_equal

from larf_curate.columns import content_digest
from larf_curate.errors import InputError, ProfileMismatchError
from larf_curate.review import Decision, Decisions
from larf_curate.review.learning.earlier import load_earlier
from tests.fixtures.decisions_folder import reseal
from tests.fixtures.review_rows import questions, selection, with_profile

PROFILE = "ab" * 32
VERDICTS = ("remove", "keep", "edit", "unsure", None)


def saved(folder, chosen, **changes):
    """Decisions on the flagged rows of a selection: removed, kept, edited, unsure, undecided."""
    made = []
    for row, verdict in zip(chosen.flagged, VERDICTS, strict=False):
        values = {"status": "decided" if verdict else "pending", "decision": verdict}
        values |= {"corrected_answer": "better" if verdict == "edit" else None}
        made.append(Decision(row_id=row["larf_row_id"], content_digest=content_digest(row), **values | changes))
    Decisions(tuple(made), "majority").apply(chosen).save(folder)
    return folder


@pytest.fixture
def chosen():
    return with_profile(selection(questions(8), flagged=5), digest=PROFILE)


def test_decided_rows_come_with_the_scores_and_states_of_the_selection(chosen, tmp_path):
    found = load_earlier([saved(tmp_path / "d", chosen)], profile=PROFILE, signals=("refusal", "larf"), known=())
    flagged = chosen.flagged.with_format("numpy")
    assert_array_equal(found.positive, [True, False, True])
    assert_array_equal(found.rows.scores, flagged["larf_score"][:3])
    assert_array_equal(found.rows.states, np.array(chosen.flagged["larf_state"][:3], np.float16))
    assert_array_equal(
        found.rows.signals[:, 1], np.float32([row["larf"] for row in chosen.flagged["larf_signals"][:3]])
    )


def test_rows_of_the_ranked_dataset_or_of_another_folder_count_once(chosen, tmp_path, caplog):
    folders = [saved(tmp_path / "one", chosen), saved(tmp_path / "two", chosen)]
    known = [chosen.flagged[0]["larf_row_id"]]
    found = load_earlier(folders, profile=PROFILE, signals=(), known=known)
    assert_array_equal(found.positive, [False, True])
    assert [record.args[1] for record in caplog.records] == [1, 3]
    assert load_earlier([], profile=None, signals=(), known=()) is None


def test_decisions_through_a_near_identical_row_teach_nothing(chosen, tmp_path):
    folder = saved(tmp_path / "d", chosen, decided_through="other")
    assert not len(load_earlier([folder], profile=PROFILE, signals=(), known=()).positive)


@pytest.mark.parametrize("profile", ["cd" * 32, None])
def test_rows_that_another_profile_scored_are_refused(chosen, tmp_path, profile):
    with pytest.raises(ProfileMismatchError, match="--add-decisions"):
        load_earlier([saved(tmp_path / "d", chosen)], profile=profile, signals=(), known=())


def test_rows_without_states_are_refused(chosen, tmp_path):
    bare = replace(
        chosen, flagged=chosen.flagged.remove_columns("larf_state"), kept=chosen.kept.remove_columns("larf_state")
    )
    with pytest.raises(InputError, match="has no states of the decided rows"):
        load_earlier([saved(tmp_path / "d", bare)], profile=PROFILE, signals=(), known=())


def test_a_changed_file_of_states_is_refused(chosen, tmp_path):
    folder = saved(tmp_path / "d", chosen)
    (folder / "states.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="states.parquet was changed"):
        load_earlier([folder], profile=PROFILE, signals=(), known=())


def column_of(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (column_of("larf_row_id", ["a", "b", "c"]), "other rows than those that were decided"),
        (lambda table: pa.concat_tables([table, table]), "other rows"),
        (lambda table: table.slice(1), "other rows"),
        (lambda table: table.drop_columns(["larf_state"]), "no column larf_state"),
        (lambda table: table.drop_columns(["larf_row_id"]), "no column larf_row_id"),
        (column_of("larf_state", [1.0, 2.0, 3.0]), "no lists"),
        (column_of("larf_state", [[float("nan")] * 8] * 3), "no finite numbers"),
        (column_of("larf_state", [["a"]] * 3), "no finite numbers"),
        (column_of("larf_state", [[1.0], [1.0, 2.0], [1.0]]), "several lengths"),
    ],
)
def test_states_of_other_rows_are_refused_though_the_folder_was_sealed_again(chosen, tmp_path, change, told):
    folder = saved(tmp_path / "d", chosen)
    pq.write_table(change(pq.read_table(folder / "states.parquet")), folder / "states.parquet")
    reseal(folder, "decisions.json")
    with pytest.raises(InputError, match=told):
        load_earlier([folder], profile=PROFILE, signals=(), known=())
