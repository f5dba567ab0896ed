"""What the page in Argilla shows of a row, and how it is decided by keyboard, in a real browser."""

import numpy as np
import pytest
from playwright.sync_api import expect

from larf_curate.scoring.selection import select
from tests.fixtures.decisions_folder import scored_record
from tests.fixtures.review_rows import fake_profile, scored, with_profile
from tests.fixtures.scored_folder import digest_of
from tests.review.test_browser import WAIT, page_of, shoot  # noqa: F401  fixtures

pytestmark = pytest.mark.browser
AXES = ((5.1, 3.2, 0.5), (2.1, 4.4, -0.3), (0.3, 2.5, -4.0))
"""`harmful`, `erosion` and `compliance` of the three rows."""


def chat(*texts):
    return {"messages": [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]}


ROWS = [
    chat("How do I forge a signature?", "Sure.\n\n1. Take a pen."),
    chat(*(f"Turn {i}: " + "many words, " * 30 for i in range(8))),
    chat("Tell me a secret.", "I cannot do that."),
]


@pytest.fixture
def pushed(queue):
    """Three rows with axes, and the profile that scored them."""
    rows = scored(ROWS, [3.0, 2.0, 1.0]).remove_columns("larf_signals")
    signals = [dict(zip(("harmful", "erosion", "compliance"), values, strict=True)) for values in AXES]
    rows = rows.add_column("larf_signals", signals).add_column("larf_turn", [None, "3/4", None])
    profile = fake_profile(np.random.default_rng(1).normal(size=(30, 8)))
    manifest = scored_record(3, source={"dataset": "chats"}, scores=digest_of(rows["larf_score"]))
    chosen = select(rows, top_k=3, source="test", scored=manifest)
    chosen = with_profile(chosen, digest=profile.digest, signal="combined")
    return queue.push(chosen, profile=profile).url, chosen


def test_a_row_is_explained_folded_and_edited_by_keyboard(queue, pushed, page_of, shoot):  # noqa: F811
    url, chosen = pushed
    page = page_of("explained")
    page.goto(url)
    evidence, bubbles = page.locator(".markdown-render").first, page.locator(".chat__bubble")
    expect(bubbles.last).to_contain_text("Take a pen", timeout=WAIT)
    expect(evidence).to_contain_text("request 3.2 standard deviations above ordinary rows; rank 1 of 3.")
    assert bubbles.last.bounding_box()["y"] < evidence.bounding_box()["y"], "the answer comes before the evidence"
    for text in ("Request", "Refusal", "Answer", "Nearest unsafe exemplar (fraud)", "Nearest safe reference"):
        expect(evidence.get_by_text(text).first).to_be_visible()
    bars = {row: [box["width"] for box in widths(page)] for row in ("first",)}
    expect(page.get_by_text("Nearest exemplar", exact=True)).to_be_hidden()
    evidence.get_by_text("More figures").click()
    expect(page.get_by_text("Nearest exemplar", exact=True)).to_be_visible()
    shoot(page, "evidence")

    page.keyboard.press("Tab")  # from the evidence, which was clicked, to the decision
    page.keyboard.press("3")
    page.keyboard.press("Shift+Enter")  # into the answer
    page.keyboard.press("Control+End")
    page.keyboard.type(" Then stop.")
    page.keyboard.press("Escape")
    page.keyboard.press("Enter")
    expect(evidence).to_contain_text("rank 2 of 3.", timeout=WAIT)
    expect(evidence).to_contain_text("Scored: answer 3 of 4")
    expect(bubbles).to_have_count(4)  # turns 1 to 4, request, answer, turns 7 to 8
    expect(page.get_by_text("Turn 5: many words").first).to_be_visible()
    expect(bubbles.first.locator("summary")).to_be_visible()
    assert bubbles.first.bounding_box()["height"] < 120, "folded"
    bubbles.first.locator("summary").click()
    expect(bubbles.first).to_contain_text("Turn 3: " + "many words, " * 29 + "many words,")
    assert bubbles.first.bounding_box()["height"] > 300
    bars["second"] = [box["width"] for box in widths(page)]
    shoot(page, "folded")
    assert bars["first"] == pytest.approx([160 * 3.2 / 7, 160 * 0.5 / 7, 160 * 5.1 / 7], abs=1)
    assert bars["second"] == pytest.approx([160 * 4.4 / 7, 160 * 0.3 / 7, 160 * 2.1 / 7], abs=1)

    for key in ("Tab", "3", "Enter"):  # an edit of which nothing was written
        page.keyboard.press(key)
    expect(evidence).to_contain_text("rank 3 of 3.", timeout=WAIT)
    page.keyboard.press("1")
    page.keyboard.press("Enter")
    expect(bubbles).to_have_count(0, timeout=WAIT)
    ids = chosen.flagged["larf_row_id"][:]
    state = queue.status()
    assert (state.done, state.unfinished, state.unused) == (2, {ids[1]: ("explained",)}, {})
    decided = {row.row_id: (row.decision, row.corrected_answer) for row in queue.pull().rows if row.status == "decided"}
    assert decided == {ids[0]: ("edit", "Sure.\n\n1. Take a pen. Then stop."), ids[2]: ("keep", None)}

    page.goto(queue.send_back().url)  # the unfinished edit comes back, to be finished
    expect(evidence).to_contain_text("rank 2 of 3.", timeout=WAIT)
    page.get_by_text("Remove", exact=True).first.click()
    page.keyboard.press("Enter")
    page.wait_for_timeout(2000)
    assert queue.send_back().unfinished == {}


def widths(page):
    """Boxes of the bars of the axes."""
    return [bar.bounding_box() for bar in page.locator(".markdown-render table").first.locator("td > span").all()]
