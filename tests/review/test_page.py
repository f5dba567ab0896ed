"""The review page: it decides by keyboard, keeps and saves decisions, asks for nothing, and no row runs in it."""

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from playwright.sync_api import expect, sync_playwright

from larf_curate.cli import main
from larf_curate.columns import ROW_ID, content_digest
from larf_curate.errors import InputError
from larf_curate.html import csp_hash
from larf_curate.review import Decisions, import_decisions, write_review_page
from tests.fixtures.review_rows import HOSTILE, questions, selection

POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([^"]*)"')


def write(tmp_path, rows=None, flagged=None):
    rows = rows or questions(5)
    selected = selection([*rows, *questions(2, 100)], flagged=flagged or len(rows))
    return selected, write_review_page(selected, tmp_path / "review.html")


def test_the_page_is_one_file_whose_policy_allows_its_own_script_and_style_alone(tmp_path):
    rows = [{"question": text, "answer": f"</script><script>alert(1)</script>{text}"} for text in HOSTILE.values()]
    _, path = write(tmp_path, rows)
    page = path.read_text("utf-8")
    (policy,) = POLICY.findall(page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(scripts) == len(styles) == 1
    assert "default-src 'none'" in policy
    assert csp_hash(scripts[0]) in policy
    assert csp_hash(styles[0]) in policy
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|https?:|innerHTML|insertAdjacent|eval|fetch|XMLHttp", scripts[0] + styles[0])
    assert "<img" not in page
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert [row["turns"][0][1] for row in json.loads(data)["rows"]] == list(HOSTILE.values())


def test_the_same_selection_gives_the_same_page_and_other_files_are_not_replaced(tmp_path):
    selected, path = write(tmp_path)
    before = path.read_bytes()
    assert write_review_page(selected, path).read_bytes() == before
    with pytest.raises(InputError, match=r"wanted a file ending in \.html"):
        write_review_page(selected, tmp_path / "table.csv")


def test_the_command_writes_the_page_and_the_import_finds_the_selection(tmp_path, own_caches, monkeypatch):
    monkeypatch.chdir(tmp_path)
    selected, _ = write(tmp_path)
    selected.save("selection")
    result = CliRunner().invoke(main, ["review", "page", "selection"])
    assert "Next: larf-curate review import decisions.json -o decisions" in result.output
    assert "<title>Review: " in Path("review.html").read_text()
    rows = [{"larf_row_id": row[ROW_ID], "content_digest": content_digest(row)} for row in selected.flagged]
    decisions = [row | {"decision": "remove", "time": "2026-01-01T00:00:00.000Z"} for row in rows[:2]]
    file = {"kind": "larf-curate review page", "version": 1, "annotator": "", "decisions": decisions}
    Path("bob.json").write_text(json.dumps(file))
    result = CliRunner().invoke(main, ["review", "import", "bob.json", "-o", "decisions", "--json"])
    assert json.loads(result.stdout)["counts"]["removed"] == 2
    assert Decisions.load("decisions").rows[0].annotators == ("bob",)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Opens a file in a browser; fails the test if anything is asked for, alerted or refused by the policy."""
    wrong = []
    contexts = []

    def opened(path, context=None, **options):
        context = context or browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: wrong.append(request.url) if request.url != path.as_uri() else None)
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [entry for entry in wrong if not entry.startswith("blob:")] == []


def shoot(page, name, tmp_path):
    page.screenshot(path=Path(os.environ.get("LARF_CURATE_SCREENSHOTS") or tmp_path) / f"{name}.png")


def saved(page, path, press="s"):
    """Save the decisions by a key, and return the file."""
    with page.expect_download() as download:
        page.keyboard.press(press)
    assert download.value.suggested_filename.startswith("decisions")
    download.value.save_as(path)
    return path


@pytest.mark.browser
def test_a_decision_takes_one_key_and_an_edit_two_and_the_file_is_imported(tmp_path, open_page):
    selected, path = write(tmp_path)
    page = open_page(path)
    for key, done in (("1", 1), ("2", 2)):
        page.keyboard.press(key)
        expect(page.locator("#progress")).to_have_text(f"{done} of 5 decided")
    shoot(page, "review-page", tmp_path)
    expect(page.locator("#position")).to_have_text("Row 3 of 5")
    page.keyboard.press("3")
    expect(page.locator("#corrected")).to_be_focused()
    expect(page.locator("#corrected")).to_have_value("It is 3.")
    page.keyboard.press("End")
    page.keyboard.type(" 1234 sc")  # keys that decide elsewhere are text here
    shoot(page, "review-page-edit", tmp_path)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#progress")).to_have_text("3 of 5 decided")
    page.keyboard.press("4")
    page.keyboard.press("c")
    page.keyboard.type("not sure why")
    page.keyboard.press("Enter")
    expect(page.locator("#progress")).to_have_text("4 of 5 decided")
    decisions = import_decisions(saved(page, tmp_path / "decisions.json"), selected).apply(selected).decisions
    assert [(row.status, row.decision, row.corrected_answer) for row in decisions.rows] == [
        ("decided", "keep", None),
        ("decided", "remove", None),
        ("decided", "edit", "It is 3. 1234 sc"),
        ("decided", "unsure", None),
        ("pending", None, None),
    ]
    assert [row.row_id for row in decisions.rows] == selected.flagged[ROW_ID][:]
    assert [row.content_digest for row in decisions.rows] == [content_digest(row) for row in selected.flagged]


@pytest.mark.browser
def test_the_page_says_what_the_decisions_mean_and_keys_decide_while_it_is_open(tmp_path, open_page):
    _, path = write(tmp_path)
    page = open_page(path)
    page.get_by_text("What to decide").click()
    meanings = page.locator("details li")
    assert [text.split(":")[0] for text in meanings.all_inner_texts()] == ["Keep", "Remove", "Edit", "Unsure"]
    expect(meanings.first).to_be_visible()
    expect(meanings.nth(2)).to_contain_text("with your corrected answer")
    page.keyboard.press("2")
    expect(page.locator("#progress")).to_contain_text("1 of")


@pytest.mark.browser
def test_decisions_are_kept_can_be_changed_and_belong_to_the_selection(tmp_path, open_page, browser):
    selected, path = write(tmp_path)
    context = browser.new_context(accept_downloads=True)
    page = open_page(path, context)
    page.fill("#annotator", "Zoë B.")
    page.locator("#annotator").blur()
    page.keyboard.press("2")
    page.keyboard.press("2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#decided")).to_have_text("Your decision: remove")
    page.keyboard.press("1")  # changes it, and goes on to the first undecided row
    expect(page.locator("#position")).to_have_text("Row 3 of 5")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("0")
    expect(page.locator("#progress")).to_have_text("1 of 5 decided")
    page.keyboard.press("3")
    page.keyboard.type("begun ")
    page.keyboard.press("Escape")
    page.keyboard.press("3")
    expect(page.locator("#corrected")).to_have_value(re.compile("begun "))
    page.keyboard.press("Escape")
    again = open_page(path, context)
    expect(again.locator("#progress")).to_have_text("1 of 5 decided")
    expect(again.locator("#position")).to_have_text("Row 2 of 5")
    again.keyboard.press("4")
    expect(page.locator("#progress")).to_have_text("2 of 5 decided")  # the other window sees it
    file = json.loads(saved(again, tmp_path / "decisions.json").read_text())
    assert file["annotator"] == "Zoë B."
    decisions = import_decisions(tmp_path / "decisions.json", selected)
    assert {row.annotators for row in decisions.rows} == {("Zoë B.",)}
    assert decisions.counts == {"keep": 1, "unsure": 1}
    write(tmp_path, questions(5, 50))
    other = open_page(path, context)
    expect(other.locator("#progress")).to_have_text("0 of 5 decided")


@pytest.mark.browser
def test_a_page_without_rows_says_so(tmp_path, open_page):
    selected = selection(questions(3), flagged=0)
    page = open_page(write_review_page(selected, tmp_path / "review.html"))
    expect(page.locator("#position")).to_have_text("No row was flagged")
    for key in ("1", "3", "ArrowRight", "c", "x", "Enter"):
        page.keyboard.press(key)
    assert import_decisions(saved(page, tmp_path / "decisions.json"), selected).counts == {}


@pytest.mark.browser
def test_without_storage_the_page_works_and_says_so(tmp_path, open_page, browser):
    selected, path = write(tmp_path)
    context = browser.new_context(accept_downloads=True)
    context.add_init_script(
        "delete window.localStorage; Object.defineProperty(window, 'localStorage', {get() { throw 1 }})"
    )
    page = open_page(path, context)
    page.keyboard.press("1")
    expect(page.locator("#notice")).to_contain_text("does not keep decisions")
    expect(page.locator("#progress")).to_have_text("1 of 5 decided")
    assert import_decisions(saved(page, tmp_path / "d.json"), selected).counts == {"keep": 1}


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_hostile_rows_only_show_on_a_phone_too_and_an_edit_keeps_every_character(tmp_path, open_page, scheme):
    rows = [{"question": text, "answer": text} for text in HOSTILE.values()]
    rows.append({"messages": [{"role": "user", "content": "no answer yet"}]})
    rows = [{"messages": row.get("messages") or [
        {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}
    ]} for row in rows]  # fmt: skip
    selected, path = write(tmp_path, rows)
    page = open_page(path, viewport={"width": 390, "height": 800}, color_scheme=scheme, has_touch=True)
    for index, (name, text) in enumerate(HOSTILE.items()):
        expect(page.locator("#position")).to_have_text(f"Row {index + 1} of {len(rows)}")
        shown = page.locator(".turn p").first.text_content()
        assert re.sub(r"\[U\+[0-9A-F]+\]", "", shown) == re.sub("[\u202a-\u202e\r\x0b]", "", text), name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if index < 2:
            shoot(page, f"review-page-phone-{scheme}-{index}", tmp_path)
        page.keyboard.press("3")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#notice")).to_contain_text("the answer as it was")
        page.keyboard.press("Control+End")
        page.keyboard.type("!")
        page.keyboard.press("Control+Enter")
    expect(page.locator("[data-decision=edit]")).to_be_disabled()
    page.locator("[data-decision=remove]").tap()
    expect(page.locator("#notice")).to_contain_text("All 9 rows are decided")
    decisions = import_decisions(saved(page, tmp_path / "d.json"), selected)
    corrected = [row.corrected_answer for row in decisions.rows[:-1]]
    assert corrected == [text.replace("\r\n", "\n") + "!" for text in HOSTILE.values()]
