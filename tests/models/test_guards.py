"""Guard models: probabilities equal to those of the naive forward pass, and outputs read as each family writes them."""

import pytest
import torch
import transformers

from larf_curate.errors import InputError, ModelError
from larf_curate.models.guards import (
    GRANITE_GUARDIAN_33,
    LLAMA_GUARD,
    QWEN3_GUARD,
    SHIELD_GEMMA,
    WILD_GUARD,
    ClassifierGuard,
    GenerativeGuard,
    family_of,
    load_guard,
)
from tests.fixtures.tiny import CHATML, byte_tokenizer, save, tiny_config, tiny_model

TEMPLATES = {
    "Llama Guard": "{# <BEGIN UNSAFE CONTENT CATEGORIES> #}" + CHATML,
    "ShieldGemma": "{{ guideline }}" + CHATML,
    "Granite Guardian": "{{ guardian_config['risk_name'] }}" + CHATML,
    "Granite Guardian 3.3": "{{ guardian_config['criteria_id'] }}" + CHATML,
    "Qwen3Guard": "{# Safety: Safe, Unsafe, Controversial #}" + CHATML,
}
REQUEST = [{"role": "user", "content": "Say it"}]
ANSWER = [*REQUEST, {"role": "assistant", "content": "It is said"}]


def words_tokenizer():
    """Bytes, and the words of the verdicts as one token each."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["unsafe", "safe", "Yes", "No"])
    return tokenizer


def guard_model(architecture, tokenizer, words):
    """Random weights; the two words alone can be said, each as likely as its own row of the head makes it."""
    model = tiny_model(architecture, vocabulary=len(tokenizer), max_position_embeddings=1024)
    with torch.no_grad():
        row = model.lm_head.weight[0].clone()
        model.lm_head.weight.zero_()
        for word, sign in zip(words, (1, -1), strict=True):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)] = sign * row
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(words))  # one word is the output
    return model


@pytest.mark.parametrize(
    ("architecture", "name", "words"),
    [
        ("Llama", "Llama Guard", ("safe", "unsafe")),
        ("Gemma2", "ShieldGemma", ("No", "Yes")),
        ("Granite", "Granite Guardian", ("No", "Yes")),
    ],
)
def test_probabilities_are_those_of_the_first_word(tmp_path, architecture, name, words):
    tokenizer = words_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    model = guard_model(architecture, tokenizer, words)
    folder = str(save(model, tokenizer, tmp_path))
    chats = [REQUEST, ANSWER, [{"role": "user", "content": "Another and longer one " * 3}]]
    got = load_guard(folder, device="cpu", batch_size=2)(chats)
    ids = tokenizer.convert_tokens_to_ids(list(words))
    for chat, verdict in zip(chats, got, strict=True):
        each = []
        for arguments in family_of(folder, tokenizer.chat_template).arguments(chat[-1]["role"] == "assistant"):
            text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **arguments)
            tokens = torch.tensor([tokenizer(text)["input_ids"]])
            each.append(float(model(tokens).logits[0, -1, ids].softmax(0)[1].detach()))
        assert verdict.status == "ok"
        assert verdict.unsafe == pytest.approx(max(each), abs=1e-5)
    assert len({round(verdict.unsafe, 6) for verdict in got}) == 3


def test_shieldgemma_is_asked_for_each_of_its_four_policies():
    requests, answers = SHIELD_GEMMA.arguments(False), SHIELD_GEMMA.arguments(True)
    assert len(requests) == len(answers) == 4
    assert all("The prompt shall not contain or seek generation of" in each["guideline"] for each in requests)
    assert all("The chatbot shall not generate" in each["guideline"] for each in answers)


@pytest.mark.parametrize(
    ("family", "text", "of_answer", "want"),
    [
        (QWEN3_GUARD, "Safety: Unsafe\nCategories: Violent", False, 1.0),
        (QWEN3_GUARD, "Safety: Controversial\nCategories: PII\nRefusal: No", True, 0.5),
        (QWEN3_GUARD, "Safety: Safe\nCategories: None\nRefusal: Yes", True, 0.0),
        (QWEN3_GUARD, "Sure, I can help.", True, None),
        (WILD_GUARD, "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", False, 1.0),
        (WILD_GUARD, "Harmful request: yes\nResponse refusal: yes\nHarmful response: no", True, 0.0),
        (WILD_GUARD, "Harmful request: yes\nResponse refusal: N/A\nHarmful response: N/A", True, None),
        (GRANITE_GUARDIAN_33, "<think>\n</think>\n<score> yes </score>", True, 1.0),
        (GRANITE_GUARDIAN_33, "<score>no</score>", False, 0.0),
        (GRANITE_GUARDIAN_33, "yes", False, None),
    ],
)
def test_recorded_outputs_are_read(family, text, of_answer, want):
    assert family.read(text, of_answer) == want


def says(text, tokenizer):
    """A model whose output is a text."""
    model = tiny_model(vocabulary=len(tokenizer))
    ids = torch.tensor(tokenizer(text)["input_ids"])

    def generate(*, input_ids, **options):
        logits = torch.zeros(len(input_ids), len(ids), len(tokenizer))
        logits[:, torch.arange(len(ids)), ids] = 9.0
        sequences = torch.cat([input_ids, ids.repeat(len(input_ids), 1)], dim=1)
        return transformers.generation.GenerateDecoderOnlyOutput(sequences=sequences, logits=tuple(logits.unbind(1)))

    model.generate = generate
    return model


@pytest.mark.parametrize(
    ("text", "status", "unsafe"),
    [
        ("\n\nsafe", "ok", 0.0),
        ("\n\nunsafe\nS9", "ok", 1.0),
        ("safely put", "nonsense", None),
        ("I cannot say", "nonsense", None),
        ("  ", "nonsense", None),
    ],
)
def test_nonsense_has_no_probability(text, status, unsafe):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES["Llama Guard"]
    [verdict] = GenerativeGuard(says(text, tokenizer), tokenizer, LLAMA_GUARD)([ANSWER])
    assert verdict.status == status
    assert verdict.unsafe == (unsafe if unsafe is None else pytest.approx(unsafe, abs=1e-3))


def test_a_random_model_writes_nonsense_and_a_long_chat_is_not_cut():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATES["Qwen3Guard"]
    guard = GenerativeGuard(tiny_model("Qwen3", vocabulary=len(tokenizer)), tokenizer, QWEN3_GUARD)
    got = guard([REQUEST, [{"role": "user", "content": "long " * 100}]])
    assert [(verdict.status, verdict.unsafe) for verdict in got] == [("nonsense", None), ("too_long", None)]


def test_a_chat_that_the_template_rejects_is_unsupported():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert GenerativeGuard(tiny_model(), tokenizer, LLAMA_GUARD)([REQUEST])[0].status == "unsupported"


def test_wildguard_reads_one_exchange_in_the_prompt_of_its_card():
    tokenizer = byte_tokenizer()
    asked = []
    model = says("Harmful request: no\nResponse refusal: no\nHarmful response: yes", tokenizer)
    generate = model.generate
    model.generate = lambda **options: asked.append(tokenizer.decode(options["input_ids"][0])) or generate(**options)
    model.config.max_position_embeddings = 4096
    [verdict] = GenerativeGuard(model, tokenizer, WILD_GUARD)([ANSWER])
    assert (verdict.status, verdict.unsafe) == ("ok", 1.0)
    assert "Human user:\nSay it\n\nAI assistant:\nIt is said\n\n---\n\nAnswers: [/INST]" in asked[0]


def test_families_are_told_by_template_and_others_refused():
    for name, template in TEMPLATES.items():
        assert family_of("any/model", template).name == name
    assert family_of("allenai/wildguard", None) is WILD_GUARD
    with pytest.raises(InputError, match=r"wanted a guard model .*ShieldGemma.* got any/model"):
        family_of("any/model", CHATML)


def classifier(labels, **changes):
    config = tiny_config("Bert", layers=2, vocabulary=300, num_labels=len(labels))
    config.id2label = dict(enumerate(labels))
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


def test_a_classifier_gives_the_probability_of_its_unsafe_label(tmp_path):
    model, tokenizer = classifier(["safe", "toxic", "hate"]), byte_tokenizer()
    guard = load_guard(str(save(model, tokenizer, tmp_path)), device="cpu")
    got = guard([REQUEST, ANSWER, [{"role": "user", "content": "a" * 400}]])
    for text, verdict in zip(("Say it", "It is said", "a" * 256), got, strict=True):
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        assert verdict.unsafe == pytest.approx(1 - float(logits.detach().softmax(0)[0]), abs=1e-5)
    assert [verdict.status for verdict in got] == ["ok", "ok", "truncated"]


@pytest.mark.parametrize("padding", [None, 5])
def test_a_decoder_that_classifies_reads_the_end_of_each_text_of_a_batch(padding):
    """It looks for the last token that is not the padding of its configuration, whatever the tokenizer pads with."""
    tokenizer = byte_tokenizer()
    config = tiny_config("Llama", layers=2, vocabulary=len(tokenizer))
    config.pad_token_id, config.id2label = padding, {0: "safe", 1: "unsafe"}
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(config).eval()
    texts = ("a", "somewhat longer", "and the longest of these three texts")
    alone = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].softmax(0)[1].item() for text in texts]
    got = ClassifierGuard(model, tokenizer)([[{"role": "user", "content": text}] for text in texts])
    assert [verdict.unsafe for verdict in got] == pytest.approx(alone, abs=1e-5)


def test_a_classifier_whose_positions_begin_behind_the_padding_reads_as_much_as_it_can():
    tokenizer = byte_tokenizer()
    config = transformers.RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=66, pad_token_id=1, id2label={0: "benign", 1: "toxic"},
    )  # fmt: skip
    guard = ClassifierGuard(transformers.RobertaForSequenceClassification(config).eval(), tokenizer)
    got = guard([[{"role": "user", "content": "a" * length}] for length in (64, 65, 500)])
    assert [verdict.status for verdict in got] == ["ok", "truncated", "truncated"]
    assert got[2].unsafe == pytest.approx(got[0].unsafe, abs=1e-5)


def test_a_classifier_of_several_labels_gives_the_highest_of_them():
    model = classifier(["toxic", "hate", "other"], problem_type="multi_label_classification")
    [verdict] = ClassifierGuard(model, byte_tokenizer())([ANSWER])
    logits = model(torch.tensor([byte_tokenizer()("It is said")["input_ids"]])).logits[0]
    assert verdict.unsafe == pytest.approx(float(logits[:2].detach().sigmoid().max()), abs=1e-5)


def test_a_classifier_whose_labels_say_nothing_or_without_a_head_is_refused(tmp_path):
    with pytest.raises(InputError, match="label_0, label_1"):
        ClassifierGuard(classifier(["LABEL_0", "LABEL_1"]), byte_tokenizer())
    model = classifier(["safe", "unsafe"])
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "classifier" not in k})
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 2 weights of BertForSequenceClassification"):
        load_guard(str(tmp_path), device="cpu")
