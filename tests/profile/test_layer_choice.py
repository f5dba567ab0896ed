"""Which layers a profile reads where it is not told."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.testing import assert_array_equal
from tokenizers import Tokenizer, normalizers

from larf_curate.cli import main
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ModelError, ProfileError, ReferenceSetError
from larf_curate.layers import LayerReport, find_safety_layers
from larf_curate.layers.choice import separation
from larf_curate.models import loading, source
from larf_curate.profile import SafetyProfile
from larf_curate.signals import SIGNALS
from tests.fixtures.models import NEUTRAL, PROFILE
from tests.fixtures.tiny import SPACED
from tests.layers.test_find import planted
from tests.profile.test_profile import LONG

pytestmark = pytest.mark.usefixtures("own_caches")
BOTH = "separation of held-out references and what refusals depend on, equally"


def first_references(count):
    whole = ReferenceSet.load("builtin")
    sides = (side[:count] for side in (whole.unsafe, whole.safe, whole.labels))
    return ReferenceSet(**dict(zip(("unsafe", "safe", "labels"), sides, strict=True)), source="some")


def six_references():
    return first_references(6)


HARMFUL = PROFILE | {"references": six_references(), "signal": "harmful"}


def test_automatic_layers_are_some_of_the_models_own_with_their_states(tiny_llama, tmp_path):
    with pytest.raises(ReferenceSetError, match=r"at least 5 .* got 4.*layers="):
        SafetyProfile.build(tiny_llama, first_references(4), layers="auto", **PROFILE)
    profile = SafetyProfile.build(tiny_llama, six_references(), layers="auto", **PROFILE)
    every = SafetyProfile.build(tiny_llama, six_references(), layers="all", **PROFILE)
    assert set(profile.layers) <= set(range(5))
    for side in ("unsafe", "safe", "neutral"):
        want = every.states[side]["last"][:, list(profile.layers)]
        assert_array_equal(profile.states[side]["last"], want)
    profile.save_pretrained(tmp_path)
    assert SafetyProfile.from_pretrained(tmp_path).digest == profile.digest


def layer_report(scores, layers):
    return LayerReport(
        method="gradient",
        model="llama",
        layers=layers,
        scores=scores,
        low=scores,
        high=scores,
        ranking=tuple(range(len(scores))),
        broken=(),
        neutral_loss=(None,) * len(scores),
        prompts=16,
        scaled=(),
        seconds=1.0,
    )


def refusing_model(folder, *, block):
    """A model of eight blocks that refuses some of the built-in prompts, all by one block."""
    model, tokenizer = planted(block, layers=8)
    words = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace('"sorry"', '"I cannot help with that"'))
    words.normalizer = normalizers.Lowercase()
    tokenizer = type(tokenizer)(tokenizer_object=words, **tokenizer.special_tokens_map)
    tokenizer.chat_template = SPACED
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A model whose refusals its fifth block makes, in the middle half of eight, three of which are chosen."""
    return refusing_model(tmp_path_factory.mktemp("refusing") / "model", block=4)


@pytest.fixture(scope="module")
def every(refusing):
    """Its profile of all layers, which separation alone would cut to 2, 3 and 4."""
    profile = SafetyProfile.build(refusing, layers="all", **HARMFUL)
    assert profile.best_layers() == (2, 3, 4)
    return profile


def test_automatic_layers_weigh_what_the_refusals_of_the_model_depend_on(refusing, every):
    profile = SafetyProfile.build(refusing, layers="auto", **HARMFUL)
    found = {"model": "model", "method": "gradient", "most_sensitive": [4], "carried": [0, 1, 1]}
    assert profile.choice == {"by": BOTH, **found}
    assert profile.layers == (2, 4, 5)
    given = SafetyProfile.build(refusing, layers=find_safety_layers(refusing, device="cpu"), **HARMFUL)
    assert given.layers == profile.layers


@pytest.mark.parametrize("sensitivity", [(0, 0, 0, 0, 1, 3, 0, 0), (0, 0, 0, 0, 0, 2, 0, 9), (0, 0, 0, 5, 0, 5, -9, 0)])
def test_a_layer_report_counts_as_much_as_separation(refusing, every, sensitivity):
    shares = separation(SIGNALS["harmful"].fit, every.references_for())[2:6].clip(0)
    positive = [max(value, 0) for value in sensitivity]
    carried = np.array([sum(positive[: block + 1]) / sum(positive) for block in range(2, 6)])
    order = np.argsort(-(shares / shares.max() + carried), kind="stable")
    report = layer_report(tuple(map(float, sensitivity)), (5,))
    profile = SafetyProfile.build(refusing, layers=report, **HARMFUL)
    assert profile.layers == tuple(sorted(2 + int(place) for place in order[:3]))
    assert profile.choice["by"] == BOTH
    assert profile.choice["most_sensitive"] == [5]


def test_automatic_layers_of_a_model_that_refuses_nothing_go_by_separation_alone(tiny_llama, caplog):
    profile = SafetyProfile.build(tiny_llama, six_references(), layers="auto", **PROFILE)
    assert "could not be told" in profile.summary()["layer_choice"]["by"]
    assert "refuses none of 48 prompts" in caplog.text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out"),
        (ModelError("a block has experts: use method='forward'"), "a block has experts"),
    ],
    ids=["memory", "experts"],
)
def test_a_model_whose_gradient_cannot_be_had_goes_by_separation_alone(
    refusing, every, monkeypatch, caplog, error, said
):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr("larf_curate.profile.layer_choice.find_safety_layers", fail)
    profile = SafetyProfile.build(refusing, layers="auto", **HARMFUL)
    assert profile.layers == every.best_layers() == (2, 3, 4)
    assert "could not be told" in profile.choice["by"]
    assert f"since {said} (see larf" in caplog.text


def test_a_fault_of_the_gradient_is_an_error_and_no_other_choice_of_layers(refusing, monkeypatch):
    def fail(*_arguments, **_options):
        raise IndexError("list index out of range")

    monkeypatch.setattr("larf_curate.profile.layer_choice.find_safety_layers", fail)
    with pytest.raises(ModelError, match="IndexError: list index out of range.*give the layers"):
        SafetyProfile.build(refusing, layers="auto", **HARMFUL)


def test_the_model_is_read_from_disk_once(refusing, monkeypatch):
    loaded = []

    def load(kind, source, **options):
        loaded.append(kind.__name__)
        return original(kind, source, **options)

    original = source._load
    monkeypatch.setattr(source, "_load", load)
    profile = SafetyProfile.build(refusing, layers="auto", **HARMFUL)
    assert "equally" in profile.choice["by"]
    assert [kind for kind in loaded if "Model" in kind] == ["AutoModelForCausalLM"]


def test_a_head_that_does_not_fit_into_memory_leaves_the_choice_to_separation(refusing, every, monkeypatch, caplog):
    def fail(*_arguments, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loading, "load_causal_lm", fail)
    profile = SafetyProfile.build(refusing, layers="auto", **HARMFUL)
    assert profile.layers == every.best_layers()
    assert "without its head, since CUDA out of memory" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": (0.0,) * 7 + (3.0,), "layers": (7,)}, "on no block of the middle half"),
        ({"scores": (3.0,) + (0.0,) * 7, "layers": (0,)}, "on no block of the middle half"),
        ({"method": "separation"}, "the layer report is by separation, not of refusals"),
        ({"layers": ()}, "no block stands out"),
    ],
)
def test_a_report_that_says_nothing_of_the_middle_half_leaves_the_choice_to_separation(
    refusing, every, caplog, changes, said
):
    report = layer_report((0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0), (4,))
    assert every.best_layers(report) == (2, 4, 5)
    profile = SafetyProfile.build(refusing, layers=replace(report, **changes), **HARMFUL)
    assert profile.layers == (2, 3, 4)
    assert said in profile.summary()["layer_choice"]["by"]
    assert said in caplog.text


def test_a_report_of_numpy_numbers_is_recorded_and_one_without_numbers_refused(tiny_llama, caplog):
    report = layer_report(tuple(np.float32([0, 1, 2, 3, 1])), tuple(np.array([3])))
    profile = SafetyProfile.build(tiny_llama, six_references(), layers=report, **PROFILE)
    assert len(profile.digest) == 64
    with pytest.raises(ProfileError, match="not finite"):
        SafetyProfile.build(tiny_llama, six_references(), layers=replace(report, scores=(np.nan,) * 5), **PROFILE)
    SafetyProfile.build(tiny_llama, six_references(), layers=replace(report, model="other"), **PROFILE)
    assert "the layer report is of other, the profile of llama" in caplog.text


def test_the_command_takes_a_layer_report_and_says_how_layers_were_chosen(tiny_llama, tmp_path):
    layer_report((0.0, 0.0, 0.1, 3.0, 0.0), (3,)).save(tmp_path / "layers")
    rows = [{"prompt": r["prompt"], "unsafe": LONG, "safe": f"No {i}."} for i, r in enumerate(six_references().unsafe)]
    for name, kept in (("refs.jsonl", rows), ("neutral.jsonl", NEUTRAL)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in kept))
    options = ["--layers", tmp_path / "layers", "--references", tmp_path / "refs.jsonl", "--dtype", "float32"]
    options += ["--neutral", tmp_path / "neutral.jsonl", "--device", "cpu", "-o", tmp_path / "profile"]
    said = CliRunner().invoke(main, ["profile", str(tiny_llama), *map(str, options)]).stdout
    said = " ".join(said.replace("│", " ").split())  # as in a table of any width
    assert "and what refusals depend on" in said
    assert "6 unsafe, 6 safe" in said
    assert "6 cut to the length of their counterparts" in said
    profile = SafetyProfile.from_pretrained(tmp_path / "profile")
    assert profile.choice["most_sensitive"] == [3]


def test_a_layer_report_of_another_model_is_refused(tiny_llama):
    short = replace(layer_report((1.0,) * 5, (1,)), scores=(1.0,) * 4)
    with pytest.raises(ProfileError, match="5 blocks, got one of llama with 4"):
        SafetyProfile.build(tiny_llama, six_references(), layers=short, **PROFILE)
