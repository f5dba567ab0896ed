from itertools import groupby

import pytest
from datasets import Dataset

from larf_curate.conversation.training_rows import training_rows
from larf_curate.errors import ConversationError, InputError
from tests.fixtures.tiny import byte_tokenizer
from tests.fixtures.training_rows import ROWS, tiny_rows

TOKENIZER = byte_tokenizer()


def test_rows_that_are_left_out_and_columns_that_are_not_there_are_said(caplog):
    table = Dataset.from_list([{"question": "a", "answer": text} for text in ("fine", "", None, "x" * 99)])
    assert len(training_rows(table, byte_tokenizer(), max_length=64)) == 2
    assert "2 of 4 rows are left out (first: " in caplog.text
    with pytest.raises(ConversationError, match="nope"):
        training_rows(table, byte_tokenizer(), columns={"user": "nope", "assistant": "answer"})
    with pytest.raises(InputError, match=r"none of 1 rows has an assistant answer .*first: "):
        training_rows(table.select([1]), byte_tokenizer())


def test_only_answers_are_learned_with_their_end_of_turn():
    rows = training_rows(tiny_rows(), TOKENIZER)
    for row, source in zip(rows, ROWS, strict=True):
        learned = [token for token in row["labels"] if token != -100]
        assert TOKENIZER.decode(learned) == source["output"] + "<|im_end|>\n"
        assert row["labels"][: len(row["labels"]) - len(learned)] == [-100] * (len(row["labels"]) - len(learned))


def test_every_answer_of_a_conversation_is_learned_and_nothing_between_them():
    chat = [
        ("system", "Be kind."),
        ("user", "One?"),
        ("assistant", "1"),
        ("user", "Two?"),
        ("assistant", "2, of course"),
    ]
    turns = [{"role": role, "content": content} for role, content in chat]
    (row,) = training_rows(Dataset.from_list([{"messages": turns}]), TOKENIZER)
    assert row["input_ids"] == TOKENIZER.apply_chat_template(turns, tokenize=True, return_dict=False)
    pairs = zip(row["input_ids"], row["labels"], strict=True)
    runs = [(label, [token for token, _ in run]) for label, run in groupby(pairs, lambda pair: pair[0] == pair[1])]
    assert [TOKENIZER.decode(ids) for learned, ids in runs if learned] == ["1<|im_end|>\n", "2, of course<|im_end|>\n"]
    assert {label for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != token} == {-100}


def test_rows_without_an_answer_in_the_window_are_left_out():
    rows = Dataset.from_list([{"instruction": "w" * 99, "output": "b"}, {"instruction": "a", "output": "b" * 99}])
    short = training_rows(rows, TOKENIZER, max_length=64)
    assert [len(ids) for ids in short["input_ids"]] == [64]
    with pytest.raises(InputError, match="none of 2 rows"):
        training_rows(rows, TOKENIZER, max_length=8)
