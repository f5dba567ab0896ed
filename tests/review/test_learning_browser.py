"""What reviewers see in a real browser after the ranking has learned: a new order, proposals alone, conflicts again."""

import pytest
from playwright.sync_api import expect

from larf_curate.review import ReviewQueue
from tests.review.test_browser import WAIT, page_of, shoot  # noqa: F401  fixtures
from tests.review.test_learning import decide, mixed, worst_first

pytestmark = pytest.mark.browser


@pytest.fixture
def queue(argilla_server):
    server = {"url": argilla_server.url, "api_key": argilla_server.api_key}
    with ReviewQueue("learning-browser", min_submitted=2, **server) as made:
        yield made


def test_a_reviewer_sees_the_new_order_the_proposed_rows_alone_and_their_conflicts_again(
    queue,
    page_of,  # noqa: F811
    shoot,  # noqa: F811
    argilla_server,
):
    page = page_of("first")
    keys = [argilla_server.add_user(name).api_key for name in ("first", "second")]
    chosen, truth = mixed(60, 30)
    answers = dict(zip(chosen.flagged["larf_row_id"], chosen.flagged["answer"], strict=True))
    queue.push(chosen)
    ids = list(answers)
    for key in keys:
        decide(queue, truth, ids[:14], key)
    decide(queue, {ids[3]: not truth[ids[3]]}, ids[3:4], keys[1])  # the second changes their mind
    shown, count = page.locator(".chat__bubble").last, page.get_by_text("1 of ").first

    learned = queue.rerank(chosen)
    first = worst_first(queue)[0]
    assert first != ids[14]
    page.goto(learned.url)
    expect(shown).to_have_text(answers[first], timeout=WAIT)
    expect(count).to_contain_text("1 of 16")
    shoot(page, "learned-order")

    proposed = queue.propose(chosen, by="different", n=3)
    page.goto(proposed.url)
    expect(count).to_contain_text("1 of 3", timeout=WAIT)
    shoot(page, "proposed")

    sent = queue.send_back()
    assert set(sent.votes) == {ids[3]}
    page.goto(sent.url)
    expect(shown).to_have_text(answers[ids[3]], timeout=WAIT)
    expect(count).to_contain_text("1 of 1")
    shoot(page, "conflict")
    other = "keep" if truth[ids[3]] else "remove"
    page.get_by_text(other.capitalize(), exact=True).first.click()
    page.keyboard.press("Enter")
    page.wait_for_timeout(2000)
    assert queue.send_back().votes == {}
    assert {row.row_id: row.decision for row in queue.pull().rows}[ids[3]] == other
