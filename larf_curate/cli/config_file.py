"""``larf.yaml``, the settings of ``larf-curate run``: its schema is that of the commands' own options.

A section has the name of a command, and its keys are the options of that command, converted and checked by the command
line's own types. So no option is defined twice, and an option that is added to a command is a key at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import click

from larf_curate.cli.scan import scan
from larf_curate.cli.sections import OUTPUT, ROOT, SECTIONS, SET_BY_RUN, Section, key_of, wanted
from larf_curate.cli.yaml_file import Entry, YamlFile
from larf_curate.errors import InputError

RULES = ("top-ratio", "top-k", "threshold", "percentile", "max-false-flags")
"""Keys of `select` of which one says what is flagged."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting that was given.

    Args:
        texts: Its values as the command line takes them; more than one for an option that can be repeated.
        value: What the option's type made of them, as text, for comparisons.
    """

    texts: tuple[str, ...]
    value: str


Settings = dict[str, Setting]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a run.

    Args:
        path: The file.
        model: Folder or Hub id of the model.
        dataset: Names of the dataset.
        output: Folder of all results.
        sections: The settings by section; without those optional ones that are not in the file.
    """

    path: Path
    model: str
    dataset: tuple[str, ...]
    output: Path
    sections: dict[str, Settings]


def read_config(path: Path) -> Config:
    """Read and check a file of settings.

    Raises:
        InputError: If it cannot be read, or a key or value is wrong; the message has the line, what was wanted and what
            came.
    """
    file = YamlFile(path=path)
    entries = file.read()
    for name, entry in entries.items():
        _check_key(file, name, entry, (*ROOT.options, *SECTIONS))
    root = _settings(file, {name: entry for name, entry in entries.items() if name not in SECTIONS}, ROOT, "")
    sections = {}
    for name, section in SECTIONS.items():
        if name in entries or not section.optional:
            sections[name] = _section(file, name, entries.get(name, Entry(value=None, line=1)), section)
    rules = [rule for rule in RULES if rule in sections["select"]]
    if len(rules) > 1:
        raise file.error(entries["select"].line, f"wanted one rule in select, got {', '.join(rules)}: keep one")
    if not rules:
        sections["select"]["top-ratio"] = default_rule()
    return Config(
        path=path,
        model=root["model"].texts[0],
        dataset=root["dataset"].texts,
        output=Path(root["output"].texts[0] if "output" in root else str(OUTPUT.default)),
        sections=sections,
    )


def default_rule() -> Setting:
    """The rule of `select` if none is given: that of `scan`."""
    option = next(param for param in scan.params if param.name == "top_ratio")
    return Setting(texts=(str(option.default),), value=str(option.default))


def arguments(command: click.Command, settings: Mapping[str, Setting]) -> list[str]:
    """The settings that a command has, as arguments of its command line."""
    written: list[str] = []
    for option in command.params:
        if not isinstance(option, click.Option) or option.name in SET_BY_RUN or key_of(option) not in settings:
            continue
        texts = settings[key_of(option)].texts
        if not option.is_flag:
            written += [f"--{key_of(option)}={text}" for text in texts]
        elif texts == ("true",):
            written.append(f"--{key_of(option)}")
        else:
            written += option.secondary_opts[:1]
    return written


def _section(file: YamlFile, name: str, entry: Entry, section: Section) -> Settings:
    """The settings of a section."""
    if not isinstance(entry.value, dict | None):
        raise file.error(entry.line, f"wanted keys and values in {name}, got {_shown(entry.value)}: write one a line")
    given = entry.value or {}
    for key, value in given.items():
        hidden = {key_of(p) for c in section.commands for p in c.params if p.name in SET_BY_RUN and "--" in p.opts[-1]}
        if key.replace("_", "-") in hidden:
            raise file.error(value.line, f"{name}.{key} is set by larf-curate run, not in the file: remove it")
        _check_key(file, key, value, section.options, within=name)
    return _settings(file, given, section, f"{name}.", line=entry.line)


def _settings(file: YamlFile, given: Mapping[str, Entry], section: Section, prefix: str, *, line: int = 1) -> Settings:
    """The settings among some entries, checked."""
    settings: Settings = {}
    for written, entry in given.items():
        key = written.replace("_", "-")
        if key in settings:
            raise file.error(entry.line, f"{prefix}{key} is there twice: keep one")
        if entry.value is None or entry.value == ():
            continue
        setting = _setting(file, f"{prefix}{key}", entry, section.options[key])
        if not _is_default(setting, section.options[key]):  # so that writing a default down changes nothing
            settings[key] = setting
    for key, option in section.options.items():
        if option.required and key not in settings:
            raise file.error(line, f"wanted {prefix}{key}, got none: {option.help}")
    return settings


def _check_key(file: YamlFile, key: str, entry: Entry, known: Iterable[str], *, within: str = "") -> None:
    """Refuse an unknown key, with the nearest known one."""
    names, plain = list(known), key.replace("_", "-")
    if plain in names:
        return
    elsewhere = [name for name, section in SECTIONS.items() if plain in section.options and name != within]
    if near := get_close_matches(plain, names, n=1):
        remedy = f"did you mean {near[0]}?"
    elif elsewhere:
        remedy = f"it is a key of {' and of '.join(elsewhere)}"
    else:
        remedy = f"wanted one of {', '.join(names)}"
    raise file.error(entry.line, f"unknown key {within}{'.' if within else ''}{ascii(key)[1:-1][:60]}: {remedy}")


def _setting(file: YamlFile, name: str, entry: Entry, option: click.Option) -> Setting:
    """A value, checked as the command line checks it."""
    try:
        texts = _texts(entry, option)
        with click.Context(click.Command("run")) as context:
            value = option.type_cast_value(context, texts if option.multiple else texts[0])
            option.process_value(context, texts if option.multiple else texts[0])
    except (click.UsageError, InputError, ValueError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        message = message.removeprefix(f"Invalid value for '--{key_of(option)}': ").removeprefix("Invalid value: ")
        words = wanted(option)
        described = f"wanted {words}, got {_shown(entry.value)}" if words else message
        raise file.error(entry.line, f"{name}: {described}") from error
    texts = (str(value).lower(),) if option.is_flag else texts
    return Setting(texts=texts, value=str(value))


def _is_default(setting: Setting, option: click.Option) -> bool:
    """Whether a setting is what the option would be without it."""
    if option.is_flag and not option.secondary_opts:
        return setting.texts == ("false",)
    return not (option.required or option.default is None) and setting.value == str(option.default)


def _texts(entry: Entry, option: click.Option) -> tuple[str, ...]:
    """A value as the command line takes it: lists and mappings of an option that is given once have commas."""
    value = entry.value
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        if not all(isinstance(part.value, str) for part in value.values()):
            raise ValueError(f"wanted one value for each key, got {_shown(value)}")
        if divided := [part.value for part in value.values() if "," in str(part.value)]:
            raise ValueError(f"wanted values without a comma, got {_shown(divided[0])}: rename the column")
        value = tuple(f"{key}={part.value}" for key, part in value.items())
    parts = value or ()
    if not option.multiple and (option in ROOT.own or option.type is not click.STRING):
        raise ValueError(f"wanted one value, got {_shown(entry.value)}")
    return parts if option.multiple else (",".join(parts),)


def _shown(value: object) -> str:
    """A value for a message."""
    if isinstance(value, str):
        return ascii(value)[:60]
    return "a list" if isinstance(value, tuple) else "a mapping" if isinstance(value, dict) else "nothing"
