"""Find where the text of each message is in a rendered conversation, by invisible marks around the texts.

The conversation is rendered once more with marks around every message's text. Where that rendering without its marks
equals the plain one, they show where each text went.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Protocol

from larf_curate.conversation.messages import THOUGHT_END, Message, UnsupportedContentError, text_of
from larf_curate.conversation.truncation import Span
from larf_curate.errors import ConversationError

PRIVATE_USE = range(0xF0000, 0x10FFFE)
"""Marks are characters of the private-use planes: two for each message."""
_TAG_ALONE = re.compile(r"<[^<>]+>")
EMPTY_ROLES = (frozenset(("system", "user", "assistant", "tool")), frozenset(("user",)), frozenset[str]())
"""Roles of messages without text that are marked: all, those of which templates hardly look at the text, none."""


class Render(Protocol):
    """Renders messages with a chat template."""

    def __call__(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """Return the text; raises `ConversationError` where the template refuses the messages."""
        ...


def locate(messages: Sequence[Message], text: str, render: Render) -> dict[int, Span] | None:
    """Where the text of each message is in the rendered conversation; None where it cannot be told.

    Messages that the template leaves out have no entry, and such without text where it looks at whether there is one.
    """
    said = [i for i, message in enumerate(messages) if message["role"] == "assistant" and core_of(message)]
    answers = {index for index in said if not messages[index].get("tool_calls")}  # some show the call alone
    marks = unused_characters(2 * len(messages), text)
    empties = EMPTY_ROLES if not all(map(core_of, messages)) else EMPTY_ROLES[-1:]
    for others, mark, roles in product((None, _within), (_around, _behind_thought, _at_end), empties):
        pairs = zip(messages, marks[::2], marks[1::2], strict=True)
        marked = [
            _marked(
                message,
                partial(_mark_of(message, mark, others), first=chr(first), last=chr(last)),
                empty=message["role"] in roles,
            )
            for message, first, last in pairs
        ]
        try:
            plain, places = _without_marks(render(marked), marks)
        except ConversationError:  # the template looks at how a text begins, or allows few characters
            continue
        ends = {place // 2: at for place, at in places.items() if place % 2}
        if plain != text or not answers <= ends.keys():
            continue
        found = {index: (places.get(2 * index, end), end) for index, end in sorted(ends.items())}
        if others:
            found |= {i: _widened(messages[i], *found[i]) for i in found if messages[i]["role"] != "assistant"}
            if not all(_is_at(messages[i], text, found[i]) for i in found if messages[i]["role"] != "assistant"):
                continue
        return found
    return None


def _mark_of(message: Message, mark: Callable[..., str], others: Callable[..., str] | None) -> Callable[..., str]:
    if others and message["role"] != "assistant":
        return others
    return _unmarked if mark is _behind_thought and is_call_behind_thought(message) else mark


def core_of(message: Message) -> str:
    """The text of a message without white space around it."""
    return text_of(message).strip()


def is_call_behind_thought(message: Message) -> bool:
    """Whether a message calls tools and its text is a thought alone: some templates show that without any text."""
    return bool(message.get("tool_calls")) and core_of(message).endswith(THOUGHT_END)


def unused_characters(count: int, text: str) -> range:
    """Characters that a text does not have."""
    used = sorted({ord(character) for character in text if ord(character) in PRIVATE_USE} | {PRIVATE_USE.stop})
    edges = zip([PRIVATE_USE.start - 1, *used], used, strict=False)
    first = next((below + 1 for below, above in edges if above - below > count), None)
    if first is None:
        raise UnsupportedContentError(f"wanted fewer messages than half the private-use characters, got {count // 2}")
    return range(first, first + count)


def _marked(message: Message, mark: Callable[..., str], *, empty: bool) -> Message:
    """A message with marks in its text, within the white space that templates strip.

    Args:
        message: The message.
        mark: Puts marks into a text.
        empty: Whether messages without text are marked too, but for calls of tools.
    """
    content = message["content"]
    if not core_of(message):
        if not empty or message.get("tool_calls"):
            return message
        marks = mark("")
        return {
            **message,
            "content": content + (marks if isinstance(content, str) else [{"type": "text", "text": marks}]),
        }
    if isinstance(content, str):
        return {**message, "content": _marked_text(content, mark)}
    texts = [place for place, part in enumerate(content) if part.get("text", "").strip()]
    parts = list(content)  # one mark before the first text, one behind the last
    parts[texts[0]] = {**parts[texts[0]], "text": _marked_text(parts[texts[0]]["text"], mark, only="first")}
    parts[texts[-1]] = {**parts[texts[-1]], "text": _marked_text(parts[texts[-1]]["text"], mark, only="last")}
    return {**message, "content": parts}


def _marked_text(text: str, mark: Callable[..., str], *, only: str = "") -> str:
    core = text.strip()
    if not core:
        return text
    start = text.index(core)
    shown = mark(core, **{side: "" for side in ("first", "last") if only and side != only})
    return text[:start] + shown + text[start + len(core) :]


def _around(core: str, *, first: str, last: str) -> str:
    return first + core + last


def _behind_thought(core: str, *, first: str, last: str) -> str:
    """Around what follows a thought, which templates take off earlier answers."""
    end = core.rfind(THOUGHT_END)
    if end < 0:
        return _around(core, first=first, last=last)
    thought, answer = core[: end + len(THOUGHT_END)], core[end + len(THOUGHT_END) :]
    space = answer[: len(answer) - len(answer.lstrip())]
    return thought + space + first + answer[len(space) :] + last


def _unmarked(core: str, *, first: str, last: str) -> str:  # noqa: ARG001  called like the others
    """Without marks: a template would show the marks as a text beside a thought and calls of tools."""
    return core


def _at_end(core: str, *, first: str, last: str) -> str:  # noqa: ARG001  called like the others
    """At the end alone, for templates that look at how a text begins."""
    return core + last


def _within(core: str, *, first: str, last: str) -> str:
    """Near the middle, for templates that look at how texts of users begin and end."""
    place = _middle(core)
    return core[:place] + first + last + core[place:]


def _middle(core: str) -> int:
    """A place near the middle of a text, outside of tags."""
    middle = len(core) // 2
    return next((tag.end() for tag in _TAG_ALONE.finditer(core) if tag.start() < middle < tag.end()), middle)


def _cores(message: Message) -> list[str]:
    """The texts of a message without white space around them, empty ones left out."""
    content = message["content"]
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
    return [text.strip() for text in texts if text.strip()] or [""]


def space_behind(message: Message) -> str:
    """White space at the end of the text of a message, which a template may show or strip."""
    content = message["content"]
    text = content if isinstance(content, str) else next((t for p in reversed(content) if (t := p.get("text", ""))), "")
    return text[len(text.rstrip()) :]


def _widened(message: Message, first: int, last: int) -> Span:
    """The span of a message's text from the places of marks that were put within it."""
    cores = _cores(message)
    return first - _middle(cores[0]), last + len(cores[-1]) - _middle(cores[-1])


def _is_at(message: Message, text: str, span: Span) -> bool:
    """Whether a message's text begins and ends at a span of a rendered text."""
    cores, (start, end) = _cores(message), span
    return start >= 0 and text.startswith(cores[0], start) and text.endswith(cores[-1], start, end)


def _without_marks(text: str, marks: range) -> tuple[str, dict[int, int]]:
    """A text without marks, and where in it each was; a mark that is there twice leaves a text that differs."""
    parts: list[str] = []
    places: dict[int, int] = {}
    size = cursor = 0
    for found in re.finditer(f"[{chr(marks.start)}-{chr(marks.stop - 1)}]", text):
        mark = ord(found[0]) - marks.start
        if mark not in places:
            parts.append(text[cursor : found.start()])
            size += found.start() - cursor
            cursor = found.end()
            places[mark] = size
    return "".join([*parts, text[cursor:]]), places
