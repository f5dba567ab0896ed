import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.layers.separation import FOLDS, measure_separation, reference_states
from tests.fixtures.tiny import tiny_subject

WORDS = ["kill", "shoot", "crush", "photo", "garlic", "process", "picture", "step", "course", "system"]


def references(count=10, safe="sorry , i cannot", unsafe="sure , here is"):
    rows = [[{"prompt": f"how do i {word}", "response": text} for word in WORDS[:count]] for text in (unsafe, safe)]
    return ReferenceSet(unsafe=tuple(rows[0]), safe=tuple(rows[1]), labels=("unsafe",) * count, source="test")


def naive(unsafe, safe):
    """Cross-validated projections of one block, fold by fold, then Fisher ratio and AUROC."""
    got = [np.zeros(len(unsafe)), np.zeros(len(safe))]
    for fold in range(FOLDS):
        train = [i for i in range(len(unsafe)) if i % FOLDS != fold]
        high, low = unsafe[train].mean(0), safe[train].mean(0)
        for values, side in zip(got, (unsafe, safe), strict=True):
            for i in set(range(len(side))) - set(train):
                values[i] = (side[i] - low) @ (high - low) / ((high - low) @ (high - low))
    u, s = got
    fisher = (u.mean() - s.mean()) ** 2 / (u.var() + s.var())
    return fisher * np.sign(u.mean() - s.mean()), roc_auc_score([1] * len(u) + [0] * len(s), [*u, *s])


def test_fisher_ratio_and_auroc_equal_the_naive_computation_on_held_out_pairs():
    subject = tiny_subject()
    refs = references(safe="sorry , here you may take it", unsafe="sure , here you may take it")
    found = measure_separation(subject, refs)
    states = [reference_states(subject, refs, side).astype("f8") for side in ("unsafe", "safe")]
    for block in range(3):
        fisher, auroc = naive(states[0][:, block], states[1][:, block])
        assert found.fisher[block] == pytest.approx(fisher, rel=1e-3)
        assert found.auroc[block] == pytest.approx(auroc)


def test_states_are_those_at_the_last_token_of_each_block_brought_to_length_one():
    subject = tiny_subject()
    states = reference_states(subject, references(), "safe")
    chat = [{"role": "user", "content": "how do i kill"}, {"role": "assistant", "content": "sorry , i cannot"}]
    ids = subject.tokenizer(subject.tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
    with torch.no_grad():
        hidden = subject.model(torch.tensor([ids["input_ids"]]), output_hidden_states=True).hidden_states
    for block in (0, 1):  # the last one has passed the final norm there
        want = hidden[block + 1][0, -1].numpy()
        np.testing.assert_allclose(states[0, block], want / np.linalg.norm(want), atol=1e-5)


def test_sides_that_are_the_same_do_not_separate():
    found = measure_separation(tiny_subject(), references(safe="sure , here is"))
    np.testing.assert_allclose(found.fisher, 0, atol=1e-6)
    np.testing.assert_allclose(found.auroc, 0.5)


def test_too_few_references_are_an_error():
    with pytest.raises(ReferenceSetError, match="cross-validation"):
        measure_separation(tiny_subject(), references(4))
