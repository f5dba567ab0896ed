"""Chat templates in the JSON files of processors, which multimodal models have beside their tokenizer."""

import json

import pytest

from larf_curate.errors import ModelError
from larf_curate.models.source import ModelSource, load_tokenizer
from tests.fixtures.tiny import CHATML, bpe_tokenizer, tiny_config

OWN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"


def folder_with(folder, template, files):
    """Save a tokenizer with a template, or None, and further files of JSON."""
    tiny_config("Llama", layers=1).save_pretrained(folder)
    bpe_tokenizer(template).save_pretrained(folder)
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return ModelSource(model_id=str(folder))


def test_the_template_of_a_processor_is_used_if_the_tokenizer_has_none(tmp_path):
    files = {"chat_template.json": {"chat_template": CHATML}}
    assert load_tokenizer(folder_with(tmp_path / "a", None, files)).chat_template == CHATML
    assert load_tokenizer(folder_with(tmp_path / "b", OWN, files)).chat_template == OWN
    assert load_tokenizer(folder_with(tmp_path / "c", None, {})).chat_template is None


@pytest.mark.parametrize("text", [OWN, json.dumps({"chat_template": OWN}), json.dumps({"a": 1, "chat_template": OWN})])
def test_a_given_template_may_be_the_text_of_a_processors_file(tmp_path, text):
    source = folder_with(tmp_path, CHATML, {})
    assert load_tokenizer(ModelSource(model_id=source.model_id, chat_template=text)).chat_template == OWN


@pytest.mark.parametrize("value", [{"model_type": "llama"}, {"chat_template": [{"name": "a"}]}, [CHATML], CHATML])
def test_other_json_is_no_template(tmp_path, value):
    source = folder_with(tmp_path, CHATML, {})
    with pytest.raises(ModelError, match="wanted a Jinja chat template, or JSON with one as chat_template, got JSON"):
        load_tokenizer(ModelSource(model_id=source.model_id, chat_template=json.dumps(value)))
    with pytest.raises(ModelError, match="got JSON"):
        load_tokenizer(folder_with(tmp_path / "bare", None, {"chat_template.json": value}))
