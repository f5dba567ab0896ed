"""``larf-curate init``: write a commented file of settings for ``larf-curate run``."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from larf_curate.cli.config_file import default_rule
from larf_curate.cli.options import NewPath
from larf_curate.cli.output import echo_json, echo_next, json_option
from larf_curate.cli.sections import DATASET, MODEL, OUTPUT, SECTIONS, Section, schema
from larf_curate.errors import InputError
from larf_curate.files import atomic_path

WIDTH = 110
EXAMPLES = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "dataset": "rows.jsonl"}
HEAD = """\
Settings of `larf-curate run`, which builds a profile of the model, scores the dataset, flags rows, writes a report,
has people review the flagged rows, and publishes the rest. Keys are the options of the command that a section is named
after; remove the # before a key to set it. Paths are relative to the folder in which the command is run.
"""


@click.command()
@click.option("--model", help=f"{MODEL.help}  [default: an example]")
@click.option("--dataset", multiple=True, help="Hub id, folder, file or glob; can be repeated.  [default: an example]")
@click.option(
    "-o", "--output", type=NewPath(dir_okay=False), default="larf.yaml", show_default=True, help="File to write."
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--schema", "print_schema", is_flag=True, help="Print the JSON Schema of the file instead, for editors.")
@json_option
def init(
    model: str | None, dataset: tuple[str, ...], output: Path, overwrite: bool, print_schema: bool, as_json: bool
) -> None:
    """Write a commented file of settings for `run`.

    It has every setting as a comment, with its default.

    \b
    larf-curate init --model ./model --dataset rows.jsonl
    larf-curate init --schema
    """
    if print_schema:
        echo_json(schema())
        return
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: give another name with -o, or --overwrite to replace it")
    text = "".join(f"{line}\n" for line in _lines(model or EXAMPLES["model"], dataset or (EXAMPLES["dataset"],)))
    with atomic_path(output) as aside:
        aside.write_text(text, encoding="utf-8")
    if as_json:
        echo_json({"settings": str(output)})
    else:
        click.echo(f"Written to {output}")
        echo_next("run", output, "--dry-run")


def _lines(model: str, dataset: tuple[str, ...]) -> Iterator[str]:
    """The lines of the file."""
    yield from _comment(HEAD, "")
    yield ""
    yield from _comment(MODEL.help or "", "")
    yield f"model: {_quoted(model)}"
    yield from _comment(DATASET.help or "", "")
    names = [_quoted(name) for name in dataset]
    yield f"dataset: {names[0] if len(names) == 1 else '[' + ', '.join(names) + ']'}"
    yield from _comment(OUTPUT.help or "", "")
    yield f"output: {OUTPUT.default}"
    for name, section in SECTIONS.items():
        yield ""
        yield from _section(name, section)


def _section(name: str, section: Section) -> Iterator[str]:
    """The lines of a section; all of them are comments if its step is optional."""
    if section.optional:
        yield f"# {name}:"
    else:
        yield f"{name}:"
    for key, option in section.options.items():
        yield from _comment(" ".join((option.help or "").split()), "  ")
        yield f"  # {key}: {_default(name, key, option)}".rstrip()


def _comment(text: str, indent: str) -> list[str]:
    """A text as comments; those of settings have two signs, so that removing one sign before a key suffices."""
    sign = "## " if indent else "# "
    return textwrap.wrap(text, WIDTH, initial_indent=indent + sign, subsequent_indent=indent + sign)


def _default(section: str, key: str, option: click.Option) -> str:
    """The default of an option, as it is written in the file; empty if there is none."""
    if (section, key) == ("select", "top-ratio"):
        return default_rule().value
    if option.is_flag:
        return "true" if option.default is True else "false" if not option.secondary_opts else ""
    return _quoted(str(option.default)) if isinstance(option.default, str) else _number(option.default)


def _number(value: object) -> str:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _quoted(text: str) -> str:
    """Text as a YAML scalar: quoted unless it is a plain word."""
    plain = text.isascii() and text.replace("-", "").replace("_", "").replace("/", "").replace(".", "").isalnum()
    is_plain = plain and text[0].isalpha() and text.lower() != "null"
    return text if is_plain else json.dumps(text, ensure_ascii=False)
