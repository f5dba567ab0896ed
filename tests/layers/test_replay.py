import pytest
import torch

from larf_curate.layers.replay import Replay
from larf_curate.models.blocks import scaled
from tests.fixtures.tiny import PROMPTS, SCALED, tiny_subject


def whole_passes(subject, texts, keep):
    with torch.no_grad():
        return [subject.model(torch.tensor([text])).logits[0, -keep:] for text in texts]


def replayed(replay, block):
    return {row: logits for item in replay(block) for row, logits in zip(item.batch.rows, item.logits, strict=True)}


@pytest.mark.parametrize("architecture", SCALED)
@pytest.mark.parametrize("block", [0, 2])
def test_passes_from_the_scaled_block_on_equal_whole_passes_text_by_text(architecture, block):
    subject = tiny_subject(architecture)
    texts = subject.encode_prompts(PROMPTS, new_tokens=4)
    replay = Replay(subject, texts, keep=2, batch_tokens=24)
    unshared = {"Gemma2": "a short window", "Gemma4Text": "the same", "Mpt": "no positions"}
    assert len(replay.prefix) == (0 if architecture in unshared else 7)
    assert len(replay.batches) > 1
    list(replay())
    with scaled(subject.blocks[block], 1.3):
        got, want = replayed(replay, block), whole_passes(subject, texts, 2)
    for row, logits in enumerate(want):
        torch.testing.assert_close(got[row], logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["Llama", "Gemma2", "Mpt"])
def test_the_head_runs_at_as_many_positions_of_each_text_as_are_asked_for(architecture):
    subject = tiny_subject(architecture)
    texts = subject.encode_prompts(PROMPTS, new_tokens=4)
    counts = [1 + index % 4 for index in range(len(texts))]
    runs = []
    subject.model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, output: runs.append(output))
    replay = Replay(subject, texts, keep=counts, batch_tokens=24)
    got = replayed(replay, None)
    assert sum(output.shape[:2].numel() for output in runs) == sum(counts) + min(counts[0], len(replay.prefix))
    for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
        [want] = whole_passes(subject, [text], count)
        torch.testing.assert_close(got[row][-count:], want, rtol=1e-4, atol=1e-4)
        assert not got[row][:-count].any()


def test_texts_that_share_nothing_or_everything_are_computed_too():
    subject = tiny_subject()
    for texts in ([[5, 6, 7], [8, 9], [10]], [[5, 6, 7]], [[5, 6, 7], [5, 6]]):
        replay, want = Replay(subject, texts), whole_passes(subject, texts, 1)
        for block in (None, 1, len(subject.blocks)):
            got = replayed(replay, block)
            for row, logits in enumerate(want):
                torch.testing.assert_close(got[row], logits, rtol=1e-4, atol=1e-4)


def test_blocks_below_are_not_run_again_and_are_left_as_they_were():
    subject = tiny_subject()
    replay = Replay(subject, subject.encode_prompts(PROMPTS, new_tokens=4))
    list(replay())
    runs = []
    handles = [b.self_attn.register_forward_hook(lambda *_, i=i: runs.append(i)) for i, b in enumerate(subject.blocks)]
    list(replay(2))
    assert set(runs) == {2}
    for handle in handles:
        handle.remove()
    assert all("forward" not in vars(block) for block in subject.blocks)
