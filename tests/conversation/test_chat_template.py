import json
from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from larf_curate.conversation import chat_template, templates
from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.templates import template_digest
from larf_curate.conversation.truncation import Tokens, Turn, truncate
from larf_curate.errors import ModelError
from tests.fixtures.tiny import CHATML, bpe_tokenizer

PREFIXED = "{{ bos_token }}" + CHATML
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKLESS = (
    "{% for m in messages %}{% if m.role == 'assistant' %} A: {{ m.content }}{% else %} Q: {{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %} A: {% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}" + CHATML
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
NO_THOUGHTS = (  # as Qwen3: thoughts of earlier answers are left out, the last answer always has some
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% if loop.last %}<think>\n{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[0].split('<think>')[-1].strip('\n') }}{% endif %}{{ '\n</think>\n\n' }}{% endif %}"
    "{{ answer }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<call>{{ c | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "ChatML": CHATML,
    "begin of text": PREFIXED,
    "trimming": TRIMMING,
    "no end mark": MARKLESS,
    "default system": DEFAULT_SYSTEM,
    "tools": TOOLS,
}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": " How do I bake bread? "},
    {"role": "assistant", "content": "Sure, here is a recipe. 😀"},
    {"role": "user", "content": "And cake?"},
    {"role": "assistant", "content": "\n I cannot help with that äöü😀"},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Sorry."},
]


def tokenizer_with(template):
    tokenizer = bpe_tokenizer(template)
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def render(tokenizer, rows, max_length=100_000, columns=None):
    return Renderer(tokenizer, max_length, columns)(rows)


def ids_of(tokenizer, messages, **options):
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_the_tokenizers_own_chat_template(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    chats = [CHAT, CHAT[1:], CHAT[:3], CHAT[1:3]]
    for chat, item in zip(chats, render(tokenizer, [{"messages": chat} for chat in chats]), strict=True):
        assert item.status == "ok"
        assert item.tokens.ids == ids_of(tokenizer, chat)


def test_ids_of_a_real_chat_model_are_those_of_its_own_template(smol):
    tokenizer = AutoTokenizer.from_pretrained(smol)
    chat = [message | {"content": message["content"].strip()} for message in CHAT]  # "\n\n" is one token
    (item,) = render(tokenizer, [{"messages": chat}])
    assert item.tokens.ids == ids_of(tokenizer, chat)
    assert_turns_end_where_the_prefixes_end(tokenizer, chat, item.tokens)


def assert_turns_end_where_the_prefixes_end(tokenizer, chat, tokens):
    answers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    assert len(tokens.turns) == len(answers)
    for turn, answer in zip(tokens.turns, answers, strict=True):
        until = ids_of(tokenizer, chat[: answer + 1])
        prompt = ids_of(tokenizer, chat[:answer], add_generation_prompt=True)
        assert tokens.ids[: turn.end + 1] == until, "the turn ends as the conversation would, had it ended there"
        assert tokens.ids[: turn.start] == prompt, "the answer starts behind the prompt that asks for it"


@pytest.mark.parametrize("name", ["ChatML", "begin of text", "default system", "tools"])
def test_turns_lie_where_renderings_of_the_conversations_beginnings_end(name):
    tokenizer = tokenizer_with(TEMPLATES[name])
    for chat in (CHAT, CHAT[1:], CHAT[:3]):
        (item,) = render(tokenizer, [{"messages": chat}])
        assert_turns_end_where_the_prefixes_end(tokenizer, chat, item.tokens)


def texts_of_turns(tokenizer, tokens):
    return [tokenizer.decode(tokens.ids[turn.start : turn.end + 1]) for turn in tokens.turns]


def test_turns_are_found_where_the_template_trims_the_texts():
    tokenizer = tokenizer_with(TRIMMING)
    (item,) = render(tokenizer, [{"messages": CHAT}])
    answers = [m["content"].strip() + "<|im_end|>\n" for m in CHAT if m["role"] == "assistant"]
    assert texts_of_turns(tokenizer, item.tokens) == answers


def test_a_turn_without_end_mark_ends_with_the_last_token_of_its_last_character():
    tokenizer = tokenizer_with(MARKLESS)
    (item,) = render(tokenizer, [{"messages": CHAT}])
    answers = [m["content"] for m in CHAT if m["role"] == "assistant"]
    assert [text.strip() for text in texts_of_turns(tokenizer, item.tokens)] == [text.strip() for text in answers]


def test_a_template_that_drops_thoughts_of_earlier_answers_gives_every_turn_as_it_is_shown():
    tokenizer = tokenizer_with(NO_THOUGHTS)
    chat = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nOne."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\nTwo."},
    ]
    (item,) = render(tokenizer, [{"messages": chat}])
    assert item.tokens.ids == ids_of(tokenizer, chat)
    assert texts_of_turns(tokenizer, item.tokens) == ["One.<|im_end|>\n", "<think>\nso\n</think>\n\nTwo.<|im_end|>\n"]


def test_a_template_that_adds_thoughts_to_the_last_answer_gives_every_plain_turn():
    tokenizer = tokenizer_with(NO_THOUGHTS)
    (item,) = render(tokenizer, [{"messages": CHAT[1:]}])
    assert item.tokens.ids == ids_of(tokenizer, CHAT[1:])
    last = texts_of_turns(tokenizer, item.tokens)[-1]
    assert last.endswith("Sorry.<|im_end|>\n")
    assert item.tokens.turns[-1].end == len(item.tokens.ids) - 1


def test_a_template_that_refuses_the_conversation_makes_the_row_malformed_with_its_words():
    tokenizer = tokenizer_with(NO_SYSTEM)
    refused, fine = render(tokenizer, [{"messages": CHAT[:3]}, {"messages": CHAT[1:3]}])
    assert refused.status == "malformed"
    assert "System role not supported" in refused.reason
    assert fine.status == "ok"


def test_tool_calls_reach_the_template_and_the_turn_holds_them():
    tokenizer = tokenizer_with(TOOLS)
    chat = [
        {"role": "user", "content": "Bake"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "oven", "arguments": {"t": 200}}]},
        {"role": "tool", "content": "hot"},
        {"role": "assistant", "content": "Done."},
    ]
    short, long = render(tokenizer, [{"messages": chat[:2]}, {"messages": chat}])
    assert short.tokens.ids == ids_of(tokenizer, chat[:2])
    assert '"oven"' in texts_of_turns(tokenizer, short.tokens)[-1]
    assert long.tokens.ids == ids_of(tokenizer, chat)
    assert texts_of_turns(tokenizer, long.tokens)[-1] == "Done.<|im_end|>\n"


CALL = {"name": "oven", "arguments": {"t": 200}}
ASKED = {"role": "user", "content": "Bake"}
NO_ANSWER = "{% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}{% else %}A{% endif %}\n{% endfor %}"
AFTER_THOUGHT = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")


@pytest.mark.parametrize(
    ("template", "answer", "left_out"),
    [
        (CHATML, {"content": None, "tool_calls": [CALL]}, "tool_calls"),
        (CHATML, {"content": "", "reasoning_content": "Hot."}, "reasoning_content"),
        (AFTER_THOUGHT, {"content": "<think>Hot.</think>"}, "its text"),
        (NO_ANSWER, {"content": "Done."}, "answer"),
        (NO_ANSWER, {"content": "Done.", "tool_calls": [CALL]}, "nothing of any"),
    ],
)
def test_an_answer_of_which_the_template_shows_nothing_is_unsupported(template, answer, left_out):
    tokenizer = tokenizer_with(template)
    hidden, fine = render(tokenizer, [{"messages": [ASKED, {"role": "assistant", **answer}]}, {"text": "Hi"}])
    assert (hidden.status, fine.status) == ("unsupported", "ok")
    assert left_out in hidden.reason


def test_an_answer_of_which_the_template_shows_a_part_is_scored():
    chats = [
        [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}],
        [ASKED, {"role": "assistant", "content": "<think>Hot.</think>Done."}],
        [
            ASKED,
            {"role": "assistant", "content": "", "reasoning_content": "x"},
            {"role": "assistant", "content": "Done."},
        ],
    ]
    for chat, template in zip(chats, (TOOLS, AFTER_THOUGHT, CHATML), strict=True):
        (item,) = render(tokenizer_with(template), [{"messages": chat}])
        assert item.status == "ok"


def test_learned_turns_without_content_are_empty_though_another_turn_has_some():
    chat = [ASKED, {"role": "assistant", "content": "No.", "weight": 0}, ASKED, {"role": "assistant", "content": " "}]
    (item,) = render(tokenizer_with(CHATML), [{"messages": chat}])
    assert item.status == "empty"
    assert "learned" in item.reason


def own_marks(block, *, others="{{ start + m.content + end }}"):
    """A ChatML template with marks of its own around what an assistant message has."""
    return (
        "{% for m in messages %}{% set start = '<|im_start|>' + m.role + '\n' %}{% set end = '<|im_end|>\n' %}"
        f"{{% if m.role == 'assistant' %}}{block}{{% else %}}{others}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


MARK, STOP = "{%- generation -%}", "{% endgeneration %}"
EVERY = MARK + "{{ start + m.content + end }}" + STOP
OWN_MARKS = {
    "no end": own_marks("{{ start }}" + MARK + "{{ m.content }}" + STOP + "{{ end }}"),
    "header": own_marks(EVERY),
    "last answer": own_marks("{% if loop.last %}" + EVERY + "{% else %}{{ start + m.content + end }}{% endif %}"),
    "two blocks": own_marks("{{ start }}" + MARK + "{{ m.content }}" + STOP + MARK + "{{ end }}" + STOP),
    "with a gap": own_marks(MARK + "{{ start }}" + STOP + "{{ m.content }}" + MARK + "{{ end }}" + STOP),
    "all roles": own_marks(EVERY, others=EVERY),
    "no thought": own_marks(
        "{{ start }}<think>{{ m.reasoning_content }}</think>" + MARK + "{{ m.content + end }}" + STOP
    ),
}


@pytest.mark.parametrize("name", OWN_MARKS)
def test_what_the_template_itself_marks_is_learned_to_the_token(name, caplog):
    tokenizer = tokenizer_with(OWN_MARKS[name])
    # Texts end with one token a character: in transformers 5.6 the mask has only the first of the last character.
    chat = [m | {"content": f"{m['content']}."} for m in CHAT]
    chat = [m | ({"reasoning_content": "Hm."} if m["role"] == "assistant" else {}) for m in chat]
    want = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    (item,) = render(tokenizer, [{"messages": chat}, {"messages": chat}])[:1]
    learned = {index for turn in item.tokens.turns for index in range(turn.start, turn.end + 1)}
    assert [index in learned for index in range(len(want["input_ids"]))] == [bool(m) for m in want["assistant_masks"]]
    assert item.tokens.ids == want["input_ids"][: len(item.tokens.ids)]
    turns = {"last answer": 1, "with a gap": 6, "all roles": len(CHAT)}
    assert len(item.tokens.turns) == turns.get(name, 3)
    told = [record.message for record in caplog.records if "{% generation %}" in record.message]
    assert len(told) == (name == "all roles")


@pytest.mark.parametrize("name", ["no end", "header", "two blocks", "with a gap", "all roles"])
def test_a_flag_excludes_what_the_template_marks_of_its_answer_alone(name):
    tokenizer = tokenizer_with(OWN_MARKS[name])
    flagged = [m | {"weight": 0} if m["content"] == "Sorry." else m for m in CHAT]
    whole, item = render(tokenizer, [{"messages": CHAT}, {"messages": flagged}])
    blocks = 2 if name == "with a gap" else 1
    assert item.tokens.turns == whole.tokens.turns[:-blocks]
    [view] = Renderer(tokenizer, 1000).inspect([{"messages": flagged}])
    assert len(view.others) == blocks
    assert min(view.others)[0] >= view.text.index("Why?")


def test_rows_of_which_the_template_marks_nothing_that_is_learned_are_unsupported():
    last = [CHAT[1], CHAT[2], CHAT[3], CHAT[4] | {"weight": 0}]
    never = tokenizer_with(own_marks("{{ start + m.content + end }}" + MARK + STOP))
    items = render(tokenizer_with(OWN_MARKS["last answer"]), [{"messages": last}])
    items += render(never, [{"messages": CHAT}])
    around = "{% generation %}" + CHATML + STOP
    items += render(tokenizer_with(around), [{"messages": last}])
    assert [item.status for item in items] == ["unsupported"] * 3
    assert all("{% generation %}" in item.reason for item in items)
    assert [item.status for item in render(tokenizer_with(around), [{"messages": CHAT}])] == ["ok"]


def test_answers_that_flags_exclude_are_counted_once_and_unread_flags_are_named(caplog):
    skipped = {"role": "assistant", "content": "Yes.", "weight": 0}
    said = {"role": "assistant", "content": "No.", "train": 1}
    row = {"messages": [ASKED, skipped, ASKED, said]}
    prompt = {"prompt": [ASKED, said, ASKED], "completion": [said]}
    renderer = Renderer(tokenizer_with(CHATML), 1000)
    renderer([prompt])
    assert not caplog.records
    renderer([row, row, {"messages": [ASKED, skipped]}])
    renderer([row])
    assert [record.args for record in caplog.records] == [(3,)]
    assert "TRL itself ignores" in caplog.records[0].message
    renderer([{"messages": [ASKED, said | {"trainable": False}]}] * 2)
    assert [record.message.split(":")[0] for record in caplog.records[1:]] == ["trainable"]


READING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if 'KEY' in m %}KEY: {{ m['KEY'] }}\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("key", ["weight", "train", "loss", "reasoning_content", "tool_calls", "function_call", "name"])
@pytest.mark.parametrize("value", [1, "", [], None])
def test_flags_and_empty_values_reach_a_template_that_reads_them(key, value):
    if key in ("weight", "train", "loss") and value is not None:
        value = 1
    tokenizer = tokenizer_with(READING.replace("KEY", key))
    chat = [{**message, key: value} for message in CHAT[1:3]]
    want = ids_of(tokenizer, CHAT[1:3] if value is None else chat)
    (item,) = render(tokenizer, [{"messages": chat}])
    assert item.tokens.ids == want
    assert (f"{key}:" in tokenizer.decode(want)) == (value is not None)


def test_empty_values_and_flags_that_are_not_read_say_nothing(caplog):
    chat = [CHAT[1], {**CHAT[2], "reasoning_content": "", "tool_calls": [], "weight": 1}]
    (item,) = render(tokenizer_with(CHATML), [{"messages": chat}])
    assert item.tokens.ids == ids_of(tokenizer_with(CHATML), CHAT[1:3])
    assert not caplog.records


def test_a_call_of_a_function_that_the_template_does_not_read_is_named(caplog):
    call = {"role": "assistant", "content": None, "function_call": {"name": "bake", "arguments": "{}"}}
    alone, answered = render(
        tokenizer_with(CHATML), [{"messages": [ASKED, call]}, {"messages": [ASKED, call, CHAT[2]]}]
    )
    assert (alone.status, answered.status) == ("unsupported", "ok")
    assert "function_call" in alone.reason
    assert [record.args for record in caplog.records] == [("function_call",)]


def test_names_of_roles_that_trl_gives_to_the_template_as_they_are_are_told_once(caplog):
    renderer = Renderer(tokenizer_with(CHATML), 1000, {"messages": "m", "role:narrator": "user"})
    turns = [
        ("human", "Hi?"),
        ("gpt", "Yes."),
        ("User", "So?"),
        ("assistant", "No."),
        ("narrator", "End."),
        ("gpt", "X"),
    ]
    sharegpt = {"m": [{"from": name, "value": text} for name, text in turns]}
    renderer([{"m": CHAT}, sharegpt, sharegpt])
    renderer([sharegpt, {"m": [{"role": "tool", "content": "x"}, *CHAT[:3], {"role": "Model", "content": "x"}]}])
    told = [record.args for record in caplog.records if "roles" in record.msg]
    assert told == [("User, gpt, human, narrator", "user, assistant, user, user"), ("Model", "assistant")]


def test_columns_from_which_trl_takes_what_is_learned_are_told_if_they_have_integers(caplog):
    renderer = Renderer(tokenizer_with(CHATML), 1000)
    row = {"messages": CHAT[1:3]}
    renderer([row | {"labels": 1}, row | {"labels": "safe"}, row | {"labels": ["safe"]}, row | {"assistant_masks": []}])
    assert not caplog.records
    renderer([row | {"labels": [1, -100]}, row | {"assistant_masks": [0, 1]}] * 2)
    renderer([row | {"labels": [1, -100]}])
    assert [record.args for record in caplog.records] == [("labels, assistant_masks",)]
    assert renderer.ignored_columns == ["assistant_masks", "labels"]


def test_arguments_for_the_tokenizer_are_not_told_as_left_out_by_the_template(caplog):
    row = {"messages": CHAT[1:3], "chat_template_kwargs": {"truncation": True, "padding": True}}
    renderer = Renderer(tokenizer_with(CHATML), 1000)
    renderer([row, row])
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "chat_template_kwargs: padding is not read",
        "chat_template_kwargs: truncation is not read",
    ]
    assert renderer.left_out == []


def test_columns_that_are_not_read_are_told_once_each_in_whichever_batch_they_have_values(caplog):
    tokenizer = tokenizer_with(CHATML)
    renderer = Renderer(tokenizer, 100)
    row = {"messages": CHAT[1:3], "images": None, "instruction": None}
    for changes in ({}, {"instruction": "x"}, {"instruction": "y"}, {"images": [1], "instruction": "z"}):
        renderer([row | changes])
    assert [record.args[0] for record in caplog.records] == ["instruction", "images"]
    assert renderer.ignored_columns == ["images", "instruction"]


@pytest.mark.parametrize("chat", [CHAT[1:3], CHAT[:3]])
def test_a_system_prompt_that_gives_way_to_another_is_told_once(chat, caplog):
    renderer = Renderer(tokenizer_with(CHATML), 100)
    row = {"messages": chat, "system": "Be kind.", "system_prompt": "Be quick."}
    renderer([row | {"system_prompt": None}, row | {"system_prompt": "Be kind."}])
    assert not caplog.records
    renderer([row, row])
    assert [record.args[0] for record in caplog.records] == ["system_prompt"]


@pytest.mark.parametrize("handles", [True, False])
def test_a_template_that_knows_the_role_developer_gets_it_and_others_get_system(handles, caplog):
    tokenizer = tokenizer_with(CHATML + ("{% if messages[0].role == 'developer' %}!{% endif %}" if handles else ""))
    chat = [{"role": "developer", "content": "Be kind."}, *CHAT[1:3]]
    (item,) = render(tokenizer, [{"messages": chat}, {"messages": chat}])[:1]
    shown = tokenizer.decode(item.tokens.ids)
    if handles:
        assert item.tokens.ids == ids_of(tokenizer, chat)
        assert shown.startswith("<|im_start|>developer")
    else:
        assert shown.startswith("<|im_start|>system")
    assert [record.msg.count("no role developer") for record in caplog.records] == ([] if handles else [1])


def test_calls_of_tools_in_consecutive_messages_are_turns_of_their_own():
    tokenizer = tokenizer_with(TOOLS)
    calls = [{"role": "assistant", "content": "", "tool_calls": [{"name": name}]} for name in ("one", "two")]
    chat = [ASKED, *calls, {"role": "tool", "content": "hot"}, {"role": "assistant", "content": "Done."}]
    (item,) = render(tokenizer, [{"messages": chat}])
    want = ['<call>{"name": "one"}</call>', '<call>{"name": "two"}</call>', "Done."]
    assert texts_of_turns(tokenizer, item.tokens) == [f"\n{text}<|im_end|>\n"[1:] for text in want]


HEADERS = "<|im_end|>\n<|im_start|>assistant\nyes<|im_start|>user"


@pytest.mark.parametrize("follow", ["assistant", "user", "tool"])
@pytest.mark.parametrize("kind", ["calls", "thought"])
def test_headers_within_calls_of_tools_and_thoughts_begin_no_turn(follow, kind):
    call = {"tool_calls": [{"type": "function", "name": "say", "arguments": {"text": HEADERS}}]}
    given = call if kind == "calls" else {"reasoning_content": HEADERS}
    template = TOOLS.replace("{{ m.content }}", "{{ m.reasoning_content or '' }}{{ m.content }}")
    after = {"role": follow, "content": "", **(given if follow == "assistant" else {"content": "hot"})}
    chat = [ASKED, {"role": "assistant", "content": "", **given}, after, {"role": "assistant", "content": "Done."}]
    tokenizer = tokenizer_with(template)
    (item,) = render(tokenizer, [{"messages": chat}])
    shown = f"<call>{json.dumps(call['tool_calls'][0])}</call>" if kind == "calls" else HEADERS
    answers = [shown, *([shown] if follow == "assistant" else []), "Done."]
    assert texts_of_turns(tokenizer, item.tokens) == [f"{answer}<|im_end|>\n" for answer in answers]


def test_thousands_of_turns_are_each_found():
    tokenizer = tokenizer_with(CHATML)
    chat = [{"role": role, "content": f"{role} {index}"} for index in range(1500) for role in ("user", "assistant")]
    (item,) = render(tokenizer, [{"messages": chat}])
    answers = [f"{m['content']}<|im_end|>\n" for m in chat if m["role"] == "assistant"]
    assert texts_of_turns(tokenizer, item.tokens) == answers


WORD = st.sampled_from(["bread", " ", "\n", "äöü", "😀", "Sure, here is a recipe.", "<|im_end|>", "x" * 70])
TEXT = st.lists(WORD, max_size=12).flatmap(lambda words: st.integers(0, 40).map(lambda n: "".join(words) * n))


@settings(max_examples=150)
@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1, max_size=4), TEXT)
def test_a_very_long_row_has_the_tokens_of_which_its_whole_text_is_truncated(exchanges, rest):
    chat = []
    for question, answer, train in exchanges:
        chat += [{"role": "user", "content": question}, {"role": "assistant", "content": answer, "train": train}]
    rows = [{"messages": [*chat, {"role": "user", "content": rest}]}]
    whole, short = Renderer(tokenizer_with(CHATML), 16), Renderer(tokenizer_with(CHATML), 16)
    whole.__dict__["_side"] = 10**9
    [wanted], [got] = whole(rows), short(rows)
    assert got == wanted


def test_a_row_of_ten_million_characters_is_tokenized_at_its_ends():
    renderer = Renderer(tokenizer_with(CHATML), 64)
    row = {"instruction": "Say it", "output": "word " * 2_000_000 + "the end"}
    [item] = renderer.inspect([row])
    assert item.rendered.status == "truncated"
    assert len(item.rendered.tokens.ids) == 64
    assert len(item.ids) < 10_000
    assert item.text.endswith("word the end<|im_end|>\n")


STOPPED = "{% for _ in range(1000) %}a{% endfor %}{{ raise_exception('went on') }}"


@pytest.mark.parametrize(
    ("endless", "words"),
    [
        ("{{ 'a' * 10**13 }}", "MemoryError"),
        ("{{ 'a' * 1000 }}", "at most 999"),
        (STOPPED, "at most 999"),
    ],
)
def test_a_template_that_writes_too_much_makes_the_row_malformed(endless, words, monkeypatch):
    monkeypatch.setattr(templates, "MAX_TEXT", 999)
    (item,) = render(tokenizer_with(CHATML + endless), [{"messages": CHAT}])
    assert item.status == "malformed"
    assert words in item.reason


def test_a_system_message_in_mid_conversation_is_part_of_no_turn():
    tokenizer = tokenizer_with(CHATML)
    chat = [*CHAT[1:3], {"role": "system", "content": "Be quick."}, *CHAT[3:5]]
    (item,) = render(tokenizer, [{"messages": chat}])
    assert item.tokens.ids == ids_of(tokenizer, chat)
    assert texts_of_turns(tokenizer, item.tokens) == [
        chat[1]["content"] + "<|im_end|>\n",
        chat[4]["content"] + "<|im_end|>\n",
    ]


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "add_generation_prompt", "continue_final_message"])
def test_arguments_that_say_what_is_returned_are_refused_for_the_row_alone(name):
    row = {"messages": CHAT[1:3], "chat_template_kwargs": {name: True}}
    refused, fine = render(tokenizer_with(CHATML), [row, {"messages": CHAT[1:3]}])
    assert (refused.status, fine.status) == ("malformed", "ok")
    assert name in refused.reason


@pytest.mark.parametrize("tools", [[], "[]"])
def test_an_empty_list_of_tools_reaches_the_template_as_such(tools):
    tokenizer = tokenizer_with("{% if tools is not none %}{{ tools | length }} tools {% endif %}" + CHATML)
    (item,) = render(tokenizer, [{"messages": CHAT[1:3], "tools": tools}])
    assert item.tokens.ids == ids_of(tokenizer, CHAT[1:3], tools=[])


def test_a_fixed_date_leaves_other_quotes_of_its_line_alone():
    line = """{{ "It's " ~ strftime_now('%d %B') ~ ' "now" ' ~ strftime_now("%Y") }}"""
    tokenizer = tokenizer_with(line + CHATML)
    (item,) = Renderer(tokenizer, 1000, day=date(2020, 2, 3))([{"messages": CHAT[1:3]}])
    assert tokenizer.decode(item.tokens.ids).startswith('It\'s 03 February "now" 2020<|im_start|>user')


@pytest.mark.parametrize("column", ["messages", "tools", "chat_template_kwargs", "documents"])
def test_deeply_nested_json_makes_the_row_malformed(column):
    nested = "[" * 100_000 + "]" * 100_000
    odd, fine = render(tokenizer_with(CHATML), [{"messages": CHAT[1:3], column: nested}, {"messages": CHAT[1:3]}])
    assert (odd.status, fine.status) == ("malformed", "ok")
    assert len(odd.reason) < 400


class Unprintable:
    def __repr__(self):
        raise ValueError("no text")


FOREIGN = [Unprintable(), np.array(["a", "b"]), np.array([]), np.array([Unprintable(), 1], dtype=object), {"k": {1}}]
PLACES = {
    "answer": lambda value: {"question": "q", "answer": value},
    "system": lambda value: {"question": "q", "answer": "a", "system": value},
    "messages": lambda value: {"messages": value},
    "message": lambda value: {"messages": [value, CHAT[2]]},
    "role": lambda value: {"messages": [{"role": value, "content": "a"}]},
    "part": lambda value: {"messages": [{"role": "assistant", "content": [{"type": "text", "text": value}]}]},
    "calls": lambda value: {"messages": [*CHAT[1:3], {"role": "assistant", "content": "a", "tool_calls": value}]},
    "tools": lambda value: {"messages": CHAT[1:3], "tools": value},
    "arguments": lambda value: {"messages": CHAT[1:3], "chat_template_kwargs": value},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", FOREIGN, ids=range(len(FOREIGN)))
def test_values_of_foreign_types_make_the_row_malformed_at_most(place, value):
    odd, fine = render(tokenizer_with(CHATML), [PLACES[place](value), {"messages": CHAT[1:3]}])
    assert odd.status in ("malformed", "ok")
    assert fine.status == "ok"
    if odd.status == "malformed":
        assert "\n" not in odd.reason


def test_the_type_of_a_foreign_value_is_named():
    (odd,) = render(tokenizer_with(CHATML), [PLACES["answer"](Unprintable())])
    assert (odd.status, "Unprintable" in odd.reason) == ("malformed", True)


def test_an_error_that_is_not_the_rows_is_raised(monkeypatch):
    monkeypatch.setattr(chat_template, "to_conversation", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        render(tokenizer_with(CHATML), [{"messages": CHAT[1:3]}])


def test_surrogates_in_tool_calls_are_replaced_and_do_not_stop_the_other_rows():
    calls = "{% for call in m.tool_calls or [] %}{{ call.name }}{% endfor %}"
    tokenizer = tokenizer_with("{% for m in messages %}{{ m.content }}" + calls + "{% endfor %}")
    chat = [{"role": "assistant", "content": "a", "tool_calls": [{"name": "x\ud800"}]}]
    odd, fine = render(tokenizer, [{"messages": chat}, {"question": "Q", "answer": "A"}])
    assert (odd.status, fine.status) == ("ok", "ok")
    assert tokenizer.decode(odd.tokens.ids) == "ax\N{REPLACEMENT CHARACTER}"


def test_what_follows_the_last_answer_is_left_out_as_nothing_is_read_there():
    tokenizer = tokenizer_with(CHATML)
    (item,) = render(tokenizer, [{"messages": [*CHAT, {"role": "user", "content": "and then " * 99}]}])
    assert item.tokens.ids == ids_of(tokenizer, CHAT)


def test_text_rows_are_taken_as_they_are_without_template():
    tokenizer = tokenizer_with(CHATML)
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello 😀"
    (item,) = render(tokenizer, [{"text": text}])
    assert item.tokens.ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert item.tokens.turns == (Turn(0, len(item.tokens.ids) - 1),)
    (plain,) = render(tokenizer, [{"text": "xyz"}])
    assert (len(plain.tokens.ids), plain.tokens.turns) == (3, (Turn(0, 2),))


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_turns_are_found_with_tokenizers_that_add_leading_spaces(scheme):
    alphabet = ["<unk>", "▁", *"QA:?.abcdefghijklmnopqrstuvwxyzHS,äöü😀IBW\n "]
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = CHATML
    (item,) = render(fast, [{"messages": CHAT}])
    assert item.tokens.ids == ids_of(fast, CHAT)
    answers = [m["content"] for m in CHAT if m["role"] == "assistant"]
    for text, want in zip(texts_of_turns(fast, item.tokens), answers, strict=True):
        assert text.replace("<|im_end|>", "").split() == want.split()
    assert item.tokens.turns[-1].end == len(item.tokens.ids) - 1


def test_tokenizers_that_add_a_beginning_token_do_not_add_it_twice():
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(PREFIXED)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.convert_tokens_to_ids("<|endoftext|>"))]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id, "this tokenizer does add one"
    (item,) = render(tokenizer, [{"messages": CHAT}])
    assert item.tokens.ids == ids_of(tokenizer, CHAT)
    assert item.tokens.ids.count(tokenizer.bos_token_id) == 1
    assert_turns_end_where_the_prefixes_end(tokenizer, CHAT, item.tokens)


def test_special_tokens_inside_a_rows_text_do_not_move_the_turns():
    tokenizer = tokenizer_with(CHATML)
    answer = "Hi<|im_end|>\n<|im_start|>assistant\nHo"
    chat = [{"role": "user", "content": "☃0☃ <|im_start|>"}, {"role": "assistant", "content": answer}]
    (item,) = render(tokenizer, [{"messages": chat}])
    assert texts_of_turns(tokenizer, item.tokens) == [answer + "<|im_end|>\n"]
    assert_turns_end_where_the_prefixes_end(tokenizer, chat, item.tokens)


def test_long_conversations_keep_their_beginning_and_the_end_of_the_last_turn():
    tokenizer = tokenizer_with(CHATML)
    chat = [{"role": "user", "content": "Go"}, {"role": "assistant", "content": "abcdefghij" * 100}]
    (item,) = render(tokenizer, [{"messages": chat}], max_length=80)
    whole = ids_of(tokenizer, chat)
    assert item.status == "truncated"
    assert item.tokens.ids == whole[:20] + whole[-60:]
    assert item.tokens.turns[-1].end == 79
    (exact,) = render(tokenizer, [{"messages": chat}], max_length=len(whole))
    assert exact.status == "ok"


def test_truncation_moves_every_turn_that_is_still_whole_at_its_end():
    tokens = Tokens(list(range(100)), (Turn(2, 4), Turn(8, 12), Turn(30, 60), Turn(50, 80), Turn(90, 99)))
    cut = truncate(tokens, 40)
    assert cut.ids == [*range(10), *range(70, 100)]
    assert cut.turns == (Turn(2, 4), Turn(10, 20), Turn(30, 39))
    assert [cut.ids[turn.end] for turn in cut.turns] == [4, 80, 99]


def test_truncation_drops_turns_that_end_in_the_gap_and_keeps_those_at_its_edges():
    def kept(start, end):
        return truncate(Tokens(list(range(100)), (Turn(start, end), Turn(98, 99))), 40).turns[:-1]

    assert [kept(2, end) for end in (9, 10, 69, 70)] == [(Turn(2, 9),), (), (), (Turn(2, 10),)]
    assert [kept(start, 75) for start in (9, 10, 69, 70, 71)] == [(Turn(start, 15),) for start in (9, 10, 10, 10, 11)]


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_truncation_to_a_few_tokens_keeps_the_last_one(length):
    cut = truncate(Tokens(list(range(50)), (Turn(3, 9), Turn(40, 49))), length)
    assert len(cut.ids) == length
    assert cut.ids[cut.turns[-1].end] == 49
    assert 0 <= cut.turns[-1].start <= cut.turns[-1].end


def test_every_row_has_its_result_in_its_place():
    tokenizer = tokenizer_with(CHATML)
    rows = [None, {"messages": CHAT}, {"a": 1}, {"messages": CHAT[:1]}, {"question": "Q", "answer": "A"}]
    found = render(tokenizer, rows)
    assert [item.status for item in found] == ["empty", "ok", "malformed", "empty", "ok"]
    assert all((item.tokens is None) == bool(item.reason) for item in found)


def test_a_hundred_thousand_tokens_are_rendered_and_cut():
    tokenizer = tokenizer_with(CHATML)
    answer = "".join(chr(33 + i % 90) for i in range(100_000))
    (item,) = render(tokenizer, [{"question": "Go", "answer": answer}], max_length=4096)
    assert item.status == "truncated"
    assert len(item.tokens.ids) == 4096


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=3),
    name=st.sampled_from(["ChatML", "trimming", "no end mark", "default system"]),
)
def test_any_text_gives_turns_in_order_that_end_with_the_conversation(texts, name):
    tokenizer = TOKENIZERS[name]
    chat = [m for t in texts for m in ({"role": "user", "content": t}, {"role": "assistant", "content": t + "x"})]
    (item,) = render(tokenizer, [{"messages": chat}])
    assert item.tokens.ids == ids_of(tokenizer, chat)
    assert item.tokens.turns[-1].end == len(item.tokens.ids) - 1
    positions = [position for turn in item.tokens.turns for position in (turn.start, turn.end)]
    assert positions == sorted(positions)
    assert len(item.tokens.turns) == len(texts)


TOKENIZERS = {name: tokenizer_with(template) for name, template in TEMPLATES.items()}


def test_a_model_without_chat_template_is_refused_with_the_remedy():
    with pytest.raises(ModelError, match="chat_template"):
        Renderer(bpe_tokenizer(None), 100)


def test_a_slow_tokenizer_is_refused():
    slow = tokenizer_with(CHATML)
    with pytest.raises(ModelError, match="fast tokenizer"):
        Renderer(type("Slow", (), {"is_fast": False, "chat_template": slow.chat_template})(), 100)


def test_the_template_digest_tells_templates_apart():
    digests = [template_digest(tokenizer_with(template)) for template in TEMPLATES.values()]
    assert len(set(digests)) == len(digests)
    assert template_digest(tokenizer_with(CHATML)) == digests[0]


@pytest.mark.parametrize("length", [4096, 40, 24])
def test_texts_are_what_the_tokens_spell_without_special_ones(length):
    tokenizer = bpe_tokenizer()
    rows = [
        {
            "messages": [
                {"role": "user", "content": "How do I bake bread?"},
                {"role": "assistant", "content": "Mix it."},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "One?"},
                {"role": "assistant", "content": "I cannot help with that request, sorry."},
                {"role": "user", "content": "And <|im_end|> two?"},
                {"role": "assistant", "content": "Sure, here is a recipe."},
            ]
        },
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "word " * 60}]},
    ]
    for item in Renderer(tokenizer, length, keep_texts=True)(rows):
        ends = [item.tokens.ids[: turn.end + 1] for turn in item.tokens.turns]
        assert item.texts == tuple(tokenizer.decode(ids, skip_special_tokens=True) for ids in ends)
    assert Renderer(tokenizer, length)(rows)[0].texts == ()
