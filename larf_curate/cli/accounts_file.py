"""Read a file of accounts: a table in CSV, objects in JSONL, or names with their settings in YAML."""

import csv
import io
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from larf_curate.cli.yaml_file import YamlFile
from larf_curate.errors import InputError
from larf_curate.files import check_readable, parse_json
from larf_curate.server.accounts import AccountEntry

MAX_BYTES = 2**20
COLUMNS = ("username", "role", "workspaces", "password")
DELIMITERS = ",;\t"


def read_accounts(path: Path) -> list[AccountEntry]:
    """Read a file of accounts; no message contains a password.

    Args:
        path: A ``.csv``, ``.jsonl``, ``.yaml`` or ``.yml`` file in UTF-8. Columns or keys are ``username``, ``role``,
            ``workspaces`` and ``password``; in YAML, the name is the key. Only the name is required. Workspaces are a
            list, or names separated by spaces, commas or semicolons.

    Raises:
        InputError: If it cannot be read, is no such file, or has other columns.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"cannot read {path.name}: wanted a file ending in {', '.join(_READERS)}")
    check_readable(path, MAX_BYTES)
    entries = list(reader(path))
    if not entries:
        raise InputError(f"{path} has no accounts: wanted at least one {COLUMNS[0]}")
    return entries


def is_exposed(path: Path) -> bool:
    """Whether others than the owner of a file can read it."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _from_csv(path: Path) -> Iterator[AccountEntry]:
    text = _text(path)
    delimiter = max(DELIMITERS, key=text.partition("\n")[0].count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        _check_columns(header, f"{path}, line 1")
        for cells in rows:
            if any(cell.strip() for cell in cells):
                place = f"{path}, line {rows.line_num}"
                if len(cells) != len(header):
                    raise InputError(f"{place}: wanted {len(header)} cells as in the first line, got {len(cells)}")
                yield _entry(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: no complete CSV ({error}): close all quotes") from None


def _from_jsonl(path: Path) -> Iterator[AccountEntry]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            value = parse_json(line, place)
        except InputError:  # its message may quote the line
            raise InputError(f"{place}: wanted a JSON object, got something else: correct the line") from None
        if not isinstance(value, dict):
            raise InputError(f"{place}: wanted a JSON object with {', '.join(COLUMNS)}")
        _check_columns(list(value), place)
        yield _entry(place, value)


def _from_yaml(path: Path) -> Iterator[AccountEntry]:
    for name, entry in YamlFile(path=path).read().items():
        place = f"{path}, line {entry.line}"
        settings = entry.value if entry.value is not None else {}
        if not isinstance(settings, dict):
            raise InputError(f"{place}: wanted settings below the name, as in {name}: {{role: annotator}}")
        given = {"username": name} | {key: setting.value for key, setting in settings.items()}
        _check_columns(["username", *settings], place)
        yield _entry(place, given)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise InputError(f"{path}: wanted text in UTF-8: save it as UTF-8") from None


def _check_columns(names: list[str], place: str) -> None:
    if COLUMNS[0] not in names:  # nothing is quoted: without a first line of names, there may be a password
        raise InputError(f"{place}: wanted the columns {', '.join(COLUMNS)}, got no {COLUMNS[0]}: name the columns")
    if unknown := [name for name in names if name not in COLUMNS]:
        raise InputError(f"{place}: wanted the columns {', '.join(COLUMNS)}, got {ascii(unknown[0])[:40]}")
    if len(set(names)) < len(names):
        raise InputError(f"{place}: a column is there twice: remove one")


def _entry(place: str, given: Mapping[str, Any]) -> AccountEntry:
    workspaces = given.get("workspaces") or ()
    if isinstance(workspaces, str):
        workspaces = re.split(r"[\s,;]+", workspaces.strip())
    texts = {name: given.get(name) or "" for name in ("username", "role", "password")}
    for name, value in (*texts.items(), *(("workspaces", name) for name in workspaces)):
        if not isinstance(value, str):
            raise InputError(f"{place}: wanted a text in {name}: put it in quotes")
    return AccountEntry(
        place=place,
        username=texts["username"].strip(),
        role=texts["role"].strip().lower(),
        workspaces=tuple(filter(None, workspaces)),
        password=texts["password"],
    )


_READERS: dict[str, Callable[[Path], Iterator[AccountEntry]]] = {
    ".csv": _from_csv,
    ".jsonl": _from_jsonl,
    ".yaml": _from_yaml,
    ".yml": _from_yaml,
}
