"""Conversations of several turns open at the answer that has the score, and all their text stays on the page."""

import html
import re

import pytest

from larf_curate.review.records.excerpt import row_texts
from larf_curate.review.records.folding import is_folded, scored_answer
from larf_curate.review.records.record import RecordMaker, chat_field, shown_turns
from tests.fixtures.review_rows import HOSTILE, selection

TAGS = {"<details>", "</details>", "<summary>", "</summary>", "<b>", "</b>"}


def unfolded(content):
    """The texts that a reader of a message sees, once it is unfolded."""
    if not is_folded(content):
        return [html.unescape(content)]
    inside = content.partition("</summary>")[2].removesuffix("</details>")
    return [html.unescape(text.removesuffix("\n\n")) for text in re.split(r"<b>[^<]*</b>\n", inside)[1:]]


def chat(*texts):
    return {"messages": [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]}


LONG = chat(*(f"turn {i} " + "of many words <b>&x " * 30 for i in range(14)))


def test_the_page_opens_at_the_scored_exchange_and_no_text_is_lost():
    row = selection([LONG], flagged=1).flagged[0] | {"larf_turn": "5/7"}
    record = RecordMaker()(row)
    contents = [message["content"] for message in record["fields"]["conversation"]]
    roles = [message["role"] for message in record["fields"]["conversation"]]
    assert roles == ["turns 1–8", "user", "assistant", "turns 11–14"]
    assert [is_folded(content) for content in contents] == [True, False, False, True]
    texts = [text for content in contents for text in unfolded(content)]
    assert texts == [message["content"] for message in LONG["messages"]]
    said = html.unescape(record["fields"]["evidence"]).split("\n\n")[1]
    assert said.startswith("Scored: answer 5 of 7, “turn 9 of many words")
    assert "to “turn 8 of many words" in said
    assert said.endswith("An edit replaces answer 7, not this one")  # its box has the last answer
    shown = row_texts([record], {record["external_id"]})[record["external_id"]]
    assert shown.startswith("turn 8 of many words <b>&x")
    assert "details" not in shown


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, ""),
        ({"larf_turn": None, "larf_status": "ok"}, ""),
        ({"larf_turn": "nonsense", "larf_status": "ok"}, ""),
        ({"larf_turn": "2/3", "larf_status": "ok"}, "The score is that of answer 2 of the 3 that are scored."),
        ({"larf_turn": "2/7", "larf_status": "truncated"}, "The score is that of answer 2 of the 7 that are scored."),
    ],
)
def test_nothing_is_folded_where_it_is_not_certain_which_answer_was_scored(row, said):
    turns = shown_turns(LONG, None)
    found = scored_answer(row, turns)
    assert (found.index, found.said) == (None, said)
    assert not any("<" in message["content"] for message in chat_field(turns, found.index))


def test_short_turns_stay_open():
    turns = shown_turns(chat("Hi", "Hello", "How?", "So."), None)
    assert not any("<" in message["content"] for message in chat_field(turns, 3))


def test_outputs_of_tools_between_request_and_answer_stay_open():
    turns = [
        ("user", "x" * 500),
        ("assistant", "y"),
        ("user", "How?"),
        ("assistant", "{}"),
        ("tool", "z"),
        ("assistant", "So."),
    ]
    assert [message["role"] for message in chat_field(turns, 5)] == [
        "turns 1–2",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_folded_texts_are_only_text_and_within_the_limits(text):
    turns = [("user", text * 20), ("assistant", text * 10), ("user", "How?"), ("assistant", "So.")]
    messages = chat_field(turns, 3) if len(text) > 20 else chat_field([(role, text * 20) for role, text in turns], 3)
    assert all(len(message["content"]) <= 20_000 and 1 <= len(message["role"]) <= 20 for message in messages)
    before = [m["content"] for m in messages if is_folded(m["content"])]
    assert {tag for content in before for tag in re.findall("<[^>]*>", content)} <= TAGS
    assert "".join(text for content in before for text in unfolded(content)).startswith(text * 20)


@pytest.mark.parametrize("number", [1, 2, 100, 101, 150, 151, 225, 300, 349, 350, 400, 449, 450])
def test_the_scored_answer_of_a_very_long_conversation_is_shown(number):
    turns = [(role, f"{role} {n}") for n in range(1, 451) for role in ("user", "assistant")]
    messages = [{"role": role, "content": text} for role, text in turns]
    row = {"messages": messages, "larf_status": "ok", "larf_turn": f"{number}/450"}
    shown = shown_turns(row, None)
    assert ("assistant", f"assistant {number}") in shown
    assert ("user", f"user {number}") in shown
    assert [turn for turn in shown if turn[0] != "note"] == [turn for turn in turns if turn in set(shown)]
    assert shown[0] == turns[0]
    assert shown[-1] == turns[-1]
    omitted = sum(int(text.split()[1].replace(",", "")) for role, text in shown if role == "note")
    assert omitted == len(turns) - sum(role != "note" for role, _ in shown) == 500
