"""Sections and keys of ``larf.yaml``, which are the commands and their options, and the JSON Schema of the file."""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import click

from larf_curate.cli.options import FOLDER
from larf_curate.cli.profile import profile
from larf_curate.cli.publish import publish
from larf_curate.cli.report import report
from larf_curate.cli.review import pull, push
from larf_curate.cli.score import score
from larf_curate.cli.select import select

SET_BY_RUN = ("as_json", "output", "profile", "profile_name", "quiet", "resume", "share", "dry_run")
"""Parameters of commands that are no keys, since `run` sets them: paths of results, and how it proceeds."""
LONGEST_NUMBER = 12
"""Maximum number of digits of a number of rows."""
WORDS = {"boolean": "true or false", "integer": "an integer", "number": "a number"}


def read_until(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """Click callback: how many rows must be decided; None for all of them."""
    if value == "decided":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > LONGEST_NUMBER:
        raise click.BadParameter(f"wanted decided or a number of rows, got {ascii(value)}", ctx, param)
    return int(value)


WAIT = click.Option(["--wait"], is_flag=True, help="Wait for the decisions, instead of ending with the link to them.")
UNTIL = click.Option(
    ["--until"],
    default="decided",
    callback=read_until,
    help="What to wait for before the decisions are pulled: decided, which is every row of the queue, or a number of "
    "decided rows. Rows without a decision are withheld.",
)
MODEL = click.Option(["--model"], required=True, help="Chat model to be fine-tuned: folder or Hub id.")
DATASET = click.Option(["--dataset"], required=True, multiple=True, help="Hub id, folder, file or glob; or a list.")
OUTPUT = click.Option(["--output"], type=FOLDER, default="larf", help="Folder for all results.")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the file: the options of one command, or of several that are given the same.

    Args:
        commands: The commands.
        own: Options that `run` itself has there.
        optional: Whether the step is left out without the section.
    """

    commands: tuple[click.Command, ...]
    own: tuple[click.Option, ...] = ()
    optional: bool = False

    @cached_property
    def options(self) -> dict[str, click.Option]:
        """The options by key."""
        given = [param for command in self.commands for param in command.params if param.name not in SET_BY_RUN]
        return {key_of(option): option for option in (*self.own, *given) if isinstance(option, click.Option)}


ROOT = Section(commands=(), own=(MODEL, DATASET, OUTPUT))
SECTIONS = {
    "profile": Section(commands=(profile,)),
    "score": Section(commands=(score,)),
    "select": Section(commands=(select,)),
    "report": Section(commands=(report,)),
    "review": Section(commands=(push, pull), own=(WAIT, UNTIL), optional=True),
    "publish": Section(commands=(publish,), optional=True),
}
"""The sections, in the order of the steps."""


def key_of(option: click.Parameter) -> str:
    """The key of an option: its long name without dashes."""
    return next(name for name in option.opts if name.startswith("--"))[2:]


@cache
def schema() -> dict[str, Any]:
    """JSON Schema of the file, for editors."""
    properties = {key: _schema_of(option) for key, option in ROOT.options.items()}
    for name, section in SECTIONS.items():
        keys = {key: _schema_of(option) for key, option in section.options.items()}
        missing = [key for key, option in section.options.items() if option.required]
        properties[name] = {"type": ["object", "null"], "properties": keys, "additionalProperties": False}
        properties[name] |= {"required": missing} if missing else {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of larf-curate run",
        "type": "object",
        "properties": properties,
        "required": [key for key, option in ROOT.options.items() if option.required],
        "additionalProperties": False,
    }


def _schema_of(option: click.Option) -> dict[str, Any]:
    """JSON Schema of a value."""
    kind: dict[str, Any] = {}
    limits = {"minimum": "min", "maximum": "max"}
    if isinstance(option.type, click.Choice):
        kind = {"enum": list(option.type.choices)}
    elif option.is_flag:
        kind = {"type": "boolean"}
    elif isinstance(option.type, click.types.IntParamType | click.types.FloatParamType):
        kind = {"type": "integer" if isinstance(option.type, click.types.IntParamType) else "number"}
        for name, attribute in limits.items():
            if (limit := getattr(option.type, attribute, None)) is not None:
                exclusive = getattr(option.type, f"{attribute}_open")
                kind[f"exclusive{name.capitalize()}" if exclusive else name] = limit
    return kind | {"description": " ".join((option.help or "").split())}


def wanted(option: click.Option) -> str | None:
    """What an option takes, in words; None if its type says so itself."""
    kind = _schema_of(option)
    if "enum" in kind:
        return f"one of {', '.join(kind['enum'])}"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    limits = [f"{word} {kind[name]}" for name, word in words.items() if name in kind]
    return " ".join([WORDS[kind["type"]], *limits]) if "type" in kind else None
