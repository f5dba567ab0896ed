"""The ways that `tests.benchmarks.peers` compares read the same states; one that cannot run is told, not dropped."""

import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch

from tests.benchmarks import peer_snippets, peers
from tests.fixtures.long import at_length

CHATS = [
    [{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": f"It is {n}. " * (n % 5 + 1)}]
    for n in range(9)
]
LAYERS = [1, 3]


def own_states(model):
    return peers.own_states({"model": str(model), "layers": LAYERS, "device": "cpu"}, CHATS)


def installed(way):
    try:
        return all(version(name) for name in peers.PACKAGES.get(way, []))
    except PackageNotFoundError:
        return False


@pytest.mark.parametrize("way", [way for way in peers.WAYS if way not in peers.NEEDS_GPU and installed(way)])
def test_every_way_reads_the_models_own_states(tiny_llama, own_caches, way):
    want, tokens = own_states(tiny_llama)
    assert tokens > 9 * 10
    read = getattr(peer_snippets, way)(str(tiny_llama), tuple(LAYERS), "float32", "cpu")
    found = peers.agreement(np.asarray(read(CHATS), np.float32), want)
    assert found["relative"] < 1e-4
    assert found["min_cosine"] > 0.9999
    shuffled = peers.agreement(np.asarray(read(CHATS[::-1]), np.float32), want)
    assert shuffled["relative"] > 0.1, "else this test would not see states of other rows"


def test_states_of_another_shape_or_not_finite_are_refused():
    own = np.ones((4, 2, 8), np.float32)
    assert peers.agreement(own[:, -1:], own)["blocks"] == 1
    for states in (own[:3], own[..., :4], own * np.nan):
        with pytest.raises(ValueError, match="wanted finite states"):
            peers.agreement(states, own)


def test_lines_are_those_of_the_body():
    assert peers.lines("authors_loop") == 13
    assert set(peers.WAYS) == {
        name for name, value in vars(peer_snippets).items() if callable(value) and name != "fast_batch"
    }


@at_length
@pytest.mark.slow
def test_the_table_has_every_way_or_why_not(tiny_llama, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(peers.PACKAGES, "nnterp", ["no-such-package"])
    options = ["--model", str(tiny_llama), "--rows", "5", "--repeats", "1", "--layers", "1", "3", "--dtypes", "float32"]
    options += ["--ways", "ours", "authors_loop", "nnterp", "vllm_lens", "--device", "cpu", "-o", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["peers", *options])
    peers.main()
    rows = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("| float32") or " | no-such" in line
    ]
    assert [row.split(" | ")[1] for row in rows] == ["larf_curate", "the LARF authors' loop", "nnterp"]
    text = (tmp_path / "peers.md").read_text(encoding="utf-8")
    assert "| vLLM with vllm-lens | needs a GPU, not run |" in text
    assert "| nnterp | no-such-package is not installed |" in text


@pytest.mark.slow
def test_a_way_that_fails_says_so(tmp_path):
    (tmp_path / "chats.json").write_text("[]")
    job = {"way": "ours", "model": str(tmp_path / "none"), "layers": [1], "dtype": "float32", "device": "cpu"}
    found = peers.in_a_process({**job, "threads": torch.get_num_threads(), "folder": str(tmp_path)})
    assert "cannot load" in found["failed"]
