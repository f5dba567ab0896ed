"""A batch that shrinks gives the answers of `generate` one by one, and runs no answer that has ended."""

import pytest
import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import GenerationConfig

from larf_curate.models.generation import generate_answers
from larf_curate.models.shrinking_batch import LEAVING, decode_shrinking
from tests.fixtures.tiny import PROMPTS, byte_model, byte_tokenizer, tiny_model, word_tokenizer

SHRINKING = ["Llama", "Qwen3", "Qwen3Moe", "Phi3", "GPTNeoX"]
WINDOWED = ["Mistral", "Gemma2", "Gemma3Text"]
OTHERS = ["Gemma4Text", "Mpt", "Mamba"]
"""Whose batches stay as they are: with keys of other blocks, without explicit positions, with recurrent states."""
NEW = 24


def encoded():
    tokenizer = word_tokenizer()
    chats = ([{"role": "user", "content": prompt}] for prompt in [*PROMPTS, "kill"])
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def one_by_one(model, prompts):
    """New tokens of each prompt, decoded alone and without a cache."""
    answers = []
    for prompt in prompts:
        answer = []
        while len(answer) < NEW:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + answer]), use_cache=False).logits
            answer.append(int(logits[0, -1].argmax()))
        answers.append(answer)
    return answers


@pytest.mark.parametrize(
    ("architecture", "changes", "shrinks"),
    [
        *((name, {}, True) for name in SHRINKING),
        *((name, {"sliding_window": window}, window > 8) for name in WINDOWED for window in (8, 64)),
        *((name, {}, False) for name in OTHERS),
    ],
)
def test_answers_equal_those_one_by_one_in_any_architecture(architecture, changes, shrinks):
    model, prompts = tiny_model(architecture, norms=0.5, **changes), encoded()
    calls = []
    generate = model.generate
    model.generate = lambda **options: calls.append(len(options["input_ids"])) or generate(**options)
    lengths = [3, 24, 9, 12, 5, 24, 14, 7]
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=[999], pad_token_id=0, do_sample=False)
    found = decode_shrinking(
        model,
        prompts,
        config,
        ended=lambda rows, ids: [len(new) == lengths[row] for row, new in zip(rows, ids, strict=True)],
    )
    whole = one_by_one(model, prompts)
    assert len({token for answer in whole for token in answer}) > 8
    assert found == [answer[:length] for answer, length in zip(whole, lengths, strict=True)]
    assert (len(calls) > 1) is shrinks
    assert calls == sorted(calls, reverse=True)


def test_prompts_of_different_lengths_are_apart_where_padding_changes_states():
    model, prompts = tiny_model("RecurrentGemma", norms=0.5), encoded()
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=[999], pad_token_id=0, do_sample=False)
    assert decode_shrinking(model, prompts, config) == one_by_one(model, prompts)


@pytest.mark.parametrize(
    "own",
    [{"use_cache": False}, {"cache_implementation": "static"}, {"return_dict_in_generate": True},
     {"begin_suppress_tokens": list(range(4, 40))}, {"exponential_decay_length_penalty": (5, 1.5)}],
    ids=lambda own: next(iter(own)),
)  # fmt: skip
def test_options_of_the_models_own_give_the_answers_of_one_batch(own):
    model, tokenizer = tiny_model(norms=0.5), word_tokenizer()
    model.generation_config.update(**own)
    model.generation_config.eos_token_id = [12, 31]
    options = {"max_new_tokens": NEW, "batch_size": 8}
    whole = [generate_answers(model, tokenizer, [prompt], **options)[0] for prompt in PROMPTS]
    assert generate_answers(model, tokenizer, PROMPTS, **options) == whole
    assert len({len(answer.split()) for answer in whole}) > 3


def test_answers_end_with_a_token_that_ends_them():
    model, prompts = tiny_model(), encoded()
    whole = one_by_one(model, prompts)
    stops = [whole[0][3], whole[1][9]]
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=stops, pad_token_id=0, do_sample=False)
    ends = [min([*(answer.index(stop) + 1 for stop in stops if stop in answer), NEW]) for answer in whole]
    assert len(set(ends)) > 2
    assert decode_shrinking(model, prompts, config) == [answer[:end] for answer, end in zip(whole, ends, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_head_of_frozen_weights_gets_no_slice_of_the_states(dtype):
    model, prompts = tiny_model().to(dtype), encoded()
    expected = one_by_one(model, prompts)
    model.requires_grad_(False)  # as of a merged adapter
    strides = []

    class Record(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            if function is linear and args[1] is model.lm_head.weight:
                strides.append(args[0].is_contiguous() and len(args[0]))
            return function(*args, **(kwargs or {}))

    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=[63], pad_token_id=0, do_sample=False)
    with Record():
        found = decode_shrinking(model, prompts, config)
    assert strides[0] == len(prompts)
    assert all(strides)
    assert not model.lm_head._forward_pre_hooks
    if dtype == torch.float32:
        assert found == expected


def test_a_head_may_be_called_with_a_keyword():
    model, prompts = tiny_model(), encoded()
    expected = one_by_one(model, prompts)
    head, call = model.lm_head, type(model.lm_head).__call__
    model.get_output_embeddings = lambda: head
    del model.lm_head
    object.__setattr__(model, "lm_head", lambda states: call(head, input=states))
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=[999], pad_token_id=0, do_sample=False)
    assert decode_shrinking(model, prompts, config) == expected


def test_rows_that_have_ended_are_not_run_any_more():
    model, prompts = tiny_model(), encoded()
    sizes = []
    model.model.layers[0].register_forward_hook(lambda _module, inputs, _output: sizes.append(len(inputs[0])))
    config = GenerationConfig(max_new_tokens=NEW, eos_token_id=[63], pad_token_id=0, do_sample=False)

    def ended(rows, ids):
        return [len(new) == row + 1 for row, new in zip(rows, ids, strict=True)]  # the first after one token, and so on

    complete = []
    found = decode_shrinking(model, prompts, config, ended=ended, advance=complete.append)
    assert list(map(len, found)) == list(range(1, len(prompts) + 1))
    assert complete == [2, 2, 1, 1, 1, 1]  # whenever a quarter of the rows that are left has ended
    assert sizes[0] == len(prompts) == 8
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == 1
    for step, size in enumerate(sizes):  # no more have stayed than the next removal takes
        running = len(prompts) - step
        assert running <= size < running + size / LEAVING + 1


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_answers_that_are_decided_are_beginnings_of_the_complete_ones(batch_size):
    model, tokenizer = byte_model(dtype=torch.float32).eval(), byte_tokenizer()
    prompts = ["How?", "Write a very long story about a dragon and its hoard of gold", "Say hello", "Why not"]
    options = {"max_new_tokens": 40, "batch_size": batch_size}
    whole = generate_answers(model, tokenizer, prompts, **options)
    seen = {}

    def decided(number, text):
        seen.setdefault(number, []).append(text)
        return len(text) >= 5 * (number + 1)

    short = generate_answers(model, tokenizer, prompts, decided=decided, **options)
    for number, (a, b) in enumerate(zip(short, whole, strict=True)):
        assert b.startswith(a.rstrip("\ufffd"))
        assert len(a) >= 5 * (number + 1) or a == b
        assert len(seen[number]) < 40 or len(a) < 5 * (number + 1) or a == b
    assert short != whole
