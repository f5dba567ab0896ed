"""``larf-curate review backup`` and ``restore``: the embedded server's data as one file."""

from dataclasses import asdict
from pathlib import Path

import click

from larf_curate.cli.output import echo_json, json_option
from larf_curate.cli.pushed import missing_selections, records_folder
from larf_curate.cli.server import home_option
from larf_curate.server import EmbeddedServer

SECRET = (
    "It has passwords, keys and all texts, and whoever can read it can sign in: keep it as safe as the server's folder."
)


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@home_option
@json_option
def backup(file: Path, home: Path | None, as_json: bool) -> None:
    """Write everything of the embedded server to one file, also while people review.

    FILE gets the records, answers and accounts with passwords and keys, and which selection was pushed to each queue.
    Only its owner can read it. An older backup of this name is replaced.

    \b
    larf-curate review backup review.zip
    """
    server = EmbeddedServer(home)
    manifest = server.backup(file, queues=records_folder())
    if as_json:
        echo_json({"file": str(file), "home": str(server.home.path), **asdict(manifest)})
        return
    click.echo(f"{_in_words(manifest.counts)} of {server.home.path} are in {file} ({_size(file)}, mode 0600)")
    click.echo(SECRET, err=True)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@home_option
@json_option
def restore(file: Path, home: Path | None, as_json: bool) -> None:
    """Restore a backup into an empty folder.

    FILE is a file of `review backup`. Accounts and passwords are those of the backup; the server is not started.
    Nothing that exists is replaced, and nothing is left half done.

    \b
    larf-curate review restore review.zip
    larf-curate review restore review.zip --home /srv/review
    """
    server = EmbeddedServer(home)
    restored = server.restore(file, queues=records_folder())
    missing = missing_selections(restored.queues)
    if as_json:
        differing = [str(path) for path in restored.differing]
        about = {"home": str(server.home.path), "differing": differing, "missing_selections": missing}
        echo_json({**about, **asdict(restored.manifest)})
        return
    manifest = restored.manifest
    click.echo(f"{_in_words(manifest.counts)}, as of {manifest.created}, are in {server.home.path}")
    for path in restored.differing:
        click.echo(f"{path} exists and says another selection: it was left as it is", err=True)
    for selection in missing:
        click.echo(f"{selection} is not on this machine: name its folder, as in review pull SEL -o DEC", err=True)
    click.echo(f"Start it: larf-curate review up{f' --home {home}' if home else ''} --detach")


def _in_words(counts: dict[str, int]) -> str:
    """Numbers of rows as text."""
    return ", ".join(f"{count:,} {name if count != 1 else name.removesuffix('s')}" for name, count in counts.items())


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"


commands: list[click.Command] = [backup, restore]
