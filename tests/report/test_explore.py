"""The table, thresholds, samples and plots of single rows of a report, and the script of the page."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from numpy.testing import assert_allclose
from playwright.sync_api import sync_playwright

from larf_curate.columns import content_digest
from larf_curate.errors import InputError, MissingExtraError, ProfileMismatchError
from larf_curate.report import sampling, thresholds, write_report
from larf_curate.report.excerpts import visible
from larf_curate.report.points import axes_plot, state_map
from larf_curate.report.sampling import score_sample, table_sample
from larf_curate.report.statistics import read_statistics
from larf_curate.report.table import TEXT_BYTES, embedded_json, read_table, table_json
from larf_curate.report.thresholds import RankTable
from larf_curate.review import Decision, Decisions
from larf_curate.scoring.selection import select
from tests.fixtures.review_rows import fake_profile
from tests.report.test_report import HOSTILE, Page, scored_rows, unscorable

REASONS = {True: "harmful request, answered", False: "ordinary request, answered"}


def mixed_rows(count=300, *, seed=1):
    """Rows with axes, labels, a guard model's verdicts and states; every tenth has no score."""
    rng = np.random.default_rng(seed)
    rows = scored_rows(count, seed=seed)
    for index, row in enumerate(rows):
        erosion = float(rng.normal() * 3)
        row |= {"larf_signals": {"harmful": 0.0, "erosion": erosion, "compliance": 1.0}}
        row |= {"larf_neighbors": [{"id": "reference-0", "label": ("fraud", "weapons")[index % 2], "cosine": 0.5}]}
        row |= {"split": ("train", "test")[index % 3 == 0], "larf_guard": {"answer": float(rng.random())}}
        row |= {"larf_state": (rng.normal(size=4) * 0.1 + row["larf_score"] * np.arange(4)).tolist()}
        if index % 10 == 9:
            row |= {"larf_score": None, "larf_status": "empty", "larf_signals": None, "larf_layer_scores": None}
    return rows


def embedded(path):
    """The data of a page, read as a browser reads them: up to the end of the script element."""
    text = Page(path).text("script", id="data")[0]
    return json.loads(text)


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_the_number_of_rows_above_a_threshold_is_numpys(count):
    scores = np.random.default_rng(0).normal(size=count).round(1).astype("f4").astype(float)
    table = RankTable.of(np.concatenate([scores, [np.nan, np.inf]]))
    for threshold in [-9.0, -0.3, 0.0, 0.1, 9.0, *scores[:3]]:
        assert table.count(threshold) == (int((scores >= threshold).sum()),) * 2


def test_of_more_scores_the_highest_counts_are_exact_and_the_others_within_what_is_told(monkeypatch):
    monkeypatch.setattr(thresholds, "EXACT", 100)
    monkeypatch.setattr(thresholds, "SPREAD", 50)
    scores = np.random.default_rng(0).normal(size=1003)
    table = RankTable.of(scores)
    assert len(table.scores) <= 150
    for rank, threshold in enumerate(np.sort(scores)[::-1], 1):
        low, high = table.count(threshold)
        assert low <= rank <= high
        assert high - low == (0 if rank < 100 else table.step - 1)


def test_few_rows_are_all_in_the_table_and_of_many_the_highest_and_rows_of_all_ranks(monkeypatch):
    statistics = read_statistics(Dataset.from_list(mixed_rows()))
    assert table_sample(statistics).tolist() == list(range(300))
    sample = table_sample(statistics, 100)
    assert len(sample) == len(set(sample)) == 100
    scores = statistics.scores[sample]
    highest = np.sort(statistics.scores[statistics.scored])[::-1]
    assert np.isnan(scores).sum() == 10
    assert np.isin(highest[:45], scores).all()
    ranks = np.searchsorted(-highest, -np.sort(scores[np.isfinite(scores)])[::-1])
    assert np.diff(ranks[44:]).max() <= np.ceil((270 - 45) / 45) + 1, "no gap among the ranks of the others"
    assert ranks[-1] == 269
    assert sorted(score_sample(statistics, 1000)) == np.flatnonzero(statistics.scored).tolist()


def test_the_data_of_the_page_are_those_of_the_rows(tmp_path):
    rows = mixed_rows()
    data = embedded(write_report(Dataset.from_list(rows), tmp_path / "r.html"))
    table, labels = data["table"], data["table"]["labels"]
    assert_allclose([np.nan if s is None else s for s in table["score"]], [r["larf_score"] or np.nan for r in rows])
    assert (data["scored"], data["unscored"], data["flagged"]) == (270, 30, None)

    def values(name):
        return [table["values"][name][index] if index >= 0 else None for index in labels[name]]

    assert values("split") == [row["split"] for row in rows]
    assert values("status") == [row["larf_status"] for row in rows]
    assert values("nearest exemplar") == [row["larf_neighbors"][0]["label"] for row in rows]
    reasons = [row["larf_signals"] and REASONS[row["larf_signals"]["erosion"] >= 2] for row in rows]
    assert values("reason") == [reason or "not scorable: empty" for reason in reasons]
    assert_allclose(table["guard"], [row["larf_guard"]["answer"] for row in rows], atol=5e-4)


def test_the_page_says_that_it_has_a_sample_and_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    rows = Dataset.from_list(mixed_rows(400))
    assert "All 400 rows are here." in write_report(rows, tmp_path / "a.html").read_text()
    for name, count in (("TABLE_ROWS", 100), ("MAP_ROWS", 50)):
        monkeypatch.setattr(sampling, name, count)
    monkeypatch.setattr(table_sample, "__defaults__", (100,))
    monkeypatch.setattr("larf_curate.report.page.MAP_ROWS", 50)
    doubled = concatenate_datasets([rows] * 2)
    paths = [write_report(data, tmp_path / f"{len(data)}.html") for data in (rows, doubled)]
    one, two = (path.read_text() for path in paths)
    assert "A sample of 100 of 400 rows is here" in one
    assert "a sample of 50 of 360 rows" in one
    assert "A sample of 100 of 800 rows is here" in two
    tables = [json.dumps(embedded(path)["table"]) for path in paths]
    assert abs(len(tables[1]) - len(tables[0])) < 0.05 * len(tables[0])


def test_hostile_text_cannot_leave_the_data(tmp_path):
    texts = [*HOSTILE, "</script><script>alert(1)</script>", "<!--<script>", "\u2028\u2029\0\x1f", "bad \ud800 \udfff"]
    value = {"texts": texts, **dict.fromkeys(texts, 1)}
    encoded = str(embedded_json(value))
    assert not re.search("[<>&\u2028\u2029\ud800-\udfff]", encoded)
    assert not re.search("[\x00-\x1f]", encoded)
    assert json.loads(encoded)["texts"][-4:-1] == texts[-4:-1]
    rows = [row | {"instruction": t, "output": t} for row, t in zip(scored_rows(20), texts[:-1], strict=False)]
    rows[0] |= {"split": "</script><img src=x onerror=alert(1)>", "larf_status": "<b>"}
    page = Page(write_report(Dataset.from_list(rows), tmp_path / "r.html"))
    assert page.tags.count("script") == 2
    table = json.loads(page.text("script", id="data")[0])["table"]
    for request, answer, text in zip(table["request"], table["answer"], texts, strict=False):
        assert request == answer
        assert len(request.encode()) <= TEXT_BYTES
        assert request.removesuffix("…") in str(visible(" ".join(text.split())))


def test_the_map_shows_the_states_and_their_scores(monkeypatch):
    rows = Dataset.from_list(mixed_rows())
    order = rows.select(range(299, -1, -1))  # rows through an index
    statistics = read_statistics(order)
    sample = read_table(order, score_sample(statistics, 50))
    plot, made = state_map(order, sample, statistics.scores, profile=None, texts={})
    assert "principal components" in made
    svg = plot.svg()
    places = [float(x) for x in re.findall(r'<(?:use|path) [^>]*x="([\d.]+)"[^>]*><title>', svg)]
    scores = [float(score) for score in re.findall(r"<title>score (-?[\d.]+):", svg)]
    assert len(places) == len(scores) == 50
    assert abs(np.corrcoef(places, scores)[0, 1]) > 0.95, "the first component of these states is the score"
    assert state_map(order.remove_columns("larf_state"), sample, statistics.scores, profile=None, texts={}) is None
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(MissingExtraError, match="umap is required but not installed"):
        state_map(order, sample, statistics.scores, profile=None, texts={}, projection="umap")


def test_the_table_shows_the_index_of_a_row_in_the_scored_dataset():
    rows = Dataset.from_list(mixed_rows(4))
    assert table_json(read_table(rows, np.array([2, 0])))["row"] == [2, 0]
    selected = rows.add_column("larf_index", [7, 5, 3, 1])
    assert table_json(read_table(selected, np.array([2, 0])))["row"] == [3, 7]


def test_the_map_is_drawn_by_umap_if_it_is_installed(monkeypatch):
    class Umap:
        def __init__(self, random_state):
            assert random_state == 0

        def fit_transform(self, states):
            return states[:, [3, 0]]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
    rows = Dataset.from_list(mixed_rows(40))
    sample, scores = read_table(rows, np.arange(40)), read_statistics(rows).scores
    plot, made = state_map(rows, sample, scores, profile=None, texts={}, projection="umap")
    assert made == "UMAP of stored states"
    assert plot.svg().count("<title>score") == 36


def test_the_map_has_the_unsafe_references_of_the_profile_with_their_texts():
    rows = Dataset.from_list(mixed_rows(40))
    sample, scores = read_table(rows, np.arange(40)), read_statistics(rows).scores
    profile = fake_profile(np.random.default_rng(0).normal(size=(9, 4)))
    plot, _ = state_map(rows, sample, scores, profile=profile, texts={"reference-1": "A <b> request"})
    titles = [title for title in re.findall("<title>(.*?)</title>", plot.svg()) if "reference" in title]
    texts = ["reference-0", "A &lt;b&gt; request", "reference-2"]
    assert titles == [f"unsafe reference: {text}" for text in texts]
    with pytest.raises(ProfileMismatchError, match="width 5, got 4"):
        state_map(rows, sample, scores, profile=fake_profile(np.ones((9, 5))), texts={})


def test_rows_are_drawn_at_their_axes_with_their_texts():
    rows = Dataset.from_list(mixed_rows(40))
    statistics = read_statistics(rows)
    svg = axes_plot(read_table(rows, np.arange(40)), statistics.scores).svg()
    drawn = re.findall(r"<title>score [^:]+, harmful 0.0: (Question \d+) →", svg)
    assert sorted(drawn) == sorted(f"Question {index}" for index in range(40) if index % 10 != 9)
    assert axes_plot(read_table(Dataset.from_list([unscorable()]), np.arange(1)), statistics.scores) is None


def test_plots_are_written_as_files_of_their_own(tmp_path):
    write_report(Dataset.from_list(mixed_rows(40)), tmp_path / "r.html", plots=tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    plots = ("histogram", "length", "layers", "map", "axes", "guard")
    assert names == {f"{name}.{suffix}" for name in plots for suffix in ("svg", "png")}
    for path in (tmp_path / "plots").iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")
        assert b"#01020" not in content, "the colours are real ones"


def test_the_decisions_of_a_review_are_counted(tmp_path):
    selection = select(Dataset.from_list(mixed_rows(40)), top_k=4)
    ids = list(selection.reasons)
    verdicts = {0: "remove", 1: "remove", 2: "keep"}
    decisions = [
        Decision(
            row_id=row["larf_row_id"],
            status="decided" if index in verdicts else "conflict",
            decision=verdicts.get(index),
            category="fraud" if index < 2 else None,
            content_digest=content_digest(row),
        )
        for index, row in enumerate(selection.flagged)
    ]
    Decisions(tuple(decisions), "majority").apply(selection).save(tmp_path / "decided")
    page = Page(write_report(tmp_path / "decided", tmp_path / "r.html"))
    assert page.text("dd")[:3] == ["40", "4", "4"], "flagged by the selection"
    assert "Decisions after review" in page.text("h2")
    cells = page.text("td")
    for name, number in (("remove", "2"), ("keep", "1"), ("conflict", "5"), ("unflagged", "32"), ("fraud", "2")):
        assert cells[cells.index(name) + 1] == number
    table = embedded(tmp_path / "r.html")["table"]
    decided = dict(zip(table["id"], table["labels"]["decision"], strict=True))
    assert [table["values"]["decision"][decided[row]] for row in ids[:4]] == ["remove", "remove", "keep", "conflict"]


def test_markdown_has_the_same_figures_and_no_structure_from_texts(tmp_path):
    rows = mixed_rows(40)
    rows[1] |= {"instruction": "| a | <b> [x](https://evil.example) # *y* `z`\n\n# Heading", "larf_score": 99.0}
    page = write_report(Dataset.from_list(rows), tmp_path / "r.md", form="md").read_text()
    scores = [row["larf_score"] for row in rows if row["larf_score"] is not None]
    for line in (
        "| rows | 40 |",
        "| without a score | 4 |",
        f"| median score | {np.median(scores):.3f} |",
        "| ok | 36 |",
    ):
        assert line in page
    assert (
        "&#124; a &#124; &#60;b&#62; &#91;x&#93;(https&#58;&#47;&#47;evil&#46;example) &#35; &#42;y&#42; &#96;z&#96;"
        in page
    )
    assert not re.search(r"<b>|\]\(https|^# Heading|{{|{%", page, re.MULTILINE)
    lines = [line for line in page.splitlines() if line.startswith("| 1 |")]
    assert len(lines) == 1
    assert lines[0].count("|") == 6
    with pytest.raises(InputError, match="no Markdown file"):
        write_report(
            Dataset.from_list(rows), Path(write_report(Dataset.from_list(rows), tmp_path / "r.html")), form="md"
        )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A page of 300 rows in Chromium, without network, and whatever it logs or asks for."""
    rows = mixed_rows()
    rows[0]["split"] = "a long name of a split " * 4
    rows[4] |= {"instruction": "<img src=x onerror=alert(1)>unusual", "output": "</script><b>"}
    scored = Dataset.from_list(rows)
    path = write_report(scored, tmp_path_factory.mktemp("page") / "r.html", selection=select(scored, threshold=1.0))
    events = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.route("**/*", lambda route: (events.append(route.request.url), route.continue_()))
        page.goto(path.as_uri())
        yield page, rows, events, path.as_uri()
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("count", [1, 10, 40, 100])
def test_in_a_browser_the_first_threshold_without_a_selection_is_that_of_the_highest_five_percent(tmp_path, count):
    path = write_report(Dataset.from_list(scored_rows(count)), tmp_path / "r.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page()
        page.goto(Path(path).resolve().as_uri())
        shown = page.locator("#would-flag").inner_text()
        browser.close()
    assert shown.startswith(f"{max(1, round(count / 20))} of {count} rows (")


@pytest.mark.browser
def test_in_a_browser_the_slider_counts_as_numpy_does(opened):
    page, rows, *_ = opened
    scores = np.array([row["larf_score"] for row in rows if row["larf_score"] is not None])
    for threshold in (-9, -0.5, 0.0, 0.25, float(scores[3]), 1.75, 9):
        page.locator("#threshold").fill(repr(threshold))
        page.locator("#threshold").press("Tab")
        count = int((scores >= threshold).sum())
        assert page.locator("#would-flag").inner_text().startswith(f"{count} of 270 rows (")
        page.locator("#side").select_option("flagged")
        assert page.locator("#found").inner_text().startswith(f"{count + 30} row"), "with those that have no score"
        page.locator("#side").select_option("changed")
        changed = int(((scores >= threshold) != (scores >= 1.0)).sum())
        assert page.locator("#found").inner_text().startswith(f"{changed} row" if changed else "No row matches.")
        page.locator("#side").select_option("")
    page.locator("#slider").evaluate("s => { s.value = '0.5'; s.dispatchEvent(new Event('input')); }")
    value = float(page.locator("#threshold").input_value())
    assert page.locator("#would-flag").inner_text().startswith(f"{(scores >= value).sum()} of 270 rows (")


@pytest.mark.browser
def test_in_a_browser_rows_are_searched_filtered_and_sorted(opened):
    page, rows, *_ = opened
    found = page.locator("#found")
    page.locator("select[data-filter=split]").select_option(label="test")
    assert found.inner_text().startswith("99 rows")
    page.locator("select[data-filter='nearest exemplar']").select_option(label="fraud")
    assert found.inner_text().startswith("49 rows")
    page.locator("select[data-filter=status]").select_option(label="empty")
    both = [r for i, r in enumerate(rows) if r["split"] == "test" and i % 2 == 0 and r["larf_status"] == "empty"]
    assert found.inner_text().startswith(f"{len(both)} row" if both else "No row matches.")
    for select_box in page.locator("select[data-filter]").all():
        select_box.select_option("")
    page.locator("#search").fill("UNUSUAL onerror")
    assert found.inner_text().startswith("1 row:")
    assert page.locator("#table-rows .request").inner_text() == "<img src=x onerror=alert(1)>unusual"
    assert page.locator("#table-rows .answer").inner_text() == "</script><b>"
    assert page.locator("#table-rows img, #table-rows b").count() == 0
    page.locator("#search").fill("")
    shown = page.locator("#table-rows tr td:first-child").all_inner_texts()
    scores = sorted((r["larf_score"] for r in rows if r["larf_score"] is not None), reverse=True)
    assert shown == [f"{score:.3f}".replace("-", "−") for score in scores[:25]]
    page.locator("#after").click()
    assert "26 to 50 shown" in found.inner_text()
    page.locator("button[data-sort=row]").click()
    assert page.locator("#table-rows tr td:last-child").all_inner_texts()[:3] == ["0", "1", "2"]


@pytest.mark.browser
def test_in_a_browser_a_phone_needs_no_scrolling_and_nothing_is_asked_for(opened):
    page, _, events, address = opened
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    point = page.locator("[aria-labelledby=map-caption] use:has(title)").first
    point.dispatch_event("click")
    assert page.locator("figure:has([aria-labelledby=map-caption]) .hover").inner_text().startswith("score ")
    assert events == [address]
    inserted = "s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    page.evaluate(f"() => {{ const {inserted}; }}")
    assert page.evaluate("window.ran") is None, "the policy allows the page's own script only"


@pytest.mark.browser
def test_without_scripts_the_essential_content_is_there(opened):
    page, *_, address = opened
    context = page.context.browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    assert not page.locator("#explore").is_visible()
    assert "need JavaScript" in page.locator("body").inner_text()
    assert page.locator("summary").count() == 80, "50 of the highest, and all without a score"
    assert page.locator("figure svg").count() >= 6
    context.close()
