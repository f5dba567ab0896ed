"""Reference states that were read before are not read again, and give the same profile to the last bit."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.data.references import ReferenceSet
from larf_curate.models import identity, source
from larf_curate.models.hidden_states import StateReader
from larf_curate.models.loading import forget_reader
from larf_curate.profile import SafetyProfile, layer_choice, state_cache
from larf_curate.profile.state_cache import MAX_ROWS, MIN_ROWS, groups, state_folder
from tests.fixtures.models import NEUTRAL, PROFILE, save_tiny
from tests.profile.test_layer_choice import HARMFUL, refusing_model, six_references

pytestmark = pytest.mark.usefixtures("own_caches")
MANY = [{"question": f"What is {n} times {n + 2}?", "answer": f"It is {n * (n + 2)}."} for n in range(90)]


@pytest.fixture
def model(tmp_path):
    return save_tiny("Llama", tmp_path / "model")


@pytest.fixture
def read(monkeypatch):
    """Conversations that a model has read, without those that check its optimizations."""
    rows = []

    def record(self, conversations, *args, **options):
        rows.extend(conversations)
        return original(self, conversations, *args, **options)

    original = StateReader._read_unique
    monkeypatch.setattr(StateReader, "_read_unique", record)
    monkeypatch.setattr("larf_curate.models.loading.exact_shortcuts", lambda reader: reader.shortcuts)
    return rows


@pytest.fixture
def loads(monkeypatch):
    """Names of the classes by which weights were loaded."""
    names = []

    def record(kind, *args, **options):
        names.extend([kind.__name__] if "Model" in kind.__name__ else [])
        return original(kind, *args, **options)

    original = source._load
    monkeypatch.setattr(source, "_load", record)
    return names


def build(model, **changes):
    forget_reader()
    return SafetyProfile.build(model, **{"references": six_references(), "layers": [3, 1], **PROFILE, **changes})


def build_elsewhere(monkeypatch, folder, model, **changes):
    """The same profile with an empty cache."""
    with monkeypatch.context() as patch:
        patch.setenv("LARF_CURATE_HOME", str(folder))
        return build(model, **changes)


def test_a_profile_is_built_twice_from_one_load_and_is_the_same(model, loads, read, capsys):
    first = build(model)
    assert "from the cache" not in capsys.readouterr().err
    assert loads == ["AutoModel"]
    count = len(read)
    again = build(model)
    assert (len(loads), len(read)) == (1, count)
    assert again.digest == first.digest
    assert f"{count} from the cache" in capsys.readouterr().err


@pytest.mark.parametrize("changes", [{"signal": "larf_centred"}, {"signal": "harmful"}, {"top_k": 2}])
def test_another_signal_reads_nothing(model, loads, read, changes, monkeypatch, tmp_path):
    build(model)
    count = len(read)
    found = build(model, match_lengths=False, **changes)
    assert (len(loads), len(read)) == (1, count)
    forgotten = build_elsewhere(monkeypatch, tmp_path / "other", model, match_lengths=False, **changes)
    assert len(read) == 2 * count
    assert found.digest == forgotten.digest


def test_other_references_are_read_without_the_neutral_rows(model, read):
    build(model)
    read.clear()
    whole = ReferenceSet.load("builtin")
    other = replace(six_references(), unsafe=whole.unsafe[6:12], safe=whole.safe[6:12])
    build(model, references=other)
    assert len(read) == 12


@pytest.mark.parametrize("place", [0, 40, 90])
def test_a_row_more_is_read_with_its_group_alone(model, read, place, monkeypatch, tmp_path):
    build(model, neutral=MANY)
    read.clear()
    rows = [*MANY[:place], {"question": "Is this another?", "answer": "Yes, it is."}, *MANY[place:]]
    found = build(model, neutral=rows)
    assert 0 < len(read) <= 2 * MAX_ROWS
    assert found.digest == build_elsewhere(monkeypatch, tmp_path / "other", model, neutral=rows).digest


@pytest.mark.parametrize(
    "changes",
    [{"layers": [1, 3]}, {"layers": [1]}, {"dtype": "bfloat16"}, {"strip_prefix": "x."}, {"max_length": 30}],
    ids=str,
)
def test_what_changes_the_states_is_read_again(model, read, changes):
    build(model)
    read.clear()
    build(model, **changes)
    assert read


def test_an_edit_of_one_weight_is_noticed(model, read):
    before = build(model)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 0.5
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    read.clear()
    assert build(model).digest != before.digest
    assert read


def test_weights_in_a_folder_below_are_noticed(model, read):
    (model / "parts").mkdir()
    part = (model / "model.safetensors").rename(model / "parts" / "a.safetensors")
    weights = load_file(part)
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "parts/a.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    before = build(model)
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] += 0.5
    save_file(weights, part, metadata={"format": "pt"})
    read.clear()
    assert build(model).digest != before.digest
    assert read


def test_the_version_of_peft_counts_for_an_adapter_alone(model, read, monkeypatch, tmp_path):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(tmp_path / "adapter")
    for options in ({}, {"adapter": str(tmp_path / "adapter")}):
        build(model, **options)
    read.clear()
    monkeypatch.setattr(identity, "version", lambda _name: "0.0.1")
    build(model)
    assert not read
    build(model, adapter=str(tmp_path / "adapter"))
    assert read


def test_settings_of_linear_algebra_are_read_again(model, read, monkeypatch):
    build(model)
    read.clear()
    with monkeypatch.context() as patch:
        patch.setenv("MKL_CBWR", "COMPATIBLE")
        build(model)
    assert read
    read.clear()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        build(model)
    finally:
        torch.set_float32_matmul_precision(before)
    assert read


def test_states_of_a_worker_are_those_of_its_number_of_threads(model, read, monkeypatch):
    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr("larf_curate.models.loading.worker_threads", lambda: threads + 1)
        build(model)
    torch.set_num_threads(threads)
    read.clear()
    build(model)
    assert read


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def retype(path):
    path.write_bytes(path.read_bytes().replace(b"F32", b"I32"))


def exchange(path):
    other = next(each for each in sorted(path.parent.glob("*.safetensors")) if each != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [flip, cut, retype, exchange, lambda path: path.write_bytes(b"")])
def test_damaged_files_are_told_and_computed_again(model, read, damage, caplog):
    whole = build(model)
    read.clear()
    damage(sorted(state_folder().glob("*.safetensors"))[0])
    assert build(model).digest == whole.digest
    assert "damaged and are computed again" in caplog.text
    assert 0 < len(read) <= MAX_ROWS
    caplog.clear()
    read.clear()
    assert build(model).digest == whole.digest
    assert not read
    assert "damaged" not in caplog.text


def test_a_cache_that_cannot_be_written_is_told_and_does_not_matter(model, caplog, own_caches):
    whole = build(model)
    for path in state_folder().iterdir():
        path.unlink()
    state_folder().rmdir()
    state_folder().write_text("a file in its place")
    assert build(model).digest == whole.digest
    assert "cannot be cached" in caplog.text


def test_a_cache_of_somebody_else_is_read(model, read, caplog, monkeypatch):
    whole = build(model)
    read.clear()

    def fail(*_args):
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(os, "utime", fail)
    assert build(model).digest == whole.digest
    assert not read
    assert "damaged" not in caplog.text


@pytest.mark.parametrize("reason", ["code of others", "smaller batches"])
def test_nothing_is_kept_that_another_build_might_not_give(model, read, reason, monkeypatch):
    if reason == "smaller batches":  # after memory ran out
        monkeypatch.setattr("larf_curate.profile.building.default_batch_tokens", lambda _device: 1_000_000)
    build(model, trust_remote_code=reason == "code of others")
    assert not state_folder().exists()


def test_the_files_that_were_used_last_are_kept(model, read, monkeypatch):
    build(model)
    files = sorted(state_folder().iterdir())
    for path in files:
        os.utime(path, (1, 1))
    build(model, neutral=MANY[:12])  # uses all but those of the other neutral rows
    [unused] = [path for path in files if path.stat().st_mtime == 1]
    size = sum(path.stat().st_size for path in state_folder().iterdir())
    monkeypatch.setattr(state_cache, "MAX_BYTES", size)
    build(model, neutral=MANY[20:30])  # as large as the unused ones
    assert not unused.exists()
    assert sum(path.stat().st_size for path in state_folder().iterdir()) <= size
    read.clear()
    build(model, neutral=MANY[:12])
    assert not read
    build(model)
    assert len(read) == len(NEUTRAL)


def test_automatic_layers_take_one_load_and_are_found_again_without_any(tmp_path, loads, monkeypatch):
    folder = refusing_model(tmp_path / "model", block=4)
    first = build(folder, **{**HARMFUL, "layers": "auto"})
    assert loads == ["AutoModelForCausalLM"]
    assert "equally" in first.choice["by"]

    def fail(*_args, **_options):
        raise AssertionError("the gradient was computed again")

    with monkeypatch.context() as patch:
        patch.setattr(layer_choice, "find_safety_layers", fail)
        assert build(folder, **{**HARMFUL, "layers": "auto"}).digest == first.digest
        build(folder, **{**HARMFUL, "layers": "auto", "signal": "larf"})
    assert len(loads) == 1
    assert (
        build_elsewhere(monkeypatch, tmp_path / "other", folder, **{**HARMFUL, "layers": "auto"}).digest == first.digest
    )
    assert len(loads) == 2


def test_a_damaged_layer_report_is_told_and_computed_again(tmp_path, caplog):
    folder = refusing_model(tmp_path / "model", block=4)
    first = build(folder, **{**HARMFUL, "layers": "auto"})
    [report] = state_folder().glob("*.json")
    report.write_text(report.read_text().replace('"refused": ', '"refused": 1'))
    assert build(folder, **{**HARMFUL, "layers": "auto"}).digest == first.digest
    assert "layer report is damaged" in caplog.text


def test_an_exchanged_layer_report_is_told_and_computed_again(tmp_path, caplog):
    folders = [refusing_model(tmp_path / name, block=block) for name, block in (("one", 4), ("other", 2))]
    choices = [build(folder, **{**HARMFUL, "layers": "auto"}).choice for folder in folders]
    assert choices[0]["most_sensitive"] != choices[1]["most_sensitive"]
    one, other = state_folder().glob("*.json")
    text = one.read_text()
    one.write_text(other.read_text())
    other.write_text(text)
    assert [build(folder, **{**HARMFUL, "layers": "auto"}).choice for folder in folders] == choices
    assert caplog.text.count("layer report is damaged") == 2


def test_only_the_middle_half_is_read_to_choose_layers(model, monkeypatch, read):
    deepest = set()
    original = StateReader._forward

    def record(self, *args):
        deepest.add(max(self.layers))
        return original(self, *args)

    monkeypatch.setattr(StateReader, "_forward", record)
    profile = build(model, layers="auto")
    assert deepest == {3}
    named = build(model, layers=[1, 2, 3])
    for side, by_position in profile.states.items():
        for position, values in by_position.items():
            index = [named.layers.index(layer) for layer in profile.layers]
            assert_array_equal(values, named.states[side][position][:, index])


def test_groups_keep_the_order_and_end_where_the_content_says():
    rng = np.random.default_rng(0)
    items = [Tokens(rng.integers(0, 99, 6).tolist(), (Turn(2, 5),)) for _ in range(200)]
    found = groups(items)
    assert [item for group in found for item in group] == items
    assert all(MIN_ROWS <= len(group) <= MAX_ROWS for group in found[:-1])
    known = [tuple(map(id, group)) for group in found]
    later = groups([items[0], *items])
    assert sum(tuple(map(id, group)) in known for group in later) >= len(found) - 4
    assert groups([]) == [[]]
