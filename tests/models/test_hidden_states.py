from dataclasses import replace
from functools import lru_cache, wraps

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from transformers import AutoModelForCausalLM, AutoTokenizer

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.errors import InputError, ModelError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.devices import default_batch_tokens, resolve_device, resolve_dtype, supports_flash_attention
from larf_curate.models.hidden_states import StateReader
from larf_curate.models.loading import load_reader
from larf_curate.models.source import ModelSource, count_layers
from larf_curate.states import POSITIONS

ROWS = [
    {"question": "Hi", "answer": "Hello."},
    {"question": "How do I bake bread at home?" * 4, "answer": "Sure, here is a recipe: flour, water, salt. " * 5},
    {"question": "Say nothing", "answer": "."},
    {"question": "q" * 50, "answer": "äöü 😀 \x00 end"},
    {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "One, of course."},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "I cannot help with that."},
        ]
    },
]


def reader_of(folder, layers, **options):
    source = ModelSource(model_id=str(folder), dtype=options.pop("dtype", "float32"))
    return load_reader(source, tuple(layers), device="cpu", **options)


def tokens_of(reader, rows=ROWS):
    return [item.tokens for item in Renderer(reader.tokenizer, reader.max_length)(rows)]


@lru_cache(maxsize=1)
def full_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def full_states(folder, ids):
    """Block outputs of the whole model on one conversation without padding, shape (blocks, tokens, d)."""
    model = full_model(folder)
    kept = []
    handle = model.model.layers[-1].register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.inference_mode():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    handle.remove()
    # The last entry of `hidden_states` has passed the final norm: the last block is read by a hook instead.
    return np.stack([state[0].numpy() for state in (*hidden[1:-1], kept[0])])


def assert_states_are_the_full_models(folder, layers, atol=1e-4):
    reader = reader_of(folder, layers, batch_tokens=300)
    tokens = tokens_of(reader)
    states = reader(tokens, POSITIONS)
    turn = 0
    for item in tokens:
        want = full_states(folder, item.ids)[list(layers)]
        for span in item.turns:
            assert_allclose(states["last"][turn], want[:, span.end], atol=atol)
            assert_allclose(states["prompt"][turn], want[:, span.start - 1], atol=atol)
            assert_allclose(states["mean"][turn], want[:, span.start : span.end + 1].mean(axis=1), atol=atol)
            assert (states["length"][turn] == span.end + 1).all()
            turn += 1
    assert turn == 6
    assert {p: v.shape[:2] for p, v in states.items()} == dict.fromkeys(POSITIONS, (6, len(layers)))
    assert {p: v.shape[2] for p, v in states.items()} == dict.fromkeys(POSITIONS, reader.width) | {"length": 1}


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_states_equal_the_full_models_own_at_every_layer_and_position(model, request):
    assert_states_are_the_full_models(request.getfixturevalue(model), range(5))


def test_states_equal_the_full_models_own_on_a_real_chat_model(smol):
    assert_states_are_the_full_models(smol, (0, 9, 14))


def test_the_last_block_of_a_real_chat_model_is_read_before_the_final_norm(smol):
    assert_states_are_the_full_models(smol, (29,), atol=1e-2)  # its values reach tens of thousands


def test_layers_come_in_the_order_asked_for_and_may_repeat(tiny_llama):
    every = reader_of(tiny_llama, range(5))
    want = every(tokens_of(every))["last"]
    some = reader_of(tiny_llama, (3, 0, 3))
    assert_allclose(some(tokens_of(some))["last"], want[:, [3, 0, 3]], atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 100, 250, 100_000])
def test_padding_batch_size_and_order_do_not_change_a_row(tiny_qwen2, batch_tokens):
    reader = reader_of(tiny_qwen2, (1, 4))
    tokens = tokens_of(reader)
    alone = {p: np.concatenate([reader([item], POSITIONS)[p] for item in tokens]) for p in POSITIONS}
    batched = replace(reader, batch_tokens=batch_tokens)
    order = [4, 2, 0, 3, 1]
    turns = np.concatenate([[4, 5], [2], [0], [3], [1]])
    together, shuffled = batched(tokens, POSITIONS), batched([tokens[i] for i in order], POSITIONS)
    for position in POSITIONS:
        assert_allclose(together[position], alone[position], atol=1e-4)
        assert_allclose(shuffled[position], alone[position][turns], atol=1e-4)


def test_no_forward_pass_exceeds_the_token_budget_unless_one_row_does(tiny_llama, monkeypatch):
    reader = reader_of(tiny_llama, (0,), batch_tokens=150)
    seen = []
    forward = type(reader.model).forward

    @wraps(forward)
    def watched(self, **options):
        seen.append(options["input_ids"].shape)
        return forward(self, **options)

    monkeypatch.setattr(type(reader.model), "forward", watched)
    tokens = tokens_of(reader)
    reader(tokens)
    assert sum(rows for rows, _ in seen) == len(tokens)
    assert len(seen) < len(tokens), "short rows share a pass"
    assert all(rows == 1 or rows * length <= 150 for rows, length in seen)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen2"])
def test_the_model_ends_with_the_deepest_layer_and_has_no_head(model, request):
    reader = reader_of(request.getfixturevalue(model), (0, 2))
    assert len(decoder_blocks(reader.model)) == 3
    names = [name for name, _ in reader.model.named_parameters()]
    assert not [name for name in names if "lm_head" in name or "layers.3" in name]
    assert not any(parameter.requires_grad for parameter in reader.model.parameters())
    assert not reader.model.training


def test_every_turn_is_read_as_if_the_conversation_ended_there(tiny_llama):
    reader = reader_of(tiny_llama, (2,))
    messages = ROWS[-1]["messages"]
    both = reader(tokens_of(reader, [ROWS[-1]]), POSITIONS)
    for turn, length in enumerate((3, 5)):
        alone = reader([replace_turns(tokens_of(reader, [{"messages": messages[:length]}])[0])], POSITIONS)
        for position in POSITIONS:
            assert_allclose(both[position][turn], alone[position][0], atol=1e-5)


def replace_turns(tokens):
    return Tokens(tokens.ids, tokens.turns[-1:])


def test_a_row_without_prompt_reads_its_own_first_token_as_the_prompts_end(tiny_llama):
    reader = reader_of(tiny_llama, (1,), batch_tokens=1000)
    tokens = [Tokens([5, 6, 7, 8], (Turn(1, 3),)), Tokens([9, 10, 11], (Turn(0, 2),))]
    got = reader(tokens, ("prompt",))["prompt"]
    want = [full_states(tiny_llama, item.ids)[1, 0] for item in tokens]
    assert_allclose(got[:, 0], want, atol=1e-5)


def test_no_rows_give_no_states(tiny_llama):
    reader = reader_of(tiny_llama, (0, 1))
    assert reader([], POSITIONS)["mean"].shape == (0, 2, 32)


def test_bfloat16_states_lie_near_the_float32_ones(tiny_llama):
    exact, coarse = (reader_of(tiny_llama, (4,), dtype=d) for d in ("float32", "bfloat16"))
    want = exact(tokens_of(exact))["last"]
    got = coarse(tokens_of(coarse))["last"]
    assert got.dtype == np.float32
    assert next(coarse.model.parameters()).dtype == torch.bfloat16
    assert not np.array_equal(got, want)
    assert (np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max() < 0.1


def test_hooks_are_gone_after_a_failed_pass(tiny_llama):
    reader = reader_of(tiny_llama, (0, 1))
    with pytest.raises(IndexError):
        reader([Tokens([10_000_000], (Turn(0, 0),))])
    assert not any(block._forward_hooks for block in decoder_blocks(reader.model))


@pytest.mark.parametrize("layers", [(5,), (-1,), (0, 5), ()])
def test_layers_the_model_does_not_have_are_refused_with_the_range(tiny_llama, layers):
    with pytest.raises(InputError, match="from 0 to 4"):
        reader_of(tiny_llama, layers)


def test_a_missing_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot load") as error:
        reader_of(tmp_path / "empty", (0,))
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="cannot load"):
        count_layers(ModelSource(model_id=str(tmp_path / "empty")))


def test_damaged_weights_are_refused_in_one_line(tiny_llama, tmp_path):
    for file in tiny_llama.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot load") as error:
        reader_of(tmp_path, (0,))
    assert "\n" not in str(error.value)


def test_the_number_of_layers_is_read_from_the_config(tiny_llama):
    assert count_layers(ModelSource(model_id=str(tiny_llama))) == 5


def test_conversations_are_never_longer_than_the_models_positions(tiny_llama):
    assert reader_of(tiny_llama, (0,), max_length=4096).max_length == 512
    assert reader_of(tiny_llama, (0,), max_length=100).max_length == 100


def test_the_same_model_is_loaded_once(tiny_llama):
    assert reader_of(tiny_llama, (0, 3)).model is reader_of(tiny_llama, (0, 3)).model


def test_a_told_device_and_dtype_are_taken_as_they_are():
    assert resolve_device("cuda:7") == "cuda:7"
    assert resolve_dtype("float16", "cpu") == "float16"
    assert resolve_dtype("auto", "mps") == "float32"


def test_the_token_budget_suits_the_device_unless_it_is_told(tiny_llama):
    assert reader_of(tiny_llama, (0,)).batch_tokens == min(512 * torch.get_num_threads(), 16_384)
    assert reader_of(tiny_llama, (0,), batch_tokens=77).batch_tokens == 77
    assert default_batch_tokens("cuda:1") == default_batch_tokens("mps") == 16_384


def test_flash_attention_is_for_halves_on_a_gpu_that_has_it_and_given_up_where_a_model_refuses_it(
    tiny_llama, monkeypatch
):
    monkeypatch.setattr("larf_curate.models.devices.is_flash_attn_2_available", lambda: True)
    cases = [("cuda:0", "bfloat16"), ("cuda:0", "float32"), ("cpu", "bfloat16")]
    assert [supports_flash_attention(device, dtype) for device, dtype in cases] == [True, False, False]
    asked = []
    monkeypatch.setattr(
        "larf_curate.models.loading.supports_flash_attention", lambda *given: asked.append(given) or True
    )
    assert reader_of(tiny_llama, (2,), max_length=99).model.config._attn_implementation == "sdpa"
    assert asked == [("cpu", "float32")]


def test_a_reader_is_of_the_asked_model_only(tiny_llama, tiny_qwen2):
    first, second = reader_of(tiny_llama, (0,)), reader_of(tiny_qwen2, (0,))
    assert isinstance(first, StateReader)
    assert type(first.model).__name__ == "LlamaModel"
    assert type(second.model).__name__ == "Qwen2Model"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    assert_array_equal(
        tokens_of(first)[0].ids,
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}], return_dict=False
        ),
    )


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_in_one_line(tiny_llama, device):
    with pytest.raises(ModelError, match=f"cannot compute on device '{device}'") as error:
        load_reader(ModelSource(model_id=str(tiny_llama), dtype="float32"), (0,), device=device)
    assert "\n" not in str(error.value)
