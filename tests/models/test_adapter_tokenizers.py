"""Tokenizers, chat templates and resized vocabularies that are saved with an adapter."""

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from larf_curate.errors import ModelError
from larf_curate.models.adapters import weights_of
from larf_curate.models.source import ModelSource, load_causal_lm, load_config, load_decoder, load_tokenizer
from tests.fixtures.tiny import CHATML, bpe_tokenizer, save, tiny_model

OWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
ADDED = ["[user]", "[assistant]", "[/]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a model with a ChatML template whose embeddings are as many as its tokens."""
    tokenizer = bpe_tokenizer(CHATML)
    return save(tiny_model(vocabulary=len(tokenizer)), tokenizer, tmp_path_factory.mktemp("models") / "base")


def adapted(base, folder, *, tokens=0, **options):
    """Save an adapter of the base model, whose vocabulary is enlarged first; return the model with it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(model.config.vocab_size + tokens)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False, **options)
    trained = peft.get_peft_model(model, config)
    for name, weight in trained.named_parameters():
        if "modules_to_save" in name:
            torch.nn.init.normal_(weight)
    trained.save_pretrained(folder)
    return trained.eval()


def source_of(base, folder, **options):
    return ModelSource(model_id=str(base), adapter=str(folder), dtype="float32", **options)


def test_the_template_saved_with_an_adapter_is_used_and_told_once(base, tmp_path, caplog):
    adapted(base, tmp_path)
    bpe_tokenizer(OWN).save_pretrained(tmp_path)
    source = source_of(base, tmp_path)
    assert [load_tokenizer(source).chat_template for _ in range(2)] == [OWN, OWN]
    [record] = caplog.records
    assert "has a chat template of its own, as trained with: used instead of the base model's" in record.getMessage()


def test_a_given_template_comes_before_that_of_the_adapter(base, tmp_path, caplog):
    adapted(base, tmp_path)
    bpe_tokenizer(OWN).save_pretrained(tmp_path)
    given = OWN.replace("[/]", "[.]")
    assert load_tokenizer(source_of(base, tmp_path, chat_template=given)).chat_template == given
    assert not caplog.records


def test_a_template_alone_is_used_too_and_must_be_text(base, tmp_path):
    adapted(base, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(OWN)
    assert load_tokenizer(source_of(base, tmp_path)).chat_template == OWN
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match=r"wanted a chat template as UTF-8 text, got .*chat_template.jinja"):
        load_tokenizer(source_of(base, tmp_path))


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_without_another_template_nothing_is_told(base, tmp_path, caplog, has_tokenizer):
    adapted(base, tmp_path)
    if has_tokenizer:
        tokenizer = bpe_tokenizer(CHATML)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(source_of(base, tmp_path)).chat_template == CHATML
    assert not caplog.records


@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, when the vocabulary is resized
@torch.no_grad()
def test_a_resized_vocabulary_gives_the_states_and_logits_of_peft(base, tmp_path, caplog):
    trained = adapted(base, tmp_path, tokens=8, modules_to_save=["embed_tokens", "lm_head"])
    tokenizer = bpe_tokenizer(OWN)
    tokenizer.add_tokens(ADDED)
    tokenizer.save_pretrained(tmp_path)
    source = source_of(base, tmp_path)
    loaded = load_tokenizer(source)
    assert "has a chat template and vocabulary of its own" in caplog.text
    ids = torch.tensor([loaded.convert_tokens_to_ids([*ADDED, "H", "o"])])
    assert ids.max() >= len(bpe_tokenizer(CHATML))
    decoder = load_decoder(source, load_config(source), 3, torch.float32)
    states = trained(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(
        decoder(ids, output_hidden_states=True).hidden_states[2], states[2], atol=1e-3, rtol=1e-3
    )
    logits = load_causal_lm(source, torch.float32)(ids).logits
    torch.testing.assert_close(logits, trained(ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, when the vocabulary is resized
def test_embeddings_of_one_side_alone_are_refused_with_what_to_do(base, tmp_path):
    adapted(base, tmp_path, tokens=8, modules_to_save=["embed_tokens", "lm_head"])
    weights = weights_of(str(tmp_path))
    save_file({name: weight for name, weight in load_file(weights).items() if "lm_head" not in name}, weights)
    with pytest.raises(ModelError, match=r"for embed_tokens alone: if .* resized for it, save it with save_embedding"):
        load_causal_lm(source_of(base, tmp_path), torch.float32)


def test_a_lora_on_resized_embeddings_without_the_embeddings_is_refused_with_what_to_do(base, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    config = peft.LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(ModelError, match=r"size mismatch for .*embed_tokens.*merge it into the resized base model"):
        load_causal_lm(source_of(base, tmp_path), torch.float32)


@pytest.mark.parametrize("is_padding", [True, False])
def test_tokens_without_embeddings_are_refused_unless_they_are_the_padding(base, tmp_path, is_padding):
    adapted(base, tmp_path)
    tokenizer = bpe_tokenizer(CHATML)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"}) if is_padding else tokenizer.add_tokens(["[PAD]"])
    tokenizer.save_pretrained(tmp_path)
    if is_padding:
        assert "[PAD]" in load_tokenizer(source_of(base, tmp_path)).get_vocab()
        return
    with pytest.raises(ModelError, match=r"has 1 tokens more than the \d+ that .* have embeddings of: if the vocab"):
        load_tokenizer(source_of(base, tmp_path))
