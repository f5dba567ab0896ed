"""Speed of rendering rows, against the template and the tokenizer alone.

    python tests/benchmarks/rendering.py --model MODEL --rows 1500 --repeats 5

``bare`` applies the chat template to each row's messages and tokenizes the texts, with character offsets; ``ours`` also
parses the rows and finds every assistant turn. The ways take turns; prints rows per second of CPU time (medians) and
the ratio.
"""

import argparse
import random
import time
from statistics import median

from transformers import AutoTokenizer

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import to_messages

WORDS = "the quick brown fox jumps over a lazy dog while reading some notes about bread and flour".split()
BATCH = 100


def made_rows(count: int) -> dict[str, list[dict]]:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    def chat(pairs: int) -> list[dict]:
        return [{"role": role, "content": text(40)} for _ in range(pairs) for role in ("user", "assistant")]

    tools = [{"type": "function", "function": {"name": "look_up", "description": text(9), "parameters": {}}}]
    return {
        "instruction, input, output": [
            {"instruction": text(20), "input": text(10) if index % 2 else "", "output": text(80)}
            for index in range(count)
        ],
        "messages of one to four pairs": [{"messages": chat(draw.randint(1, 4))} for _ in range(count)],
        "messages with tools": [{"messages": chat(1), "tools": tools} for _ in range(count)],
        "messages with thoughts": [
            {"messages": [*chat(1)[:1], {"role": "assistant", "content": f"<think>{text(30)}</think>{text(40)}"}]}
            for _ in range(count)
        ],
    }


def bare(tokenizer, rows):
    messages = [(to_messages(row), row.get("tools")) for row in rows]
    start = time.process_time()
    for first in range(0, len(rows), BATCH):
        batch = messages[first : first + BATCH]
        texts = [tokenizer.apply_chat_template(chat, tools=tools, tokenize=False) for chat, tools in batch]
        tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    return time.process_time() - start


def ours(tokenizer, rows):
    start = time.process_time()
    render = Renderer(tokenizer, max_length=4096)
    for first in range(0, len(rows), BATCH):
        render(rows[first : first + BATCH])
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    for name, rows in made_rows(arguments.rows).items():
        times = [(bare(tokenizer, rows), ours(tokenizer, rows)) for _ in range(arguments.repeats)]
        alone, full = (len(rows) / median(column) for column in zip(*times, strict=True))
        print(f"{name}: bare {alone:,.0f} rows/s, ours {full:,.0f} rows/s, ratio {full / alone:.2f}")


if __name__ == "__main__":
    main()
