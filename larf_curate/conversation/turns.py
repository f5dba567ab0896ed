"""Find the assistant turns of a rendered conversation, whatever its chat template does with the messages.

A chat template does not report positions: `larf_curate.conversation.marking` finds the texts. What a template writes
around texts is then remembered by the sequence of roles, so that most rows need one rendering.

A turn begins behind the assistant's header, the text that the template appends as a generation prompt, so that what the
template itself writes into an answer (an empty thought, a channel) is part of it. It ends before the next message's
header, its end-of-turn mark included, as `return_assistant_tokens_mask` of transformers and TRL's training templates
have it.
"""

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from os.path import commonprefix
from typing import Any

from larf_curate.conversation.marking import (
    PRIVATE_USE,
    Render,
    core_of,
    is_call_behind_thought,
    locate,
    space_behind,
    unused_characters,
)
from larf_curate.conversation.messages import THOUGHT_END, THOUGHT_KEYS, Message, UnsupportedContentError, is_learned
from larf_curate.conversation.truncation import Span
from larf_curate.errors import ConversationError

THOUGHT_STARTS = ("<think", "<seed:think")
"""How thoughts begin: some generation prompts open one, which belongs to the answer and not to the header."""
_TAG = re.compile(r"<[^>]+>|\[[^\]]+\]|\S+")
_LETTERS = re.compile(r"[A-Za-z<|>]")
_FURTHER_TEXTS = ("tool_calls", *THOUGHT_KEYS)
"""Keys of messages whose texts are not marked."""
ASKED: list[Message] = [{"role": "user", "content": "x"}]
"""A prompt that most templates take."""
LAYOUTS = 4096
"""Most sequences of roles whose layout is remembered."""


@dataclass(frozen=True)
class Turns:
    """The assistant turns of a rendered conversation.

    Args:
        spans: Span of each assistant message that is shown, by the message's index, in order.
        hidden: Indices of messages whose text the template leaves out.
        outputs: Spans of tools' outputs that the template shows within an assistant message, between its calls and its
            text, by the message's index.
    """

    spans: dict[int, Span]
    hidden: tuple[int, ...] = ()
    outputs: Mapping[int, Span] = field(default_factory=dict)

    def parts(self, index: int) -> list[Span]:
        """The spans of what the model writes of an assistant message, by the message's index."""
        (start, end), output = self.spans[index], self.outputs.get(index)
        return [(start, output[0]), (output[1], end)] if output else [(start, end)]


@dataclass(frozen=True)
class Layout:
    """What a template writes around the texts of messages with certain roles.

    Args:
        literals: The text before each message's text, and behind the last one.
        turns: For each assistant turn the message's index, and how many characters it begins before its text and ends
            behind it.
    """

    literals: tuple[str, ...]
    turns: tuple[tuple[int, int, int], ...]

    def match(self, messages: Sequence[Message], text: str) -> dict[int, Span] | None:
        """Spans of the assistant turns in a text with this layout; None if it has another."""
        cursor = len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return None
        places: list[Span] = []
        for message, after in zip(messages, self.literals[1:], strict=True):
            content = str(message["content"])
            if not text.startswith(content + after, cursor):
                return None
            places.append((cursor, cursor + len(content)))
            cursor += len(content) + len(after)
        spans = {index: (places[index][0] - before, places[index][1] + behind) for index, before, behind in self.turns}
        return spans if cursor == len(text) else None


@dataclass(frozen=True)
class TurnFinder:
    """Finds the character spans of the assistant turns of rendered conversations.

    Args:
        render: Renders messages, always with the same template and arguments.
        learns_header: Whether the assistant's header is part of a turn; see `learns_header`.
    """

    render: Render
    learns_header: bool = False
    _layouts: dict[tuple[str, ...], Layout] = field(default_factory=dict, repr=False)

    def __call__(self, messages: Sequence[Message], text: str) -> Turns:
        """Find the turns.

        Args:
            messages: The conversation, with at least one assistant message.
            text: The messages, rendered.

        Returns:
            The span of each assistant message that the template shows; that of the last answer alone where the others
            cannot be located and need not be, because they are not shown or not learned.

        Raises:
            UnsupportedContentError: If the template shows no answer, or a learned one that cannot be located.
        """
        shape = tuple(message["role"] for message in messages) if all(map(_is_plain, messages)) else None
        if shape and (layout := self._layouts.get(shape)) and (spans := layout.match(messages, text)):
            return Turns(spans)
        texts = locate(messages, text, self.render)
        found = self._last(messages, text) if texts is None else self._turns(messages, text, texts)
        spans = {index: (start, end) for index, (start, end) in found.items() if text[start:end].strip()}
        if not spans:
            raise UnsupportedContentError("the model's chat template shows nothing of any assistant turn")
        if texts is None:
            return Turns(spans, self._hidden(messages, text, found))
        if shape and len(self._layouts) < LAYOUTS and (layout := _layout(messages, text, texts, spans)):
            self._layouts[shape] = layout
        unseen = {
            index
            for index, message in enumerate(messages)
            if core_of(message) and index not in texts and not (index in spans and is_call_behind_thought(message))
        }
        outputs = {index: self._output(messages, index, text, texts, spans) for index in spans}
        hidden = tuple(sorted(unseen | found.keys() - spans.keys()))
        return Turns(spans, hidden, {index: output for index, output in outputs.items() if output})

    def _output(
        self, messages: Sequence[Message], index: int, text: str, texts: dict[int, Span], spans: dict[int, Span]
    ) -> Span | None:
        """Where tools' outputs are between a message's calls and its text, as Gemma 4 shows them; None if not there."""
        count = sum(1 for _ in takewhile(lambda message: message["role"] == "tool", messages[index + 1 :]))
        start, stop = spans[index][0], texts.get(index, (0, 0))[0]
        places = [texts[i][0] for i in range(index + 1, index + 1 + count) if i in texts and start < texts[i][0] < stop]
        if not messages[index].get("tool_calls") or not places:
            return None
        unlike = {**messages[index], "content": chr(unused_characters(1, text).start)}
        try:
            other = self.render([*messages[:index], unlike, *messages[index + 1 + count :]])
        except ConversationError:
            other = ""
        calls_end = len(commonprefix([text, other]))
        return calls_end if start < calls_end < places[0] else places[0], stop

    def shows_any(self, messages: Sequence[Message], text: str, turns: Turns, indices: Sequence[int]) -> bool:
        """Whether the turns of some messages show anything of them: texts, calls of tools or thoughts.

        Args:
            messages: The conversation.
            text: The messages, rendered.
            turns: The turns of the conversation.
            indices: Indices of the messages.
        """
        found = [index for index in indices if index in turns.spans]
        cores = ((index, core_of(messages[index]).rpartition(THOUGHT_END)[2].strip()) for index in found)
        if any(core and text.find(core, *turns.spans[index]) >= 0 for index, core in cores):
            return True
        return bool(found) and self._depends_on(messages, text, found)

    def _depends_on(self, messages: Sequence[Message], text: str, indices: Sequence[int]) -> bool:
        """Whether the rendered text is another one without what some messages have."""
        without = list(messages)
        for index in indices:
            without[index] = {"role": messages[index]["role"], "content": ""}
        try:
            return self.render(without) != text
        except ConversationError:  # it looks at what the messages have
            return True

    def _turns(self, messages: Sequence[Message], text: str, texts: dict[int, Span]) -> dict[int, Span]:
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        header = self._header(messages, answers[0])
        closing = self._closing(messages, text, texts)
        text = self._with_one_header_each(messages, text, header)
        before, after = _Places([0]), _Places([first for first, _ in texts.values()])
        literals: dict[str, str] = {}
        found = {} if header else self._calls(messages, text, [i for i in answers if i not in texts])
        for index, message in enumerate(messages):
            if index in texts:
                after.remove(texts[index][0])
            if message["role"] == "assistant" and index not in found:
                start, end = texts.get(index, (len(text), 0))
                end += len(space_behind(message)) * text.startswith(space_behind(message), end)
                earliest = before.last_until(start)
                end = max(end, earliest)
                latest = after.first_from(end, default=len(text))
                start = min(start, latest)
                place = text.find(header, earliest, start) if header else -1
                answer = place + len(header)
                if place < 0:
                    bounds = (earliest, start)
                    answer = self._continued(messages, index, text, bounds, literals) if header else start
                is_next = index + 1 in texts and messages[index + 1]["role"] != "assistant"
                stop = self._end(
                    messages,
                    index,
                    text,
                    (max(end, answer), max(latest, answer)),
                    header=header,
                    closing=closing,
                    is_next=is_next and texts[index + 1][0] == latest,
                    follows_empty=_is_before_empty_answer(messages, index, texts),
                )
                found[index] = (place if place >= 0 and self.learns_header else answer, stop)
                before.add(stop)
            if index in texts:
                before.add(texts[index][1])
        return dict(sorted(found.items()))

    def _continued(
        self, messages: Sequence[Message], index: int, text: str, before: Span, literals: dict[str, str]
    ) -> int:
        """Where an answer without a header begins: before its thought and its calls, where Gemma 4 goes on with a turn.

        Args:
            messages: The messages.
            index: Index of the answer's message.
            text: The rendered text.
            before: Where the text before the answer ends, and where the answer's own begins.
            literals: What the template writes between the two, by the role of the message before; is added to, so that
                a long conversation needs few renderings.
        """
        message, (earliest, start) = messages[index], before
        role = messages[index - 1]["role"]
        if not index or not (message.keys() & _FURTHER_TEXTS) or not text[earliest:start].strip():
            return start
        if (literal := literals.get(role)) and text.startswith(literal, earliest, start):
            return earliest + len(literal)
        mark = chr(unused_characters(1, text).start)
        outputs = sum(1 for _ in takewhile(lambda other: other["role"] == "tool", messages[index + 1 :]))
        try:
            other = self.render(
                [*messages[:index], {"role": "assistant", "content": mark}, *messages[index + 1 + outputs :]]
            )
        except ConversationError:
            return start
        place = len(commonprefix([text, other]))
        if not (earliest <= place < start and other.startswith(mark, place)):
            return start
        literals[role] = text[earliest:place]
        return place

    def _calls(self, messages: Sequence[Message], text: str, answers: Sequence[int]) -> dict[int, Span]:
        """Where calls of tools are that have no text, if the assistant has no header to find them by."""
        calls = [index for index in answers if messages[index].get("tool_calls")]
        if not calls or not self._depends_on(messages, text, calls):
            return {}
        return {index: span for index in calls if (span := self._call(messages, text, index))}

    def _call(self, messages: Sequence[Message], text: str, index: int) -> Span | None:
        """Where the calls of a message are: from where its text would be, up to where it ends as the last message."""
        mark = chr(unused_characters(1, text).start)
        try:
            other = self.render([*messages[:index], {"role": "assistant", "content": mark}])
            alone = self.render(messages[: index + 1])
        except ConversationError:
            return None
        start, end = len(commonprefix([other, text])), len(commonprefix([alone, text]))
        return (start, end) if other[start:].lstrip().startswith(mark) else None

    @cached_property
    def _plain_closing(self) -> str | None:
        """What follows the text of an answer to a short question; None if the template takes no such conversation."""
        mark = chr(PRIVATE_USE.start)
        with suppress(ConversationError):
            _, shown, behind = self.render([*ASKED, {"role": "assistant", "content": mark}]).partition(mark)
            return behind if shown else None
        return None

    def _closing(self, messages: Sequence[Message], text: str, texts: dict[int, Span]) -> str:
        """What follows an answer's text where nothing else follows, without its own white space."""
        if self._plain_closing is not None:
            return self._plain_closing
        last = max((i for i in texts if messages[i]["role"] == "assistant"), default=None)
        return "" if last is None else text[texts[last][1] :].lstrip()

    def _end(
        self,
        messages: Sequence[Message],
        index: int,
        text: str,
        between: Span,
        *,
        header: str,
        closing: str,
        is_next: bool,
        follows_empty: bool,
    ) -> int:
        """Where a turn ends: before the next message's header, which begins like the assistant's own.

        Args:
            messages: The messages.
            index: Index of the turn's message.
            text: The rendered text.
            between: Where the turn's text ends, and where the text of the next message that has one begins.
            header: The assistant's header.
            closing: What follows the text of the last answer.
            is_next: Whether that next text is of the very next message, and not the assistant's.
            follows_empty: Whether the next message that is shown is the assistant's and has no text.
        """
        end, limit = between
        if index + 1 == len(messages):
            return limit
        if header and follows_empty and (place := text.find(header, end, limit)) >= 0:
            return place  # calls of tools in a row have no texts between them
        gap = text[end:limit]
        own = header if is_next else ""  # its thought and calls can have headers of their own
        between_headers = gap.replace(own, "\0" * len(own)) if own else gap
        has_end = closing.strip() or messages[index].get("tool_calls")
        places = (between_headers.rfind(header[:length]) for length in range(len(header) if has_end else 0, 0, -1))
        stop = next((place for place in places if place >= 0), _closed(gap, closing))
        return end + _behind_closing(gap, stop, closing)

    def _with_one_header_each(self, messages: Sequence[Message], text: str, header: str) -> str:
        """A text of the same length in which calls of tools and thoughts have nothing that looks like a header."""
        tag = _TAG.match(header)
        if not tag or not any(_mentions(message.get(key), tag[0]) for message in messages for key in _FURTHER_TEXTS):
            return text
        keys = {key: partial(_neutral, keep=key == "tool_calls") for key in _FURTHER_TEXTS}
        neutral = [
            {key: keys[key](value) if key in keys else value for key, value in message.items()} for message in messages
        ]
        try:
            other = self.render(neutral)
        except ConversationError:
            return text
        return other if len(other) == len(text) else text

    def _header(self, messages: Sequence[Message], answer: int) -> str:
        """The assistant's header: what a generation prompt adds, without the thought that it may open."""
        for prompt in (messages[:answer], ASKED) if answer else (ASKED,):
            with suppress(ConversationError):  # some templates want an answer, or no conversation without a user
                return self._header_behind(prompt)
        return ""

    def _header_behind(self, prompt: Sequence[Message]) -> str:
        without = self.render(prompt)
        header = self.render(prompt, generation_prompt=True)
        common = without if header.startswith(without) else _whole_marks(commonprefix([without, header]))
        header = header[len(common) :]
        return header[: min((at for s in THOUGHT_STARTS if (at := header.find(s)) >= 0), default=len(header))]

    def _last(self, messages: Sequence[Message], text: str) -> dict[int, Span]:
        """The last answer: it begins where the conversation first differs from its prompt with a generation prompt."""
        answer = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
        prompt = self.render(messages[:answer], generation_prompt=True) if answer else ""
        core = core_of(messages[answer]).rpartition(THOUGHT_END)[2].strip()
        if core not in text:
            raise UnsupportedContentError(f"the model's chat template does not show the answer as it is: {core!r:.80}")
        header, start = self._header(messages, answer), len(commonprefix([prompt, text]))
        if header:  # the prompt may open a thought, and may show earlier turns in another way than the text
            opened = prompt.rfind(header) + len(header)
            place = text.rfind(header, 0, text.rfind(core)) + len(header) if opened > start else opened
            start = place if place >= len(header) else start
        return {answer: (start, len(text))}

    def _hidden(self, messages: Sequence[Message], text: str, found: dict[int, Span]) -> tuple[int, ...]:
        """Answers that the template leaves out, if some are found and the others have no known place.

        Raises:
            UnsupportedContentError: If a learned answer is shown: scoring the others alone would pass over it.
        """
        others = [
            index for index, message in enumerate(messages) if message["role"] == "assistant" and index not in found
        ]
        shown = others if self._depends_on(messages, text, others) else []
        shown = [index for index in shown if self._depends_on(messages, text, [index])]
        if learned := [index for index in shown if is_learned(messages[index])]:
            raise UnsupportedContentError(
                f"cannot locate {len(learned)} of {len(others) + len(found)} assistant turns that the model's chat "
                "template shows and training would learn: pass a template that shows each text once and as it is"
            )
        return tuple(index for index in others if index not in shown)


def _is_before_empty_answer(messages: Sequence[Message], index: int, texts: Mapping[int, Span]) -> bool:
    """Whether the next message that a template shows is the assistant's and has no text."""
    others = range(index + 1, len(messages))
    following = next((i for i in others if i in texts or messages[i]["role"] == "assistant"), None)
    return following is not None and messages[following]["role"] == "assistant" and not core_of(messages[following])


def _closed(gap: str, closing: str) -> int:
    """Where a turn ends in the text up to the next one, if that has no header like the assistant's."""
    mark = closing.lstrip()
    if mark and gap.lstrip().startswith(mark):
        return gap.find(mark) + len(mark)
    return len(commonprefix([gap, closing]))


def _behind_closing(gap: str, stop: int, closing: str) -> int:
    """Where a turn ends in the text up to the next one: with its end-of-turn mark, and before a header of several tags.

    Args:
        gap: The text.
        stop: Where the last tag that begins like the assistant's header is.
        closing: What follows the text of the last answer.
    """
    mark = closing.lstrip()
    place = gap.find(mark) if gap.lstrip().startswith(mark) else gap.rfind(mark, 0, stop)
    behind = place + len(mark)
    if not mark or place < 0 or (behind <= stop and not gap[behind:stop].strip()):
        return stop
    return behind


class _Places:
    """Sorted places in a text."""

    def __init__(self, places: list[int]) -> None:
        self._sorted = sorted(places)

    def add(self, place: int) -> None:
        insort(self._sorted, place)

    def remove(self, place: int) -> None:
        del self._sorted[bisect_left(self._sorted, place)]

    def last_until(self, place: int) -> int:
        """The last one that is not behind a place; 0 must be among them."""
        return self._sorted[bisect_right(self._sorted, place) - 1]

    def first_from(self, place: int, *, default: int) -> int:
        """The first one that is not before a place."""
        index = bisect_left(self._sorted, place)
        return self._sorted[index] if index < len(self._sorted) else default


def _mentions(value: object, text: str) -> bool:
    """Whether any text of a JSON value has another text in it."""
    if isinstance(value, str):
        return text in value
    if isinstance(value, Mapping):
        return any(_mentions(item, text) for item in value.values())
    return isinstance(value, list) and any(_mentions(item, text) for item in value)


def _neutral(value: Any, *, keep: bool) -> Any:  # noqa: ANN401  any JSON value
    """A JSON value with texts of the same length and without letters and tags.

    Args:
        value: The value.
        keep: Whether only the texts under ``arguments`` are changed: templates look at names and types of calls.
    """
    if isinstance(value, str):
        return value if keep else _LETTERS.sub("x", value)
    if isinstance(value, Mapping):
        return {key: _neutral(item, keep=keep and key != "arguments") for key, item in value.items()}
    return [_neutral(item, keep=keep) for item in value] if isinstance(value, list) else value


def _is_plain(message: Message) -> bool:
    """Whether a template sees nothing but a role and a text, which has no white space around it."""
    content = message["content"]
    is_text = message.keys() <= {"role", "content"} and isinstance(content, str) and bool(content)
    return is_text and not (content[0].isspace() or content[-1].isspace())


def _layout(messages: Sequence[Message], text: str, texts: dict[int, Span], spans: dict[int, Span]) -> Layout | None:
    """The layout of a conversation of which every message's text is shown, in order."""
    if list(texts) != list(range(len(messages))) or sorted(texts.values()) != list(texts.values()):
        return None
    edges = [0, *(edge for span in texts.values() for edge in span), len(text)]
    literals = tuple(text[edges[i] : edges[i + 1]] for i in range(0, len(edges), 2))
    turns = tuple((i, texts[i][0] - start, stop - texts[i][1]) for i, (start, stop) in spans.items())
    return Layout(literals, turns)


def _whole_marks(text: str) -> str:
    """A text without a tag that is only begun at its end."""
    opened = text.rfind("<")
    return text[:opened] if opened > text.rfind(">") else text


HEADERS_LEARNED = {
    "56a1447ad31926fdc21fb07e56e5642bd9c850c4f52d8c8af7bbe5f079a84f5f",  # deepseek_r1_distill
    "563b1ce7d61d50a9b4c7439a912a1116f095b712df5b5e4d3e1116049874eb64",  # deepseekv3
    "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146",  # gptoss
    "cfc67e5f349f37690dfd31ed1f18bc4442a9dd32fe39a648f993cb4eb3cae678",  # muse_glimmer
}
"""Digests of chat templates of which TRL's training variants learn the assistant's header too."""


def learns_header(template_digest: str) -> bool:
    """Whether trainers that use TRL's training variant of a chat template also learn the assistant's header.

    Args:
        template_digest: Hex SHA-256 of the template.
    """
    return template_digest in HEADERS_LEARNED
