"""The packaged rows keep what the methods rely on: balance of length, variety, no overlap."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

import numpy as np
import pytest

from larf_curate.data import load_rows

KEYS = {
    "references": {"id", "category", "prompt", "unsafe", "safe"},
    "neutral": {"id", "instruction", "input", "output"},
    "demo": {"id", "instruction", "input", "output", "is_harmful"},
    "overrejection": {"id", "prompt"},
}
NAMES = sorted(KEYS)


def _asked(row):
    """What the user says, reduced to lower-case words."""
    text = row.get("prompt") or f"{row['instruction']} {row['input']}"
    return " ".join(re.findall(r"\w+", text.lower()))


def _opening(text, words=3):
    return tuple(re.findall(r"[\w']+", text.lower())[:words])


def _lengths(rows, column):
    return np.array([len(row[column]) for row in rows])


@pytest.mark.parametrize("name", NAMES)
def test_every_line_is_a_json_object_with_the_documented_keys(name):
    raw = files("larf_curate.data").joinpath(f"{name}.jsonl").read_bytes()
    lines = raw.decode("utf-8", errors="strict").removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == load_rows(name)
    assert all(set(row) == KEYS[name] for row in load_rows(name))


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_stripped_strings_and_only_the_input_may_be_empty(name):
    for row in load_rows(name):
        for key, value in row.items():
            if key == "is_harmful":
                assert isinstance(value, bool)
            else:
                assert value == value.strip()
                assert value or key == "input"


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_prompts_are_unique(name):
    rows = load_rows(name)
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({_asked(row) for row in rows}) == len(rows)


@pytest.mark.parametrize(("one", "other"), list(combinations(NAMES, 2)))
def test_two_files_share_no_prompt_and_no_long_answer(one, other):
    assert not {_asked(row) for row in load_rows(one)} & {_asked(row) for row in load_rows(other)}
    answers = [
        {row[key] for row in load_rows(name) for key in ("unsafe", "safe", "output") if len(row.get(key, "")) > 20}
        for name in (one, other)
    ]
    assert not answers[0] & answers[1]


def test_references_cover_at_least_thirteen_categories_evenly():
    counts = Counter(row["category"] for row in load_rows("references"))
    assert len(counts) >= 13
    assert sum(counts.values()) >= 130
    assert min(counts.values()) >= 8
    assert all(row["id"].startswith(row["category"]) for row in load_rows("references"))


def test_the_two_sides_of_a_reference_have_similar_length():
    rows = load_rows("references")
    unsafe, safe = _lengths(rows, "unsafe"), _lengths(rows, "safe")
    assert np.all(np.abs(safe / unsafe - 1) <= 0.25)
    assert abs(safe.mean() / unsafe.mean() - 1) <= 0.05
    assert min(unsafe.min(), safe.min()) >= 30
    assert max(unsafe.max(), safe.max()) <= 220
    assert np.percentile(unsafe, 90) >= 2 * np.percentile(unsafe, 10)


@pytest.mark.parametrize("side", ["unsafe", "safe"])
def test_reference_openings_vary(side):
    openings = Counter(_opening(row[side]) for row in load_rows("references"))
    assert len(openings) >= 90
    assert max(openings.values()) <= 10


def test_unsafe_references_hold_no_list_and_no_second_line():
    assert not any(re.search(r"\n|\d|•", row["unsafe"]) for row in load_rows("references"))


def test_neutral_rows_spread_over_lengths_inputs_and_scripts():
    rows = load_rows("neutral")
    lengths = _lengths(rows, "output")
    assert len(rows) >= 240
    assert 0.25 <= np.mean([bool(row["input"]) for row in rows]) <= 0.35
    assert np.mean(lengths <= 10) >= 0.10
    assert np.mean(lengths >= 400) >= 0.12
    assert 1_200 <= lengths.max() <= 2_000
    assert sum(not row["output"].isascii() for row in rows) >= 20


def test_no_neutral_answer_opens_like_an_unsafe_reference():
    unsafe = {_opening(row["unsafe"], 4) for row in load_rows("references")}
    assert not unsafe & {_opening(row["output"], 4) for row in load_rows("neutral")}


def test_the_demo_mixes_about_a_tenth_of_harmful_rows_spread_over_the_file():
    rows = load_rows("demo")
    harmful = [index for index, row in enumerate(rows) if row["is_harmful"]]
    assert 180 <= len(rows) <= 240
    assert 18 <= len(harmful) <= 24
    assert harmful[0] < len(rows) / 4 < len(rows) * 3 / 4 < harmful[-1]


def test_length_alone_does_not_tell_the_harmful_demo_rows():
    rows = load_rows("demo")
    harmful = _lengths([row for row in rows if row["is_harmful"]], "output")
    ordinary = _lengths([row for row in rows if not row["is_harmful"]], "output")
    auroc = np.mean(harmful[:, None] > ordinary) + np.mean(harmful[:, None] == ordinary) / 2
    assert 0.3 <= auroc <= 0.7


def test_overrejection_prompts_are_many_and_begin_differently():
    rows = load_rows("overrejection")
    assert len(rows) >= 120
    assert len({_opening(row["prompt"], 4) for row in rows}) >= 90
    assert all(10 <= len(row["prompt"]) <= 160 for row in rows)
