"""``larf-curate review users``: the accounts of the embedded server from a file."""

import csv
import io
from dataclasses import asdict
from pathlib import Path

import click

from larf_curate.cli.accounts_file import is_exposed, read_accounts
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.cli.server import home_option
from larf_curate.errors import InputError
from larf_curate.server import EmbeddedServer
from larf_curate.server.accounts import AccountChange, apply_accounts
from larf_curate.server.private_files import write_private


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="OUT.csv",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write random passwords of new accounts to this file, which only you can read, instead of printing them.",
)
@home_option
@json_option
def users(file: Path, output: Path | None, home: Path | None, as_json: bool) -> None:
    """Create and change accounts of the embedded server by a file.

    FILE has the columns username, role (annotator or admin), workspaces and password, of which only the first is
    required: a CSV table, JSONL, or YAML with the names as keys. New accounts without a password get a random one,
    which is printed. Run it again at any time: what differs from the file is changed and printed; accounts that it
    does not name stay. An account leaves workspaces that the file does not name, if it names any for it. The server
    must be running.

    \b
    larf-curate review users people.csv
    larf-curate review users people.yaml -o passwords.csv
    """
    if output is not None and output.exists():
        raise InputError(f"{output} exists: give a new file for the passwords")
    entries = read_accounts(file)
    server = EmbeddedServer(home)
    changes = apply_accounts(server, entries)
    new = [change for change in changes if change.password]
    if output is not None:
        write_private(output, _as_csv(new))
    if as_json:
        hidden = {"password"} if output is not None else set()
        accounts = [{key: value for key, value in asdict(each).items() if key not in hidden} for each in changes]
        echo_json({"url": server.url, "accounts": accounts, "passwords": str(output) if output else None})
        return
    rows = [(c.username, c.role, ", ".join(c.workspaces), _outcome(c)) for c in changes]
    echo_table(f"Accounts of {server.url}", ("user", "role", "workspaces", ""), rows)
    if output is not None:
        click.echo(f"Passwords of {len(new)} new accounts: {output}")
    for change in new if output is None else ():
        click.echo(f"{change.username}  password  {change.password}")
    if new and output is None:
        click.echo("One of them again: larf-curate review user NAME")
    if any(entry.password for entry in entries) and is_exposed(file):
        click.echo(f"{file} has passwords and others can read it: chmod 600 {file}", err=True)


def _outcome(change: AccountChange) -> str:
    """What became of an account, in words."""
    outcome = ", ".join(change.changes) or "unchanged"
    return f"{outcome}; {change.note}" if change.note else outcome


def _as_csv(new: list[AccountChange]) -> str:
    """User names and passwords as a table."""
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(
        [("username", "password"), *((change.username, change.password) for change in new)]
    )
    return stream.getvalue()


commands: list[click.Command] = [users]
