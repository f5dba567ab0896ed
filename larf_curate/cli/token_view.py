"""Tokens of a row in a terminal: marks and colours for what is learned, and escapes for what a terminal would obey."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from larf_curate.scoring.preview import TokenView

SHOWN_TOKENS = 3_000
"""Most tokens shown; of a longer row, half of them at its start and half at its end."""
BETWEEN, BREAK = "│", "↵"
MARKS = {"prompt": ("", ""), "learned": ("⟦", "⟧"), "not learned": ("⟨", "⟩")}
"""Marks around the tokens of each part: a view without colours has the same information."""
UNREAD = ("⟪", "⟫")
STYLES = {"prompt": "dim", "learned": "bold green", "not learned": "yellow"}
_ESCAPED = frozenset("".join((BETWEEN, BREAK, *UNREAD, *(mark for pair in MARKS.values() for mark in pair))))


def token_text(tokens: "Sequence[TokenView]") -> Text:
    """The tokens of a row, marked and coloured.

    Args:
        tokens: The tokens.
    """
    hidden = len(tokens) - SHOWN_TOKENS
    if hidden <= 0:
        return _runs(tokens)
    half = SHOWN_TOKENS // 2
    note = Text(f"\n… {hidden:,} tokens not shown here: --json has them all …\n", "italic")
    return Text.assemble(_runs(tokens[:half]), note, _runs(tokens[-half:]))


def legend(tokens: "Sequence[TokenView]") -> Text:
    """What the marks mean, of those that the tokens have."""
    parts = {token.part for token in tokens}
    meanings = {
        "learned": "learned in training, and scored",
        "not learned": "answer that the row excludes from training",
    }
    known = [(*MARKS[part], meaning, STYLES[part]) for part, meaning in meanings.items() if part in parts]
    known += [] if all(token.read for token in tokens) else [(*UNREAD, "not read", "strike")]
    shown = [Text.assemble((f"{start}{meaning}{end}", style)) for start, end, meaning, style in known]
    return Text("  ").join([*shown, Text(f"{BETWEEN} between tokens", "dim"), Text(f"{BREAK} line break", "dim")])


def escaped(text: str, style: str = "") -> Text:
    """A text whose control, format and invisible characters, and the marks of this view, are shown as escapes.

    So a row cannot move the cursor, change the direction of the text or pass for a mark.
    """
    shown = Text()
    for is_plain, characters in groupby(text, key=_is_plain):
        if is_plain:
            shown.append("".join(characters), style)
            continue
        for character in characters:
            shown.append(_escape(character), f"{style} red".strip() if character != "\n" else style)
    return shown


def _is_plain(character: str) -> bool:
    return character.isprintable() and character not in _ESCAPED


def _escape(character: str) -> str:
    if character == "\n":
        return f"{BREAK}\n"
    if character in _ESCAPED:
        return f"\\u{ord(character):04x}"
    return character.encode("unicode_escape").decode("ascii")


def _runs(tokens: "Sequence[TokenView]") -> Text:
    """Tokens, with marks around those of the same part."""
    shown: list[Text] = []
    for (part, is_read), run in groupby(tokens, key=lambda token: (token.part, token.read)):
        (start, end), (first, last) = MARKS[part], ("", "") if is_read else UNREAD
        style = STYLES[part] if is_read else f"{STYLES[part]} strike"
        cells = [[escaped(token.text, style), Text(BETWEEN, "dim")] for token in run]
        shown += [Text(first + start, style), *(text for cell in cells for text in cell)]
        shown[-1] = Text(end + last, style)  # instead of a mark between tokens
    joined = Text().join(_break_behind_marks([text for text in shown if text]))
    if joined.plain.endswith("\n"):
        joined.right_crop()
    return joined


def _break_behind_marks(shown: list[Text]) -> list[Text]:
    """Move line breaks at the end of a token behind the mark that follows it, so that no line begins with a mark."""
    behind = {BETWEEN, *(end + last for _, end in MARKS.values() for last in ("", UNREAD[1]))}
    for before, mark in pairwise(shown):
        if mark.plain in behind and before.plain.endswith("\n"):
            before.right_crop()
            mark.append("\n")
    return shown
