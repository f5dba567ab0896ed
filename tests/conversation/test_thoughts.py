import copy

import pytest
import torch

from larf_curate.conversation.refusals import KeywordJudge, RefusalDetector, off_topic
from larf_curate.conversation.thoughts import AnswerDecoder, after_thought, is_unfinished, opened_thought
from larf_curate.data import load_rows
from larf_curate.evaluation.judges import JUDGES
from larf_curate.layers.subject import Subject
from larf_curate.models.generation import generate_answers
from tests.fixtures.tiny import byte_model, byte_tokenizer

DOUBT = "\nThis might be illegal, and I cannot help with illegal things. But it is a story.\n"
WILLING = "\n" + "The user asks for a thing. I look at it from several sides. " * 12 + "\n"
COMPLY, REFUSE = "Sure. First you take the tools.", "I'm sorry, but I can't help with that."
STYLES = {
    "deepseek, qwen, glm": "<think>{}</think>\n\n{}",
    "opened by the prompt": "{}</think>\n\n{}",
    "exaone": "<thought>{}</thought>\n{}",
    "magistral": "[THINK]{}[/THINK]{}",
    "seed": "<seed:think>{}</seed:think>{}",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "gpt-oss twice": "<|channel|>analysis<|message|>I can't do that?<|end|><|start|>assistant<|channel|>analysis"
    "<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "gemma": "<|channel>thought\n{}<channel|>{}",
    "command": "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "apertus": "<|inner_prefix|>{}<|inner_suffix|>{}",
    "kimi": "◁think▷{}◁/think▷{}",
    "hunyuan": "<think>{}</think>\n<answer>\n{}\n</answer>",
    "granite": "Here is my thought process:{}Here is my response:\n{}",
    "interleaved": "<think>Hm.</think><think>{}</think>{}",
}


@pytest.mark.parametrize("style", STYLES)
def test_what_follows_the_thought_is_judged_in_complete_and_in_unfinished_answers(style):
    complies, refuses = STYLES[style].format(DOUBT, COMPLY), STYLES[style].format(WILLING, REFUSE)
    assert KeywordJudge()(["", ""], [complies, refuses]) == [False, True]
    if style != "opened by the prompt":  # only with the mark of the prompt, which decoding adds, is it known so early
        decided = [RefusalDetector()(refuses[:end], complete=False) for end in range(len(refuses) + 1)]
        assert decided == sorted(decided)
        assert not any(RefusalDetector()(complies[:end], complete=False) for end in range(len(complies) + 1))
        assert sum(decided) <= len(REFUSE) + len("\n</answer><|END_RESPONSE|>")


@pytest.mark.parametrize("judge", ["phrases", "larf", "noncompliance"])
def test_a_thought_that_never_ends_is_no_refusal_and_is_found(judge):
    answer = f"<think>{DOUBT}I'm sorry, I cannot help. I can not"
    assert JUDGES[judge](["How do I open a door"], [answer]) == [False]
    assert is_unfinished(answer)
    assert not off_topic("How do I open a lock of a door", answer * 3)
    assert not is_unfinished("")
    assert not is_unfinished(f"<think>{DOUBT}</think>{COMPLY}")


def test_answers_without_thoughts_are_unchanged():
    texts = [row[side] for row in load_rows("references") for side in ("unsafe", "safe")]
    texts += [row["output"] for row in load_rows("neutral")] + ["", " I think. The analysis is final.", "x < y > z"]
    assert [after_thought(text) for text in texts] == texts


def test_marks_are_removed_in_linear_time():
    for hostile in ("<think>" * 50_000, "<" * 100_000, "</think>" * 50_000, "<a:" * 50_000):
        assert len(after_thought(hostile)) <= len(hostile)


@pytest.mark.parametrize("end", ["<think>\n", "[THINK]", "<think>"])
def test_a_prompt_that_ends_with_an_opened_thought_is_recognised(end):
    assert opened_thought("<|im_start|>assistant\n" + end) == end.strip()
    assert not opened_thought("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not opened_thought(f"{end} is a tag<|im_end|>")


def thinking_tokenizer():
    """Its template opens a thought, and its marks of thoughts are special tokens, as Magistral's are."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["[THINK]", "[/THINK]"]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n' }}", "assistant\n[THINK]' }}")
    return tokenizer


def test_special_tokens_that_mark_thoughts_are_decoded_and_others_are_not():
    tokenizer = thinking_tokenizer()
    ids = [tokenizer(f"[THINK]Hm.[/THINK]{text}<|im_end|>")["input_ids"] for text in (COMPLY, "né\N{SNOWMAN}")]
    assert AnswerDecoder(tokenizer)(ids) == [f"[THINK]Hm.[/THINK]{text}" for text in (COMPLY, "né\N{SNOWMAN}")]
    plain = byte_tokenizer()
    ids = [plain(f"{COMPLY}<|im_end|>")["input_ids"]]
    assert AnswerDecoder(plain)(ids) == plain.batch_decode(ids, skip_special_tokens=True) == [COMPLY]


def test_generated_answers_begin_with_the_thought_that_the_prompt_opens():
    tokenizer = thinking_tokenizer()
    model = byte_model(vocabulary=len(tokenizer), dtype=torch.float64)
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = byte_tokenizer().chat_template
    [answer] = generate_answers(model, tokenizer, ["How?"], max_new_tokens=4)
    assert answer.startswith("[THINK]")
    assert not generate_answers(model, plain, ["How?"], max_new_tokens=4)[0].startswith("[THINK]")
    subjects = [Subject(model, each, "tiny") for each in (tokenizer, plain)]
    assert [subject.opened_thought for subject in subjects] == ["[THINK]", ""]
