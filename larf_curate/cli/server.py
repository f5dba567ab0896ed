"""``larf-curate review up``, ``down``, ``doctor`` and ``user``: the embedded Argilla server."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.server import DEFAULT_PORT, WORKSPACE, EmbeddedServer

_home_option: Callable[..., Any] = click.option(
    "--home",
    envvar="LARF_CURATE_ARGILLA_HOME",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the server's data.  [default: argilla in the platform's data folder]",
)
_port_option: Callable[..., Any] = click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="Port; 0 takes any free one."
)


@click.command()
@_home_option
@_port_option
@click.option("--detach", is_flag=True, help="Return when the server is ready; it goes on until `down`.")
@json_option
def up(home: Path | None, port: int, detach: bool, as_json: bool) -> None:
    """Start the embedded Argilla server and show its address.

    The first start installs Argilla 2.8.0 beside this package and makes random credentials. Without --detach the
    server ends with this command (Ctrl-C).

    Example: larf-curate review up --detach
    """
    server = EmbeddedServer(home, port=port, say=_say)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end of this command ends the server too
    server.start()
    _show_started(server, as_json)
    if detach or not server.started_here:
        return
    _say("Press Ctrl-C to stop.")
    try:
        server.wait()
    except KeyboardInterrupt:
        _say("stopping Argilla")
    finally:
        server.stop()


def _show_started(server: EmbeddedServer, as_json: bool) -> None:
    kept, owner, url = server.home.credentials, server.credentials.owner, server.url
    if as_json:
        state = {"url": url, "username": owner.username, "credentials": str(kept), "home": str(server.home.path)}
        echo_json({**state, "already_running": not server.started_here})
        return
    click.echo(f"Argilla {'is ready' if server.started_here else 'runs already'}: {url}")
    click.echo(f"  user      {owner.username}")
    if server.new_credentials:
        click.echo(f"  password  {owner.password}  (shown this once; kept with the API key in {kept})")
    else:
        click.echo(f"  password  in {kept}, with the API key")


@click.command()
@_home_option
@json_option
def down(home: Path | None, as_json: bool) -> None:
    """Stop the embedded Argilla server; all records and answers stay on disk.

    Example: larf-curate review down
    """
    server = EmbeddedServer(home)
    stopped = server.stop()
    if as_json:
        echo_json({"stopped": stopped, "home": str(server.home.path)})
    else:
        click.echo("stopped" if stopped else f"no server runs on {server.home.path}")


@click.command()
@_home_option
@_port_option
@json_option
def doctor(home: Path | None, port: int, as_json: bool) -> None:
    """Say what is wrong with the embedded server and what to do; exit code 1 if anything is.

    Example: larf-curate review doctor
    """
    checks = EmbeddedServer(home, port=port).doctor()
    if as_json:
        echo_json({"ok": all(check.ok for check in checks), "checks": [vars(check) for check in checks]})
    else:
        rows = [(check.name, "ok" if check.ok else "FAILED", check.found, check.remedy) for check in checks]
        echo_table("Embedded Argilla server", ("check", "", "found", "what to do"), rows)
    if not all(check.ok for check in checks):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("name")
@click.option("--workspace", default=WORKSPACE, show_default=True, help="Workspace to join; made if it is not there.")
@_home_option
@json_option
def user(name: str, workspace: str, home: Path | None, as_json: bool) -> None:
    """Give an annotator called NAME an account, or show the one they have; the server must run.

    Example: larf-curate review user alice
    """
    server = EmbeddedServer(home)
    account = server.add_user(name, workspace=workspace)
    if as_json:
        echo_json({"url": server.url, **vars(account)})
        return
    click.echo(f"{account.username} can sign in at {server.url}")
    click.echo(f"  password  {account.password}")
    click.echo(f"  API key   {account.api_key}")


def _say(line: str) -> None:
    click.echo(line, err=True)


commands: list[click.Command] = [up, down, doctor, user]
