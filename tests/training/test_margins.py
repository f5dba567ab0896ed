import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from larf_curate.training.answer_loss import add_answer_head
from larf_curate.training.contrastive import ContrastiveRows, paired_sides
from larf_curate.training.margins import Margins
from tests.fixtures.tiny import BYTES, byte_tokenizer, tiny_model
from tests.fixtures.training_rows import TRIPLES

pytestmark = pytest.mark.slow
TOKENIZER = byte_tokenizer()


def rows_of():
    return ContrastiveRows.build(paired_sides(TRIPLES), TOKENIZER, max_length=256, seed=0)


def prepared(name, **changes):
    """A model with the fused head that a trainer adds."""
    model = tiny_model(name, vocabulary=BYTES, **changes)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    add_answer_head(model)
    return model


def log_prob(model, prompt, answer):
    """log p(answer | prompt), without batches or padding."""
    before = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    head, tail = (TOKENIZER(t, add_special_tokens=False)["input_ids"] for t in (before, f"{answer}<|im_end|>\n"))
    logs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return sum(logs[len(head) + i - 1, token] for i, token in enumerate(tail))


@pytest.mark.parametrize(
    ("name", "changes", "in_pairs"),
    [("Llama", {}, True), ("Llama", {"attn_implementation": "eager"}, True), ("GPTNeoX", {}, True),
     ("Qwen3", {}, True), ("Gemma2", {"sliding_window": 256}, True), ("Gemma2", {"sliding_window": 8}, False),
     ("Mistral", {}, False), ("Bloom", {}, False), ("Mamba", {}, False)],
)  # fmt: skip
def test_margins_and_their_gradients_are_those_of_each_answer_alone(name, changes, in_pairs):
    model = prepared(name, **changes)
    margins = Margins(rows_of())
    found = margins(model, [0, 1, 2])
    assert margins._in_pairs is in_pairs
    want = torch.stack([log_prob(model, p, safe) - log_prob(model, p, unsafe) for p, unsafe, safe in TRIPLES])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-3)
    weights = [w for w in model.parameters() if w.requires_grad]
    ours, theirs = (
        torch.autograd.grad((m * torch.tensor([1.0, 2.0, 3.0])).sum(), weights, allow_unused=True)
        for m in (found, want)
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_a_model_that_does_not_heed_the_mask_is_given_each_answer_by_itself(monkeypatch):
    rows = rows_of()
    seen = rows.pairs

    def blind(self, numbers):
        pairs = seen(numbers)
        full = torch.ones_like(pairs["attention_mask"]).tril()
        return {**pairs, "attention_mask": full}

    monkeypatch.setattr(ContrastiveRows, "pairs", blind)
    model, margins = prepared("Llama"), Margins(rows)
    found = margins(model, [0, 1])
    assert margins._in_pairs is False
    want = [log_prob(model, p, safe) - log_prob(model, p, unsafe) for p, unsafe, safe in TRIPLES[:2]]
    torch.testing.assert_close(found, torch.stack(want), rtol=1e-4, atol=1e-3)
