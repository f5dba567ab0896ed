"""Rows under every chat template that TRL ships: what is read is what transformers renders and what TRL learns.

The truth is `apply_chat_template`, the masks of TRL's training variants, and the data that `SFTTrainer` prepares.
"""

import contextlib
import itertools
import random
from pathlib import Path

import pytest
from datasets import Dataset
from jinja2 import TemplateError

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.training_rows import training_rows
from tests.conversation.test_plain_text import tokenizer_of
from tests.fixtures.tiny import bpe_tokenizer, byte_model, byte_tokenizer

trl = pytest.importorskip("trl")
TEMPLATES = {path.stem: path for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))}
ORIGINAL = [name for name in TEMPLATES if not name.endswith("_training")]
VARIANTS = [name for name in ORIGINAL if f"{name}_training" in TEMPLATES]

SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = {"role": "user", "content": "How is bread made?"}
SAID = {"role": "assistant", "content": "With flour."}
MORE = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "It is baked."}]
TOOL = {
    "type": "function",
    "function": {"name": "open_door", "description": "Opens it.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "open_door", "arguments": {}}}
ROWS = {
    "one": {"messages": [ASKED, SAID]},
    "two": {"messages": [ASKED, SAID, *MORE]},
    "system": {"messages": [SYSTEM, ASKED, SAID]},
    "tools": {"messages": [ASKED, SAID], "tools": [TOOL]},
    "thought": {"messages": [ASKED, {**SAID, "reasoning_content": "Let me think."}]},
    "parts": {"messages": [{**ASKED, "content": [{"type": "text", "text": ASKED["content"]}]}, SAID]},
    "call": {
        "messages": [
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "open_door", "content": "open"},
            SAID,
        ],
        "tools": [TOOL],
    },
    "empty": {"messages": [ASKED, SAID, {"role": "user", "content": ""}, MORE[1]]},
    "silent tool": {
        "messages": [
            ASKED,
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "open_door", "content": ""},
            SAID,
        ],
        "tools": [TOOL],
    },
}
REASONS = {
    **dict.fromkeys(
        (("glm4moe", kind) for kind in ROWS),
        "the variant writes the user's header behind every answer and learns it; the template itself does not",
    ),
    **dict.fromkeys(
        [
            ("qwen3", "call"),
            ("qwen3", "silent tool"),
            *(
                (name, kind)
                for kind in ("two", "empty")
                for name in ("qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6")
            ),
        ],
        "the variant keeps thoughts of earlier answers, also empty ones, where the template itself shows none",
    ),
    **dict.fromkeys(
        (("deepseek_r1_distill", kind) for kind in ("call", "silent tool")),
        "the variant learns the end of the tool's output as part of the next answer",
    ),
}
"""Where TRL's training variant learns text that the model's own template does not write."""


def rendered(tokenizer, row: dict, given: dict) -> tuple[str, list[dict]] | None:
    """The row as transformers renders it, with contents as text or else as parts; None if the template refuses both."""
    texts = [m["content"] if isinstance(m["content"], str) else m["content"][0]["text"] for m in row["messages"]]
    for contents in (texts, [[{"type": "text", "text": text}] if text else [] for text in texts]):
        messages = [{**message, "content": content} for message, content in zip(row["messages"], contents, strict=True)]
        with contextlib.suppress(TemplateError, TypeError, ValueError):
            text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
            if texts[0] in text:
                return text, messages
    return None


def with_bos(name: str):
    """A tokenizer with a template and the BOS token that some templates write."""
    tokenizer = bpe_tokenizer(TEMPLATES[name].read_text())
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def cells():
    return [pytest.param(name, kind, id=f"{name}-{kind}") for name in ORIGINAL for kind in ROWS]


@pytest.mark.parametrize(("name", "kind"), cells())
def test_what_is_read_is_what_is_rendered_and_learned(name, kind):
    row, tokenizer = ROWS[kind], bpe_tokenizer(TEMPLATES[name].read_text())
    given = {"tools": row["tools"]} if "tools" in row else {}
    found, [item] = rendered(tokenizer, row, given), Renderer(tokenizer, 4096)([row])
    if found is None:
        assert item.status in ("malformed", "unsupported")
        return
    text, messages = found
    answers = ["With flour.", *(["It is baked."] if kind in ("two", "empty") else [])]
    assert all(answer in text for answer in answers)
    assert item.status == "ok", item.reason
    assert text.startswith(tokenizer.decode(item.tokens.ids))
    turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    if "call" not in kind and "tool" not in kind or kind == "tools":
        assert len(turns) == len(answers)
    assert all(answer in "".join(turns) for answer in answers)
    assert "How is bread made?" not in "".join(turns)
    if name in VARIANTS:
        assert_learned(turns, name, kind, messages, given)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_training_variant_as_the_models_own_template_is_followed_to_the_token(name, kind):
    row, tokenizer = ROWS[kind], bpe_tokenizer(TEMPLATES[f"{name}_training"].read_text())
    given = {"tools": row["tools"]} if "tools" in row else {}
    found, [item] = rendered(tokenizer, row, given), Renderer(tokenizer, 4096)([row])
    if found is None:
        assert item.status in ("malformed", "unsupported")
        return
    want = tokenizer.apply_chat_template(found[1], return_dict=True, return_assistant_tokens_mask=True, **given)
    assert item.status == "ok", item.reason
    read = len(item.tokens.ids)
    assert want["input_ids"][:read] == item.tokens.ids
    learned = {index for turn in item.tokens.turns for index in range(turn.start, turn.end + 1)}
    assert [index in learned for index in range(len(want["input_ids"]))] == [bool(m) for m in want["assistant_masks"]]


def assert_learned(turns, name, kind, messages, given):
    variant = with_bos(f"{name}_training")
    try:
        out = variant.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **given)
    except (TemplateError, TypeError, ValueError):
        return
    pairs = zip(out["input_ids"], out["assistant_masks"], strict=True)
    learned = variant.decode([token for token, mask in pairs if mask])
    same = "".join("".join(turns).split()) == "".join(learned.split())  # white space is the variants' own affair
    assert same or (name, kind) in REASONS, f"reads {turns}, training learns {learned!r}"


THINKING_AGENT = [
    ASKED,
    {**SAID, "content": "<think>\nlook it up\n</think>\n\nWith flour."},
    {"role": "user", "content": "<tool_response>\n42\n</tool_response>"},
    {**SAID, "content": "<think>\nfine\n</think>\n\nDone."},
]
PLAIN_AGENT = [{**message, "content": message["content"].split("</think>\n\n")[-1]} for message in THINKING_AGENT]
QWEN = ["qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"]


@pytest.mark.parametrize("messages", [THINKING_AGENT, PLAIN_AGENT], ids=["thoughts", "plain"])
@pytest.mark.parametrize("name", QWEN)
def test_all_answers_are_learned_where_a_user_turn_is_a_tools_response(name, messages):
    tokenizer = bpe_tokenizer(TEMPLATES[name].read_text())
    renderer = Renderer(tokenizer, 4096)
    [item] = renderer([{"messages": messages}])
    turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    assert len(turns) == 2
    assert renderer.left_out == []
    assert_learned(turns, name, "call", messages, {})  # Qwen3's variant keeps an empty thought, as in calls of tools


OUTPUT = {"role": "tool", "name": "open_door", "content": "TOOL OUTPUT"}
SECOND_CALL = {"type": "function", "function": {"name": "open_door", "arguments": {"door": "SECOND"}}}
AGENTS = {
    "text and call": [ASKED, {**SAID, "tool_calls": [CALL]}, OUTPUT, MORE[1]],
    "text and call, two outputs": [ASKED, {**SAID, "tool_calls": [CALL, SECOND_CALL]}, OUTPUT, OUTPUT, MORE[1]],
    "thought and call": [
        ASKED,
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [CALL]},
        OUTPUT,
        MORE[1],
    ],
    "two calls": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL, SECOND_CALL]}, OUTPUT, MORE[1]],
    "call after an output": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        OUTPUT,
        {"role": "assistant", "content": "", "reasoning_content": "Hm.", "tool_calls": [SECOND_CALL]},
        OUTPUT,
        MORE[1],
    ],
    "text and call after an output": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        OUTPUT,
        {**SAID, "tool_calls": [SECOND_CALL]},
        OUTPUT,
        MORE[1],
    ],
    "thought after an output": [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        OUTPUT,
        {**MORE[1], "reasoning_content": "Hm."},
    ],
    "call behind a thought within the text": [
        ASKED,
        {"role": "assistant", "content": "<think>\nHm.\n</think>\n\n", "tool_calls": [SECOND_CALL]},
        OUTPUT,
        MORE[1],
    ],
}


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("name", ORIGINAL)
def test_texts_thoughts_and_calls_are_learned_and_outputs_of_tools_are_not(name, kind):
    tokenizer, messages = bpe_tokenizer(TEMPLATES[name].read_text()), AGENTS[kind]
    found = rendered(tokenizer, {"messages": messages}, {"tools": [TOOL]})
    [item] = Renderer(tokenizer, 4096)([{"messages": messages, "tools": [TOOL]}])
    if found is None:
        assert item.status in ("malformed", "unsupported")
        return
    text, given = found
    turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    learned = "".join(turns)
    assert "OUTPUT" not in learned
    assert "outputs▁begin" not in learned  # DeepSeek's header of outputs
    assert all(word in learned for word in ("With flour.", "Hm.", "SECOND", "It is baked.") if word in text)
    if name in VARIANTS:
        assert_learned(turns, name, "call", given, {"tools": [TOOL]})


def test_the_header_of_outputs_of_deepseek_v3_is_not_learned():
    tokenizer = bpe_tokenizer(TEMPLATES["deepseekv3"].read_text())
    call = {"type": "function", "function": {"name": "open_door", "arguments": "{}"}}  # it wants a text
    messages = [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, OUTPUT, SAID]
    [item] = Renderer(tokenizer, 4096)([{"messages": messages}])
    turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    assert turns[0].endswith("<｜tool▁calls▁end｜><｜end▁of▁sentence｜>")
    assert turns[1] == "With flour.<｜end▁of▁sentence｜>"


@pytest.mark.parametrize("name", ORIGINAL)
def test_a_conversation_may_begin_with_an_answer(name):
    tokenizer, messages = bpe_tokenizer(TEMPLATES[name].read_text()), [SAID, ASKED, MORE[1]]
    found, [item] = rendered(tokenizer, {"messages": messages}, {}), Renderer(tokenizer, 4096)([{"messages": messages}])
    if found is None:
        assert item.status in ("malformed", "unsupported")
        return
    turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    assert len(turns) == 2
    assert "user" not in turns[0].lower() or name == "muse_glimmer"  # which has "to=user" in the assistant's header
    if name in VARIANTS:
        assert_learned(turns, name, "two", found[1], {})


FOLLOWED = [name for name in VARIANTS if not {(name, "two"), (name, "call")} & REASONS.keys()]
"""Templates of which the variant learns nothing else, whatever the conversation."""


def agents(seed: int, count: int = 25) -> list[list[dict]]:
    """Conversations with calls of tools, empty answers, answers in a row, and ends in an output or a question."""
    draw, number = random.Random(seed), itertools.count()

    def called() -> list[dict]:
        calls = [{"type": "function", "id": "call12345", "function": {"name": "f", "arguments": {"x": next(number)}}}]
        calls *= draw.choice([1, 1, 2])
        text = draw.choice(["", f"Run {next(number)}."])
        outputs = [{"role": "tool", "name": "f", "tool_call_id": "call12345", "content": "7"} for _ in calls]
        outputs[-1]["content"] = draw.choice(["7", f"out {next(number)}", ""])
        return [{"role": "assistant", "content": text, "tool_calls": calls}, *outputs]

    def turn() -> list[dict]:
        messages = [{"role": "user", "content": f"Hi {next(number)}?"}]
        while draw.random() < 0.4:
            messages += called()
        messages += [{"role": "assistant", "content": ""}] * (draw.random() < 0.1)
        messages += [{"role": "assistant", "content": f"Said {next(number)}."}] * (draw.random() < 0.75)
        return messages + [{"role": "assistant", "content": f"More {next(number)}."}] * (draw.random() < 0.1)

    chats = [sum((turn() for _ in range(draw.choice([1, 1, 2, 3]))), []) for _ in range(count)]
    chats = [[SYSTEM, *chat] if draw.random() < 0.25 else chat for chat in chats]
    chats = [[*chat, MORE[0]] if draw.random() < 0.1 else chat for chat in chats]
    return [chat for chat in chats if any(message["role"] == "assistant" for message in chat)]


def has_named_difference(name: str, chat: list[dict]) -> bool:
    """Whether the documentation names what the variant learns otherwise of such a conversation."""
    ends = [i for i, message in enumerate(chat) if message["role"] == "tool" and chat[i + 1 : i + 2] != [message]]
    behind = [chat[i + 1]["role"] if i + 1 < len(chat) else None for i in ends]
    if name == "diffusion_gemma":
        return any(role != "assistant" for role in behind if role != "tool")
    return name in ("phi3", "phi3_5") and chat[-1]["role"] == "tool"


@pytest.mark.parametrize("name", FOLLOWED)
def test_of_any_conversation_with_tools_the_variants_tokens_are_learned(name):
    tokenizer = with_bos(name)
    renderer = Renderer(tokenizer, 4096)
    compared = 0
    for chat in agents(seed=len(name)):
        found = rendered(tokenizer, {"messages": chat}, {})
        if found is None or has_named_difference(name, chat):
            continue
        [item] = renderer([{"messages": chat}])
        if item.status in ("empty", "unsupported"):  # nothing of an answer is shown
            continue
        turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
        assert_learned(turns, name, "agent", found[1], {})
        compared += 1
    assert compared


def edges(texts: list[str]) -> list[list[dict]]:
    """Conversations of one and two turns with these answers."""
    asked = [{"role": "user", "content": text} for text in ("Hi?", "So?\n")]
    pairs = itertools.product(texts, texts)
    return [[asked[0], {**SAID, "content": a}, asked[1], {**SAID, "content": b}] for a, b in pairs]


EDGES = edges(["Hello.", "Bye.\n", " lead", "trail ", ">"])


@pytest.mark.parametrize("name", [*FOLLOWED, "smolvlm", "idefics3"])
def test_white_space_around_answers_takes_no_mark_from_them(name):
    tokenizer, renderer = with_bos(name), None
    for chat in EDGES:
        found = rendered(tokenizer, {"messages": chat}, {})
        renderer = renderer or Renderer(tokenizer, 4096)
        [item], [alone] = renderer([{"messages": chat}]), Renderer(tokenizer, 4096)([{"messages": chat}])
        assert item == alone  # whatever rows came before
        assert item.status == "ok", item.reason
        turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
        assert_learned(turns, name, "edges", found[1], {})


HEADERS_UNLIKE = {
    "no header": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} "
    "{{ m.content }}</s>{% endif %}{% endfor %}",
    "tags of their own": "{% for m in messages %}<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}",
}


@pytest.mark.parametrize("name", HEADERS_UNLIKE)
def test_headers_unlike_the_users_leave_each_answer_its_mark(name):
    tokenizer, end = bpe_tokenizer(HEADERS_UNLIKE[name]), "</s>" if name == "no header" else "<|im_end|>"
    for chat in EDGES:
        [item] = Renderer(tokenizer, 4096)([{"messages": chat}])
        turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
        want = [message["content"] + end for message in chat[1::2]]
        assert [turn.lstrip() for turn in turns] == [turn.lstrip() for turn in want]


@pytest.mark.parametrize("last", ["It is baked.", ""])
@pytest.mark.parametrize("first", [[], [{"role": "system", "content": ""}]], ids=["plain", "empty system"])
@pytest.mark.parametrize("name", [*FOLLOWED, "glm4moe"])
def test_headers_of_empty_user_turns_are_not_learned(name, first, last):
    chat = [*first, ASKED, SAID, {"role": "user", "content": ""}, {"role": "assistant", "content": last}]
    tokenizer = with_bos(name)
    found, [item] = rendered(tokenizer, {"messages": chat}, {}), Renderer(tokenizer, 4096)([{"messages": chat}])
    if found is None or item.tokens is None:
        assert item.status in ("malformed", "unsupported")
        return
    turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    assert "user" not in "".join(turns).lower().replace("to=user", "")  # Muse has that in the assistant's header
    assert_learned(turns, name, "two", found[1], {})


WITHOUT_HEADERS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.tool_calls %}[TOOL_CALLS] {% for c in m.tool_calls %}{{ c.function.name }}{{ c.function.arguments }}"
    "{% endfor %}</s>{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
"""Like Mistral's: nothing marks the assistant's turn, and a generation prompt adds nothing."""


def test_calls_of_tools_are_learned_where_the_assistant_has_no_header():
    called = {"role": "assistant", "content": "", "tool_calls": [SECOND_CALL]}
    tokenizer = bpe_tokenizer(WITHOUT_HEADERS)
    for chat, others in (
        ([ASKED, called, OUTPUT, MORE[1]], [" It is baked.</s>"]),
        ([ASKED, SAID, MORE[0], called], [" With flour.</s>"]),
        ([ASKED, called], []),
    ):
        [item] = Renderer(tokenizer, 4096)([{"messages": chat, "tools": [TOOL]}])
        turns = [tokenizer.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
        calls = "[TOOL_CALLS] open_door{'door': 'SECOND'}</s>"
        assert sorted(turn.strip() for turn in turns) == sorted([calls, *(text.strip() for text in others)])


def test_thousands_of_calls_that_a_template_leaves_out_are_read_in_a_few_renderings():
    renders = []
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    renderer = Renderer(bpe_tokenizer(template), 4096)
    render = renderer.tokenizer.apply_chat_template
    renderer.tokenizer.apply_chat_template = lambda *given, **options: renders.append(1) or render(*given, **options)
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    [item] = renderer([{"messages": [ASKED, *[called, OUTPUT] * 300]}])
    assert item.status == "unsupported"
    assert len(renders) < 50


SHOWN_TWICE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.content if m.role == 'assistant' }}\n{% endfor %}"
)
SHORTENED = "{% for m in messages %}{{ m.role }}: {{ m.content | truncate(12) }}\n{% endfor %}"


@pytest.mark.parametrize("template", [SHOWN_TWICE, SHORTENED])
def test_rows_are_refused_rather_than_scored_without_an_answer_that_training_learns(template):
    messages = [ASKED, {**SAID, "content": "With flour and some water."}, MORE[0], {**SAID, "content": "Done."}]
    renderer = Renderer(bpe_tokenizer(template), 4096)
    learned, excluded = renderer(
        [{"messages": messages}, {"messages": [ASKED, {**messages[1], "weight": 0}, *messages[2:]]}]
    )
    assert learned.status == "unsupported"
    assert "cannot locate 1 of 2 assistant turns" in learned.reason
    assert excluded.status == "ok"  # of which training learns the last answer alone
    assert renderer.left_out == []


def test_the_last_answer_begins_before_the_thought_that_the_generation_prompt_opens():
    template = SHOWN_TWICE + "{% if add_generation_prompt %}assistant: <think>\n{% endif %}"
    tokenizer = bpe_tokenizer(template)
    messages = [ASKED, {**SAID, "content": "<think>\nHm.\n</think>\n\nWith flour."}]
    [item] = Renderer(tokenizer, 4096)([{"messages": messages}])
    [turn] = item.tokens.turns
    assert tokenizer.decode(item.tokens.ids[turn.start :]) == messages[1]["content"] * 2 + "\n"


def test_an_answer_that_is_left_out_is_told_where_turns_have_no_marks():
    template = "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    renderer = Renderer(bpe_tokenizer(template), 4096)
    [item] = renderer([{"messages": [ASKED, SAID, *MORE]}])
    assert item.status == "ok"
    assert renderer.left_out == ["the text of some assistant turns"]


def prepared(tokenizer, rows: Dataset, *, assistant_only_loss: bool = True) -> Dataset:
    """The rows as TRL itself prepares them for training, on assistant turns by default."""
    arguments = trl.SFTConfig(
        output_dir="unused",
        assistant_only_loss=assistant_only_loss,
        max_length=None,
        report_to=[],
        use_cpu=True,
    )
    if "conversations" in rows.column_names:  # which the trainer checks before it converts them
        rows = rows.map(trl.data_utils.maybe_convert_to_chatml, remove_columns="conversations")
    return trl.SFTTrainer(byte_model(), arguments, train_dataset=rows, processing_class=tokenizer).train_dataset


def conversations(seed: int, count: int = 12) -> list[list[dict]]:
    """Conversations of one to three turns, some with a system prompt, of words that tokenizers cut differently."""
    draw = random.Random(seed)
    words = ["bread", "  two", "naïve", "日本", "\n\n- item", "<b>", "x=1;", "🙂", "end."]

    def said(role: str) -> dict:
        return {"role": role, "content": " ".join(draw.choices(words, k=draw.randint(1, 6))).strip()}

    chats = [[said(role) for _ in range(draw.randint(1, 3)) for role in ("user", "assistant")] for _ in range(count)]
    return [[SYSTEM, *chat] if draw.random() < 0.3 else chat for chat in chats]


def forms(chats: list[list[dict]]) -> dict[str, Dataset]:
    """The same conversations in the formats that TRL takes."""
    sharegpt = [[{"from": message["role"], "value": message["content"]} for message in chat] for chat in chats]
    return {
        "messages": Dataset.from_dict({"messages": chats}),
        "conversations": Dataset.from_dict({"conversations": sharegpt}),
        "prompt and completion": Dataset.from_dict(
            {"prompt": [chat[:-1] for chat in chats], "completion": [chat[-1:] for chat in chats]}
        ),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about arguments that TRL sets
@pytest.mark.parametrize("form", ["messages", "conversations", "prompt and completion"])
@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "phi3", "gemma3"])
def test_rows_are_tokenized_and_labelled_as_trl_prepares_them(name, form):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = TEMPLATES[name].read_text()
    chats = conversations(seed=len(name))
    if name == "gemma3":  # shows the system prompt within the user's turn
        chats = [chat for chat in chats if chat[0]["role"] != "system"]
    rows = forms(chats)[form]
    ours = training_rows(rows, tokenizer, max_length=4096)
    theirs = prepared(tokenizer, rows)
    for mine, other in zip(ours, theirs, strict=True):
        assert other["input_ids"][: len(mine["input_ids"])] == mine["input_ids"]
        ours_learned, trl_learned = ([token for token in row["labels"] if token != -100] for row in (mine, other))
        assert tokenizer.decode(ours_learned).split() == tokenizer.decode(trl_learned).split()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers, about arguments that TRL sets
@pytest.mark.parametrize("processor", ["bos", "bos and eos", "glm", "none"])
def test_plain_text_is_tokenized_as_trl_prepares_it_but_for_the_end_that_it_appends(processor):
    tokenizer = tokenizer_of(processor)
    texts = ["Hello there.", " Hello.", "\nHello, how are you?"]
    ours = Renderer(tokenizer, 64)([{"text": text} for text in texts])
    theirs = prepared(tokenizer, Dataset.from_dict({"text": texts}), assistant_only_loss=False)
    ends = 2 if processor == "bos and eos" else 1
    assert [item.tokens.ids + [tokenizer.eos_token_id] * ends for item in ours] == list(theirs["input_ids"])


THOUGHTFUL = [ASKED, {**SAID, "reasoning_content": "Flour first."}, MORE[0], {**MORE[1], "reasoning_content": "Heat."}]


@pytest.mark.parametrize("name", VARIANTS)
def test_thoughts_that_the_template_leaves_out_are_told_wherever_the_variant_learns_them(name, caplog):
    given = [m.get("reasoning_content") for m in THOUGHTFUL]
    thoughts = [f"<think>\n{thought}\n</think>\n\n" if thought else "" for thought in given]
    pairs = zip(THOUGHTFUL, thoughts, strict=True)
    inline = [{"role": m["role"], "content": thought + m["content"]} for m, thought in pairs]
    for chat in (THOUGHTFUL, inline):
        tokenizer = bpe_tokenizer(TEMPLATES[name].read_text())
        tokenizer.bos_token = "<|endoftext|>"
        renderer = Renderer(tokenizer, 4096)
        [item] = renderer([{"messages": chat}] * 2)[:1]
        is_shown = "Flour first." in tokenizer.decode(item.tokens.ids)
        told = [record for record in caplog.records if "leaves out" in record.msg]
        assert len(told) == (not is_shown)
        assert len(renderer.left_out) == len(told)
        caplog.clear()


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6", "deepseek_r1_distill"])
def test_variants_learn_thoughts_of_earlier_answers_as_the_documentation_says(name):
    chat = [*THOUGHTFUL]
    if name == "deepseek_r1_distill":
        chat[1] = {**SAID, "content": "<think>\nFlour first.\n</think>\n\nWith flour."}
    variant = bpe_tokenizer(TEMPLATES[f"{name}_training"].read_text())
    [item] = Renderer(variant, 4096)([{"messages": chat}])
    learned = [variant.decode(item.tokens.ids[turn.start : turn.end + 1]) for turn in item.tokens.turns]
    assert "Flour first." in learned[0]
