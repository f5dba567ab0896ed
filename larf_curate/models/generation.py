"""Greedy generation of chat answers in left-padded batches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from larf_curate.conversation.templates import ChatTemplate
from larf_curate.conversation.thoughts import AnswerDecoder, opened_thought
from larf_curate.errors import ConversationError, InputError, ModelError
from larf_curate.models.devices import resolve_device, resolve_dtype
from larf_curate.models.output_head import contiguous_head
from larf_curate.models.shrinking_batch import decode_shrinking, left_padded
from larf_curate.models.source import ModelSource, load_causal_lm, load_tokenizer
from larf_curate.progress import progress

UNLIMITED = 1 << 30
"""Context window of a model whose config does not limit its positions."""
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "use_cache": True,
    "return_dict_in_generate": False,
}
"""All set explicitly, since options that are not set are taken from the model's own generation config."""
PROMPT_END = 16
"""Number of tokens at the end of a prompt that can hold the mark of a thought."""
Chat = str | list[dict[str, str]]
"""A prompt: the user's text, or chat messages."""
Decided = Callable[[int, str], bool]
"""Takes the number of a prompt and the text of its answer so far; returns whether no more of it is needed."""


def load_model(name: str, *, device: str | None = None) -> tuple[Any, Any]:
    """Load a causal language model, or an adapter together with its base, and its tokenizer.

    Weights keep the dtype of their files where the hardware supports bfloat16 natively, and are float32 elsewhere.

    Args:
        name: Folder or Hub id.
        device: A torch device; default: the first available accelerator.

    Returns:
        The model on its device, and its tokenizer.

    Raises:
        ModelError: If the model cannot be loaded.
    """
    device, source = resolve_device(device), ModelSource(model_id=name)
    dtype: Literal["auto"] | torch.dtype = "auto" if resolve_dtype("auto", device) == "bfloat16" else torch.float32
    model = load_causal_lm(source, dtype).to(device)
    model.name_or_path = name  # of an adapter its own, not that of its base
    return model, load_tokenizer(source)


def generate_answers(
    model: Any,  # noqa: ANN401  transformers has no types
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[Chat],
    *,
    max_new_tokens: int = 160,
    batch_size: int = 16,
    system: str | None = None,
    decided: Decided | None = None,
) -> list[str]:
    """Generate greedy answers to prompts; batching changes an answer only by rounding.

    Prompts of similar length share a batch, which an answer leaves when it ends.

    Args:
        model: A causal language model of transformers; its training mode is restored afterwards.
        tokenizer: Its tokenizer, with a chat template.
        prompts: The prompts.
        max_new_tokens: Longest answer in tokens.
        batch_size: Number of prompts per batch.
        system: System message for every prompt; default: none.
        decided: Takes the number of a prompt and its answer so far, and returns whether no more of it is needed;
            default: answers are complete.

    Returns:
        The answers in the order of the prompts, without special tokens except the marks of thoughts. An answer whose
        prompt opens a thought begins with that mark.

    Raises:
        InputError: If a prompt and its answer do not fit into the context window, or a size is below 1.
        ModelError: If there is no chat template, or the model's logits are NaN.
    """
    if min(max_new_tokens, batch_size) < 1:
        raise InputError(f"wanted max_new_tokens and batch_size of at least 1, got {max_new_tokens} and {batch_size}")
    template = ChatTemplate(tokenizer)
    encoded = [_encode(tokenizer, template, prompt, system) for prompt in prompts]
    _check_window(model, encoded, max_new_tokens)
    # Longest first: if a batch does not fit into memory, it is the first one.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))
    answers = [""] * len(encoded)
    training = model.training
    model.eval()
    try:
        with progress(total=len(order), label="Answering", unit="prompt") as bar:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                # The answers of a batch are numbered by their place in it.
                enough = decided and partial(_decided_in_batch, decided, rows)
                batch = [encoded[row] for row in rows]
                texts = _generate(model, tokenizer, batch, max_new_tokens, enough, bar.update)
                for row, text in zip(rows, texts, strict=True):
                    answers[row] = text
    finally:
        model.train(training)
    return answers


def _encode(tokenizer: Any, template: ChatTemplate, prompt: Chat, system: str | None) -> list[int]:  # noqa: ANN401
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    try:
        text = template(messages, generation_prompt=True)
    except ConversationError as error:
        raise InputError(f"a prompt: {error}; change or remove it") from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has added them already


def window_of(config: Any) -> int:  # noqa: ANN401
    """Context window of a model in tokens, from its config; `UNLIMITED` if the config does not limit it."""
    return int(getattr(config.get_text_config(decoder=True), "max_position_embeddings", None) or UNLIMITED)


def stop_ids(model: Any, tokenizer: Any) -> list[int]:  # noqa: ANN401
    """Ids of all tokens that end an answer; empty if none is defined.

    They are the union of those in the generation config and the tokenizer's end-of-sequence token, since the two may
    disagree: chat models often end an answer with another token than a text.
    """
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    tokenizer_ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys([*ids, *tokenizer_ids]))


def _check_window(model: Any, encoded: Sequence[list[int]], new: int) -> None:  # noqa: ANN401
    window = window_of(model.config)
    for index, ids in enumerate(encoded):
        if len(ids) + new > window:
            raise InputError(
                f"prompt {index} has {len(ids)} tokens, with {new} for the answer more than the context window of "
                f"{window}: shorten it or lower max_new_tokens"
            )


def _decided_in_batch(decided: Decided, rows: Sequence[int], place: int, text: str) -> bool:
    return decided(rows[place], text)


def _generate(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    encoded: Sequence[list[int]],
    new: int,
    decided: Decided | None,
    advance: Callable[[int], object],
) -> list[str]:
    """Answers to one batch of prompts."""
    decoder = AnswerDecoder(tokenizer)
    thoughts = [opened_thought(tokenizer.decode(row[-PROMPT_END:])) for row in encoded]

    def texts(places: Sequence[int], ids: Sequence[list[int]]) -> list[str]:
        return [thoughts[place] + text.strip() for place, text in zip(places, decoder(ids), strict=True)]

    def ended(places: Sequence[int], ids: Sequence[list[int]]) -> list[bool]:
        said = zip(places, texts(places, ids), strict=True)
        return [decided is not None and decided(place, text) for place, text in said]

    found = decode_shrinking(
        model,
        encoded,
        _config(model, tokenizer, new),
        ended=None if decided is None else ended,
        processors=LogitsProcessorList([_RaiseOnNan()]),
        advance=advance,
    )
    return texts(range(len(encoded)), found)


@torch.no_grad()
def generate_tokens(
    model: Any,  # noqa: ANN401  transformers has no types
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[list[int]],
    new: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate greedy continuations of one batch of prompts, and the logits that they were chosen by.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        prompts: Token ids of the prompts.
        new: Longest continuation in tokens.

    Returns:
        Token ids, shape (prompts, steps), padded on the right, and logits, shape (prompts, steps, vocabulary).

    Raises:
        ModelError: If the logits are NaN, or no token ends an answer.
    """
    config = _config(model, tokenizer, new, return_dict_in_generate=True, output_logits=True)
    ids, mask = left_padded(prompts, config.pad_token_id)
    with contiguous_head(model):
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_RaiseOnNan()]),
        )
    return output.sequences[:, ids.shape[1] :], torch.stack(output.logits, dim=1)


def _config(model: Any, tokenizer: Any, new: int, **options: bool) -> GenerationConfig:  # noqa: ANN401
    """Options of greedy decoding."""
    stop = stop_ids(model, tokenizer)
    if not stop:
        raise ModelError("neither the model nor its tokenizer defines a token that ends an answer: set eos_token")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop[0]
    return GenerationConfig(max_new_tokens=new, eos_token_id=stop, pad_token_id=pad, **{**GREEDY, **options})


class _RaiseOnNan(LogitsProcessor):  # type: ignore[misc]  # transformers has no types
    """Raises at the first NaN: greedy decoding would return token 0 forever, which looks like an answer."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if scores.isnan().any():
            raise ModelError("the model gives NaN: check its weights, or load it in bfloat16 or float32")
        return scores
