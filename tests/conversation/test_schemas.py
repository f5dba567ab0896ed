import json

import pytest
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st

from larf_curate.conversation.answers import replace_answer
from larf_curate.conversation.messages import EmptyConversationError, is_learned, role_name
from larf_curate.conversation.schemas import (
    check_columns,
    columns_of_side,
    detect_schema,
    to_conversation,
    to_messages,
    unused_columns,
    with_separator,
)
from larf_curate.errors import ConversationError

ASKED = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
WITH_INPUT = [{"role": "user", "content": "Q\nI"}, {"role": "assistant", "content": "A"}]
FORMATS = {
    "messages": ({"messages": ASKED}, ASKED),
    "messages, extra columns": ({"messages": ASKED, "prompt": "other", "text": "other"}, ASKED),
    "messages as a dict of lists": ({"messages": {"role": ["user", "assistant"], "content": ["Q", "A"]}}, ASKED),
    "messages of JSON text": ({"messages": ['{"role": "user", "content": "Q"}', ASKED[1]]}, ASKED),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, ASKED),
    "ShareGPT as a dict of lists": ({"conversations": {"from": ["human", "gpt"], "value": ["Q", "A"]}}, ASKED),
    "ShareGPT with role and content": ({"conversations": ASKED}, ASKED),
    "messages with both spellings": (
        {"messages": [{"role": None, "content": None, "from": "human", "value": "Q"}, ASKED[1]]},
        ASKED,
    ),
    "prompt and completion": ({"prompt": "Q", "completion": "A"}, ASKED),
    "prompt and completion, chats": ({"prompt": ASKED[:1], "completion": ASKED[1:]}, ASKED),
    "prompt and chosen": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, ASKED),
    "prompt and chosen, whole chats": ({"prompt": ASKED[:1], "chosen": ASKED}, ASKED),
    "prompt as text, chosen as a chat": ({"prompt": "Q", "chosen": ASKED, "rejected": "B"}, ASKED),
    "prompt and response": ({"prompt": "Q", "response": "A"}, ASKED),
    "Alpaca": ({"instruction": "Q", "input": "I", "output": "A"}, WITH_INPUT),
    "Alpaca, empty input": ({"instruction": "Q", "input": "", "output": "A"}, ASKED),
    "Alpaca, null input": ({"instruction": "Q", "input": None, "output": "A"}, ASKED),
    "Alpaca without input": ({"instruction": "Q", "output": "A"}, ASKED),
    "Alpaca with system": (
        {"instruction": "Q", "output": "A", "system": "S"},
        [{"role": "system", "content": "S"}, *ASKED],
    ),
    "Dolly": ({"instruction": "Q", "context": "I", "response": "A", "category": "x"}, WITH_INPUT),
    "Dolly, empty context": ({"instruction": "Q", "context": "", "response": "A"}, ASKED),
    "Alpaca with history": (
        {"instruction": "Q", "output": "A", "history": [["q", "a"]]},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, *ASKED],
    ),
    "ShareGPT with a system column": (
        {"conversations": ASKED, "system": "S"},
        [{"role": "system", "content": "S"}, *ASKED],
    ),
    "a system column beside a system message": (
        {"messages": [{"role": "system", "content": "S"}, *ASKED], "system_prompt": "other"},
        [{"role": "system", "content": "S"}, *ASKED],
    ),
    "question and response": ({"system_prompt": "", "question": "Q", "response": "A"}, ASKED),
    "inputs and targets": ({"inputs": "Q", "targets": "A"}, ASKED),
    "a conversation": ({"conversation": ASKED}, ASKED),
    "messages of JSON text as a whole": ({"messages": json.dumps(ASKED)}, ASKED),
    "chosen with its prompt": ({"chosen": ASKED, "rejected": ASKED}, ASKED),
    "chosen as a dialog of text": ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": ""}, ASKED),
    "parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ASKED[1]]}, ASKED),
    "a number": ({"question": "Q", "answer": 4}, [ASKED[0], {"role": "assistant", "content": "4"}]),
    "GSM8K": ({"question": "Q", "answer": "A"}, ASKED),
    "text": ({"text": "Q and A"}, [{"role": "assistant", "content": "Q and A"}]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_row_format_becomes_messages(name):
    row, want = FORMATS[name]
    assert to_messages(row) == want


@pytest.mark.parametrize("name", [name for name in FORMATS if "JSON" not in name and name != "parts"])
def test_every_row_format_is_read_alike_after_arrow(name):
    row, want = FORMATS[name]
    assert to_messages(Dataset.from_list([row])[0]) == want


@pytest.mark.parametrize(
    ("columns", "row", "want"),
    [
        ({"user": "q", "assistant": "a"}, {"q": "Q", "a": "A", "messages": "-"}, ASKED),
        ({"assistant": "a", "user": "q"}, {"q": "Q", "a": "A"}, ASKED),
        ({"assistant": "a"}, {"a": "A"}, ASKED[1:]),
        (
            {"system": "s", "user": "q", "assistant": "a"},
            {"s": "S", "q": "Q", "a": "A"},
            [{"role": "system", "content": "S"}, *ASKED],
        ),
        ({"system": "s", "user": "q", "assistant": "a"}, {"s": None, "q": "Q", "a": "A"}, ASKED),
        ({"messages": "m"}, {"m": ASKED, "text": "-"}, ASKED),
        ({"text": "t"}, {"t": "whole"}, [{"role": "assistant", "content": "whole"}]),
    ],
)
def test_told_columns_win_over_detection(columns, row, want):
    assert to_messages(row, columns) == want


def test_only_text_rows_are_taken_as_already_rendered():
    assert to_conversation({"text": "raw"}).text == "raw"
    assert to_conversation({"t": "raw"}, {"text": "t"}).text == "raw"
    assert to_conversation({"messages": ASKED}).text is None
    assert to_conversation({"a": "A"}, {"assistant": "a"}).text is None


@pytest.mark.parametrize(
    ("given_role", "want"),
    [
        ("human", "user"),
        ("User", "user"),
        ("GPT", "assistant"),
        ("model", "assistant"),
        ("bot", "assistant"),
        ("chatgpt", "assistant"),
        ("developer", "system"),
        ("observation", "tool"),
        ("function", "tool"),
    ],
)
def test_roles_of_other_conventions_are_known(given_role, want):
    messages = to_messages({"messages": [{"role": given_role, "content": "x"}, ASKED[1]]})
    assert (messages[0]["role"], messages[0]["content"]) == (want, "x")


def test_tool_calls_and_names_are_kept_for_the_template():
    call = {"type": "function", "function": {"name": "bake", "arguments": {"loaves": 2}}}
    messages = [
        {"role": "user", "content": "Bake", "name": "Ann", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call], "tool_call_id": None},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]
    assert to_messages({"messages": messages}) == [
        {"role": "user", "content": "Bake", "name": "Ann"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "done", "tool_call_id": "1"},
    ]


def test_lists_of_text_parts_are_joined():
    parts = [{"type": "text", "text": "Hello "}, "there", {"type": "text", "text": "."}]
    row = {"messages": [{"role": "user", "content": parts}, ASKED[1]]}
    assert to_messages(row)[0]["content"] == "Hello there."


EMPTY = {
    "None": None,
    "no messages": {"messages": []},
    "null messages": {"messages": None},
    "only a system turn": {"messages": [{"role": "system", "content": "S"}]},
    "only a user turn": {"messages": ASKED[:1]},
    "a blank answer": {"messages": [ASKED[0], {"role": "assistant", "content": " \n\t"}]},
    "null content": {"messages": [ASKED[0], {"role": "assistant", "content": None}]},
    "null answer": {"question": "Q", "answer": None},
    "null prompt": {"prompt": None, "completion": "A"},
    "null instruction": {"instruction": None, "input": None, "output": "A"},
    "null text": {"text": None},
    "roles without content": {"messages": {"role": ["user"]}},
    "blank text": {"text": "  "},
}


@pytest.mark.parametrize("name", EMPTY)
def test_rows_without_an_answer_are_empty(name):
    with pytest.raises(EmptyConversationError):
        to_conversation(EMPTY[name])


MALFORMED = {
    "a list as row": [ASKED],
    "a number as messages": {"messages": 3},
    "text as messages": {"messages": "hello"},
    "a dict where a list should be": {"messages": {"role": "user", "content": "Q"}},
    "an empty dict": {"messages": {}},
    "a dict of unequal lists": {"messages": {"role": ["user"], "content": ["Q", "A"]}},
    "a number as message": {"messages": [1, 2]},
    "text that is not JSON as message": {"messages": ["hello"]},
    "a null message": {"messages": [None]},
    "an unknown role": {"messages": [{"role": "wizard", "content": "x"}]},
    "no role": {"messages": [{"content": "x"}]},
    "a number as role": {"messages": [{"role": 1, "content": "x"}]},
    "a dict as content": {"messages": [{"role": "user", "content": {"text": "x"}}]},
    "an unknown part": {"messages": [{"role": "user", "content": [{"type": "shape", "url": "x"}]}, ASKED[1]]},
    "a dict as answer": {"question": "Q", "answer": {"a": 1}},
    "a list of texts as answer": {"question": "Q", "answer": ["A", "B"]},
    "unknown columns": {"a": 1, "b": 2},
    "no columns": {},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_rows_that_are_no_conversation_are_malformed_and_say_why(name):
    with pytest.raises(ConversationError, match="wanted") as error:
        to_conversation(MALFORMED[name])
    assert not isinstance(error.value, EmptyConversationError)
    assert len(str(error.value)) < 600
    assert "\n" not in str(error.value)


def test_nul_and_control_characters_are_kept():
    text = "a\x00b\x1b[31m\u202e\uffff"
    assert to_messages({"question": text, "answer": text})[1]["content"] == text


def test_lone_surrogates_are_replaced_and_pairs_joined():
    messages = to_messages({"question": "a\ud800b", "answer": "\ud83d\ude00 \udc00"})
    assert [m["content"] for m in messages] == ["a\ufffdb", "\U0001f600 \ufffd"]


def test_a_hostile_row_is_not_quoted_at_length():
    with pytest.raises(ConversationError) as error:
        to_conversation({"messages": [{"role": "x" * 100_000, "content": "y"}]})
    assert len(str(error.value)) < 400


def test_the_columns_of_an_unknown_format_are_named():
    with pytest.raises(ConversationError, match=r"\['a', 'b'\].*messages.*--columns"):
        detect_schema(["b", "a"])


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"user": "q", "assistant": "x"}, r"\['x'\] are not in the dataset"),
        ({"user": "q"}, "must name the assistant"),
        ({"user": "q", "wizard": "a"}, r"unknown roles.*wizard"),
    ],
)
def test_told_columns_are_checked(columns, wanted):
    with pytest.raises(ConversationError, match=wanted):
        check_columns(["q", "a"], columns)


def test_told_columns_that_exist_pass():
    check_columns(["q", "a", "b"], {"user": "q", "assistant": "a"})


VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "assistant", "from"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "tool_calls"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


ROLES = st.sampled_from(["user", "assistant", "gpt", "system", "tool", "wizard"])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=5) | VALUES}), max_size=4)
COLUMNS = st.sampled_from(["messages", "conversations", "prompt", "completion", "text"])


def test_any_row_is_read_or_refused_with_our_own_error():
    read, refused = [], []

    @example({"messages": ASKED})
    @example({"messages": 3})
    @given(st.dictionaries(COLUMNS, VALUES | TURNS | st.text(max_size=5), max_size=3))
    def check(row):
        try:
            messages = to_messages(row)
        except ConversationError as error:
            refused.append(error)
            return
        read.append(messages)
        assert all(isinstance(message["content"], str) for message in messages)
        assert {message["role"] for message in messages} <= {"user", "assistant", "system", "tool"}
        assert any(message["role"] == "assistant" for message in messages)

    check()
    assert read
    assert refused


ROLE_NAMES = {
    "system": ["System", "developer", "system_prompt"],
    "user": ["human", "Prompter", "USER", "Human 2", "<|user|>", "User:"],
    "assistant": [
        *("gpt", "GPT-4", "gpt-4o", "gpt-3.5-turbo", "GPT4-mini", "chatgpt-4o-latest", "ChatGPT", "model", "bot"),
        *("assistant_1", "function_call", "tool-call", "functionCall", "[ASSISTANT]"),
    ],
    "tool": ["observation", "function", "tool_response", "functionResponse", "ipython", "tool-1"],
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in ROLE_NAMES.items() for name in names])
def test_roles_by_their_usual_names(role, name):
    assert role_name(name) == role


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_text_row_is_told_as_such(text):
    with pytest.raises(EmptyConversationError, match="wanted text, got none"):
        to_messages({"text": text})


@pytest.mark.parametrize("name", ["", "4", "gpt-user", "userassistant", "x gpt 4", None, 4])
def test_other_names_of_roles_are_unknown(name):
    with pytest.raises(ConversationError, match="unknown role"):
        role_name(name)


def test_a_role_of_ones_own_is_named_by_the_user():
    row = {"conversations": [{"from": "narrator", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    with pytest.raises(ConversationError, match="role:NAME"):
        to_messages(row)
    assert to_messages(row, {"role:narrator": "user"}) == ASKED
    with pytest.raises(ConversationError, match="unknown roles"):
        check_columns(row, {"role:narrator": "wizard"})


def test_arguments_of_the_template_are_read():
    tool = {"type": "function", "function": {"name": "look", "parameters": None}}
    row = {"messages": ASKED, "tools": json.dumps([tool]), "documents": ["D"], "chat_template_kwargs": {"x": 1}}
    found = to_conversation(row).arguments
    assert found["tools"] == [tool]  # with what is None, which TRL passes on too
    assert found["documents"] == [{"text": "D"}]
    assert found["x"] == 1


@pytest.mark.parametrize("tools", ["{", "text", 3, {"a": 1}, ["not JSON"]])
def test_tools_that_are_none_make_the_row_malformed(tools):
    with pytest.raises(ConversationError, match="column tools"):
        to_conversation({"messages": ASKED, "tools": tools})


def test_turns_that_are_not_learned_are_marked():
    for key in ("weight", "train", "loss"):
        chat = [*ASKED, ASKED[0], {**ASKED[1], key: 0}]
        assert [is_learned(message) for message in to_messages({"messages": chat})] == [False, True, False, False]
    prompt = {"prompt": [*ASKED, ASKED[0]], "completion": [ASKED[1]]}
    assert [is_learned(message) for message in to_messages(prompt)] == [False, False, False, True]


def test_columns_that_look_used_but_are_not_are_named():
    assert unused_columns(["messages", "images", "prompt", "id"]) == ["images", "prompt"]
    assert unused_columns(["instruction", "input", "output", "history", "tools"]) == []
    assert unused_columns(["q", "a", "question"], {"user": "q", "assistant": "a"}) == ["question"]


def test_either_side_of_preference_data():
    assert columns_of_side(["prompt", "chosen", "rejected"], "rejected") == {"user": "prompt", "assistant": "rejected"}
    implicit = columns_of_side(["chosen", "rejected"], "rejected")
    assert to_messages({"chosen": [], "rejected": ASKED}, implicit) == ASKED
    with pytest.raises(ConversationError, match="rejected"):
        columns_of_side(["prompt", "chosen"], "rejected")


@pytest.mark.parametrize(("flag", "learned"), [("0", False), ("false", False), (0.0, False), ("1", True), (True, True)])
def test_flags_of_messages_may_be_text(flag, learned):
    [_, answer] = to_messages({"messages": [ASKED[0], {**ASKED[1], "weight": flag}]})
    assert is_learned(answer) == learned


def test_a_flag_that_says_neither_yes_nor_no_is_malformed():
    with pytest.raises(ConversationError, match="weight of a message"):
        to_messages({"messages": [ASKED[0], {**ASKED[1], "weight": "maybe"}]})


def test_keys_of_messages_that_are_no_text_are_read():
    assert to_messages({"messages": [{**ASKED[0], 1: 2}, ASKED[1]]})[1] == ASKED[1]


@pytest.mark.parametrize(("extra", "answer"), [("input", "output"), ("context", "response")])
def test_another_separator_gives_the_prompt_that_is_trained_with_it(extra, answer):
    row = {"instruction": "Q", extra: "I", answer: "A"}
    columns = {"input_separator": "\n\nInput: "}
    assert to_messages(row, columns)[0] == {"role": "user", "content": "Q\n\nInput: I"}
    assert to_messages(row | {extra: ""}, columns)[0] == {"role": "user", "content": "Q"}
    assert to_messages(row)[0]["content"] == "Q\nI"
    check_columns(row, columns)


def test_a_separator_that_is_not_the_profiles_is_refused():
    assert with_separator(None, None) is None
    assert with_separator({"user": "q"}, "\n") == {"user": "q"}
    assert with_separator({"input_separator": " "}, " ") == {"input_separator": " "}
    for columns, separator in (({"input_separator": " "}, None), ({"input_separator": "\n"}, " ")):
        with pytest.raises(ConversationError, match="wanted the input separator of the profile"):
            with_separator(columns, separator)


def test_a_message_without_content_is_read_as_one_of_calls_or_a_thought():
    call = {"type": "function", "function": {"name": "bake", "arguments": {}}}
    for key, value in (("tool_calls", [call]), ("reasoning_content", "Hm."), ("function_call", {"name": "bake"})):
        want = {"role": "assistant", "content": "", key: value}
        assert to_messages({"messages": [ASKED[0], {"role": "assistant", key: value}]}) == [ASKED[0], want]


def test_text_under_another_key_than_content_is_named():
    row = {"messages": [{"role": "prompter", "text": "Q", "lang": "en"}, {"role": "assistant", "text": "A"}]}
    with pytest.raises(ConversationError, match="text of the user turn under content or value, got it under text") as e:
        to_messages(row)
    assert not isinstance(e.value, EmptyConversationError)


def test_text_beside_other_columns_is_named_as_not_read():
    assert unused_columns(["instruction", "input", "output", "text"]) == ["text"]
    assert unused_columns(["messages", "text"]) == ["text"]
    assert unused_columns(["text"]) == []


def test_arguments_in_chat_template_kwargs_come_before_columns_as_in_trl():
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("one", "two")]
    row = {"messages": ASKED, "tools": tools[0]}
    assert to_conversation(row | {"chat_template_kwargs": {"x": 1}}).arguments["tools"] == tools[0]
    assert to_conversation(row | {"chat_template_kwargs": {"tools": tools[1]}}).arguments["tools"] == tools[1]
    assert to_conversation(row | {"chat_template_kwargs": {"tools": None}}).arguments["tools"] is None


def test_a_single_message_as_answer_beside_conversations_is_named_and_can_be_read():
    sharegpt = [{"from": "human", "value": "Q"}]
    row = {
        "conversations": sharegpt,
        "chosen": {"from": "gpt", "value": "A"},
        "rejected": {"from": "gpt", "value": "B"},
    }
    with pytest.raises(EmptyConversationError, match="--columns user=conversations,assistant=chosen"):
        to_messages(row)
    for side, answer in (("chosen", "A"), ("rejected", "B")):
        columns = {"user": "conversations", "assistant": side}
        assert to_messages(row, columns) == [ASKED[0], {"role": "assistant", "content": answer}]
        assert replace_answer(row, "C", columns) == row | {side: {"from": "gpt", "value": "C"}}
    with pytest.raises(EmptyConversationError, match="nothing to score"):
        to_messages({"conversations": sharegpt, "chosen": None})


SYSTEM = {"role": "system", "content": "S"}
AGAIN = [{"role": "user", "content": "R"}, {"role": "assistant", "content": "B"}]


@pytest.mark.parametrize(
    ("prompt", "chosen", "want", "learned"),
    [
        ("Q", [SYSTEM, *ASKED], [SYSTEM, *ASKED], [2]),
        ("R", [*ASKED, *AGAIN], [*ASKED, *AGAIN], [3]),
        ("Q", [*ASKED, *AGAIN], [*ASKED, *AGAIN], [1, 3]),
        ("Q\n", ASKED, ASKED, [1]),
        ("Q", [ASKED[0] | {"name": "x"}, ASKED[1]], [ASKED[0] | {"name": "x"}, ASKED[1]], [1]),
        ([SYSTEM, ASKED[0]], ASKED, [SYSTEM, *ASKED], [2]),
        ([*ASKED, AGAIN[0]], AGAIN, [*ASKED, *AGAIN], [3]),
        # a continuation, not a repetition
        ("Q", [*AGAIN[1:], *ASKED], [ASKED[0], AGAIN[1], *ASKED], [1, 3]),
        ([SYSTEM], ASKED, [SYSTEM, *ASKED], [2]),
        (ASKED, ASKED[1:], [*ASKED, ASKED[1]], [2]),
    ],
)
def test_a_prompt_that_chosen_holds_is_read_once(prompt, chosen, want, learned):
    messages = to_messages({"prompt": prompt, "chosen": chosen, "rejected": chosen})
    assert [{key: value for key, value in message.items() if key != "learned"} for message in messages] == want
    assert [index for index, message in enumerate(messages) if is_learned(message)] == learned


@pytest.mark.parametrize("value", ["on", "Off", True, {"effort": "low"}, ["low"]])
@pytest.mark.parametrize("column", ["reasoning", "thinking", "reasoning_content"])
def test_a_switch_of_thinking_is_no_thought(column, value):
    conversation = to_conversation({"messages": ASKED, column: value})
    assert conversation.messages == ASKED
    assert set(conversation.ignored) == {column}
    thought = to_conversation({"messages": ASKED, column: "Switch it on."})
    assert (thought.messages[1][column], thought.ignored) == ("Switch it on.", {})


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"question": "Q", "chosen": "A", "rejected": "B"}, r"prompt's column too \(--columns user=…,assistant=…\)"),
        ({"conversations": ["Q", "A"]}, "wanted a message with role and content, or from and value, got str 'Q'"),
        ({"conversation": [{"input": "Q", "output": "A"}]}, r"got one with the keys \['input', 'output'\]: convert it"),
        ({"messages": [{"role": "USER", "message": "Q"}]}, "under content or value, got it under message: rename"),
        ({"messages": [{"role": "user", "parts": [{"text": "Q"}]}]}, "got it under parts: rename"),
    ],
)
def test_formats_that_are_not_read_say_what_to_do(row, wanted):
    with pytest.raises(ConversationError, match=wanted) as error:
        to_conversation(row)
    assert not isinstance(error.value, EmptyConversationError)
