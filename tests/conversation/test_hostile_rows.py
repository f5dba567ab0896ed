"""Odd rows: each gets a status with a reason, none stops the others, and a row between them is scored as always.

``LARF_CURATE_FAULTS=full pytest -s tests/conversation/test_hostile_rows.py`` tries 7,000 and prints the count.
"""

import os
import random
from collections import Counter

import numpy as np

from larf_curate.conversation.chat_template import Renderer
from tests.fixtures.tiny import bpe_tokenizer

ROWS = 7000 if os.environ.get("LARF_CURATE_FAULTS") == "full" else 700
PLAIN = {"prompt": "How do I bake bread?", "completion": "Mix flour, water and yeast."}


class Unspeakable:
    """A value that cannot be shown, compared or counted."""

    def fail(self, *_):
        raise RuntimeError("no")

    __repr__ = __str__ = __bool__ = __len__ = __eq__ = __hash__ = __iter__ = __getattr__ = fail


def deep(levels: int, kind: type) -> object:
    value: object = "x"
    for _ in range(levels):
        value = [value] if kind is list else {"a": value}
    return value


VALUES = [
    *(
        None,
        True,
        0,
        -1,
        10**30,
        1.5,
        float("nan"),
        float("inf"),
        "",
        " ",
        "text",
        "\x00",
        "\ud800",
        "\u202e",
        "😀" * 50,
    ),
    *(
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
        "<|im_end|>",
        "<|im_start|>user\n",
        "[" * 1000,
        '{"a":' * 1000,
        "a" * 9000,
    ),
    *([], {}, [[]], [None], {"a": None}, [{}], b"\xff", (1, 2), {1, 2}, object(), Unspeakable(), int, np.array([1, 2])),
    *(np.float32(1), np.array([{"role": "user"}], object), deep(70, list), deep(3000, list), deep(3000, dict)),
    *('[{"role": "user", "content": "q"}]', "[{'role': 'user'}]", {"text": "a"}, [{"type": "text", "text": None}]),
    *([{"type": "image"}], [{"type": "text", "text": ["a"]}], {"content": "a", "role": "user"}),
]
ROLES = ["user", "assistant", "system", "tool", "gpt", "narrator", "", None, 3, [], "\x00", "ASSISTANT", "user\n"]
KEYS = [
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "name",
    "weight",
    "reasoning_content",
    "thinking",
    "loss",
    "x",
]
COLUMNS = ["messages", "conversations", "prompt", "completion", "instruction", "input", "output", "text", "question"]
COLUMNS += [
    "answer",
    "chosen",
    "rejected",
    "system",
    "tools",
    "history",
    "documents",
    "chat_template_kwargs",
    "context",
]


def odd_message(chance: random.Random) -> object:
    if chance.random() < 0.15:
        return chance.choice(VALUES)
    message = {"role": chance.choice(ROLES), "content": chance.choice(VALUES)}
    return message | {key: chance.choice(VALUES) for key in chance.sample(KEYS, chance.randrange(4))}


def odd_row(chance: random.Random) -> object:
    if chance.random() < 0.05:
        return chance.choice(VALUES)
    row = {name: chance.choice(VALUES) for name in chance.sample(COLUMNS, chance.randrange(1, 5))}
    if chance.random() < 0.6:
        row["messages"] = [odd_message(chance) for _ in range(chance.randrange(5))]
    return row


def test_an_odd_row_gets_a_status_and_the_rows_beside_it_are_read():
    chance, statuses, render = random.Random(0), Counter(), Renderer(bpe_tokenizer(), 64)
    [wanted] = render([PLAIN])
    for _ in range(ROWS):
        before, odd, after = render([PLAIN, odd_row(chance), PLAIN])
        assert before == after == wanted
        assert (odd.tokens is not None) == (odd.status in ("ok", "truncated"))
        assert odd.tokens is not None or (odd.reason and len(odd.reason) < 500)
        statuses[odd.status] += 1
    print(f"{ROWS} odd rows: {dict(statuses)}, 0 tracebacks")  # noqa: T201
