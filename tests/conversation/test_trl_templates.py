"""Rows under every chat template that TRL ships: what is read is what transformers renders and what TRL learns.

The truth is `apply_chat_template`, the masks of TRL's training variants, and the data that `SFTTrainer` prepares.
"""

import contextlib
import random
from pathlib import Path

import pytest
from datasets import Dataset
from jinja2 import TemplateError

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.training_rows import training_rows
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
    variant = bpe_tokenizer(TEMPLATES[f"{name}_training"].read_text())
    try:
        out = variant.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True, **given)
    except (TemplateError, TypeError, ValueError):
        return
    pairs = zip(out["input_ids"], out["assistant_masks"], strict=True)
    learned = variant.decode([token for token, mask in pairs if mask])
    same = "".join("".join(turns).split()) == "".join(learned.split())  # white space is the variants' own affair
    assert same or (name, kind) in REASONS, f"reads {turns}, training learns {learned!r}"


def prepared(tokenizer, rows: Dataset) -> Dataset:
    """The rows as TRL itself prepares them for training on assistant turns."""
    arguments = trl.SFTConfig(
        output_dir="unused",
        assistant_only_loss=True,
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
