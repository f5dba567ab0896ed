import base64
import hashlib
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from playwright.sync_api import sync_playwright
from scipy.stats import pearsonr, spearmanr

from larf_curate.cli import main
from larf_curate.cli.report import report
from larf_curate.data.references import ReferenceSet
from larf_curate.diagnosis import diagnose
from larf_curate.errors import InputError
from larf_curate.manifests import SCORED, read_manifest
from larf_curate.profile import SafetyProfile
from larf_curate.report import plots, write_report
from larf_curate.report.examples import read_examples
from larf_curate.report.excerpts import excerpt, one_line, visible
from larf_curate.report.plots import score_against_length, score_histogram
from larf_curate.report.statistics import read_statistics
from larf_curate.report.token_shading import shaded_example
from larf_curate.scoring.explanation import Explanation, TokenWeight
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import select
from tests.fixtures.decisions_folder import scored_record
from tests.fixtures.models import PROFILE, six_pairs
from tests.fixtures.scored_folder import PROFILE as SUMMARY
from tests.fixtures.scored_folder import digest_of, write_scored

VOID = {"meta", "br", "input"}
HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(2)>",
    "</pre></details></main><iframe src='https://evil.example/'></iframe><style>body{display:none}</style>",
    '<svg onload=alert(3)><a href="javascript:alert(4)">click</a></svg>',
    "![x](https://evil.example/x.png) [y](javascript:alert(5)) {{ 7 * 7 }} {% raw %}",
    '"><base href=https://evil.example/><meta http-equiv=refresh content=0;url=https://evil.example/>',
    "a\x00b\x08c\x1b[31md\x7fe\x85f",
    "\u202egnp.exe\u2066 abc \u200f",
    "Z\u0351\u036b\u0343\u036a" * 200,
    "x" * 100_000,
    "\ufdd0\uffff <!-- --> <![CDATA[ ]]> &lt;b&gt; &#0;",
]


class Page(HTMLParser):
    """A page read as UTF-8: its elements as (tag, attributes, pieces of text), and whether every tag is closed."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.open, self.runs = [], [], []
        self.source = Path(path).read_bytes().decode("utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag, f"</{tag}> closes its own element"

    def handle_data(self, data):
        self.runs.append((data, list(self.open)))
        for _, _, pieces in self.open:
            pieces.append(data)

    @property
    def tags(self):
        return [tag for tag, _, _ in self.elements]

    @property
    def attributes(self):
        return [(tag, name, value) for tag, attributes, _ in self.elements for name, value in attributes.items()]

    @property
    def numbers(self):
        return [float(attributes["value"]) for tag, attributes, _ in self.elements if tag == "data"]

    def text(self, tag, **wanted):
        wanted = {name.rstrip("_"): value for name, value in wanted.items()}
        found = [
            pieces for name, attributes, pieces in self.elements if name == tag and wanted.items() <= attributes.items()
        ]
        return ["".join(pieces).removeprefix("\n" if tag == "pre" else "") for pieces in found]


def scored_rows(n=60, *, seed=0, layers=2):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=n).astype("f4")
    return [
        {
            "instruction": f"Question {i}",
            "input": None,
            "output": "word " * int(rng.integers(1, 80)),
            "larf_score": float(scores[i]),
            "larf_layer_scores": [float(scores[i]) + j for j in range(layers)],
            "larf_signals": {"harm": 0.25, "erosion": -0.5},
            "larf_status": "ok",
            "larf_neighbors": [{"id": f"builtin-{i}", "label": "unsafe", "cosine": 0.875}],
            "larf_state": [0.5] * 4,
        }
        for i in range(n)
    ]


def with_texts(texts):
    return Dataset.from_list(
        [row | {"instruction": t, "output": t} for row, t in zip(scored_rows(len(texts)), texts, strict=True)]
    )


def unscorable(status="empty", **columns):
    blank = dict.fromkeys(scored_rows(1)[0])
    return blank | {"larf_status": status} | columns


def with_selection(rows, path, threshold, **options):
    scored = Dataset.from_list(rows)
    return write_report(scored, path, selection=select(scored, threshold=threshold), **options)


def test_the_figures_of_the_page_are_numpys_and_scipys(tmp_path):
    rows = [*scored_rows(60), unscorable()]
    scores = np.array([row["larf_score"] for row in rows[:60]])
    flagged = scores[scores >= 0.75]
    lengths = np.array([len(row["instruction"]) + len(row["output"]) for row in rows[:60]])
    path = with_selection(rows, tmp_path / "r.html", 0.75, examples=0)
    page = Page(path)
    assert page.text("dd")[:3] == ["61", str(len(flagged)), "1"]
    pearson, spearman = pearsonr(scores, lengths)[0], spearmanr(scores, lengths)[0]
    assert_allclose(
        page.numbers, [flagged.min(), scores.mean(), np.median(scores), scores.std(), pearson, spearman], rtol=1e-9
    )


def test_the_bars_of_the_histogram_are_as_high_as_numpys_counts(tmp_path):
    rows = scored_rows(300)
    path = write_report(Dataset.from_list(rows), tmp_path / "r.html", examples=0)
    drawn = re.findall(
        r'<path d="M ([-\d.]+) ([-\d.]+)  L [-\d.]+ [-\d.]+  L [-\d.]+ ([-\d.]+) [^"]*" [^>]*fill="var\(--score\)"',
        path.read_text(),
    )
    heights = np.array([float(bottom) - float(top) for _, bottom, top in drawn[:40]])
    counts, _ = np.histogram([row["larf_score"] for row in rows], bins=40)
    assert_allclose(heights / heights.sum(), counts / counts.sum(), atol=1e-5)


def test_rows_are_listed_from_the_highest_score_down_and_ties_in_row_order(tmp_path):
    rows = scored_rows(30)
    rows[3]["larf_score"] = rows[20]["larf_score"] = 9.0
    order = np.argsort([-row["larf_score"] for row in rows], kind="stable")
    page = Page(write_report(Dataset.from_list(rows), tmp_path / "r.html", examples=7))
    assert page.text("bdi", class_="text") == [f"Question {i}" for i in order[:7]]


def test_each_row_shows_turns_blocks_signals_neighbours_and_reason(tmp_path):
    row = scored_rows(1)[0] | {"larf_score": 1.5, "larf_layer_scores": [1.0, 2.0]}
    manifest = {"profile": SUMMARY | {"layers": [9, 14]}, "source": {"dataset": "my-data"}}
    write_scored(tmp_path / "out", Dataset.from_list([row]), **manifest)
    selection = select(Dataset.from_list([row]), threshold=1.0)
    page = Page(write_report(tmp_path / "out", tmp_path / "r.html", selection=selection))
    assert page.text("pre") == ["Question 0", row["output"]]
    assert page.text("div", class_="role") == ["User", "Assistant"]
    assert page.text("td", class_="name")[-2:] == ["9", "14"]
    assert page.numbers[-6:] == [1.5, 1.0, 2.0, 0.25, -0.5, 0.875]
    assert page.text("p", dir="auto") == list(selection.reasons.values())
    assert {"harm", "erosion", "builtin-0", "unsafe", *selection.reasons} <= set(page.text("bdi"))
    assert page.text("h1") == ["my-data"]


def test_each_row_shows_its_axes_in_words_and_nothing_without_axes(tmp_path):
    rows = scored_rows(4)
    for row, erosion, complied in zip(rows, (4.2, 0.3, -1.0, None), (1.7, 0.4, -3.25, None), strict=True):
        row["larf_signals"] = {"harmful": 0.0, "erosion": erosion, "compliance": complied}
        row["larf_score"] = -float(erosion or 0)
    page = Page(with_selection(rows, tmp_path / "r.html", -9.0))
    words = [
        "ordinary request (erosion −1.0), refused (over-refusal, compliance −3.2)",
        "ordinary request (erosion 0.3), answered (compliance +0.4)",
        "harmful request (erosion 4.2), answered (compliance +1.7)",
    ]
    assert page.text("span", class_="words") == words
    assert [reason.split(":")[0] for reason in page.text("p", dir="auto")][::3] == [
        "ordinary request, refused (over-refusal)",
        "harmful request, answered",
    ]
    other = Page(write_report(Dataset.from_list(scored_rows(3)[:1]), tmp_path / "o.html"))
    assert other.text("span", class_="words") == ["ordinary request (erosion −0.5)"], "the axes it has"
    bare = [row | {"larf_signals": {"larf": 3.0}} for row in scored_rows(3)]
    assert not Page(write_report(Dataset.from_list(bare), tmp_path / "b.html")).text("span", class_="words")


@pytest.mark.usefixtures("own_caches")
def test_with_a_profile_the_page_says_what_the_score_means_and_shades_tokens(tiny_llama, tmp_path):
    six = six_pairs()
    profile = SafetyProfile.build(tiny_llama, six, layers=[1], **PROFILE)
    rows = Dataset.from_list([{"prompt": f"Why {text}", "response": text} for text in [*HOSTILE[:4], "a", "b b", "c"]])
    rows = Dataset.from_list(
        [{**row, **new} for row, new in zip(rows, map(LarfScorer(profile, device="cpu"), rows), strict=True)]
    )
    page = Page(write_report(rows, tmp_path / "r.html", profile=profile, tokens=2, device="cpu"))
    plain = Page(write_report(rows, tmp_path / "plain.html"))
    assert "What the score means" in page.text("h2")
    assert "What the score means" not in plain.text("h2")
    found = diagnose(profile, rows)
    assert found.warnings
    assert page.text("p", class_="warning")[1:] == list(found.warnings)
    cells = page.text("td")
    assert all(cell in cells for _, _, table in found.tables() for row in table for cell in row)
    order = np.argsort(-np.array(rows["larf_score"]), kind="stable")
    turns = [turn for place in order for turn in (rows[int(place)]["prompt"], rows[int(place)]["response"])]
    assert page.text("pre")[:4] == [visible(turn) for turn in turns[:4]], "each turn is shown once, and whole"
    assert len(page.text("div", class_="turn tokens")) == 4
    classes = {value for tag, name, value in page.attributes if tag == "b" and name == "class"}
    assert classes & {"up4", "down4"}, "the strongest token has the strongest shade"
    assert not {"img", "iframe", "a"} & set(page.tags)
    with pytest.raises(InputError, match="profile that scored"):
        write_report(rows, tmp_path / "r.html", tokens=2)


def test_the_nearest_exemplars_are_shown_by_their_texts(tmp_path):
    rows = scored_rows(2)
    rows[0]["larf_neighbors"] = [{"id": "reference-1", "label": "unsafe", "cosine": 0.5}]
    references = ReferenceSet.load("builtin")
    record = SUMMARY["references"] | {"digest": references.digest}
    for name, described in (("known", record), ("other", SUMMARY["references"])):
        write_scored(tmp_path / name, Dataset.from_list(rows), profile=SUMMARY | {"references": described})
    known, other = (Page(write_report(tmp_path / name, tmp_path / "r.html")).text("bdi") for name in ("known", "other"))
    text = one_line(references.unsafe[1]["prompt"])
    assert text in known
    assert "reference-1" not in known
    assert "builtin-1" in known, "an exemplar that is no reference has its id"
    assert "reference-1" in other, "the text of other references would mislead"
    assert text not in other


def example_of(*turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"messages": messages, "larf_score": 0.5, "larf_status": "ok"}
    return next(read_examples(Dataset.from_list([row]), [0]))


def explanation_of(*tokens):
    weights = tuple(TokenWeight(text=text, weight=weight) for text, weight in tokens)
    return Explanation(score=1.0, start=0.0, tokens=weights)


def shades_of(example):
    return [[(run.text, run.shade) for run in turn.shaded] for turn in (*example.first_turns, *example.last_turns)]


def test_tokens_are_shaded_in_the_turns_and_the_others_are_added_up():
    example = example_of(("user", " Why so? "), ("assistant", "Be cause"), ("user", "Thanks"), ("assistant", "Bye"))
    tokens = [("Why", 1.0), (" so?", -0.5), ("<end><bot>", 0.25), ("Be", 2.0), (" cause", 0.0), ("<end>", 0.125)]
    shaded = shaded_example(example, explanation_of(*tokens))
    assert shades_of(shaded) == [
        [(" ", 0), ("Why", 2), (" so?", -1), (" ", 0)],
        [("Be", 4), (" cause", 0)],
        [("Thanks", 0)],
        [("Bye", 0)],
    ]
    assert shaded.elsewhere == 0.375


def test_what_is_not_shaded_of_a_turn_is_shown_too():
    example = example_of(("user", "a" * 900), ("assistant", "b"))
    shaded = shaded_example(example, explanation_of(*[("a", 1.0)] * 900, ("b", 1.0)))
    assert shades_of(shaded) == [[("a" * 600, 4), ("a" * 300, 0)], [("b", 0)]]
    assert shaded.elsewhere == 301
    cut = shaded_example(example_of(("user", "abcd"), ("assistant", "e")), explanation_of(("ab", 1.0)))
    assert shades_of(cut) == [[("ab", 4), ("cd", 0)], [("e", 0)]]


def test_hostile_text_adds_no_element_and_no_attribute_to_the_page(tmp_path):
    plain = Page(write_report(with_texts(["a" * len(text) for text in HOSTILE]), tmp_path / "plain.html"))
    page = Page(write_report(with_texts(HOSTILE), tmp_path / "hostile.html"))
    assert page.tags == plain.tags
    assert plain.tags.count("script") == 2, "the data, and the script of the page"
    assert not set(plain.tags) & {
        "iframe",
        "img",
        "link",
        "object",
        "embed",
        "form",
        "a",
        "base",
        "foreignobject",
    }
    names = {name for _, name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on") or name in {"style", "src", "srcset", "action"}]
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert len([1 for tag, name, _ in page.attributes if (tag, name) == ("meta", "http-equiv")]) == 1


def test_hostile_text_can_be_read_as_it_was(tmp_path):
    texts = [text for text in HOSTILE if len(text) < 4000]
    page = Page(write_report(with_texts(texts), tmp_path / "r.html"))
    assert sorted(set(page.text("pre"))) == sorted({visible(text) for text in texts})
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", page.source)
    assert "a␀b␈c␛[31md␡e�f" in page.source


def test_text_of_either_direction_is_isolated(tmp_path):
    page = Page(write_report(with_texts(HOSTILE), tmp_path / "r.html"))
    overridden = [around for text, around in page.runs if "\u202e" in text and around[-1][0] != "script"]
    assert len(overridden) == 3, "the line of the row and its two turns"
    assert all(any(tag == "bdi" or "dir" in attributes for tag, attributes, _ in around) for around in overridden)


def test_lone_surrogates_in_the_records_still_give_utf8(tmp_path):
    source = {"dataset": "bad \ud800 name", "split": "<b>\udfff"}
    write_scored(tmp_path / "out", Dataset.from_list(scored_rows(3)), source=source)
    page = Page(write_report(tmp_path / "out", tmp_path / "r.html"))
    assert page.text("bdi")[:2] == ["bad � name", "split <b>�"]


def test_a_long_text_keeps_start_and_end_and_says_how_much_is_left_out(tmp_path):
    text = "start" + "x" * 99_990 + "endof"
    path = write_report(with_texts([text]), tmp_path / "r.html")
    page = Page(path)
    assert page.text("span", class_="gap") == ["96,000 of 100,000 characters not shown"] * 2
    head, tail = page.text("pre")[:2]
    assert (len(head), len(tail), head[:5], tail[-5:]) == (3000, 1000, "start", "endof")
    assert excerpt(text).hidden + len(head) + len(tail) == len(text)


def test_a_long_conversation_says_how_many_turns_are_left_out(tmp_path):
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"turn {i}"} for i in range(200)]
    row = {"messages": messages, "larf_score": 0.5, "larf_status": "ok"}
    page = Page(write_report(Dataset.from_list([row]), tmp_path / "r.html"))
    assert page.text("pre") == [f"turn {i}" for i in [*range(4), *range(188, 200)]]
    assert page.text("span", class_="gap") == ["184 turns not shown"]


def test_rows_without_a_score_are_listed_with_status_and_never_ranked(tmp_path):
    bad = [
        unscorable("malformed", instruction="<i>why</i>"),
        unscorable("non_finite", instruction="q", output="a", larf_score=float("nan")),
    ]
    page = Page(write_report(Dataset.from_list([*scored_rows(2), *bad]), tmp_path / "r.html"))
    assert page.text("dd")[2] == "2"
    names = page.text("bdi")
    assert names[names.index("ok") :][:3] == ["ok", "malformed", "non_finite"]
    raw = page.text("pre", class_="raw")
    assert [json.loads(text) for text in raw] == [{"instruction": "<i>why</i>", "input": None, "output": None}]
    ranked = page.source[page.source.index("Highest-scoring rows") : page.source.index("Rows without a score")]
    assert ranked.count("<details>") == 2


def test_the_page_says_when_the_score_follows_length(tmp_path):
    rows = scored_rows(20)
    for i, row in enumerate(rows):
        row["output"] = "x" * (10 * i + 1)
        row["larf_score"] = float(i)
    warning = "The score follows length: {} rows rank high"
    assert warning.format("long") in write_report(Dataset.from_list(rows), tmp_path / "a.html").read_text()
    for row in rows:
        row["larf_score"] *= -1
    assert warning.format("short") in write_report(Dataset.from_list(rows), tmp_path / "b.html").read_text()
    unrelated = write_report(Dataset.from_list(scored_rows(60)), tmp_path / "c.html").read_text()
    assert "The score follows length" not in unrelated


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param([unscorable()], id="no score at all"),
        pytest.param(scored_rows(1), id="one row"),
        pytest.param([scored_rows(1)[0]] * 5, id="scores that do not vary"),
        pytest.param([{"text": "a", "larf_score": 0.5, "larf_status": "truncated"}], id="fewest columns"),
        pytest.param([{"q": "a", "larf_score": 0.5, "larf_status": "ok"}], id="no conversation"),
        pytest.param(scored_rows(8, layers=40), id="forty layers"),
    ],
)
def test_unusual_datasets_still_give_a_page(rows, tmp_path):
    page = Page(write_report(Dataset.from_list(rows), tmp_path / "r.html"))
    assert page.text("dd")[0] == str(len(rows))


def test_no_rows_at_all_still_give_a_page(tmp_path):
    empty = Dataset.from_list(scored_rows(1)).select([])
    assert Page(write_report(empty, tmp_path / "r.html")).text("dd")[0] == "0"


def test_many_rows_are_drawn_as_a_density_not_as_points():
    few, many = (read_statistics(Dataset.from_list(scored_rows(count))) for count in (2000, 3000))
    assert score_against_length(few, None).svg().count("<use") > 2000
    assert score_against_length(many, None).svg().count("<use") < 1000


def test_a_density_has_a_hexagon_where_there_are_rows_also_if_rows_are_counted_in_parts(monkeypatch):
    rows = scored_rows(3000)
    for row in rows[::7]:
        row["larf_score"] = None
    statistics = read_statistics(Dataset.from_list(rows))
    drawn = score_against_length(statistics, None).svg()
    scored = [row for row in rows if row["larf_score"] is not None]
    lengths = [len(row["instruction"]) + len(row["output"]) for row in scored]
    scores = [row["larf_score"] for row in scored]
    hexagons = Figure().subplots().hexbin(lengths, scores, gridsize=36, xscale="log", mincnt=1)
    assert len(re.findall(r'<(?:use|path) [^>]*fill="var\(--score\)"', drawn)) == len(hexagons.get_array())
    monkeypatch.setattr(plots, "_PART", 401)
    assert score_against_length(statistics, None).svg() == drawn


@pytest.mark.parametrize("count", [0, 1, 7, 60, 99])
def test_the_highest_scores_are_those_of_a_full_sort(count):
    rows = scored_rows(80)
    for index, row in enumerate(rows):
        row["larf_score"] = None if index % 4 == 1 else float("inf") if index % 40 == 2 else round(row["larf_score"])
    statistics = read_statistics(Dataset.from_list(rows))
    scores = {i: r["larf_score"] for i, r in enumerate(rows) if r["larf_score"] not in (None, float("inf"))}
    assert statistics.highest(count) == sorted(scores, key=lambda index: -scores[index])[:count]
    assert statistics.unscored().tolist() == [index for index in range(80) if index not in scores]


def test_the_bars_of_the_histogram_are_as_high_as_their_rows_are_many():
    rows = scored_rows(500)
    svg = score_histogram(read_statistics(Dataset.from_list(rows)), None).svg()
    corners = re.findall(
        r'<path d="M [\d.]+ ([\d.]+)  L [\d.]+ [\d.]+  L [\d.]+ ([\d.]+) [^>]*fill="var\(--score\)"', svg
    )
    heights = np.array([float(low) - float(high) for low, high in corners])
    counts, _ = np.histogram([row["larf_score"] for row in rows], bins=40)
    assert_allclose(heights / heights.max(), counts / counts.max(), atol=1e-4)


def test_the_same_input_gives_the_same_bytes(tmp_path):
    rows, rng = scored_rows(40), np.random.default_rng(0)
    for row in rows:
        row["larf_state"] = rng.normal(size=4).tolist()
    first, second = (with_selection(rows, tmp_path / f"{i}.html", 1) for i in (1, 2))
    assert first.read_bytes() == second.read_bytes()


def test_the_policy_allows_the_pages_own_style_and_script_and_nothing_else(tmp_path):
    page = Page(write_report(Dataset.from_list(scored_rows(5)), tmp_path / "r.html"))
    style = page.source.split("<style>")[1].split("</style>")[0]
    script = page.source.split("<script>")[1].split("</script>")[0]
    hashed = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    policy = next(value for tag, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashed[0]}'; style-src 'sha256-{hashed[1]}'; base-uri 'none'; "
        "form-action 'none'"
    )
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch|import\(", script)
    assert "url(" not in style
    assert "@import" not in style


def test_plots_take_every_colour_from_the_page_so_that_light_and_dark_work(tmp_path):
    rows = scored_rows(300)
    for row in rows:
        row["larf_signals"]["compliance"] = 1.0
    page = Page(with_selection(rows, tmp_path / "r.html", 1))
    colours = {value for _, name, value in page.attributes if name in {"fill", "stroke"}}
    assert colours == {"none", "var(--muted)", "var(--line)", "var(--score)", "var(--flagged)"} | {
        f"var(--c{level})" for level in range(5)
    }


def test_every_id_of_the_page_is_its_own(tmp_path):
    rows = scored_rows(40)
    page = Page(with_selection(rows, tmp_path / "r.html", 1))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', page.source)) | {
        v for _, n, v in page.attributes if n == "aria-labelledby"
    }
    assert used
    assert used <= set(ids)


def test_a_selection_folder_brings_rule_threshold_and_profile(tmp_path):
    rows = [*scored_rows(10), unscorable()]
    profile = SUMMARY | {"revision": "abc123", "dtype": "bfloat16", "layers": [3, 5]}
    made = {"source": {"dataset": "d"}, "profile": profile, "package": "larf-curate 0.0.9"}
    scored = scored_record(11, **made, scores=digest_of([row["larf_score"] for row in rows]))
    select(Dataset.from_list(rows), top_k=3, scored=scored).save(tmp_path / "sel")
    page = Page(write_report(tmp_path / "sel", tmp_path / "r.html"))
    assert page.text("dd")[:3] == ["11", "3", "1"]
    facts = ["org/model", "abc123", "bfloat16", "3, 5", "as given when the profile was built", "larf"]
    assert page.text("bdi")[1:7] == facts
    assert page.text("bdi")[9:11] == ["top_k 3", "larf-curate 0.0.9"]


def test_the_report_of_a_selection_links_the_review_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_list(scored_rows(10))
    select(rows, top_k=3).save("sel")
    page = Page(write_report("sel", "r.html"))
    assert ("a", "href", "review.html") in page.attributes
    command = next(text for text in page.text("code") if "review page" in text)
    result = CliRunner().invoke(main, shlex.split(command)[1:], catch_exceptions=False)
    assert result.exit_code == 0
    assert Path("review.html").is_file()
    assert "review page" in write_report("sel", "r.md", form="md").read_text()
    assert ("a", "href", "review.html") not in Page(write_report(rows, "all.html")).attributes


def test_a_selection_of_other_scored_rows_is_refused(tmp_path):
    rows = Dataset.from_list(scored_rows(10))
    for name in ("ours", "theirs"):
        write_scored(tmp_path / name, rows, source={"dataset": name})
    select(rows, top_k=3, scored=read_manifest(tmp_path / "ours", SCORED)).save(tmp_path / "sel")
    write_report(tmp_path / "ours", tmp_path / "r.html", selection=tmp_path / "sel")
    with pytest.raises(InputError, match="the selection was made from other scored rows"):
        write_report(tmp_path / "theirs", tmp_path / "r.html", selection=tmp_path / "sel")


def test_a_selection_without_flagged_rows_gives_a_page(tmp_path):
    rows = scored_rows(4)
    page = Page(with_selection(rows, tmp_path / "r.html", 99.0))
    assert page.text("dd")[:3] == ["4", "0", "0"]


def test_what_is_not_scored_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match="no column larf_score or larf_status; score it"):
        write_report(Dataset.from_list([{"text": "a"}]), tmp_path / "r.html")
    with pytest.raises(InputError, match=r"neither manifest\.json nor selection\.json"):
        write_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(InputError, match="0 or more, got -1"):
        write_report(Dataset.from_list(scored_rows(1)), tmp_path / "r.html", examples=-1)
    uneven = [*scored_rows(1, layers=2), *scored_rows(1, layers=3)]
    with pytest.raises(InputError, match=r"rows of \[2, 3\] layers"):
        write_report(Dataset.from_list(uneven), tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_prints_the_path_of_the_page(tmp_path):
    write_scored(tmp_path / "out", Dataset.from_list(scored_rows(5)))
    page = tmp_path / "new" / "r.html"
    result = CliRunner().invoke(
        report, [str(tmp_path / "out"), "-o", str(page), "--examples", "2"], catch_exceptions=False
    )
    assert (result.exit_code, result.stdout.strip()) == (0, str(page))
    assert page.read_text().count("<details>") == 2
    answer = CliRunner().invoke(report, [str(tmp_path / "out"), "-o", str(page), "--json"], catch_exceptions=False)
    assert json.loads(answer.stdout) == {"report": str(page), "bytes": page.stat().st_size}
    assert CliRunner().invoke(report, [str(tmp_path / "absent"), "-o", str(page)]).exit_code == 2


@pytest.mark.browser
def test_in_a_browser_nothing_hostile_runs_loads_or_breaks_the_layout(tmp_path):
    rows = [row | {"instruction": t, "output": t} for row, t in zip(scored_rows(len(HOSTILE)), HOSTILE, strict=True)]
    path = with_selection(rows, tmp_path / "r.html", 0.0)
    events = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on("dialog", lambda dialog: (events.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: events.append(request.url))
        page.goto(path.as_uri())
        for summary in page.locator("summary").all():
            summary.click()
        assert page.locator("details[open]").count() == len(HOSTILE)
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        assert page.locator("figure path").first.evaluate("path => getComputedStyle(path).fill") == "none"
        assert page.locator("body").evaluate("body => getComputedStyle(body).maxWidth") == "1056px", "the style applies"
        assert page.locator("main > section").count() == 5
        browser.close()
    assert events == [path.as_uri()]


def test_only_a_page_is_replaced_by_a_page(tmp_path):
    path = tmp_path / "selection.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="no HTML file"):
        write_report(with_texts(["a"]), path)
    assert path.read_text() == "{}"
