"""Read a YAML file of settings as text: each value as the command line would get it, with its line for messages."""

import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from larf_curate.errors import InputError
from larf_curate.files import check_readable

MAX_BYTES = 2**16
"""Maximum size of the file."""
SCALARS = ("str", "int", "float", "bool", "null", "timestamp", "value", "merge")
"""Tags of YAML that stand for plain text or nothing."""
COLLECTIONS = ("seq", "map")
"""Tags of lists and mappings."""
TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes without aliases, which could multiply a small file."""

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401  as in PyYAML
        """Compose one node."""
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "an alias (*name), which is not read: write the value", mark)
        return super().compose_node(parent, index)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A value in the file.

    Args:
        value: Text as it is written; None for nothing, a tuple for a list, and a dict for a mapping.
        line: Its line, from 1.
    """

    value: "str | tuple[str, ...] | dict[str, Entry] | None"
    line: int


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """A file of settings.

    Args:
        path: The file.
    """

    path: Path

    def read(self) -> dict[str, Entry]:
        """The entries of the file.

        Raises:
            InputError: If it cannot be read, is not YAML, or has a list, mapping, tag or alias where none is read.
        """
        check_readable(self.path, MAX_BYTES)
        try:
            root = yaml.compose(self.path.read_bytes().decode("utf-8-sig"), Loader=_Loader)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: wanted text in UTF-8, got {error}: save it as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self.error(line, f"wanted YAML, got {error.problem}") from error
        except (yaml.YAMLError, RecursionError) as error:
            problem = getattr(error, "reason", "lists in lists without end")
            raise InputError(f"{self.path}: wanted YAML, got {problem}: see larf-curate init") from error
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{self.path}: wanted keys and values, got none: larf-curate init writes an example")
        return self._mapping(root)

    def error(self, line: int, message: str) -> InputError:
        """An error at a line."""
        return InputError(f"{self.path}, line {line}: {message}")

    def _mapping(self, node: Any, depth: int = 1) -> dict[str, Entry]:  # noqa: ANN401  a node of PyYAML
        self._check_tag(node, COLLECTIONS)
        entries: dict[str, Entry] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if (key := self._text(key_node)) is None:
                raise self.error(line, "wanted a key, got none")
            if key in entries:
                raise self.error(line, f"{key} is there twice: keep one")
            entries[key] = self._entry(value_node, line, depth)
        return entries

    def _entry(self, node: Any, line: int, depth: int) -> Entry:  # noqa: ANN401  a node of PyYAML
        if isinstance(node, yaml.MappingNode) and depth < 3:  # the file, a section, and the value of a key
            return Entry(value=self._mapping(node, depth + 1), line=line)
        if isinstance(node, yaml.SequenceNode):
            self._check_tag(node, COLLECTIONS)
            return Entry(value=tuple(self._item(each) for each in node.value), line=line)
        return Entry(value=self._text(node), line=line)

    def _item(self, node: Any) -> str:  # noqa: ANN401  a node of PyYAML
        """The text of an item of a list."""
        if (text := self._text(node)) is None:
            raise self.error(node.start_mark.line + 1, "wanted a value in the list, got none: fill it or remove it")
        return text

    def _text(self, node: Any) -> str | None:  # noqa: ANN401  a node of PyYAML
        """The text of a scalar; None for nothing."""
        line = node.start_mark.line + 1
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(line, "wanted one value, got a list or mapping in another")
        self._check_tag(node, SCALARS)
        if node.tag == f"{TAG}null":
            return None
        for character in node.value:
            if unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t":
                raise self.error(line, f"wanted text, got the character {ascii(character)}: remove it")
        return str(node.value)

    def _check_tag(self, node: Any, known: tuple[str, ...]) -> None:  # noqa: ANN401  a node of PyYAML
        """Refuse a tag that asks for anything else than plain values."""
        if node.tag.removeprefix(TAG) not in known:
            line, tag = node.start_mark.line + 1, ascii(node.tag)[1:-1][:60]
            raise self.error(line, f"wanted a plain value, got the tag {tag}: remove the tag")
