"""Plain text has the tokens that the tokenizer puts before it, as in training."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from larf_curate.conversation.chat_template import Renderer

SPECIAL = ["<unk>", "<s>", "</s>", "[gMASK]", "<sop>"]
POST_PROCESSORS = {
    "bos": "<s> $A",
    "bos and eos": "<s> $A </s>",
    "glm": "[gMASK] <sop> $A",
    "eos": "$A </s>",
    "none": "$A",
}


def tokenizer_of(processor: str, scheme: str = "first") -> PreTrainedTokenizerFast:
    """A tokenizer like that of Llama 2, which marks words by the space before them; ``first`` only that of a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=tokens, show_progress=False)
    tokenizer.train_from_iterator(["Hello there, how are you? Hello world. I am fine."] * 5, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=POST_PROCESSORS[processor], special_tokens=[(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    fast.chat_template = "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    return fast


@pytest.mark.parametrize("processor", POST_PROCESSORS)
@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("text", ["Hello there.", " Hello.", "\nHello", "Hello</s> you"])
def test_text_has_the_tokens_of_the_tokenizer_itself_but_for_an_end(processor, scheme, text):
    tokenizer = tokenizer_of(processor, scheme)
    [item] = Renderer(tokenizer, 64)([{"text": text}])
    appended = [tokenizer.eos_token_id] if POST_PROCESSORS[processor].endswith("</s>") else []
    assert item.tokens.ids + appended == tokenizer(text)["input_ids"]
    [turn] = item.tokens.turns
    assert (turn.start, turn.end) == (0, len(item.tokens.ids) - 1)


@pytest.mark.parametrize(("processor", "start"), [("bos", ["<s>"]), ("glm", ["[gMASK]", "<sop>"])])
def test_text_that_begins_with_these_tokens_does_not_get_them_twice(processor, start):
    tokenizer, text = tokenizer_of(processor), "".join(start) + "Hello there."
    [item] = Renderer(tokenizer, 64)([{"text": text}])
    twice = tokenizer(text)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(twice)[: 2 * len(start)] == start * 2
    assert item.tokens.ids == twice[len(start) :]


def test_tokens_before_a_text_have_characters_of_their_own():
    tokenizer = tokenizer_of("glm")
    texts = ["Hello world.", "I am fine."]
    rows = [{"text": texts[0]}, {"messages": [{"role": "assistant", "content": "Fine."}]}, {"text": texts[1]}]
    first, chat, last = Renderer(tokenizer, 64, keep_texts=True).inspect(rows)
    for text, item in zip(texts, (first, last), strict=True):
        assert item.text == f"[gMASK]<sop>{text}"
        assert [item.text[slice(*span)] for span in item.offsets[:2]] == ["[gMASK]", "<sop>"]
        alone = tokenizer(text, return_offsets_mapping=True)["offset_mapping"][2:]
        assert [item.text[slice(*span)] for span in item.offsets[2:]] == [text[slice(*span)] for span in alone]
        assert item.rendered.texts == (text,)
    assert chat.ids == tokenizer("assistant: Fine.</s>", add_special_tokens=False)["input_ids"]


def test_long_text_keeps_its_start_and_its_end():
    tokenizer = tokenizer_of("bos")
    [item] = Renderer(tokenizer, 16)([{"text": "Hello there. " * 500 + "I am fine."}])
    whole = tokenizer("Hello there. " * 500 + "I am fine.")["input_ids"]
    assert item.status == "truncated"
    assert item.tokens.ids == whole[:4] + whole[-12:]


PARTS_TEMPLATES = {
    "joins": "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}</s>{% endfor %}",
    "trims": "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}</s>{% endfor %}",
    "prints": "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}",
    "fails": "{% for m in messages %}{{ m.role + ': ' + m.content }}</s>{% endfor %}",
}


@pytest.mark.parametrize(("count", "told"), [(1, {"prints", "fails"}), (2, {"trims", "prints", "fails"})])
@pytest.mark.parametrize("template", PARTS_TEMPLATES)
def test_parts_that_the_template_does_not_join_are_told_once(template, count, told, caplog):
    tokenizer = tokenizer_of("none")
    tokenizer.chat_template = PARTS_TEMPLATES[template]
    parts = [{"type": "text", "text": "Fine. "}] * count
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]}
    results = Renderer(tokenizer, 64)([row, {"messages": [{"role": "assistant", "content": "Fine."}]}, row])
    assert [item.status for item in results] == ["ok"] * 3
    assert len([record for record in caplog.records if "are joined to one text" in record.msg]) == (template in told)
