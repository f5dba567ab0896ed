"""Render and tokenize conversations with the model's own chat template, and locate their assistant turns.

One encoding for scoring, explanations, review, evaluation and training: token ids, and the tokens of every assistant
turn that a trainer learns. `TurnFinder` locates the turns in the rendered text, and the tokenizer's character offsets
convert these spans to token positions.
"""

import json
import logging
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from typing import Any, Literal

from larf_curate.conversation.generation import assign
from larf_curate.conversation.messages import (
    DEVELOPER,
    GIVEN_ROLE,
    ROLES,
    THOUGHT_END,
    THOUGHT_KEYS,
    THOUGHT_START,
    UNREAD_FLAGS,
    EmptyConversationError,
    Message,
    UnsupportedContentError,
    foreign_type,
    has_content,
    is_excluded,
    is_learned,
    role_name,
    text_of,
)
from larf_curate.conversation.plain_text import PlainEncoding, added_tokens
from larf_curate.conversation.schemas import (
    MORE_ARGUMENTS,
    TOKEN_COLUMNS,
    Conversation,
    Row,
    Schema,
    further_roles,
    to_conversation,
    unused_columns,
)
from larf_curate.conversation.templates import TOKENIZING, ChatTemplate, Encoding, Tokenizer, template_digest
from larf_curate.conversation.truncation import Tokens, Turn, shorten, truncate
from larf_curate.conversation.turns import TurnFinder, Turns, learns_header
from larf_curate.errors import ConversationError, ModelError

logger = logging.getLogger(__name__)
Status = Literal["ok", "truncated", "empty", "malformed", "unsupported", "non_finite", "crashed"]
ENCODING = {
    "add_special_tokens": False,  # the template has already written them
    "return_attention_mask": False,
    "return_token_type_ids": False,
    "verbose": False,
}
"""Options of the tokenizer: character offsets come from its encodings, where they are wanted."""
THOUGHTS = "the thoughts of some answers"
EXCLUDED = "excluded answers"
BARE_KEYS = frozenset(("role", "content"))
"""Keys of messages about which there is nothing to tell."""
MAX_FINDERS = 256
"""Most sets of template arguments whose finder of turns is remembered."""


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A tokenized row, or the reason why it cannot be tokenized.

    Args:
        status: ``ok``, ``truncated``, ``empty``, ``malformed`` or ``unsupported``.
        tokens: The tokens; None unless the status is ``ok`` or ``truncated``.
        reason: Why there are no tokens: what was wanted and what was found.
        texts: For each turn, the text of the conversation up to its end, without special tokens; empty unless the
            renderer has ``keep_texts``.
    """

    status: Status
    tokens: Tokens | None = None
    reason: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _RenderedText:
    """A rendered conversation, with character spans (start of answer, end of turn).

    Args:
        text: The text.
        spans: Spans of the assistant turns that are learned.
        others: Spans of the assistant turns that a flag of the row excludes from training.
        is_cut: Whether the text lacks its middle.
        added: Number of characters at the start that stand for the tokens which the tokenizer puts before plain text.
    """

    text: str
    spans: list[tuple[int, int]]
    others: tuple[tuple[int, int], ...] = ()
    is_cut: bool = False
    added: int = 0


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A row as it is rendered and tokenized, before anything is cut; all but ``rendered`` is empty without tokens.

    Args:
        rendered: The result, as the renderer returns it.
        text: The rendered text.
        encoding: The whole text as the tokenizer encodes it.
        learned: Character span of each assistant turn that is learned, and so scored.
        others: Character span of each assistant turn that a flag of the row excludes from training.
        read: Tokens whose states the model computes: ``ids[start:end]`` for each pair.
        turns: Tokens of each learned turn.
    """

    rendered: Rendered
    text: str = ""
    encoding: Encoding | None = None
    learned: tuple[tuple[int, int], ...] = ()
    others: tuple[tuple[int, int], ...] = ()
    read: tuple[tuple[int, int], ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def ids(self) -> list[int]:
        """Token ids of the whole text."""
        return self.encoding.ids if self.encoding else []

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """First character of each token, and the one behind its last."""
        return self.encoding.offsets if self.encoding else []


@dataclass(frozen=True)
class Renderer:
    """Renders rows with the chat template and tokenizes them.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        max_length: Longest conversation in tokens. A longer one loses its middle: the first quarter of ``max_length``
            and the end of its last turn (three quarters) are kept; see `truncate`.
        columns: Column names by role; default: inferred from the rows. See `to_conversation`.
        keep_texts: Whether `Rendered.texts` is filled, for text-only baselines.
        day: Day of dates that the template writes; default: today.

    Raises:
        ModelError: If the tokenizer has no usable chat template, or is a slow one, which gives no character offsets.
    """

    tokenizer: Tokenizer
    max_length: int
    columns: Mapping[str, str] | None = None
    keep_texts: bool = False
    day: date | None = None
    _finders: dict[str, TurnFinder] = field(default_factory=dict, repr=False)
    _told: set[str] = field(default_factory=set, repr=False)
    _said: set[str] = field(default_factory=set, repr=False)
    _counts: Counter[str] = field(default_factory=Counter, repr=False)
    _ignored: set[str] = field(default_factory=set, repr=False)
    _known_roles: set[str] = field(default_factory=lambda: {*ROLES.values(), DEVELOPER}, repr=False)
    _unused: dict[tuple[str, ...], list[str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError("wanted a fast tokenizer (tokenizer.json), got a slow one: convert it with transformers")
        _ = self.template  # raises if there is none

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return ChatTemplate(self.tokenizer, self.day)

    @cached_property
    def template_digest(self) -> str:
        """Hex SHA-256 of the chat template."""
        return template_digest(self.tokenizer)

    def __call__(self, rows: Sequence[Row | None], schema: Schema | None = None) -> list[Rendered]:
        """Render and tokenize rows; a row that cannot be rendered gets a status instead of raising.

        Args:
            rows: The rows.
            schema: Format of all rows, if known; default: inferred for each row.

        Returns:
            One result per row, in order.
        """
        return [item.rendered for item in self.inspect(rows, schema)]

    def inspect(self, rows: Sequence[Row | None], schema: Schema | None = None) -> Iterator[Inspection]:
        """Render and tokenize rows as a call does, and yield for each the text and tokens that the result is made of.

        Args:
            rows: The rows.
            schema: Format of all rows, if known; default: inferred for each row.
        """
        self._tell_unused_columns(rows)
        self._tell_joined(rows)
        items = [self._shortened(self._try_render(row, schema)) for row in rows]
        self._tell_excluded()
        encodings = self._encodings([item for item in items if isinstance(item, _RenderedText)])
        for item in items:
            yield Inspection(rendered=item) if isinstance(item, Rendered) else self._locate(item, next(encodings))

    @property
    def left_out(self) -> list[str]:
        """What the chat template has left out of the rows so far."""
        return sorted(self._told)

    @property
    def ignored_columns(self) -> list[str]:
        """Columns with values in the rows so far that look like part of the conversations but are not read."""
        return sorted(self._ignored)

    def _try_render(self, row: Row | None, schema: Schema | None) -> _RenderedText | Rendered:
        try:
            conversation = to_conversation(row, self.columns, schema=schema)
            return self._render(conversation)
        except EmptyConversationError as error:
            return Rendered(status="empty", reason=str(error))
        except UnsupportedContentError as error:
            return Rendered(status="unsupported", reason=str(error))
        except ConversationError as error:
            return Rendered(status="malformed", reason=str(error))
        except RecursionError:
            return Rendered(status="malformed", reason="wanted tools and messages less deeply nested: remove the row")
        except Exception:  # values such as arrays raise anything when they are compared or printed
            if not (foreign := foreign_type(row)):
                raise
            reason = f"wanted texts, numbers, lists and dicts, got a value of type {foreign}: convert it"
            return Rendered(status="malformed", reason=reason)

    def _render(self, conversation: Conversation) -> _RenderedText:
        if conversation.text is not None:
            start = "".join(self._text_start)
            added = "" if conversation.text.startswith(start) else start
            text = added + conversation.text
            return _RenderedText(text, [(0, len(text))], added=len(added))
        messages: Sequence[Message] = conversation.messages
        arguments = conversation.arguments
        has_keys = bool(arguments) or any(message.keys() - BARE_KEYS for message in messages)
        if has_keys:
            self._count_flags(messages)
            messages = self.template.without_unread(messages, arguments)
            has_keys = bool(arguments) or any(message.keys() - BARE_KEYS for message in messages)
        text = self.template(messages, arguments=arguments)
        finder = self._finder(arguments)
        turns = finder(messages, text)
        learned = [index for index, message in enumerate(messages) if is_learned(message)]
        spans = [part for index in learned if index in turns.spans for part in turns.parts(index)]
        others = tuple(span for index, span in turns.spans.items() if not is_learned(messages[index]))
        if learned and (marked := self.template.blocks(messages, arguments)) is not None:
            blocks = assign(marked, turns.spans, messages, text)
            learned, spans, others = blocks.answers, blocks.learned, blocks.excluded
            if blocks.mark_others:
                self._tell_marked()
        self._check_learned(messages, learned, partial(finder.shows_any, messages, text, turns))
        if has_keys or turns.hidden or conversation.ignored:
            self._tell(conversation, turns)
        if not conversation.roles <= self._known_roles:
            self._tell_roles(conversation.roles)
        self._tell_thoughts(conversation, turns, text)
        return _RenderedText(text, spans, others)

    def _check_learned(
        self, messages: Sequence[Message], learned: Sequence[int], shows: Callable[[list[int]], bool]
    ) -> None:
        """Refuse a conversation of whose learned turns nothing is shown: only end-of-turn tokens would be scored.

        Args:
            messages: The conversation.
            learned: Indices of the messages that are learned.
            shows: Whether the rendered conversation shows anything of some messages, by their indices.

        Raises:
            EmptyConversationError: If no turn is learned, or none that is has content.
            UnsupportedContentError: If the chat template leaves out all content of the learned turns.
        """
        if not learned:
            raise EmptyConversationError("wanted a turn that is learned, got weight, train or loss 0 for every turn")
        with_content = [index for index in learned if has_content(messages[index])]
        if not with_content:
            raise EmptyConversationError("wanted text in a turn that is learned, got none: there is nothing to score")
        if not shows(with_content):
            unread = self.template.unread([messages[index] for index in with_content], {})
            texts = ["its text"] if any(text_of(messages[index]).strip() for index in with_content) else []
            left_out = " and ".join([*unread, *texts]) or "all of it"
            raise UnsupportedContentError(
                f"the model's chat template shows nothing of the answer: it leaves out {left_out}"
            )

    def _encodings(self, items: Sequence[_RenderedText]) -> Iterator[Encoding]:
        """The encoding of each text; the tokens before plain text are added by the tokenizer, as in training."""
        encoded = {}
        for adds in (False, True):
            texts = [item.text[item.added :] for item in items if (item.added > 0) is adds]
            options = {**ENCODING, "add_special_tokens": adds}
            encoded[adds] = iter(self.tokenizer(texts, **options).encodings if texts else ())
        for item in items:
            encoding = next(encoded[item.added > 0])
            yield PlainEncoding.of(encoding, self._text_start) if item.added else encoding

    @cached_property
    def _text_start(self) -> tuple[str, ...]:
        """The tokens that the tokenizer puts before plain text."""
        return added_tokens(self.tokenizer)

    def _finder(self, arguments: Mapping[str, Any]) -> TurnFinder:
        """The finder of turns for rows with these arguments of the template."""
        key = json.dumps(arguments, sort_keys=True) if arguments else ""
        if key not in self._finders:
            if len(self._finders) == MAX_FINDERS:
                self._finders.clear()
            render = partial(self.template, arguments=arguments)
            self._finders[key] = TurnFinder(render, learns_header=learns_header(self.template_digest))
        return self._finders[key]

    def _tell_unused_columns(self, rows: Sequence[Row | None]) -> None:
        """Say once of each column with values that it looks like part of the conversations but is not read."""
        given = [row for row in rows if isinstance(row, Mapping)]
        self._tell_token_columns(given)
        names = {name for keys in {tuple(row) for row in given} for name in self._unused_of(keys)} - self._ignored
        if found := sorted(name for name in names if any(_has_value(row.get(name)) for row in given)):
            self._ignored.update(found)
            logger.warning(
                "%s: looks like part of the conversations but is not read; if it should be, name the columns",
                ", ".join(found),
            )

    def _tell_token_columns(self, rows: Sequence[Row]) -> None:
        """Say once of each column from which TRL takes what is learned that it is not read."""
        names = [name for name in TOKEN_COLUMNS if name not in self._ignored]
        if found := [name for name in names if any(_are_integers(row.get(name)) for row in rows)]:
            self._ignored.update(found)
            logger.warning(
                "%s: is not read, while TRL takes from it which tokens are learned; remove it before training",
                ", ".join(found),
            )

    def _unused_of(self, names: tuple[str, ...]) -> list[str]:
        """Columns of rows with these columns that look like part of the conversations but are not read."""
        if names not in self._unused:
            if len(self._unused) == MAX_FINDERS:
                self._unused.clear()
            self._unused[names] = []
            with suppress(ConversationError):  # every row's status says it
                self._unused[names] = unused_columns(names, self.columns)
        return self._unused[names]

    def _tell(self, conversation: Conversation, turns: Turns) -> None:
        """Say once what is left out of conversations, and which role has another name than in training."""
        for column in sorted(conversation.ignored.keys() - self._ignored):
            self._ignored.add(column)
            logger.warning("%s: is not read %s", column, conversation.ignored[column])
        roles = sorted({conversation.messages[index]["role"] for index in turns.hidden})
        unread = self.template.unread(conversation.messages, conversation.arguments)
        for what in [*unread, *(f"the text of some {role} turns" for role in roles)]:
            if what not in self._told:
                self._told.add(what)
                logger.warning("the chat template leaves out %s: it is not scored, and training would not see it", what)
        for name in sorted(TOKENIZING & conversation.arguments.keys()):
            self._say_once(f"{MORE_ARGUMENTS}: {name} is not read, while TRL may cut or pad rows by it: remove it")
        renamed = any(GIVEN_ROLE in message for message in conversation.messages)
        if renamed and not self.template.takes_developer(conversation.arguments):
            self._tell_developer()

    def _tell_roles(self, names: frozenset[str]) -> None:
        """Say once of each name of a role that a trainer gives to the template as it is, as which role it is read."""
        new = sorted(names - self._known_roles)
        self._known_roles.update(new)
        if new := [name for name in new if name.strip().lower() != DEVELOPER]:
            read = [role_name(name, further_roles(self.columns)) for name in new]
            logger.warning(
                "roles %s are read as %s, while TRL gives templates the names as they are; rename them before training",
                ", ".join(new),
                ", ".join(read),
            )

    def _tell_developer(self) -> None:
        """Say once that developer messages are rendered as system messages."""
        self._say_once(
            "the chat template has no role developer: these messages are given to it as system messages; rename "
            "the role in the data, as training may give the template the name as it is"
        )

    def _tell_thoughts(self, conversation: Conversation, turns: Turns, text: str) -> None:
        """Say once that the template leaves out thoughts though it reads such, as many do with earlier answers."""
        if THOUGHTS in self._told:
            return
        messages, arguments = conversation.messages, conversation.arguments
        thinking = {i: span for i, span in turns.spans.items() if _thought(messages[i], ()) and is_learned(messages[i])}
        if not thinking:
            return
        unread = self.template.unread(messages, arguments)  # said already
        if all(text.find(_thought(messages[i], unread), *span) >= 0 for i, span in thinking.items()):
            return
        self._told.add(THOUGHTS)
        logger.warning(
            "the chat template leaves out %s, as many do with earlier ones: they are not scored; %s",
            THOUGHTS,
            "training with this template would not see them"
            if self.template.marks_answers(arguments)
            else "TRL's training variant of it (assistant_only_loss), where there is one, may learn them",
        )

    def _count_flags(self, messages: Sequence[Message]) -> None:
        """Count the answers that a flag excludes, and say once of each other flag that it is not read."""
        self._counts[EXCLUDED] += sum(map(is_excluded, messages))
        for key in UNREAD_FLAGS:
            if any(key in message for message in messages):
                self._say_once(f"{key}: is not read in messages; weight, train or loss 0 excludes an answer")

    def _tell_excluded(self) -> None:
        """Say once how many answers of the rows so far a flag excludes."""
        if count := self._counts[EXCLUDED]:
            self._say_once(
                "weight, train or loss 0 excludes answers, %d in the rows read so far: they are not scored; TRL itself "
                "ignores these keys and would learn them",
                count,
            )

    def _tell_joined(self, rows: Sequence[Row | None]) -> None:
        """Say once that texts in parts are joined, if the template shows the list in another way."""
        counts = {count for row in rows if isinstance(row, Mapping) for count in _part_counts(row)}
        if not all(map(self.template.joins, sorted(counts))):
            self._say_once(
                "contents that are lists of text parts are joined to one text; TRL gives this template the list "
                "itself, which it separates, trims, leaves out in part or writes as Python's list: convert contents "
                "to text"
            )

    def _tell_marked(self) -> None:
        """Say once that the template marks text of other messages than answers for training."""
        self._say_once(
            "the chat template marks text that is no answer with {% generation %}: it is scored like answers, as "
            "training learns it; pass a template that marks answers alone if it should not be"
        )

    def _say_once(self, warning: str, *values: object) -> None:
        """Log a warning, but for the first time only."""
        if warning not in self._said:
            self._said.add(warning)
            logger.warning(warning, *values)

    def _shortened(self, item: _RenderedText | Rendered) -> _RenderedText | Rendered:
        """The same text, or the ends of a text that is so long that no token of its middle is kept."""
        if isinstance(item, Rendered) or len(item.text) <= 4 * self._side:
            return item
        text, spans = shorten(item.text, [*item.others, *item.spans], self._side)
        learned = [span for span in spans[len(item.others) :] if span]
        others = tuple(span for span in spans[: len(item.others)] if span)
        return _RenderedText(text, learned, others, is_cut=len(text) < item.spans[-1][1], added=item.added)

    @cached_property
    def _side(self) -> int:
        """Number of characters that have more than ``max_length`` tokens, whichever they are."""
        return (self.max_length + 1) * max(map(len, self.tokenizer.get_vocab()))

    def _locate(self, item: _RenderedText, encoding: Encoding) -> Inspection:
        """Convert character spans of the turns to token positions, and truncate."""
        if not (ids := encoding.ids):
            return Inspection(rendered=Rendered(status="empty", reason="the conversation has no tokens"))
        indices, turns = range(len(ids)), []
        for begin, stop in item.spans:
            behind = bisect_left(indices, stop, key=lambda index: encoding.token_to_chars(index)[0])
            end = max(behind - 1, 0)  # the last one where several tokens share a character
            start = bisect_right(indices, begin, key=lambda index: encoding.token_to_chars(index)[1])
            turns.append(Turn(min(start, end), end))
        length = turns[-1].end + 1  # no state is read after the last answer
        tokens = Tokens(ids[:length], tuple(turns))
        kept = tokens if length <= self.max_length else truncate(tokens, self.max_length)
        gap, head = length - len(kept.ids), self.max_length // 4
        texts = self._texts(item.text, tokens, gap, encoding.offsets) if self.keep_texts else ()
        return Inspection(
            rendered=Rendered(status="truncated" if gap or item.is_cut else "ok", tokens=kept, texts=texts),
            text=item.text,
            encoding=encoding,
            learned=tuple(item.spans),
            others=item.others,
            read=((0, head), (head + gap, length)) if gap else ((0, length),),
            turns=tokens.turns,
        )

    def _texts(self, text: str, tokens: Tokens, gap: int, offsets: list[tuple[int, int]]) -> tuple[str, ...]:
        """Text up to the end of each turn that is read, without special tokens and the ``gap`` truncated tokens."""
        head = self.max_length // 4
        omitted = [offsets[index] for index, token in enumerate(tokens.ids) if token in self._special_ids]
        if gap:
            omitted.append((offsets[head][0], offsets[head + gap][0]))
        ends = [offsets[turn.end][1] for turn in tokens.turns if not gap or not head <= turn.end < head + gap]
        return tuple(_without(text[:end], omitted) for end in ends)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which stand for no text of the conversation."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(index for index, token in added.items() if token.special)


def _thought(message: Message, unread: Sequence[str]) -> str:
    """What a message has thought: under a key, but for unread ones, or else at the start of its text; may be empty."""
    given = next((message[key] for key in THOUGHT_KEYS if message.get(key) and key not in unread), None)
    within = text_of(message).rpartition(THOUGHT_END)[0].rpartition(THOUGHT_START)[2]
    return (given if isinstance(given, str) else within).strip()


def _part_counts(row: Row) -> Iterator[int]:
    """For each message whose content is a list of texts alone: 1 for one, 2 for several."""
    for message in (item for value in row.values() if isinstance(value, list) for item in value):
        for content in (message.get("content"), message.get("value")) if isinstance(message, Mapping) else ():
            if isinstance(content, list) and content and all(map(_is_text, content)):
                yield min(len(content), 2)


def _is_text(part: object) -> bool:
    return isinstance(part, str) or (isinstance(part, Mapping) and isinstance(part.get("text"), str))


def _has_value(value: object) -> bool:
    """Whether a cell is neither null nor empty; other values, such as arrays, may have no truth value."""
    return value is not None and not (isinstance(value, str | list | tuple | dict) and not value)


def _are_integers(value: object) -> bool:
    """Whether a cell has an integer for each token."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, int) for item in value)


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Remove spans of characters, which may overlap, from a text."""
    parts, cursor = [], 0
    for start, end in sorted(spans):
        parts.append(text[cursor : max(start, cursor)])
        cursor = max(cursor, end)
    return "".join([*parts, text[cursor:]])
