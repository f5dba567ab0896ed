from itertools import pairwise

import pytest
import torch

from larf_curate.errors import ReferenceSetError
from larf_curate.training.contrastive import ContrastiveRows, paired_sides
from tests.fixtures.tiny import byte_tokenizer
from tests.fixtures.training_rows import TRIPLES

TOKENIZER = byte_tokenizer()
END = "<|im_end|>\n"


def rows_of(seed=0):
    return ContrastiveRows.build(paired_sides(TRIPLES), TOKENIZER, max_length=256, seed=seed)


def learned(batch):
    """The answers of a batch: what its labels leave to learn."""
    return [TOKENIZER.decode([token for token in row if token != -100]) for row in batch["labels"].tolist()]


def visited(rows, batches, *, size):
    """Which rows the first batches hold, in their order, told by their safe answers."""
    safe = [f"{answer}{END}" for *_, answer in TRIPLES]
    return [safe.index(text) for index in range(batches) for text in learned(rows.sides(rows.batch(index, size))[0])]


def test_batches_hold_both_answers_to_a_prompt_behind_the_same_beginning():
    safe, unsafe = rows_of().sides(rows_of().batch(0, 3))
    pairs = {(f"{bad}{END}", f"{good}{END}") for _, bad, good in TRIPLES}
    assert set(zip(learned(unsafe), learned(safe), strict=True)) == pairs
    for side in (safe, unsafe):
        for ids, mask, labels in zip(*side.values(), strict=True):
            length = int(mask.sum())
            assert mask.tolist() == [1] * length + [0] * (len(mask) - length)
            start = int((labels == -100).long().argmin())
            assert labels[start:length].tolist() == ids[start:length].tolist()
            assert (labels[length:] == -100).all()
            prompts = {f"<|im_start|>user\n{prompt}{END}<|im_start|>assistant\n" for prompt, *_ in TRIPLES}
            assert TOKENIZER.decode(ids[:start]) in prompts


def test_every_row_comes_once_in_each_pass_and_passes_differ():
    seen = visited(rows_of(), 6, size=2)
    passes = [seen[start : start + 3] for start in range(0, 12, 3)]
    assert [sorted(one) for one in passes] == [[0, 1, 2]] * 4
    assert any(one != other for one, other in pairwise(passes))


def test_a_batch_depends_on_seed_and_index_alone_so_that_a_resumed_run_meets_its_own():
    walked, resumed = rows_of(), rows_of()
    for index in range(5):
        walked.batch(index, 2)
        torch.manual_seed(index)
    assert walked.batch(5, 2) == resumed.batch(5, 2)
    assert len({tuple(visited(rows_of(seed), 6, size=2)) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("row", "got"),
    [("abc", "str of 3"), (("How?", "So."), "tuple of 2"), ({"prompt": "a", "unsafe": "b", "safe": "c"}, "dict of 3"),
     (None, "NoneType")],
)  # fmt: skip
def test_what_is_no_triple_is_refused(row, got):
    with pytest.raises(ReferenceSetError, match=f"row 3: wanted a triple of prompt, unsafe and safe, got {got}: give"):
        paired_sides([*TRIPLES, row])
