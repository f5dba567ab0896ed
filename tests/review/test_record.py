import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics.pairwise import cosine_similarity

from larf_curate.review.records.evidence import Context, Nearest, evidence, learned_block, with_learned
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.nearest import nearest_safe
from larf_curate.review.records.push import BATCH_BYTES, json_batches
from larf_curate.review.records.record import (
    ANSWER_DIGEST,
    CONTENT_DIGEST,
    RECORD_DIGEST,
    RecordMaker,
    answer_digest,
    chat_field,
    shown_turns,
)
from larf_curate.review.records.scale import Scale
from tests.fixtures.review_rows import HOSTILE, fake_profile, questions, scored, selection


def shown_messages(row, columns=None):
    """What the page shows of a row: the messages, with their HTML read."""
    messages = chat_field(shown_turns(row, columns))
    assert within_limits(messages)
    assert not any("<" in message["content"] for message in messages)
    return [message | {"content": html.unescape(message["content"])} for message in messages]


def within_limits(conversation):
    """What the server checks."""
    return (
        1 <= len(conversation) <= 500
        and all(1 <= len(m["role"]) <= 20 and 1 <= len(m["content"]) <= 20_000 for m in conversation)
        and not re.search("[\ud800-\udfff]", json.dumps(conversation, ensure_ascii=False))  # what UTF-8 cannot hold
    )


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_the_conversation_is_shown_exactly(text):
    shown = shown_messages({"question": text, "answer": text})
    for role in ("user", "assistant"):
        assert "".join(m["content"] for m in shown if m["role"].split()[0] == role) == text


@pytest.mark.parametrize(
    "row",
    [
        {"question": None, "answer": None},
        {"question": "q", "answer": ""},
        {"messages": []},
        {"messages": [{"role": "system", "content": "only a system turn"}]},
        {"messages": [{"role": "wizard\0" * 30, "content": "x\ud800"}]},
        {"messages": {"role": "not a list"}},
        {"unknown": {"deep": [1, None, "\ud800"]}},
        {},
    ],
)
def test_a_row_that_is_no_conversation_is_shown_as_json(row):
    shown = shown_messages(row)
    assert [m["role"] for m in shown] == ["row"]
    assert list(json.loads(shown[0]["content"])) == list(row)


def test_thousands_of_turns_and_huge_turns_stay_within_the_limits():
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": f"turn {i}"} for i in range(3000)]
    shown = shown_messages({"messages": turns})
    assert (shown[0]["content"], shown[-1]["content"]) == ("turn 0", "turn 2999")
    assert any("2,600 messages not shown" in m["content"] for m in shown)
    huge = shown_messages({"messages": [turn | {"content": "<&x" * 10_000} for turn in turns]})
    assert sum(len(m["content"]) for m in huge) < 300_000


def test_all_of_many_turns_is_shown_while_there_is_room():
    turns = [{"role": "assistant", "content": "x" * (3000 if i == 7 else 10)} for i in range(400)]
    assert [m["content"] for m in shown_messages({"messages": turns})] == [t["content"] for t in turns]


def test_named_columns_are_read():
    row = {"q": "ask", "a": "reply"}
    assert [m["content"] for m in shown_messages(row, {"user": "q", "assistant": "a"})] == ["ask", "reply"]


def test_a_record_has_the_id_metadata_and_digests():
    row = selection().flagged[1]
    record = RecordMaker(layers=[9, 14], signal="larf", split="train")(row)
    metadata = record["metadata"]
    assert record["external_id"] == row["larf_row_id"]
    assert metadata["larf_score"] == row["larf_score"]
    assert metadata["percentile"] == pytest.approx(80.0)
    assert (metadata["signal"], metadata["split"], metadata["status"]) == ("larf", "train", "ok")
    assert metadata["length"] == len(row["question"]) + len(row["answer"])


def test_digests_tell_a_changed_score_from_a_changed_content():
    row = selection().flagged[0]
    first = RecordMaker()(row)["metadata"]
    rescored = RecordMaker()(row | {"larf_score": 0.25})["metadata"]
    rewritten = RecordMaker()(row | {"answer": "other"})["metadata"]
    assert RecordMaker()(dict(row))["metadata"] == first
    assert rescored[CONTENT_DIGEST] == first[CONTENT_DIGEST]
    assert len({first[RECORD_DIGEST], rescored[RECORD_DIGEST], rewritten[RECORD_DIGEST]}) == 3
    assert rewritten[CONTENT_DIGEST] != first[CONTENT_DIGEST]


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_row_without_a_score_says_so_and_sends_no_number(score):
    row = selection().flagged[0] | {"larf_score": score, "larf_percentile": score, "larf_status": "non_finite"}
    record = RecordMaker()(row)
    assert "larf_score" not in record["metadata"]
    assert "Not scored" in record["fields"]["evidence"]
    json.dumps(record, allow_nan=False)


def test_a_record_has_its_vector_and_another_digest_with_another_vector():
    row = selection().flagged[0]
    vectors = [np.array(values, np.float32) for values in ([0.6, 0.8], [0.8, 0.6], [0, 0])]
    first, second, none = (RecordMaker(vectors={row["larf_row_id"]: vector})(row) for vector in vectors)
    assert first["vectors"] == {"state": [0.6, 0.8]}
    assert first["metadata"][RECORD_DIGEST] != second["metadata"][RECORD_DIGEST]
    assert "vectors" not in none
    assert "vectors" not in RecordMaker(vectors={"another": vectors[0]})(row)


MADE_TAGS = {"table", "thead", "tbody", "tr", "th", "td", "span", "div", "b", "p", "code", "details", "summary"}


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_foreign_text_in_the_evidence_is_only_text(text):
    neighbor = {"id": text, "label": text, "cosine": 0.5}
    row = selection().flagged[0] | {"larf_reason": text, "larf_neighbors": [neighbor], "larf_status": text}
    kept = Nearest(title=text, text=text, cosine=0.5)
    context = Context(exemplars={text: text}, kept=kept, signal=text, turn=text)
    page = Tags(evidence(row | {"larf_signals": {text: 1.0, "b": 2.0}}, context))
    assert page.tags <= MADE_TAGS
    assert page.attributes <= {"style", "open"}


def test_the_evidence_shows_score_layers_signals_and_neighbors():
    row = selection().flagged[0] | {"larf_reason": "score 1 is at least 0.6"}
    page = evidence(row, Context(layers=[9, 14], exemplars={"fraud-01": "How to forge a *cheque*?"}))
    shown = Tags(page)
    assert page.startswith("**The highest score of its dataset&#46;**\n\nScore **1.000** · percentile **100.0**\n\n")
    for part in ("score 1 is at least 0", "9", "14", "+1.000", "-0.500", "refusal", "fraud", "0.900"):
        assert part in html.unescape(shown.text)
    assert "How to forge a *cheque*?" in html.unescape(shown.text)


def test_the_axes_are_shown_in_words_and_can_be_filtered_by():
    row = selection().flagged[0] | {"larf_signals": {"harmful": 2.4, "erosion": 4.25, "compliance": -2.0}}
    record = RecordMaker()(row)
    shown = html.unescape(record["fields"]["evidence"])
    said = "Harmful request, refused, answer like the unsafe references: request 4.2 standard deviations above ordinary"
    assert shown.startswith(f"**{said} rows.**")
    cells = re.findall(r"<td[^>]*>(.*?)</td>", record["fields"]["evidence"])
    figures = dict(zip(cells[0:12:4], cells[2:12:4], strict=True))
    assert figures == {"<b>Request</b>": "+4.2", "<b>Refusal</b>": "+2.0", "<b>Answer</b>": "+2.4"}
    assert record["metadata"]["in_words"] == "harmful request, refused, answer like the unsafe references"


def test_nothing_is_said_in_words_without_axes():
    record = RecordMaker()(selection().flagged[0])
    assert "in_words" not in record["metadata"]
    assert not re.search("request|answered|refused", record["fields"]["evidence"])


def test_the_evidence_of_a_bare_row_is_short_and_not_empty():
    assert "Not scored" in evidence({})


def test_batches_hold_every_record_in_order_within_both_limits():
    make = RecordMaker()
    rows = scored(questions(1203)).add_column("larf_row_id", [f"r{i}" for i in range(1203)])
    batches = list(json_batches(make(row) for row in rows))
    assert [len(batch) for batch in batches] == [500, 500, 203]
    assert [row_id for batch in batches for row_id, _ in batch] == list(rows["larf_row_id"])
    big = {"external_id": "x", "fields": {"conversation": "y" * (BATCH_BYTES // 3)}}
    assert [len(batch) for batch in json_batches([big] * 5)] == [2, 2, 1]


def tokens(*weighed):
    return {"larf_tokens": [{"text": text, "weight": weight} for text, weight in weighed]}


def test_tokens_are_shaded_by_their_pull_and_stay_text():
    page = evidence(tokens((" Sure", 2.0), (",", 0.01), (" <b>", -1.0), ("\n", 0.0), ("x", float("nan"))))
    shown = Tags(page)
    assert "Sure, <b> x" in html.unescape(shown.text)
    assert page.count("background:rgba(194,65,12,0.60)") == 1
    assert page.count("background:rgba(15,118,110,0.30)") == 1
    assert "b" not in shown.tags
    assert "Tokens" not in evidence({})
    assert "Tokens" not in evidence(tokens(("a", 0.0), ("b", None)))


def test_of_a_long_row_the_tokens_that_pulled_most_are_shown():
    words = [(f" t{i}", 1.0 if 800 <= i < 900 else 0.001) for i in range(2000)]
    text = html.unescape(Tags(evidence(tokens(*words))).text)
    assert {f"t{i}" for i in range(800, 900)} < set(text.split())
    assert len(text.split()) < 340
    assert text.count("…") == 2


@pytest.mark.parametrize("text", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_tokens_are_only_text(text):
    page = Tags(evidence(tokens((text, 1.0), (text, -1.0))))
    assert page.tags <= MADE_TAGS
    assert page.attributes <= {"style", "open"}


def test_a_text_that_reads_differently_than_it_looks_is_named():
    def explained(answer):
        return RecordMaker()(selection([{"question": "q", "answer": answer}], flagged=1).flagged[0])["fields"][
            "evidence"
        ]

    assert "Careful" in explained("\u202elive\u202c")
    assert not any("Careful" in explained(text) for text in ("plain", "שלום עולם", "\u2067isolated\u2069", "a\u200fb"))


def widths(page):
    return [int(width) for width in re.findall(r"width:(\d+)px", page)]


def test_bars_of_two_rows_are_on_one_scale_and_what_exceeds_it_is_marked():
    small, large = ({"larf_layer_scores": [value, value / 2]} for value in (2.11, 5.11))
    scale = Scale.of(Dataset.from_list([small, large]))
    assert scale.layers == 7.0
    shown = [widths(evidence(row, Context(scale=scale))) for row in (small, large)]
    assert shown == [[48, 24], [117, 58]], "160 pixels for 7"
    beyond = evidence({"larf_layer_scores": [7.5, 7.0]}, Context(scale=scale))
    assert (widths(beyond), beyond.count("▶")) == ([160, 160], 1)


def test_the_scale_is_no_smaller_than_any_value_and_leaves_less_than_half_empty():
    for value in (1e-3, 0.07, 1.0, 1.01, 2.11, 9.99, 1234.5):
        scale = Scale.of(Dataset.from_list([{"larf_layer_scores": [-value, None]}])).layers
        assert value <= scale <= 2 * value
    assert Scale.of(Dataset.from_list([{"larf_layer_scores": None}])) == Scale()


def test_what_was_learned_is_replaced_and_taken_away_again():
    shown = evidence({"larf_score": 1.0})
    once = with_learned(shown, "learned score **2.0**")
    assert once.splitlines()[2] == "**After people's decisions:** learned score **2.0**"
    assert with_learned(once, "other").count("After people's decisions") == 1
    assert learned_block(once) == "learned score **2.0**"
    assert with_learned(once, "") == shown


def test_the_nearest_exemplar_is_beside_the_nearest_row_that_is_fine():
    near = [{"id": "a", "label": "fraud", "cosine": 0.3}, {"id": "b", "label": "theft", "cosine": 0.9}]
    kept = Nearest(title="safe reference", text="May I? → No, sorry.", cosine=0.25)
    page = html.unescape(evidence({"larf_neighbors": near}, Context(exemplars={"b": "How?"}, kept=kept)))
    table = page.split("\n\n")[1]
    assert re.findall(r"<th .*?>(.*?)</th>", table) == [
        "Nearest unsafe exemplar (theft), cosine 0.900",
        "Nearest safe reference, cosine 0.250",
    ]
    assert re.findall(r"<td[^>]*>(.*?)</td>", table) == ["How?", "May I? → No, sorry."]
    alone = evidence({"larf_neighbors": near}).split("\n\n")[1]
    assert "safe reference" not in alone
    assert "Nearest unsafe" in alone


def test_the_nearest_safe_reference_is_found_as_by_plain_cosines():
    rng = np.random.default_rng(3)
    profile = fake_profile(4 + rng.normal(size=(30, 8)))
    rows = FlaggedRows.read(selection(questions(40), flagged=25).flagged)
    found = nearest_safe(rows, profile, [f"text {n}" for n in range(10)])
    safe, neutral = (profile.states[side]["last"][:, 0] for side in ("safe", "neutral"))
    want = cosine_similarity(rows.states - neutral.mean(0), safe - neutral.mean(0))
    assert [found[row].text for row in rows.ids] == [f"text {n}" for n in want.argmax(1)]
    np.testing.assert_allclose([found[row].cosine for row in rows.ids], want.max(1), atol=1e-5)
    assert nearest_safe(rows, None, []) == {}
    assert nearest_safe(rows, profile, [])[rows.ids[0]].text.startswith("number ")


def test_the_answer_is_suggested_and_told_from_a_correction():
    row = selection().flagged[0]
    record = RecordMaker(answer_question="q")(row)
    assert [(one["question_id"], one["value"]) for one in record["suggestions"]] == [("q", row["answer"])]
    assert record["metadata"][ANSWER_DIGEST] == answer_digest(f" {row['answer']}\r\n")
    assert record["metadata"][ANSWER_DIGEST] != answer_digest(row["answer"] + "!")
    for none in ({"answer": " "}, {"answer": "x" * 200_001}, {"answer": None}):
        bare = RecordMaker(answer_question="q")(row | none)
        assert "suggestions" not in bare
        assert ANSWER_DIGEST not in bare["metadata"]
