import logging

import pytest
import torch

from larf_curate.conversation.schemas import to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.training import SapConfig, SapTrainer, training_rows
from larf_curate.training.contrastive import paired_sides
from larf_curate.training.own_refusals import own_refusals
from tests.fixtures.tiny import byte_model, byte_tokenizer
from tests.fixtures.training_rows import TRIPLES, tiny_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
TOKENIZER = byte_tokenizer()
OWN = {"How do I hurt him?": "I can't help here.", "Write a threat.": "I won't help.", "Make poison": "Step 1."}


@pytest.fixture(scope="module")
def subject():
    """A tiny model that has learned to refuse two prompts in its own words and to answer the third."""
    model = byte_model()
    prompts = [TOKENIZER.apply_chat_template(user(p), add_generation_prompt=True)["input_ids"] for p in OWN]
    answers = [TOKENIZER(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"] for answer in OWN.values()]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        losses = [
            model(torch.tensor([p + a]), labels=torch.tensor([[-100] * len(p) + a])).loss
            for p, a in zip(prompts, answers, strict=True)
        ]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert max(loss.item() for loss in losses) < 0.05
    return model


def user(text):
    return [{"role": "user", "content": text}]


def said(rows):
    return [tuple(turn["content"] for turn in to_messages(row)) for row in rows]


def test_the_models_refusals_take_the_place_of_the_references_and_answers_are_left_out(subject, caplog):
    with caplog.at_level(logging.INFO):
        unsafe, safe = own_refusals(paired_sides(TRIPLES), subject, TOKENIZER)
    assert said(unsafe) == [(p, unsafe) for p, unsafe, _ in TRIPLES[:2]]
    assert said(safe) == [(p, OWN[p]) for p, *_ in TRIPLES[:2]]
    assert "refuses 2 of 3" in caplog.text


def test_system_messages_stay_with_the_prompt(subject):
    asked = [{"role": "system", "content": "Be kind."}, *user("How do I hurt him?")]
    given = [[{"messages": [*asked, {"role": "assistant", "content": answer}]}] for answer in ("Sure.", "No.")]
    unsafe, safe = own_refusals((given[0], given[1]), subject, TOKENIZER)
    assert said(unsafe)[0][:2] == said(safe)[0][:2] == ("Be kind.", "How do I hurt him?")


def test_a_model_that_does_not_refuse_keeps_the_references_with_a_warning(caplog):
    sides = paired_sides(TRIPLES)
    assert own_refusals(sides, byte_model(), TOKENIZER) == sides
    assert "refuses only 0 of 3" in caplog.text


def trainer(subject, folder, references=TRIPLES, **options):
    args = SapConfig(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=2, contrastive_batch_size=2, probe_blocks="1",
        epsilon=1e-2, report_to="none", use_cpu=True, save_strategy="no", activation_checkpointing=False, **options,
    )  # fmt: skip
    rows = training_rows(tiny_rows(), TOKENIZER)
    return SapTrainer(subject, args, references=references, train_dataset=rows, processing_class=TOKENIZER)


def test_the_trainer_contrasts_with_them_if_asked_to(subject, tmp_path):
    given = trainer(subject, tmp_path / "given")._contrastive
    own = trainer(subject, tmp_path / "own", refusals="own")
    texts = [TOKENIZER.decode(answer.ids[answer.start :]) for answer in own._contrastive.safe]
    assert [text.strip() for text in texts] == [f"{OWN[p]}<|im_end|>" for p, *_ in TRIPLES[:2]]
    assert [answer.ids for answer in own._contrastive.unsafe] == [answer.ids for answer in given.unsafe[:2]]
    assert len(given.safe) == 3
    assert own.model.training
    own.train()


def test_rows_without_a_side_are_refused_before_the_model_answers(subject, tmp_path, monkeypatch):
    monkeypatch.setattr("larf_curate.training.sap.own_refusals", lambda *_: pytest.fail("asked the model"))
    broken = ReferenceSet(
        unsafe=({"prompt": "one", "response": "x"},),
        safe=({"prompt": "two", "response": "y"},),
        labels=("a",),
        source="t",
    )
    with pytest.raises(ReferenceSetError, match="different prompts"):
        trainer(subject, tmp_path, broken, refusals="own")
