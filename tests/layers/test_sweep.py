import copy

import pytest
import torch

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.layers import find_safety_layers
from larf_curate.layers.decoding import decode
from larf_curate.layers.methods import refusal_cell
from larf_curate.layers.replay import Replay
from larf_curate.models.blocks import decoder_blocks, projections
from tests.fixtures.tiny import PROMPTS, tiny_model, tiny_subject, word_tokenizer

KEYWORDS = ("sorry", "that", "help")


def naive_refusals(model, tokenizer, block, alpha, keywords):
    """What the authors do: copy the model, scale it, answer one prompt at a time, look for keywords."""
    model = copy.deepcopy(model)
    if block is not None:
        for weight in projections(decoder_blocks(model)[block]).values():
            weight.data = weight.data * alpha
    refused = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32)
        answer = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).lower()
        refused.append(any(keyword in answer for keyword in keywords))
    return refused


@pytest.mark.parametrize("architecture", ["Llama", pytest.param("Gemma2", marks=pytest.mark.slow)])
def test_every_cell_equals_reloading_scaling_and_generating_prompt_by_prompt(architecture):
    model, tokenizer = tiny_model(architecture), word_tokenizer()
    subject = tiny_subject(architecture)
    refuses = RefusalDetector(KEYWORDS)
    replay = Replay(subject, subject.encode_prompts(PROMPTS, new_tokens=32), batch_tokens=32)
    plain = decode(subject, list(replay()), refuses, new_tokens=32)
    assert [answer.refused for answer in plain] == naive_refusals(model, tokenizer, None, 1.0, KEYWORDS)
    cell = refusal_cell(subject, replay, refuses)
    total = 0
    for block, alpha in ((0, 0.7), (1, 1.3), (2, 0.7)):
        want = naive_refusals(model, tokenizer, block, alpha, KEYWORDS)
        assert cell(block, alpha) == [float(value) for value in want], (block, alpha)
        total += sum(want)
    assert 0 < total < 3 * len(PROMPTS)


def test_answers_stop_at_the_decision_and_their_text_is_that_of_greedy_decoding():
    subject = tiny_subject()
    texts = subject.encode_prompts(PROMPTS, new_tokens=32)
    done: list[int] = []
    refuses = RefusalDetector(("sorry",))
    answers = decode(subject, list(Replay(subject, texts)()), refuses, new_tokens=32, advance=done.append)
    assert sum(done) == len(answers)
    for text, answer in zip(texts, answers, strict=True):
        ids = torch.tensor([text])
        whole = subject.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32)
        whole = whole[0, len(text) :].tolist()
        assert whole[: len(answer.ids)] == answer.ids
        shorter = subject.tokenizer.decode(answer.ids[:-1])
        assert "sorry" not in shorter
        assert answer.refused == ("sorry" in subject.tokenizer.decode(answer.ids))
        assert answer.refused or answer.ids == whole


@pytest.mark.slow
def test_an_interrupted_sweep_restores_the_weights_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    model, cells = tiny_model(), []
    before = [weight.detach().clone() for weight in model.parameters()]
    options = {
        "tokenizer": word_tokenizer(),
        "method": "sweep",
        "prompts": PROMPTS,
        "keywords": KEYWORDS,
        "alphas": (0.7, 1.3),
        "checkpoint": tmp_path / "cells.jsonl",
    }

    def interrupted(*args, **named):
        cells.append(args)
        if len(cells) == 5:  # the fourth cell: the first call is the model as it is
            raise KeyboardInterrupt
        return decode(*args, **named)

    monkeypatch.setattr("larf_curate.layers.methods.decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_safety_layers(model, **options)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(weight.requires_grad for weight in model.parameters())
    resumed = find_safety_layers(model, **options)
    assert len(cells) == 5 + 1 + 3
    whole = find_safety_layers(model, **{**options, "checkpoint": None})
    assert resumed.curves == whole.curves
    find_safety_layers(model, **{**options, "prompts": PROMPTS[:-1]})
    assert len(cells) == 9 + 7 + 7, "cells of other prompts must not be taken"
