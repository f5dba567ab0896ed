"""The reference of the command line, as Markdown, from the commands themselves."""

import inspect
import re
from collections.abc import Iterator

import click

EXAMPLE = "\b\n"
"""What click has before text that it must not wrap: in this package, the example of a command."""
INTRODUCTION = """# Command line

Every command has `--help` with this text, and `--json` for output that programs read. Exit codes: 0 for success, 1 for
failure, 2 for wrong usage or unusable input. Results go to standard output, progress and warnings to standard error.
"""


def cli_reference(main: click.Command, name: str) -> str:
    """Return the page for a command and all of its subcommands, in their own order."""
    return "\n".join([INTRODUCTION, *(_section(path, command) for path, command in commands(main, name))])


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Yield each command that is no group, after its complete name, such as ``larf-curate review push``."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command, info_name=path)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        if found:
            yield from commands(found, f"{path} {name}")


def examples(command: click.Command) -> list[str]:
    """Return the lines of a command's example."""
    _, _, example = inspect.cleandoc(command.help or "").partition(EXAMPLE)
    return example.split("\n\n")[0].strip().splitlines()


def _section(path: str, command: click.Command) -> str:
    """Heading, usage, text, example and options of one command."""
    context = click.Context(command, info_name=path)
    text, _, _ = inspect.cleandoc(command.help or "").partition(EXAMPLE)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    records = [record for param in command.get_params(context) if (record := param.get_help_record(context))]
    options = [f"`{names}`\n:   {_escaped(text)}\n" for names, text in records]
    example = ["```bash", *examples(command), "```\n"]
    return "\n".join([f"## {path}\n", f"```text\n{usage}\n```\n", _escaped(text.strip()), "", *example, *options])


def _escaped(text: str) -> str:
    """Plain text with code in backticks as Markdown: nothing outside of the code is markup."""
    parts = re.split(r"(`[^`\n]+`)", text)
    return "".join(part if index % 2 else _plain(part) for index, part in enumerate(parts))


def _plain(text: str) -> str:
    return re.sub(r"([\\*_\[\]])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
