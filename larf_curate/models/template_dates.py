"""Dates that chat templates write, as those of Llama 3 and Granite do: the day is fixed in a profile."""

from collections.abc import Mapping

from larf_curate.conversation.templates import NOW, Tokenizer


def writes_dates(tokenizer: Tokenizer) -> bool:
    """Whether a chat template of a tokenizer may write today's date."""
    template = tokenizer.chat_template or ""
    return NOW in "".join(template.values() if isinstance(template, Mapping) else [template])


def today(tokenizer: Tokenizer) -> str:
    """The day that a tokenizer writes now, as an ISO date: from the clock of `transformers`, as in training."""
    source = f"{{{{ {NOW}('%Y-%m-%d') }}}}"
    message = {"role": "user", "content": ""}
    return str(tokenizer.apply_chat_template([message], tokenize=False, chat_template=source))
