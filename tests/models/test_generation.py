import pytest
import torch

from larf_curate.errors import InputError, ModelError
from larf_curate.evaluation.task_metrics import held_out_loss
from larf_curate.models.generation import generate_answers, load_model
from tests.fixtures.tiny import byte_model, byte_tokenizer
from tests.fixtures.training_rows import tiny_rows

TOKENIZER = byte_tokenizer()
PROMPTS = ["How?", "Write a very long story about a dragon and its hoard of gold", "Say hello", "Why is \ud800 odd"]


def greedy_one_by_one(model, prompt, new, stops=(TOKENIZER.eos_token_id,)):
    """Decoding without batch, padding, cache or generate()."""
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    ).replace("\ud800", "\N{REPLACEMENT CHARACTER}")
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    answer = []
    for _ in range(new):
        token = int(model(torch.tensor([ids + answer])).logits[0, -1].argmax())
        answer.append(token)
        if token in stops:
            break
    return TOKENIZER.decode(answer, skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batched_answers_equal_answers_one_by_one(batch_size):
    model = byte_model(dtype=torch.float64).eval()
    got = generate_answers(model, TOKENIZER, PROMPTS, max_new_tokens=8, batch_size=batch_size)
    with torch.no_grad():
        want = [greedy_one_by_one(model, prompt, 8) for prompt in PROMPTS]
    assert got == want
    assert len(set(got)) > 1


def test_answers_end_at_a_token_that_the_model_or_its_tokenizer_ends_them_with():
    model = byte_model(dtype=torch.float64).eval()
    tokenizer = byte_tokenizer()
    first, second = TOKENIZER.convert_tokens_to_ids(["T", "#"])
    model.generation_config.eos_token_id = first
    tokenizer.eos_token = "#"
    with torch.no_grad():
        whole = [greedy_one_by_one(model, prompt, 40) for prompt in PROMPTS]
        want = [greedy_one_by_one(model, prompt, 40, (first, second)) for prompt in PROMPTS]
    assert any("T" in text for text in whole)
    assert any("#" in text for text in whole)
    assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=40) == want


def test_a_sampling_configuration_of_the_model_is_not_used_and_its_mode_is_kept():
    model = byte_model(dtype=torch.float64).train()
    plain = generate_answers(model, TOKENIZER, PROMPTS[:2], max_new_tokens=8)
    model.generation_config.do_sample = True
    model.generation_config.temperature = 9.0
    assert generate_answers(model, TOKENIZER, PROMPTS[:2], max_new_tokens=8) == plain
    assert model.training


def test_penalties_and_beams_of_the_models_own_settings_are_not_used():
    model = byte_model(dtype=torch.float64)
    plain = generate_answers(model, TOKENIZER, PROMPTS[:2], max_new_tokens=8)
    for name, value in (("repetition_penalty", 5.0), ("no_repeat_ngram_size", 1), ("num_beams", 3)):
        setattr(model.generation_config, name, value)
    assert generate_answers(model, TOKENIZER, PROMPTS[:2], max_new_tokens=8) == plain


def test_a_broken_model_is_an_error_and_no_refusal_rate():
    model = byte_model()
    model.lm_head.weight.data[3] = float("nan")
    with pytest.raises(ModelError, match="gives NaN"):
        generate_answers(model, TOKENIZER, PROMPTS, max_new_tokens=2)
    with pytest.raises(ModelError, match="not finite"):
        held_out_loss(model, TOKENIZER, tiny_rows())


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": -1}, {"max_new_tokens": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(InputError, match="at least 1"):
        generate_answers(byte_model(), TOKENIZER, PROMPTS, **options)


def test_a_tokenizer_without_an_end_of_turn_is_refused():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    model = byte_model()
    model.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="ends an answer: set eos_token"):
        generate_answers(model, tokenizer, PROMPTS[:1], max_new_tokens=2)


def test_a_prompt_longer_than_the_window_is_refused():
    with pytest.raises(InputError, match=r"prompt 1 has \d+ tokens, with 8 .* window of 256"):
        generate_answers(byte_model(), TOKENIZER, ["short", "w" * 300], max_new_tokens=8)


def test_a_model_without_chat_template_or_of_unknown_name_is_refused(tmp_path):
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        generate_answers(byte_model(), bare, ["hello"])
    with pytest.raises(ModelError, match="cannot load .* from the Hub id|the Hub cannot be reached"):
        load_model(str(tmp_path / "none"))
