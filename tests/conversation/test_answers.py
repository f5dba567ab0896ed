import json

import pytest

from larf_curate.conversation.answers import answer, replace_answer
from larf_curate.errors import ConversationError

CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
SHAREGPT = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
ROWS = {
    "messages": {"messages": CHAT},
    "messages as a JSON text": {"messages": json.dumps(CHAT)},
    "messages of JSON texts": {"messages": [json.dumps(message) for message in CHAT]},
    "messages as a dict of lists": {"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}},
    "parts": {"messages": [CHAT[0], {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]},
    "ShareGPT": {"conversations": SHAREGPT, "tools": "[]"},
    "a text": {"prompt": "Q", "response": "A"},
    "a chat after a text": {"prompt": "Q", "chosen": CHAT, "rejected": CHAT},
    "inputs": {"inputs": "Q", "targets": "A"},
}


@pytest.mark.parametrize("name", ROWS)
def test_the_answer_is_replaced_in_the_form_that_the_row_has(name):
    changed = replace_answer(ROWS[name], "B")
    assert answer(ROWS[name]) == "A"
    assert answer(changed) == "B"
    [column] = [key for key in changed if changed[key] != ROWS[name][key]]
    assert type(changed[column]) is type(ROWS[name][column])


def test_roles_that_the_user_names_are_known():
    row = {"conversations": [{"from": "asker", "value": "Q"}, {"from": "helper", "value": "A"}]}
    changed = replace_answer(row, "B", {"role:asker": "user", "role:helper": "assistant"})
    assert changed["conversations"][1] == {"from": "helper", "value": "B"}


def test_an_answer_that_cannot_be_stored_is_refused():
    with pytest.raises(ConversationError, match="cannot store|edit the row"):
        replace_answer({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": ""}, "B")
