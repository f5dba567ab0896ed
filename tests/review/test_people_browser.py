"""What one person's link shows in a real browser: assigned rows alone, and the conflicts sent to a third person."""

import pytest
from playwright.sync_api import expect

from tests.fixtures.long import at_length
from tests.fixtures.review_rows import questions, selection
from tests.review.test_browser import WAIT, page_of, shoot  # noqa: F401  fixtures

pytestmark = pytest.mark.browser


def answer_all(page, key, count, answers):
    """Decide what the page shows by a key and Enter, row after row; returns the answers seen, in order."""
    seen = []
    for _ in range(count):
        answer = page.locator(".chat__bubble").last
        expect(answer).not_to_have_text(seen[-1] if seen else "nothing yet", timeout=WAIT)
        seen.append(answer.inner_text().strip())
        assert seen[-1] in answers
        page.keyboard.press(key)
        page.keyboard.press("Enter")
    expect(page.locator(".chat__bubble")).to_have_count(0, timeout=WAIT)
    return seen


@at_length
def test_a_link_shows_assigned_rows_alone_and_a_third_person_decides_the_conflicts(
    make_queue,
    page_of,  # noqa: F811
    shoot,  # noqa: F811
    argilla_server,
):
    queue = make_queue("people-browser", min_submitted=2)
    names = ("fay", "gus.g", "hal")
    keys = {name: argilla_server.add_user(name).api_key for name in (*names, "ida")}
    chosen = selection(questions(10), flagged=6)
    texts = dict(zip(chosen.flagged["larf_row_id"], chosen.flagged["answer"], strict=True))
    queue.push(chosen)
    links = queue.assign(names).links
    rows = {record.row_id: record.assigned for record in queue._records(queue._store())}
    of_gus = [texts[row] for row in texts if "gus.g" in rows[row]]  # worst first, as they were pushed
    assert 0 < len(of_gus) < len(texts)

    page = page_of("gus.g")
    page.goto(links["gus.g"])
    expect(page.get_by_text("1 of ").first).to_contain_text(f"1 of {len(of_gus)}", timeout=WAIT)
    shoot(page, "assigned")
    assert answer_all(page, "1", len(of_gus), of_gus) == of_gus
    assert queue.status().annotators == {"gus.g": len(of_gus)}

    for name in ("fay", "hal"):
        queue.submit({row: "remove" for row in rows if name in rows[row]}, api_key=keys[name])
    sent = queue.send_conflicts("ida")
    disputed = [texts[row] for row in texts if "gus.g" in rows[row]]
    assert {texts[row] for row in sent.sent} == set(disputed)
    page = page_of("ida")
    page.goto(sent.url)
    expect(page.get_by_text("1 of ").first).to_contain_text(f"1 of {len(disputed)}", timeout=WAIT)
    shoot(page, "third-person")
    assert answer_all(page, "2", len(disputed), disputed) == disputed
    assert {d.decision for d in queue.pull().rows} == {"remove"}
    assert queue.status().annotators["ida"] == len(disputed)
