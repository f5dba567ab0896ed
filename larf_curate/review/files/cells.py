"""Texts as cells of spreadsheets: what a spreadsheet would run, change or reject is escaped, and comes back unchanged.

One form serves for all: ``[U+003D]`` stands for the character with this code point. It is ASCII, so that it survives
every program and encoding, and visible. A literal ``[U+`` before four to six hexadecimal digits is escaped itself.
"""

import re

MAX_CELL = 32_767
"""Most UTF-16 code units that a cell of Excel and LibreOffice holds."""
SHOWN_UNITS = 32_000
"""Most UTF-16 code units of a text that is shown in a cell; longer ones are cut there."""

# What XML or UTF-8 cannot hold, a carriage return, which XML readers turn into a line break, and the escape itself.
_UNHOLDABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]|\[(?=U\+[0-9A-F]{4,6}\])")
_ESCAPED = re.compile(r"\[U\+([0-9A-F]{4,6})\]")
_FORMULA = "=+-@\t'\uff1d\uff0b\uff0d\uff20"
"""First characters at which a spreadsheet reads a formula or drops a character; the last four are full-width."""
_PLAIN_ID = re.compile(r"(?=.*[abcf])[0-9a-f]{32}")
"""Ids that `row_id` makes, but for the few that are a number to a spreadsheet, such as ``1e30`` and all digits."""
_OOXML = re.compile(r"_x([0-9A-Fa-f]{4})_")


def escape(text: str, *, first: bool = False) -> str:
    """Escape the characters that a spreadsheet cannot hold.

    Args:
        text: Any text.
        first: Whether to escape a first character that makes the cell of a CSV file a formula, too.
    """
    escaped = _UNHOLDABLE.sub(lambda found: _escaped(found[0]), text)
    start = len(escaped) - len(escaped.lstrip(" \n"))
    if first and escaped[start : start + 1] and escaped[start] in _FORMULA:
        escaped = escaped[:start] + _escaped(escaped[start]) + escaped[start + 1 :]
    return escaped


def escape_id(name: str) -> str:
    """Escape an id so that no spreadsheet takes it for a number, a date or a formula."""
    return name if _PLAIN_ID.fullmatch(name) or not name else _escaped(name[0]) + escape(name[1:])


def unescape(text: str) -> str:
    """The reverse of `escape`; what it does not write, such as ``[U+0041]``, is a text that stays as it is."""

    def character(found: re.Match[str]) -> str:
        held = _character(found[1])
        return held if held == "[" or held in _FORMULA or _UNHOLDABLE.match(held) else found[0]

    return _ESCAPED.sub(character, text)


def unescape_id(name: str) -> str:
    """The reverse of `escape_id`."""
    first = _ESCAPED.match(name)
    return _character(first[1]) + unescape(name[first.end() :]) if first else name


def to_ooxml(text: str) -> str:
    """Write ``_x0041_`` so that Excel does not read the character of this code point."""
    return re.sub(r"_(?=x[0-9A-Fa-f]{4}_)", "_x005F_", text)


def from_ooxml(text: str) -> str:
    """Read the characters that Excel and LibreOffice write as ``_x000D_`` because XML cannot hold them.

    Others stay as they are: openpyxl has read ``_x005F_x0041_`` as ``_x0041_``, unless it is in the cell itself.
    """

    def character(found: re.Match[str]) -> str:
        held = chr(int(found[1], 16))
        return held if held == "_" or _UNHOLDABLE.match(held) else found[0]

    return _OOXML.sub(character, text)


def fits(text: str) -> bool:
    """Whether a text is shown completely in a cell."""
    return utf16_units(text) <= SHOWN_UNITS


def utf16_units(text: str) -> int:
    """Length of a text as spreadsheets count it."""
    return len(text) + sum(character > "\uffff" for character in text)


def _character(digits: str) -> str:
    """The character of a code point; of one that does not exist, one that nothing escapes."""
    return chr(int(digits, 16)) if int(digits, 16) < 0x110000 else "A"


def _escaped(character: str) -> str:
    return f"[U+{ord(character):04X}]"
