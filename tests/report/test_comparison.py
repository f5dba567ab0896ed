"""Comparison of two scored datasets."""

import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset
from numpy.testing import assert_allclose
from playwright.sync_api import sync_playwright
from scipy.stats import spearmanr

from larf_curate.cli.report import report
from larf_curate.errors import InputError
from larf_curate.report import write_comparison
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import select
from tests.fixtures.scored_folder import PROFILE, write_scored
from tests.report.test_report import HOSTILE, Page, scored_rows

COUNT = 60


def two_folders(path):
    """The same rows scored twice; one row has no score in the second."""
    rows, rng = scored_rows(COUNT), np.random.default_rng(7)
    others = [row | {"larf_score": row["larf_score"] + float(rng.normal())} for row in rows]
    others[3] |= {"larf_score": None, "larf_status": "empty"}
    write_scored(path / "one", Dataset.from_list(rows), source={"dataset": "a"})
    write_scored(
        path / "two", Dataset.from_list(others), source={"dataset": "b"}, profile=PROFILE | {"signal": "combined"}
    )
    return [np.array([np.nan if r["larf_score"] is None else r["larf_score"] for r in each]) for each in (rows, others)]


def numbers_of(page):
    """The counts by side of a page, by name."""
    cells = page.text("td")
    names = ("flagged by both", "by the first alone", "by the second alone", "by neither")
    return [int(cells[cells.index(name) + 1]) for name in names]


def in_sides(first, second):
    return [int(each.sum()) for each in (first & second, first & ~second, ~first & second, ~first & ~second)]


def test_two_scored_folders_are_compared_as_numpy_and_scipy_do(tmp_path):
    first, second = two_folders(tmp_path)
    page = Page(write_comparison(tmp_path / "one", tmp_path / "two", tmp_path / "c.html"))
    known = np.isfinite(second)
    assert page.text("dd")[:2] == [str(COUNT), str(COUNT - 1)]
    assert_allclose(page.numbers[0], spearmanr(first[known], second[known])[0], rtol=1e-9)
    flags = [scores >= np.sort(scores[np.isfinite(scores)])[-3] for scores in (first, second)]
    assert numbers_of(page) == in_sides(*flags)
    assert {"larf", "combined", "one", "two"} <= set(page.text("bdi"))
    shown = page.text("p", dir="auto")[::2]
    alone = [np.flatnonzero(flags[side] & ~flags[1 - side]) for side in (0, 1)]
    ranks = [np.argsort(np.argsort(-scores, kind="stable"), kind="stable") for scores in (first, second)]
    order = [
        index
        for side, rows in enumerate(alone)
        for index in sorted(rows, key=lambda row: ranks[side][row] - ranks[1 - side][row])
    ]
    assert shown == [f"Question {index}" for index in order]


def test_selections_are_joined_by_row_id_and_compared_by_what_they_flag(tmp_path):
    first, _ = two_folders(tmp_path)
    scored = Scored.load(tmp_path / "one")
    for name, rule in (("ten", {"top_k": 10}), ("low", {"threshold": float(np.sort(first)[20])})):
        select(scored.rows, source=scored.source_id, scored=scored.manifest, **rule).save(tmp_path / name)
    ranked = np.argsort(np.argsort(-first))
    page = Page(write_comparison(tmp_path / "ten", tmp_path / "low", tmp_path / "c.html"))
    assert numbers_of(page) == in_sides(ranked < 10, ranked < 40)
    assert page.numbers[0] == 1.0
    mixed = Page(write_comparison(tmp_path / "one", tmp_path / "ten", tmp_path / "m.html"))
    assert numbers_of(mixed) == in_sides(ranked < 3, ranked < 10)


def test_other_rows_are_refused(tmp_path):
    two_folders(tmp_path)
    fewer = Dataset.from_list([*scored_rows(COUNT)[:-2], scored_rows(1, seed=9)[0]])
    write_scored(tmp_path / "other", fewer)
    with pytest.raises(
        InputError, match="wanted the same rows in both, got 60 and 59 with 58 in common: compare folders"
    ):
        write_comparison(tmp_path / "one", tmp_path / "other", tmp_path / "c.html")
    assert not (tmp_path / "c.html").exists()


def test_the_command_compares_and_refuses_what_it_cannot_combine(tmp_path):
    two_folders(tmp_path)
    page, base = tmp_path / "c.html", [str(tmp_path / "one"), "--against", str(tmp_path / "two"), "-o"]
    answer = CliRunner().invoke(report, [*base, str(page)], catch_exceptions=False)
    assert (answer.exit_code, answer.stdout.strip()) == (0, str(page))
    refused = CliRunner().invoke(report, [*base, str(page), "--tokens", "3"])
    assert refused.exit_code == 2
    assert "--against cannot be combined" in refused.stderr
    markdown = tmp_path / "r.md"
    plots = ["--plots", str(tmp_path / "plots")]
    answer = CliRunner().invoke(report, [str(tmp_path / "one"), "-o", str(markdown), "--format", "md", *plots])
    assert answer.exit_code == 0, answer.output
    assert "| rows | 60 |" in markdown.read_text()
    assert (tmp_path / "plots" / "histogram.svg").exists()
    inside = ["--plots", str(tmp_path / "one" / "plots")]
    refused = CliRunner().invoke(report, [str(tmp_path / "one"), "-o", str(page), *inside])
    assert "give another folder with --plots" in refused.stderr
    assert not (tmp_path / "one" / "plots").exists()


@pytest.mark.browser
def test_in_a_browser_a_comparison_of_hostile_rows_runs_and_loads_nothing(tmp_path):
    rows = [row | {"instruction": t, "output": t} for row, t in zip(scored_rows(10), HOSTILE, strict=True)]
    others = [row | {"larf_score": -row["larf_score"]} for row in rows]
    for name, each in (("one", rows), ("two", others)):
        write_scored(tmp_path / name, Dataset.from_list(each))
        select(Dataset.from_list(each), top_k=5).save(tmp_path / f"{name}-selected")
    path = write_comparison(tmp_path / "one-selected", tmp_path / "two-selected", tmp_path / "c.html")
    assert not {"script", "img", "iframe", "a"} & set(Page(path).tags)
    events = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("console", lambda message: events.append(message.text))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        browser.close()
    assert events == [path.as_uri()]


@pytest.mark.parametrize("name", ["a$\\frac$", "$x^$", "b\x01c"])
def test_names_of_folders_are_no_formulas_and_their_control_characters_are_seen(tmp_path, name):
    two_folders(tmp_path)
    folder = (tmp_path / "one").rename(tmp_path / name)
    page = write_comparison(folder, tmp_path / "two", tmp_path / "c.html").read_text(encoding="utf-8")
    labels = [text for text in re.findall("<text[^>]*>([^<]*)</text>", page) if text.startswith("score, ")]
    assert labels == [f"score, {folder.name}".replace("\x01", "\N{SYMBOL FOR START OF HEADING}"), "score, two"]
