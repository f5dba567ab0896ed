import hashlib
from datetime import date

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from larf_curate.columns import (
    content_digest,
    duplicates,
    ids_digest,
    row_id,
    scores_digest,
    stateless,
    states_of,
)


def test_an_id_is_the_digest_of_place_and_content():
    row = {"question": "Q", "larf_score": 0.5}
    assert content_digest(row) == content_digest({"question": "Q", "larf_score": 0.1})
    assert content_digest(row) != content_digest({"question": "q"})
    assert content_digest({"a": "\ud800"}) != content_digest({"a": "\ud801"})
    assert len({row_id("s", 0, row), row_id("s", 1, row), row_id("t", 0, row)}) == 3
    assert len(row_id("s", 0, row)) == 32


def test_states_are_read_as_they_are_stored():
    values = [[1.0, 2.0], None, [3.0], [5.0, 6.0]]
    features = Features({"larf_state": List(Value("float16")), "x": Value("int64")})
    rows = Dataset.from_dict({"larf_state": values, "x": [0, 1, 2, 3]}, features=features)
    want = np.array([[5, 6], [1, 2], [np.nan] * 2, [np.nan] * 2], np.float32)
    np.testing.assert_array_equal(states_of(rows.select([3, 0, 1, 2])), want)
    assert states_of(rows.select([1])) is None
    assert states_of(rows.remove_columns("larf_state")) is None
    assert states_of(rows.select([])) is None


def test_the_digest_of_ids_does_not_depend_on_their_order():
    assert ids_digest(["b", "a"]) == ids_digest(iter("ab")) == hashlib.sha256(b"a\nb\n").hexdigest()
    assert len({ids_digest(names) for names in ([], ["a"], ["a", "a"], ["ab"], ["b"], ["\ud800"])}) == 6


def test_the_digest_of_made_and_other_ids_is_that_of_their_sorted_lines():
    made = [row_id("s", index, {}) for index in range(300)]
    others = [
        "",
        "0",
        "f" * 31,
        "A" * 32,
        "0" * 33,
        made[0].upper(),
        made[1][:-1] + "g",
        "é" * 32,
        "0" * 32,
        "0" * 30 + "\n0",
    ]
    names = [*made, *others, made[7]]
    want = hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()
    assert ids_digest(names[::-1]) == want


def test_duplicates_are_counted_as_those_that_a_set_leaves_out():
    names = [f"{index % 700:x}" for index in range(1000)] + ["a\0", "a", "\ud800", ""]
    assert duplicates(iter(names)) == len(names) - len(set(names)) > 300
    assert duplicates([]) == duplicates(["a"]) == 0


def test_the_digest_of_scores_is_that_of_the_number_of_rows_and_of_the_finite_scores_in_any_order():
    def digest(*parts, kind=None):
        return scores_digest(pa.chunked_array([pa.array(part, kind or pa.float32()) for part in parts]))

    want = hashlib.sha256(b"4\n" + np.array([-1.5, 0.1, 2], "<f4").tobytes()).hexdigest()
    assert digest([2, 0.1, None, -1.5]) == digest([np.nan, -1.5], [2, 0.1]) == want
    assert digest([2, np.float32(0.1), None, -1.5], kind=pa.float64()) == want
    assert digest([-0.0]) == digest([0.0])
    assert len({digest(part) for part in ([], [None], [0.1], [0.1, None], [0.1, 0.1], [0.2])}) == 6


def test_ids_are_the_same_in_every_release_as_decisions_are_kept_under_them():
    row = {"question": "Q \ud800 é", "a": None, "when": date(2020, 1, 2), "larf_score": 0.5}
    content = b'{"a": null, "question": "Q \\ud800 \\u00e9", "when": "2020-01-02"}'
    assert content_digest(row) == hashlib.sha256(content).hexdigest()
    place = f"org/data:train\n7\n{hashlib.sha256(content).hexdigest()}"
    assert row_id("org/data:train", 7, row) == hashlib.sha256(place.encode()).hexdigest()[:32]
    assert row_id("org/data:train", 7, row) == "313562b5cd34e9a606886c9c2fc63c91"


def test_rows_without_their_states_keep_all_else():
    rows = Dataset.from_dict({"larf_state": [[1.0]], "larf_score": [0.5], "x": [1]})
    assert stateless(rows).to_list() == [{"larf_score": 0.5, "x": 1}]
    assert stateless(rows.remove_columns("larf_state")).to_list() == [{"larf_score": 0.5, "x": 1}]
