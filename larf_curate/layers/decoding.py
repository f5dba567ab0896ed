"""Greedy decoding in batches, stopping each answer as soon as it is decided whether it refuses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.layers.replay import Pass, last_logits
from larf_curate.layers.subject import Subject
from larf_curate.models.prefix_cache import cache_argument

BATCH_ANSWERS = 256
"""Most answers that are decoded together."""


@dataclass(frozen=True)
class DecodedAnswer:
    """An answer, decoded until it ended or was known to refuse.

    Args:
        ids: Token ids so far.
        refused: Whether it refuses.
    """

    ids: list[int]
    refused: bool


@dataclass(eq=False)
class _ActiveAnswers:
    """Answers that are still being decoded: their indices, keys and values, masks, next positions and logits."""

    rows: list[int]
    cache: DynamicCache
    mask: Tensor
    positions: Tensor
    logits: Tensor

    def keep(self, undecided: list[int]) -> None:
        """Keep the answers at these positions of the batch and drop all others, which saves their forward passes."""
        if len(undecided) == len(self.rows):
            return
        index = torch.tensor(undecided, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.rows = [self.rows[position] for position in undecided]
        self.mask, self.positions = self.mask[index], self.positions[index]


def decode(
    subject: Subject,
    passes: Sequence[Pass],
    refuses: RefusalDetector,
    *,
    new_tokens: int,
    advance: Callable[[int], object] | None = None,
) -> list[DecodedAnswer]:
    """Decode answers to prompts greedily.

    Args:
        subject: The model.
        passes: Forward passes over n prompts, with the logits of their last token.
        refuses: Detects refusals.
        new_tokens: Longest answer in tokens.
        advance: Called with the number of further answers that are complete or known to refuse; default: nothing.

    Returns:
        n answers, in the order of the prompts. Refusals are the same as if all answers had been decoded completely.
    """
    answers: dict[int, DecodedAnswer] = {}
    for group in _group_passes(passes):
        answers |= _decode(subject, _merge_passes(group), refuses, new_tokens, advance)
    return [answers[row] for row in sorted(answers)]


@torch.no_grad()
def _decode(
    subject: Subject,
    state: _ActiveAnswers,
    refuses: RefusalDetector,
    new_tokens: int,
    advance: Callable[[int], object] | None,
) -> dict[int, DecodedAnswer]:
    ids: dict[int, list[int]] = {row: [] for row in state.rows}
    answers: dict[int, DecodedAnswer] = {}
    tokens = state.logits.float().argmax(-1)
    for _ in range(new_tokens):
        for row, token in zip(state.rows, tokens.tolist(), strict=True):
            ids[row].append(token)
        # Answers are decoded from their start: a single token may be a part of a character.
        texts = subject.decode_answers([ids[row] for row in state.rows])
        undecided = []
        for position, (row, text) in enumerate(zip(state.rows, texts, strict=True)):
            ended = ids[row][-1] in subject.stop_ids or len(ids[row]) == new_tokens
            refused = refuses(subject.opened_thought + text, complete=ended)
            answers[row] = DecodedAnswer(ids[row], refused)
            if not refused and not ended:
                undecided.append(position)
        if advance:
            advance(len(state.rows) - len(undecided))
        if not undecided:
            break
        state.keep(undecided)
        tokens = _step(subject, state, tokens[undecided])
    return answers


def _step(subject: Subject, state: _ActiveAnswers, tokens: Tensor) -> Tensor:
    state.mask = pad(state.mask, (0, 1), value=1)
    output = subject.model(
        input_ids=tokens.unsqueeze(1),
        attention_mask=state.mask,
        position_ids=state.positions.unsqueeze(1),
        use_cache=True,
        **cache_argument(subject.model, state.cache),
        **last_logits(subject.model, 1),
    )
    state.positions = state.positions + 1
    next_tokens: Tensor = output.logits[:, -1].float().argmax(-1)
    return next_tokens


def _group_passes(passes: Sequence[Pass]) -> list[list[Pass]]:
    """Group batches that are decoded together: decoding steps are so small that larger batches cost little more."""
    groups: list[list[Pass]] = [[]]
    for item in passes:
        if groups[-1] and sum(len(p.batch.rows) for p in [*groups[-1], item]) > BATCH_ANSWERS:
            groups.append([])
        groups[-1].append(item)
    return groups


def _merge_passes(passes: Sequence[Pass]) -> _ActiveAnswers:
    """Merge several batches into one, left-padded to the longest."""
    # Keys and values of padding are zeros that the mask excludes from attention.
    width = max(item.batch.mask.shape[1] for item in passes)
    extra = [width - item.batch.mask.shape[1] for item in passes]
    cache = DynamicCache()
    for index in range(len(passes[0].cache.layers)):
        layers = [item.cache.layers[index] for item in passes]
        keys, values = (
            [pad(getattr(x, side), (0, 0, n, 0)) for x, n in zip(layers, extra, strict=True)]
            for side in ("keys", "values")
        )
        cache.update(torch.cat(keys), torch.cat(values), index)
    return _ActiveAnswers(
        rows=[row for item in passes for row in item.batch.rows],
        cache=cache,
        mask=torch.cat([pad(item.batch.mask, (n, 0)) for item, n in zip(passes, extra, strict=True)]),
        positions=torch.cat([item.batch.positions[:, -1] + 1 for item in passes]),
        logits=torch.cat([item.logits[:, -1] for item in passes]),
    )
