"""States of tiny random models of many architectures against the whole model's own, row by row and without padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from numpy.testing import assert_allclose

from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.errors import ModelError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.loading import load_reader
from larf_curate.models.source import ModelSource, count_layers
from larf_curate.models.token_trimming import SHORTCUTS
from tests.fixtures.tiny import bpe_tokenizer, save, tiny_config, tiny_model

BLOCKS = 6
ARCHITECTURES = (
    "Llama", "Qwen2", "Qwen3", "Mistral", "Gemma", "Gemma2", "Gemma3Text", "Phi3", "GPTNeoX", "Olmo2", "Cohere",
    "GptOss", "Gemma4Text",
)  # fmt: skip
WINDOWED = {"Phi3": {"sliding_window": 8}}
HYBRIDS = ("Mamba", "RecurrentGemma", "Lfm2")
LAYERS = [(3, 0), tuple(range(BLOCKS))]
TOKENIZER = bpe_tokenizer()


def random_model(name, **changes):
    """One of six blocks with biases and norms that do something."""
    options = {"initializer_range": 0.25, "biases": 0.2, "norms": 0.2, **WINDOWED.get(name, {}), **changes}
    return tiny_model(name, layers=BLOCKS, vocabulary=len(TOKENIZER), **options)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def whole(request, tmp_path_factory):
    """A whole model and the folder it is saved in."""
    model = random_model(request.param)
    return model, save(model, TOKENIZER, tmp_path_factory.mktemp(request.param))


def conversations(shared, lengths=(40, 25, 31, 25, 18, 60)):
    """Random tokens with a common beginning; the last row has two turns, one row comes twice."""
    rng = np.random.default_rng(0)
    head = rng.integers(3, 200, shared).tolist()
    rows = [head + rng.integers(3, 200, length - shared).tolist() for length in lengths]
    items = [Tokens(ids, (Turn(16, len(ids) - 1),)) for ids in rows]
    items[-1] = Tokens(rows[-1], (Turn(15, 22), Turn(40, 59)))
    return [*items, items[1]]


def own_states(model, ids):
    """The model's ``hidden_states`` after each block, of shape (blocks, tokens, d); the last has passed its norm."""
    with torch.inference_mode():
        return np.stack([s[0] for s in model(torch.tensor([ids]), output_hidden_states=True).hidden_states[1:]])


def normed(model, states):
    decoder = model.get_decoder()
    with torch.inference_mode():
        norm = getattr(decoder, "norm", None) or decoder.final_layer_norm
        return norm(torch.from_numpy(states)).numpy()


def assert_own_states(model, reader, items):
    states = reader(items, ("last", "prompt", "mean"))
    if BLOCKS - 1 in reader.layers:  # the mean of normed states is another thing
        place = reader.layers.index(BLOCKS - 1)
        for position in ("last", "prompt"):
            states[position][:, place] = normed(model, states[position][:, place])
    inner = [place for place, layer in enumerate(reader.layers) if layer < BLOCKS - 1]
    turn = 0
    for item in items:
        want = own_states(model, item.ids)[list(reader.layers)]
        scale = np.abs(want).max()
        for span in item.turns:
            mean = want[:, span.start : span.end + 1].mean(axis=1)
            assert_allclose(states["last"][turn] / scale, want[:, span.end] / scale, atol=3e-5)
            assert_allclose(states["prompt"][turn] / scale, want[:, span.start - 1] / scale, atol=3e-5)
            assert_allclose(states["mean"][turn, inner] / scale, mean[inner] / scale, atol=3e-5)
            turn += 1


def reader_of(folder, layers, dtype="float32"):
    return load_reader(ModelSource(model_id=str(folder), dtype=dtype), layers, device="cpu", batch_tokens=130)


@pytest.mark.parametrize("layers", LAYERS, ids=str)
def test_states_equal_the_whole_models_own_with_and_without_shortcuts(whole, layers):
    model, folder = whole
    reader = reader_of(folder, layers)
    assert reader.shortcuts == SHORTCUTS
    for shared, shortcuts in [(5, SHORTCUTS), (12, SHORTCUTS), (12, frozenset())]:
        assert_own_states(model, replace(reader, shortcuts=shortcuts), conversations(shared))


@pytest.mark.parametrize("name", HYBRIDS)
def test_models_with_other_caches_give_their_own_states_without_the_prefix(name, tmp_path):
    model = random_model(name)
    reader = reader_of(save(model, TOKENIZER, tmp_path), (1, 3))
    assert "prefix" not in reader.shortcuts
    outputs = []
    for layer in (1, 3):
        decoder_blocks(model)[layer].register_forward_hook(lambda _m, _i, o: outputs.append(o))
    items = conversations(12)
    states = reader(items)["last"]
    ends = np.cumsum([len(item.turns) for item in items]) - 1
    for end, item in zip(ends, items, strict=True):
        outputs.clear()
        with torch.inference_mode():
            model(torch.tensor([item.ids]))
        assert_allclose(states[end], [output[0, -1] for output in outputs], atol=1e-4)


def test_the_language_model_of_a_multimodal_one_is_read_though_its_tower_is_larger(tmp_path):
    text = tiny_config("Gemma3Text", layers=BLOCKS, vocabulary=len(TOKENIZER), initializer_range=0.25)
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config=text.to_dict(), vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    for layers in LAYERS:
        reader = reader_of(save(model, TOKENIZER, tmp_path), layers)
        assert reader.shortcuts == SHORTCUTS
        assert not [name for name, _ in reader.model.named_parameters() if "vision" in name]
        assert_own_states(model, reader, conversations(12))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_check_of_shortcuts_allows_for_the_rounding_of_halves(whole, dtype):
    assert reader_of(whole[1], (2, 4), dtype).shortcuts == SHORTCUTS


def test_a_shortcut_that_a_models_blocks_do_not_allow_is_left_out(tmp_path):
    model = random_model("Bloom")
    # Its feed-forward layer takes the residual as a second input.
    reader = reader_of(save(model, TOKENIZER, tmp_path), (1, 3))
    assert reader.shortcuts == SHORTCUTS - {"trim"}
    assert_own_states(model, reader, conversations(12))


def test_a_model_that_looks_ahead_is_refused(tmp_path):
    with pytest.raises(ModelError, match="only causal decoder models"):
        reader_of(save(random_model("Bert"), TOKENIZER, tmp_path), (1, 3))


def test_a_model_with_several_streams_is_refused(tmp_path):
    model = random_model("Gemma3nText", intermediate_size=[48] * BLOCKS)
    with pytest.raises(ModelError, match="one state per token"):
        reader_of(save(model, TOKENIZER, tmp_path), (1, 3))


def test_an_encoder_and_decoder_is_refused(tmp_path):
    transformers.T5Config(num_layers=BLOCKS).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="wanted a decoder model, got 't5'"):
        reader_of(tmp_path, (1,))
    with pytest.raises(ModelError, match="wanted a decoder model"):
        count_layers(ModelSource(model_id=str(tmp_path)))


def test_rows_are_never_so_long_that_the_batch_would_change_their_rotary_frequencies(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = random_model("Phi3", original_max_position_embeddings=64, rope_parameters=rope)
    assert reader_of(save(model, TOKENIZER, tmp_path), (1,)).max_length == 64
