"""Damaged and hostile model folders: refused in one line, or read rightly; no code of theirs runs.

``LARF_CURATE_FAULTS=full pytest tests/models/test_hostile_models.py -s`` tries all of them and prints the count.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.fixtures.fresh_process import start as start_process

FULL = os.environ.get("LARF_CURATE_FAULTS") == "full"
SECONDS = 120
"""Patience with one folder, on a loaded machine."""
CONFIG, TOKENIZER, SETTINGS, WEIGHTS = "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"
RAN = "ran"
"""File that the code in a folder would write."""


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    """Replace a file."""
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def field(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change fields of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def template(words: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        field(SETTINGS, chat_template=words)(folder)

    return change


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return change


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Change the weights."""

    def apply(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return apply


def code(folder: Path) -> None:
    """Code for a configuration of its own, which nobody has allowed."""
    (folder / "own.py").write_text(f"open({str(folder / RAN)!r}, 'w')\nraise SystemExit\n")
    field(CONFIG, model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})(folder)


def tokenizer_code(folder: Path) -> None:
    (folder / "own.py").write_text(f"open({str(folder / RAN)!r}, 'w')\n")
    field(SETTINGS, tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.T", "own.T"]})(folder)


class Payload:
    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (RAN, "w")


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Payload()}))


def index(files: dict[str, str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        shutil.move(folder / WEIGHTS, folder / "model-00001-of-00002.safetensors")
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))

    return change


def link(folder: Path) -> None:
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(folder / CONFIG)


def directory(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


EMBEDDING = "model.embed_tokens.weight"
FAULTS: dict[str, Callable[[Path], None]] = {
    "pickled weights": pickled,
    "code": code,
    "code of the tokenizer": tokenizer_code,
    "template divides by zero": template("{{ 1 / 0 }}"),
    "template reads attributes": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "config is null": text(CONFIG, "null"),
    "weights cut": cut(WEIGHTS),
    "layers without number": field(CONFIG, num_hidden_layers=10**9),
    "shard outside": index({EMBEDDING: "../../../../etc/passwd"}),
    "weights are NaN": tensors(lambda weights: weights[EMBEDDING].fill(np.nan)),
    "no config": without(CONFIG),
    "no tokenizer": without(TOKENIZER),
    "no weights": without(WEIGHTS),
    "config empty": text(CONFIG, ""),
    "config no JSON": text(CONFIG, "{"),
    "config a list": text(CONFIG, "[]"),
    "config deep": text(CONFIG, '{"a":' + "[" * 20_000),
    "config of NaN": field(CONFIG, rms_norm_eps=float("nan")),
    "config bytes": text(CONFIG, b"\xff\xfe\x00"),
    "config is a folder": directory(CONFIG),
    "config links to itself": link,
    "unknown type": field(CONFIG, model_type="none", architectures=["None"]),
    "type not text": field(CONFIG, model_type=[1]),
    "width negative": field(CONFIG, hidden_size=-4),
    "width zero": field(CONFIG, hidden_size=0),
    "width too large": field(CONFIG, hidden_size=10**9),
    "width text": field(CONFIG, hidden_size="wide"),
    "no heads": field(CONFIG, num_attention_heads=0),
    "vocabulary of one": field(CONFIG, vocab_size=1),
    "dtype unknown": field(CONFIG, dtype="float7", torch_dtype="float7"),
    "quantised by none": field(CONFIG, quantization_config={"quant_method": "none"}),
    "tokenizer empty": text(TOKENIZER, ""),
    "tokenizer of no model": text(TOKENIZER, "{}"),
    "tokenizer cut": cut(TOKENIZER),
    "tokenizer settings no JSON": text(SETTINGS, "["),
    "tokenizer of no class": field(SETTINGS, tokenizer_class="NoTokenizer"),
    "no template": template(None),
    "template a number": template(7),
    "template without an end": template("{% for m in messages %}"),
    "template of ten megabytes": template("a" * 10_000_000),
    "template calls itself": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "template writes without end": template("{% for i in range(10**9) %}{{ i }}{% endfor %}"),
    "weights are text": text(WEIGHTS, "weights"),
    "header without end": text(WEIGHTS, (2**62).to_bytes(8, "little") + b"{}"),
    "weights of another shape": tensors(lambda weights: weights.update({EMBEDDING: np.zeros((3, 3), np.float32)})),
    "a weight is missing": tensors(lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight")),
    "index of missing shards": index({EMBEDDING: "model-00002-of-00002.safetensors"}),
    "index of numbers": index({EMBEDDING: 3}),  # type: ignore[dict-item]
    "generation settings no JSON": text("generation_config.json", "{"),
}
TRIED = FAULTS if FULL else dict(list(FAULTS.items())[:10])


def build_profile(folder: Path) -> None:
    """What runs in a process of its own."""
    from larf_curate.cli import main

    os.chdir(folder)
    os.environ["LARF_CURATE_HOME"] = str(folder.parent / "home")
    options = "--layers 1 --signal larf --dtype float32 --unsafe ../unsafe.jsonl --safe ../safe.jsonl"
    main(["profile", str(folder), *options.split(), "--neutral", "../neutral.jsonl", "-o", "../profile"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_a_hostile_model_folder_is_refused_in_one_line(name, tiny_llama, tmp_path):
    folder, log = Path(shutil.copytree(tiny_llama, tmp_path / "model")), tmp_path / "log"
    for side in ("unsafe", "safe", "neutral"):
        rows = [{"prompt": f"Question {i}?", "response": f"{side} {i}."} for i in range(10)]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    FAULTS[name](folder)
    process = start_process(build_profile, folder, log=log)
    process.join(SECONDS)
    said = log.read_text(errors="replace")
    assert process.exitcode in (0, 1, 2), f"{process.exitcode}: {said[-2000:]}"
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert len(errors) == (process.exitcode > 0)
    assert not list(tmp_path.rglob(RAN))
    print(f"{name}: {(errors or ['read'])[0][:150]}")  # noqa: T201
