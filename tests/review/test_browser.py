"""The review page in a real browser: headless Chromium against the embedded server.

Screenshots go into the folder that ``LARF_CURATE_SCREENSHOTS`` names, else into pytest's temporary folder.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.fixtures.review_rows import HOSTILE, fake_profile, selection, with_profile
from tests.review.test_similar import chosen_states, profile_states, with_states

pytestmark = pytest.mark.browser
WORST = {"question": "How do I forge a signature?", "answer": "Sure, here is how to forge a signature."}
TOKENS = [{"text": text, "weight": pull} for text, pull in ((" Sure", 1.0), (",", 0.3), (" <b>x</b>", -0.5))]
WAIT = 20_000


@pytest.fixture(scope="module")
def page_of(argilla_server):
    """Opens browser pages, each signed in as an annotator of that name, which can reach the server alone."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])

        def open_page(name):
            reviewer = argilla_server.add_user(name)
            page = browser.new_context(viewport={"width": 1500, "height": 950}).new_page()
            page.route(lambda url: not url.startswith(argilla_server.url), lambda route: route.abort())
            page.goto(f"{argilla_server.url}/sign-in")
            page.fill("input[type=text]", reviewer.username)
            page.fill("input[type=password]", reviewer.password)
            page.click("button[type=submit]")
            page.wait_for_url(lambda url: "sign-in" not in url)
            return page

        yield open_page
        browser.close()


@pytest.fixture
def shoot(tmp_path):
    """Takes a screenshot of a page."""
    folder = Path(os.environ.get("LARF_CURATE_SCREENSHOTS") or tmp_path)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png")


def shown_answer(page):
    """The text of the messages of the assistant, which may be one turn in several parts."""
    turns = page.locator(".chat__bubble").all_inner_texts()
    return "".join("".join(turns[len(turns) // 2 :]).split())


def test_a_reviewer_decides_the_worst_row_with_two_keys_and_hostile_rows_only_show(queue, page_of, shoot):
    page = page_of("reviewer")
    rows = [WORST, *({"question": text, "answer": text} for text in HOSTILE.values())]
    chosen = selection(rows, flagged=len(rows))
    hostile = {
        "larf_reason": HOSTILE["script"] + HOSTILE["markdown image"],
        "larf_tokens": [{"text": text, "weight": 1.0} for text in (HOSTILE["script"], HOSTILE["markdown image"])],
    }
    marked = chosen.flagged.map(lambda row, i: hostile if i else {"larf_tokens": TOKENS}, with_indices=True)
    url = queue.push(marked).url
    dialogs, asked = [], []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))

    page.goto(url)
    expect(page.locator(".chat__bubble").last).to_have_text(WORST["answer"], timeout=WAIT)
    expect(page.get_by_text("percentile 100.0").first).to_be_visible()
    expect(page.locator(".markdown-render").first).to_contain_text("Sure, <b>x</b>")
    shoot(page, "worst-first")
    page.keyboard.press("2")
    page.keyboard.press("Enter")

    for name, text in HOSTILE.items():
        last = " ".join(text.split())[-40:]
        expect(page.locator(".chat__bubble").last).to_contain_text(last, timeout=WAIT)
        assert shown_answer(page) == "".join(text.split())
        expect(page.locator(".markdown-render").first).to_contain_text(HOSTILE["script"])
        shoot(page, f"hostile-{name.replace(' ', '-').replace(',', '')}")
        page.keyboard.press("1")
        page.keyboard.press("Enter")
    expect(page.locator(".chat__bubble")).to_have_count(0, timeout=WAIT)
    shoot(page, "done")

    assert dialogs == []
    assert not [address for address in asked if "evil" in address or address.endswith("/x")]
    decided = {row.row_id: row.decision for row in queue.pull().rows}
    answers = ["remove", *["keep"] * len(HOSTILE)]
    assert decided == dict(zip(chosen.flagged["larf_row_id"], answers, strict=True))


def test_a_reviewer_filters_searches_and_finds_similar_rows(queue, page_of, shoot):
    page = page_of("searcher")
    words = ("apple", "bread", "炸弹 (chalk)", "dough", "eagle", "feast")
    rows = [{"question": f"How do I make {word}?", "answer": f"Sure, {word}."} for word in words]
    states = chosen_states([0, 1, 2, 3, 0, 1])  # eagle is like apple, feast like bread
    chosen = with_states(selection(rows, flagged=6), states)
    half = chosen.flagged.map(lambda row, i: {"larf_status": "truncated"} if i % 2 else {}, with_indices=True)
    profile = fake_profile(profile_states()[:300])
    url = queue.push(with_profile(replace(chosen, flagged=half), digest=profile.digest), profile=profile).url
    answer, count = page.locator(".chat__bubble").last, page.get_by_text("1 of ").first

    page.goto(url)
    expect(answer).to_have_text("Sure, apple.", timeout=WAIT)
    page.get_by_text("Find similar").first.click()
    expect(answer).to_have_text("Sure, eagle.", timeout=WAIT)
    expect(page.get_by_text("One of 2 near-identical rows").first).to_be_visible()
    shoot(page, "find-similar")

    page.goto(url)
    expect(answer).to_have_text("Sure, apple.", timeout=WAIT)
    page.get_by_role("button", name="Filters").click()
    page.get_by_text("Metadata", exact=True).click()
    page.get_by_text("Scoring status", exact=True).first.click()
    page.get_by_text("truncated", exact=True).first.click()
    expect(answer).to_have_text("Sure, bread.", timeout=WAIT)
    expect(count).to_contain_text("1 of 3")
    shoot(page, "filter")

    page.goto(url)
    expect(answer).to_have_text("Sure, apple.", timeout=WAIT)
    for query, wanted in (("dough", "dough"), ('"炸弹"', "炸弹 (chalk)"), ('"(chalk)"', "炸弹 (chalk)")):
        page.locator(".search-area__icon.--search").first.click()
        field = page.locator("input.search-area__input")
        field.fill(query)
        field.press("Enter")
        expect(answer).to_have_text(f"Sure, {wanted}.", timeout=WAIT)
        expect(count).to_contain_text("1 of 1")
        shoot(page, f"search-{wanted.split()[0]}")
        page.goto(url)
        expect(answer).to_have_text("Sure, apple.", timeout=WAIT)


def test_a_script_that_slips_into_the_page_does_not_run(queue, page_of):
    page = page_of("attacked")
    refused = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(queue.push(selection([WORST], flagged=1)).url)
    expect(page.locator(".chat__bubble").last).to_have_text(WORST["answer"], timeout=WAIT)
    page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            const hole = '<img src="data:," onerror="window.ran = 2"><img src="https://evil.example/x.png">';
            document.body.insertAdjacentHTML("beforeend", hole);
        }"""
    )
    page.wait_for_timeout(500)
    assert page.evaluate("window.ran") is None
    for part in ("executing inline script", "executing inline event handler", "https://evil.example/x.png"):
        assert any(part in text.lower() and "Content Security Policy" in text for text in refused), part
