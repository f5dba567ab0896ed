import hashlib
import shutil

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from numpy.testing import assert_allclose

from larf_curate.columns import row_id
from larf_curate.errors import InputError
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import Selection, select
from tests.fixtures.decisions_folder import scored_record
from tests.fixtures.scored_folder import digest_of, write_scored

FEATURES = Features(
    {
        "question": Value("string"),
        "answer": Value("string"),
        "larf_score": Value("float32"),
        "larf_layer_scores": List(Value("float32"), length=2),
        "larf_status": Value("string"),
    }
)
pytestmark = pytest.mark.usefixtures("own_caches")


def scored(scores):
    rows = {
        "question": [f"Q{i}" for i in range(len(scores))],
        "answer": [f"A{i}" for i in range(len(scores))],
        "larf_score": scores,
        "larf_layer_scores": [None if s is None else [s, s] for s in scores],
        "larf_status": ["ok" if s is not None else "empty" for s in scores],
    }
    return Dataset.from_dict(rows, features=FEATURES)


def random_scores(count, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(np.float32).tolist()


def flagged_questions(dataset, **rule):
    return list(select(dataset, **rule).flagged["question"])


@pytest.mark.parametrize("seed", range(3))
def test_every_rule_flags_what_numpy_would(seed):
    scores = np.array(random_scores(101, seed), np.float32)
    order = np.argsort(-scores)
    dataset = scored(scores.tolist())
    assert flagged_questions(dataset, top_k=7) == [f"Q{i}" for i in order[:7]]
    assert flagged_questions(dataset, top_ratio=0.1) == [f"Q{i}" for i in order[:10]]
    assert flagged_questions(dataset, threshold=0.5) == [f"Q{i}" for i in order if scores[i] >= 0.5]
    limit = np.percentile(scores.astype(float), 90)
    assert flagged_questions(dataset, percentile=90) == [f"Q{i}" for i in order if scores[i] >= limit]


def sorted_naively(scores, rule):
    """Indices of the flagged rows by a full sort, worst first, and the rank of each row with a score."""
    known = [index for index, score in enumerate(scores) if score is not None and np.isfinite(score)]
    order = sorted(known, key=lambda index: -scores[index])  # stable
    [(name, value)] = rule.items()
    if name == "percentile":
        name, value = "threshold", np.percentile([scores[index] for index in known], value)
    count = {
        "top_k": lambda: value,
        "top_ratio": lambda: round(value * len(known)),
        "threshold": lambda: sum(scores[index] >= value for index in known),
    }[name]()
    unscorable = [index for index in range(len(scores)) if index not in set(known)]
    return order[:count] + unscorable, {index: rank for rank, index in enumerate(order, 1)}


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("rule", [{"top_k": 333}, {"top_ratio": 0.05}, {"threshold": 0.5}, {"percentile": 90}])
def test_a_selection_of_many_rows_is_that_of_a_full_sort(tmp_path, rule, pieces):
    scores = np.random.default_rng(1).normal(size=2345).astype(np.float32).round(1).tolist()  # with many ties
    scores[::50] = [None] * len(scores[::50])
    scores[7], scores[1001], scores[2344] = float("nan"), float("inf"), float("-inf")
    data = Scored.load(write_scored(tmp_path / "scored", scored(scores), pieces=pieces))
    selection = select(data.rows, **rule, source=data.source_id, scored=data.manifest)
    flagged, ranks = sorted_naively(scores, rule)
    kept = [index for index in range(len(scores)) if index not in set(flagged)]
    ids = [row_id(data.source_id, i, {"question": f"Q{i}", "answer": f"A{i}"}) for i in range(len(scores))]
    selection.save(tmp_path / "selection")
    again = Selection.load(tmp_path / "selection")
    for found in (selection, again):
        for part, indices in zip(found, (kept, flagged), strict=True):
            assert part["question"][:] == [f"Q{index}" for index in indices]
            assert part["larf_row_id"][:] == [ids[index] for index in indices]
            assert part["larf_flagged"][:] == [reason is not None for reason in part["larf_reason"]]
            assert set(part["larf_flagged"]) == {part is found.flagged}
            percentiles = [100 * (len(ranks) + 1 - ranks.get(i, np.nan)) / len(ranks) for i in indices]
            assert_allclose(np.array(part["larf_percentile"][:], float), percentiles, rtol=1e-6)
        assert found.reasons.keys() == {ids[index] for index in flagged}
    lines = {
        name: "".join(f"{ids[index]}\n" for index in sorted(part, key=ids.__getitem__))
        for name, part in (("kept", kept), ("flagged", flagged))
    }
    assert selection.manifest()["ids"] == {
        name: hashlib.sha256(text.encode()).hexdigest() for name, text in lines.items()
    }


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        ({"top_k": 0}, 0),
        ({"top_k": 99}, 5),
        ({"top_ratio": 0.0}, 0),
        ({"top_ratio": 1.0}, 5),
        ({"threshold": 0.3}, 3),
        ({"threshold": 9}, 0),
        ({"threshold": -9}, 5),
        ({"percentile": 0}, 5),
        ({"percentile": 100}, 1),
    ],
)
def test_the_ends_of_every_range(rule, count):
    selection = select(scored([0.1, 0.25, 0.375, 0.5, 0.75]), **rule)
    assert (len(selection.kept), len(selection.flagged)) == (5 - count, count)
    assert (selection.threshold is None) == (count == 0)


def test_equal_scores_are_flagged_in_dataset_order_up_to_the_number_asked_for():
    dataset = scored([0.5, 0.75, 0.5, 0.5, 0.75])
    assert flagged_questions(dataset, top_k=3) == ["Q1", "Q4", "Q0"]
    assert flagged_questions(dataset, threshold=0.5) == ["Q1", "Q4", "Q0", "Q2", "Q3"]


def test_both_parts_together_are_the_dataset():
    scores = random_scores(40)
    scores[3] = scores[17] = None
    dataset = scored(scores)
    kept, flagged = select(dataset, top_ratio=0.2)
    assert sorted([*kept["question"], *flagged["question"]]) == sorted(dataset["question"])
    assert list(kept["question"]) == [q for q in dataset["question"] if q in set(kept["question"])], "in dataset order"
    assert set(kept.column_names) >= set(dataset.column_names)
    assert kept.features["larf_layer_scores"] == FEATURES["larf_layer_scores"]
    assert list(kept["larf_flagged"]) == [False] * len(kept)
    assert list(flagged["larf_flagged"]) == [True] * len(flagged)
    assert set(kept["larf_reason"]) == {None}


def test_rows_that_could_not_be_scored_are_flagged_last_with_their_status():
    selection = select(scored([None, 0.5, 0.25, None]), top_k=1)
    assert list(selection.flagged["question"]) == ["Q1", "Q0", "Q3"]
    assert list(selection.flagged["larf_reason"])[1:] == ["not scorable: empty"] * 2
    assert list(selection.flagged["larf_percentile"])[1:] == [None, None]
    assert selection.summary()["counts"] == {"rows": 4, "kept": 1, "flagged": 3, "unscorable": 2}
    assert selection.summary()["status"] == {"empty": 2, "ok": 2}


def test_ratios_and_percentiles_count_the_scored_rows_only():
    scores = [0.1, 0.2, 0.3, 0.4] + [None] * 6
    assert flagged_questions(scored(scores), top_ratio=0.5)[:3] == ["Q3", "Q2", "Q4"]
    assert flagged_questions(scored(scores), percentile=75)[:2] == ["Q3", "Q4"]


def test_nothing_scored_flags_everything_for_a_person():
    selection = select(scored([None, None]), top_ratio=0.5)
    assert (len(selection.kept), len(selection.flagged), selection.threshold) == (0, 2, None)


def test_not_a_number_and_infinity_count_as_not_scorable():
    selection = select(scored([float("nan"), 0.5, float("inf"), 0.25]), top_k=1)
    assert list(selection.flagged["question"]) == ["Q1", "Q0", "Q2"]
    assert selection.summary()["counts"]["unscorable"] == 2


def test_reasons_tell_score_threshold_and_percentile():
    selection = select(scored([0.125, 0.5, 0.25, 0.375]), top_k=2)
    assert list(selection.reasons.values()) == [
        "score 0.5000 is at least 0.3750 (percentile 100.00)",
        "score 0.3750 is at least 0.3750 (percentile 75.00)",
    ]
    assert list(selection.reasons) == list(selection.flagged["larf_row_id"])
    assert selection.threshold == 0.375
    assert selection.rule == {"top_k": 2}


def test_reasons_are_sentences_about_the_axes_where_rows_have_them():
    axes = [
        {"harmful": 0.0, "erosion": 3.2, "compliance": 1.7},
        {"harmful": 0.1, "erosion": 0.4, "compliance": 0.0},
        {"harmful": 7.5, "erosion": 2.5, "compliance": -2.5},
        None,
    ]
    dataset = scored([3.54, 0.5, 3.0, None]).add_column("larf_signals", axes)
    assert list(select(dataset, top_k=2).reasons.values()) == [
        "harmful request, answered: erosion 3.2 standard deviations above ordinary rows; rank 1 of 3 (score 3.5400 is "
        "at least 3.0000)",
        "harmful request, refused, answer like the unsafe references: harmful 7.5 standard deviations above ordinary "
        "rows; rank 2 of 3 (score 3.0000 is at least 3.0000)",
        "not scorable: empty",
    ]
    assert "rank 3 of 3" in list(select(dataset, top_k=3).reasons.values())[2]


def test_the_only_score_is_at_percentile_100():
    selection = select(scored([None, 0.25, None]), top_k=1)
    assert list(selection.flagged["larf_percentile"]) == [100, None, None]


def test_percentiles_are_the_share_of_scores_at_or_below():
    scores = random_scores(50)
    selection = select(scored(scores), top_k=5)
    for part in selection:
        for score, percentile in zip(part["larf_score"], part["larf_percentile"], strict=True):
            assert percentile == pytest.approx(100 * np.mean(np.array(scores) <= score))


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"top_k": 1, "top_ratio": 0.5},
        {"top_ratio": 1.5},
        {"top_ratio": -0.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_k": float("inf")},
        {"top_k": float("nan")},
        {"top_k": 10**400},
        {"threshold": float("nan")},
        {"threshold": float("inf")},
        {"threshold": float("-inf")},
        {"percentile": 101},
        {"percentile": float("nan")},
    ],
)
def test_a_rule_that_is_none_or_out_of_range_is_refused(rule):
    with pytest.raises(InputError, match="wanted"):
        select(scored([0.5]), **rule)


def test_a_dataset_without_scores_is_refused():
    with pytest.raises(InputError, match="score it first"):
        select(Dataset.from_dict({"question": ["Q"]}), top_k=1)
    with pytest.raises(InputError, match="got IterableDataset"):
        select(scored([0.5]).to_iterable_dataset(), top_k=1)


@pytest.mark.parametrize("column", [{"larf_score": ["0.5", "1"]}, {"larf_status": ["ok", None]}])
def test_scores_and_statuses_of_another_kind_are_refused(column):
    rows = {"q": ["a", "b"], "larf_score": [0.5, None], "larf_status": ["ok", "empty"]}
    assert len(select(Dataset.from_dict(rows), top_k=1).flagged) == 2
    with pytest.raises(InputError, match="a number or null in larf_score"):
        select(Dataset.from_dict(rows | column), top_k=1)


def test_an_empty_dataset_gives_an_empty_selection(tmp_path):
    selection = select(scored([]), top_ratio=0.5)
    assert (len(selection.kept), len(selection.flagged), selection.threshold) == (0, 0, None)
    assert selection.reasons == {}
    assert selection.flagged.features == select(scored([0.5]), top_ratio=0.5).flagged.features
    selection.save(tmp_path)
    assert len(Selection.load(tmp_path).flagged) == 0


def test_ids_are_stable_and_tell_duplicates_apart():
    dataset = Dataset.from_dict({"question": ["same", "same"], "larf_score": [0.5, 0.5], "larf_status": ["ok", "ok"]})
    first, second = (select(dataset, top_k=1, source="org/data:train") for _ in range(2))
    ids = [*first.kept["larf_row_id"], *first.flagged["larf_row_id"]]
    assert len(set(ids)) == 2
    assert ids == [*second.kept["larf_row_id"], *second.flagged["larf_row_id"]]
    other = select(dataset, top_k=1, source="org/data:test")
    assert not set(ids) & {*other.kept["larf_row_id"], *other.flagged["larf_row_id"]}


def test_ids_do_not_change_with_scores_or_rule():
    one = select(scored([0.1, 0.2, 0.3]), top_k=1, source="x")
    two = select(scored([0.9, 0.2, None]), threshold=0.5, source="x")
    assert {**ids_by_question(one)} == {**ids_by_question(two)}


def ids_by_question(selection):
    return {q: i for part in selection for q, i in zip(part["question"], part["larf_row_id"], strict=True)}


def test_selecting_again_keeps_the_ids_and_replaces_the_verdicts():
    first = select(scored(random_scores(20)), top_k=5, source="x")
    second = select(first.kept, top_k=3)
    assert set(second.flagged["larf_row_id"]) < set(first.kept["larf_row_id"])
    assert (len(second.kept), len(second.flagged)) == (12, 3)
    assert second.flagged.column_names.count("larf_reason") == 1
    assert all("percentile 100" in reason for reason in list(second.flagged["larf_reason"])[:1])


def test_ids_that_are_not_unique_are_refused():
    with pytest.raises(InputError, match="larf_row_id"):
        select(selected_with_ids(["a", "a"]), top_k=1)


def selected_with_ids(ids):
    """Rows as an earlier selection has them, with other ids."""
    rows = select(scored([0.5, 0.1]), threshold=2).kept
    return rows.remove_columns("larf_row_id").add_column("larf_row_id", ids)


def test_columns_of_an_earlier_curation_are_reported_and_not_believed(caplog):
    plain = scored([0.5, 0.1, 0.2])
    published = plain.add_column("larf_row_id", ["a", "a", "b"]).add_column("larf_decision", ["keep", "keep", "remove"])
    chosen = select(published, top_k=1, source="x")
    assert "larf_decision, larf_row_id" in caplog.text
    assert list(chosen.reasons) == list(select(plain, top_k=1, source="x").reasons)
    assert "larf_decision" not in chosen.kept.column_names


def test_a_saved_selection_is_read_back_whole(tmp_path):
    scores = [*random_scores(20), None]
    record = scored_record(21, scores=digest_of(scores))
    selection = select(scored(scores), top_ratio=0.2, scored=record)
    selection.save(tmp_path / "sel")
    again = Selection.load(tmp_path / "sel")
    assert again.summary() == selection.summary()
    assert again.reasons == selection.reasons
    assert again.scored == record
    for part, want in zip(again, selection, strict=True):
        assert part.features == want.features
        assert part.to_list() == want.to_list()


def test_a_manifest_of_other_rows_is_refused():
    scores = [*random_scores(20), None]
    record = scored_record(21, scores=digest_of(scores))
    for others in (scores[1:], [*scores, None], [0.25, *scores[1:]]):
        with pytest.raises(InputError, match="wanted the 21 scores of the manifest, got others: give all rows"):
            select(scored(others), top_k=1, scored=record)
    assert select(scored(scores[::-1]), top_k=1, scored=record).scored == record


@pytest.mark.parametrize("rule", [{"top_k": 0}, {"top_ratio": 1.0}])
def test_a_part_without_rows_is_saved_and_read_back(tmp_path, rule):
    selection = select(scored([0.25, 0.5]), **rule)
    selection.save(tmp_path)
    again = Selection.load(tmp_path)
    assert (len(again.kept), len(again.flagged)) == (len(selection.kept), len(selection.flagged))
    assert again.kept.features == again.flagged.features == selection.kept.features


def test_saving_over_an_older_selection_leaves_the_new_one_alone(tmp_path):
    select(scored([0.25, 0.5]), top_k=1).save(tmp_path)
    select(scored([0.25, 0.5, 0.75]), top_k=2).save(tmp_path)
    assert Selection.load(tmp_path).summary()["counts"]["rows"] == 3


def test_parquet_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/part-mine.parquet").write_text("mine")
    with pytest.raises(InputError, match="part-mine.parquet is not of a selection that larf-curate wrote"):
        select(scored([0.25, 0.5]), top_k=1).save(tmp_path)
    assert (tmp_path / "kept/part-mine.parquet").read_text() == "mine"


@pytest.mark.parametrize("name", [".h.parquet", "._part-00000-of-00001.parquet"])
@pytest.mark.parametrize("part", ["kept", "flagged"])
def test_hidden_files_are_not_read(tmp_path, name, part):
    select(scored([0.25, 0.5]), top_k=1).save(tmp_path)
    other = "kept" if part == "flagged" else "flagged"
    shutil.copy(tmp_path / other / "part-00000-of-00001.parquet", tmp_path / part / name)
    again = Selection.load(tmp_path)
    assert (len(again.kept), len(again.flagged)) == (1, 1)
    (tmp_path / part / name).write_bytes(b"not Parquet")
    assert len(getattr(Selection.load(tmp_path), part)) == 1


def test_a_folder_that_holds_no_whole_selection_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        Selection.load(tmp_path)
    (tmp_path / "selection.json").write_text('{"kind": "decisions"}')
    with pytest.raises(InputError, match="wanted a selection"):
        Selection.load(tmp_path)


def test_formatted_and_reordered_datasets_are_selected_as_they_show(tmp_path):
    dataset = scored([0.25, 0.5, 0.75]).select([2, 0, 1])
    plain = select(dataset, top_k=1)
    formatted = select(dataset.with_format("numpy"), top_k=1)
    assert list(plain.flagged["question"]) == ["Q2"]
    assert plain.kept.to_list() == formatted.kept.to_list()


def test_a_hundred_thousand_rows_are_split_exactly():
    dataset = scored(random_scores(100_000))
    selection = select(dataset, top_ratio=0.05)
    assert len(selection.flagged) == 5000
    assert_allclose(selection.threshold, np.sort(dataset["larf_score"])[-5000])


@pytest.mark.parametrize("ids", [[1, 2], [None, "a"], [[1], [2]], ["a", "a"]])
def test_row_ids_that_are_no_strings_or_not_unique_are_refused(ids):
    with pytest.raises(InputError, match="larf_row_id must be a unique string"):
        select(selected_with_ids(ids), top_k=1)


def test_ids_of_rows_with_pictures_are_the_same_each_time_and_need_no_decoding(tmp_path):
    broken = {"bytes": b"no picture that can be decoded", "path": None}
    features = Features({"one": Image(), "several": List({"part": Image()})})
    pictures = Dataset.from_list([{"one": broken, "several": [{"part": broken}]}] * 3, features=features)
    dataset = concatenate_datasets([scored([0.5, None, 0.1]), pictures], axis=1)
    first = list(select(dataset, top_k=1).reasons)
    assert list(select(dataset, top_k=1).reasons) == first
    select(dataset, top_k=1).save(tmp_path / "sel")
    assert list(Selection.load(tmp_path / "sel").reasons) == first


def test_a_folder_of_other_results_is_not_written_over(tmp_path):
    chosen = select(scored(random_scores(5)), top_k=2)
    for manifest in ("manifest.json", "decisions.json"):
        folder = tmp_path / manifest
        folder.mkdir()
        (folder / manifest).write_text("{}")
        with pytest.raises(InputError, match="would be overwritten"):
            chosen.save(folder)
        assert [path.name for path in folder.iterdir()] == [manifest]
    chosen.save(tmp_path / "new")
    chosen.save(tmp_path / "new")
