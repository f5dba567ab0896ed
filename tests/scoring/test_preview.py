import json

import pytest
from datasets import Dataset

from larf_curate.conversation.chat_template import Renderer
from larf_curate.errors import ConversationError, InputError
from larf_curate.scoring.preview import PreviewRows, count_rows, preview_row
from tests.fixtures.review_rows import HOSTILE, scored
from tests.fixtures.scored_folder import write_scored
from tests.fixtures.tiny import bpe_tokenizer

TOKENIZER = bpe_tokenizer()
CHATS = [
    [("user", "How do I bake bread?"), ("assistant", "Sure, here is a recipe.")],
    [("user", "Hi"), ("assistant", "No"), ("user", "Why?"), ("assistant", "日本 🧨"), ("user", "bye")],
    [("user", "Anybody?")],
    [("user", "Hi"), ("wizard", "Hello")],
    [("user", "x " * 300), ("assistant", "Yes")],
]
ROWS = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in CHATS]


def previewed(rows, index=0, max_length=64, columns=None):
    return preview_row(PreviewRows(rows=Dataset.from_list(rows)), index, Renderer(TOKENIZER, max_length, columns))


@pytest.mark.parametrize("index", [0, 1, 4])
def test_ids_text_and_learned_tokens_are_those_of_transformers(index):
    template = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    )
    want = TOKENIZER.apply_chat_template(
        ROWS[index]["messages"], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
    )
    shown = previewed(ROWS, index).as_json()
    assert shown["ids"] == want["input_ids"]
    assert shown["text"] == TOKENIZER.apply_chat_template(ROWS[index]["messages"], tokenize=False)
    assert shown["learned"] == [bool(value) for value in want["assistant_masks"]]
    answers = [text + "<|im_end|>\n" for role, text in CHATS[index] if role == "assistant"]
    assert [shown["text"][a:b] for a, b in (turn["characters"] for turn in shown["turns"])] == answers
    tokens = previewed(ROWS, index).tokens()
    assert "".join(token.text for token in tokens) == shown["text"]
    assert [sum(shown["learned"][a:b]) for a, b in (turn["tokens"] for turn in shown["turns"])] == [
        len(TOKENIZER(answer)["input_ids"]) for answer in answers
    ]


@pytest.mark.parametrize("index", [0, 1, 4])
def test_the_tokens_that_are_read_are_those_that_are_scored(index):
    view = previewed(ROWS, index).inspection
    [rendered] = Renderer(TOKENIZER, 64)([ROWS[index]])
    assert [id for start, end in view.read for id in view.ids[start:end]] == rendered.tokens.ids
    assert view.rendered == rendered
    assert view.rendered.status == ("truncated" if index == 4 else "ok")


def test_an_answer_that_a_flag_excludes_is_shown_but_not_learned():
    chat = [{"role": "user", "content": "Hi", "weight": None}, {"role": "assistant", "content": "Skip", "weight": 0}]
    chat += [{"role": "user", "content": "Hi", "weight": None}, {"role": "assistant", "content": "Take", "weight": 1}]
    shown = previewed([{"messages": chat}])
    parts = {part: "".join(t.text for t in shown.tokens() if t.part == part) for part in ("learned", "not learned")}
    assert parts == {"learned": "Take<|im_end|>\n", "not learned": "Skip<|im_end|>\n"}
    assert [turn["learned"] for turn in shown.as_json()["turns"]] == [False, True]


def test_hostile_rows_keep_their_text():
    for text in HOSTILE.values():
        shown = previewed([{"prompt": text, "response": text}], max_length=4096)
        assert "".join(token.text for token in shown.tokens()) == shown.inspection.text
        json.dumps(shown.as_json())


def test_counts_name_the_first_row_and_reason_of_each_status_and_what_is_not_read():
    rows = [row | {"instruction": "x", "tools": None, "id": 1} for row in ROWS]
    counts = count_rows(PreviewRows(rows=Dataset.from_list(rows)), Renderer(TOKENIZER, 64))
    assert counts.rows == 5
    by_status = {found.status: found for found in counts.statuses}
    assert {name: (found.rows, found.first_row) for name, found in by_status.items()} == {
        "ok": (2, 0),
        "empty": (1, 2),
        "malformed": (1, 3),
        "truncated": (1, 4),
    }
    assert "wizard" in by_status["malformed"].reason
    assert "64" in by_status["truncated"].reason
    lengths = sorted(len(previewed(ROWS, index).inspection.ids) for index in (0, 1, 4))
    assert (counts.median_tokens, counts.max_tokens) == (lengths[1], lengths[2])
    assert counts.columns == ("messages", "tools")
    assert counts.unused_columns == ("instruction",)


def test_rows_of_one_status_are_counted_by_reason():
    roles = ["assistant", "wizard", "witch", "wizard"]
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": role, "content": "Yes"}]} for role in roles]
    rows += [{"messages": [{"role": "assistant", "content": "word " * length}]} for length in (100, 200)]
    counts = count_rows(PreviewRows(rows=Dataset.from_list(rows)), Renderer(TOKENIZER, 64))
    found = [(count.status, count.rows, count.first_row) for count in counts.statuses]
    assert sorted(found) == [("malformed", 1, 2), ("malformed", 2, 1), ("ok", 1, 0), ("truncated", 2, 4)]
    assert [count.rows for count in counts.statuses] == [2, 2, 1, 1]
    assert {count.first_row: word for count in counts.statuses for word in roles if repr(word) in count.reason} == {
        1: "wizard",
        2: "witch",
    }


def test_what_the_template_leaves_out_is_counted():
    tools = [{"type": "function", "function": {"name": "look", "description": "", "parameters": {}}}]
    counts = count_rows(
        PreviewRows(rows=Dataset.from_list([row | {"tools": json.dumps(tools)} for row in ROWS])),
        Renderer(TOKENIZER, 64),
    )
    assert counts.left_out == ("tools",)


def test_rows_of_result_folders_are_found_by_index_or_id_with_their_columns(tmp_path):
    data = scored([{"q": f"Q{i}", "a": f"A{i}"} for i in range(4)])
    columns = {"user": "q", "assistant": "a"}
    folder = write_scored(tmp_path / "scored", data, source={"columns": columns})
    rows = PreviewRows.open(str(folder))
    assert rows.columns == columns
    assert rows.find("2") == 2
    assert preview_row(rows, 2, Renderer(TOKENIZER, 64, rows.columns)).inspection.rendered.status == "ok"
    with pytest.raises(InputError, match="below 4"):
        rows.find("4")
    with pytest.raises(InputError, match="larf_row_id"):
        rows.find("x")
    (folder / "manifest.json").rename(folder / "plan.json")
    with pytest.raises(InputError, match="is not finished: continue with larf-curate score --resume"):
        PreviewRows.open(str(folder))
    named = PreviewRows(rows=Dataset.from_list([{"text": "a", "larf_row_id": "1"}, {"text": "b", "larf_row_id": "0"}]))
    assert [named.find(row) for row in ("0", "1")] == [1, 0]


def test_rows_without_a_known_format_are_refused():
    with pytest.raises(ConversationError, match="no known conversation format"):
        previewed([{"x": "1"}])
