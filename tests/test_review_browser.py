import pytest
from playwright.sync_api import expect, sync_playwright

from larf_curate.review import ReviewQueue
from tests.review_rows import HOSTILE, selection

WORST = {"question": "How do I forge a signature?", "answer": "Sure, here is how to forge a signature."}


@pytest.fixture
def page(argilla_server):
    """A browser page signed in as an annotator."""
    reviewer = argilla_server.add_user("reviewer")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.route(lambda url: not url.startswith(argilla_server.url), lambda route: route.abort())
        page.goto(f"{argilla_server.url}/sign-in")
        page.fill("input[type=text]", reviewer.username)
        page.fill("input[type=password]", reviewer.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "sign-in" not in url)
        yield page
        browser.close()


def test_a_reviewer_decides_the_worst_row_with_two_keys_and_hostile_rows_only_show(argilla_server, page, tmp_path):
    rows = [WORST, *({"question": text, "answer": text} for text in (HOSTILE["script"], HOSTILE["markdown image"]))]
    chosen = selection(rows, flagged=3)
    hostile = {"larf_reason": HOSTILE["script"] + HOSTILE["markdown image"]}
    with ReviewQueue("browser", url=argilla_server.url, api_key=argilla_server.api_key) as queue:
        url = queue.push(chosen.flagged.map(lambda row, i: hostile if i else {}, with_indices=True)).url
        dialogs, asked = [], []
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))

        page.goto(url)
        expect(page.locator(".chat__bubble").last).to_have_text(WORST["answer"])
        expect(page.get_by_text("percentile 100.0").first).to_be_visible()
        page.keyboard.press("2")
        page.keyboard.press("Enter")

        for name in ("script", "markdown image"):
            expect(page.locator(".chat__bubble").last).to_have_text(HOSTILE[name], timeout=15_000)
            expect(page.locator(".markdown-render").first).to_contain_text(HOSTILE["script"])
            page.screenshot(path=tmp_path / f"{name}.png")
            page.keyboard.press("1")
            page.keyboard.press("Enter")
        expect(page.locator(".chat__bubble")).to_have_count(0, timeout=15_000)

        assert dialogs == []
        assert not [address for address in asked if "evil" in address or address.endswith("/x")]
        decided = {row.row_id: row.decision for row in queue.pull().rows}
        assert decided == dict(zip(chosen.flagged["larf_row_id"], ("remove", "keep", "keep"), strict=True))
