"""``larf-curate review up``, ``down``, ``doctor`` and ``user``: manage the embedded Argilla server."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.server import DEFAULT_PORT, WORKSPACE, EmbeddedServer

OPEN_TO_OTHERS = (
    "Other machines can sign in, and nothing is encrypted: whoever can read the network reads passwords, keys and "
    "texts. Let in only the machines of reviewers (firewall); in other networks use an SSH tunnel, or a proxy with TLS."
)
home_option: Callable[..., Any] = click.option(
    "--home",
    envvar="LARF_CURATE_ARGILLA_HOME",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the server's data.  [default: argilla in the platform's data folder]",
)
_port_option: Callable[..., Any] = click.option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="Port; 0 for any free port."
)


@click.command()
@home_option
@_port_option
@click.option(
    "--host",
    help="Address or name of this machine to listen on, for other machines; 0.0.0.0 for all addresses. Nothing is "
    "encrypted: only in a trusted network.  [default: 127.0.0.1, this machine only]",
)
@click.option("--detach", is_flag=True, help="Return when the server is ready; it runs until `down`.")
@json_option
def up(home: Path | None, port: int, host: str | None, detach: bool, as_json: bool) -> None:
    """Start the embedded Argilla server.

    Prints its URL and how to sign in. The first start installs Argilla 2.8.0 in an environment of its own and creates
    random credentials. Without --detach, the server stops together with this command (Ctrl-C).

    \b
    larf-curate review up --detach
    larf-curate review up --detach --host 0.0.0.0
    """
    server = EmbeddedServer(home, port=port, host=host, say=_say)
    # Terminating this command then stops the server too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    """Print the URL and how to sign in."""
    file, owner, url = server.home.credentials, server.credentials.owner, server.url
    public = server.status().public_urls
    if as_json:
        state = {"url": url, "username": owner.username, "credentials": str(file), "home": str(server.home.path)}
        echo_json({**state, "already_running": not server.started_here, "public_urls": public})
        return
    click.echo(f"Argilla {'is ready' if server.started_here else 'runs already'}: {url}")
    click.echo(f"  user      {owner.username}")
    if server.new_credentials:
        click.echo(f"  password  {owner.password}  (shown only once; stored with the API key in {file})")
    else:
        click.echo(f"  password  in {file}, with the API key")
    if public:
        click.echo(f"  colleagues, with an account of review user: {' or '.join(public)}")
        _say(OPEN_TO_OTHERS)


@click.command()
@home_option
@json_option
def down(home: Path | None, as_json: bool) -> None:
    """Stop the embedded Argilla server.

    All records and answers stay on disk.

    \b
    larf-curate review down
    """
    server = EmbeddedServer(home)
    stopped = server.stop()
    if as_json:
        echo_json({"stopped": stopped, "home": str(server.home.path)})
    else:
        click.echo("stopped" if stopped else f"no server runs on {server.home.path}")


@click.command()
@home_option
@_port_option
@click.option("--mend", is_flag=True, help="First build the search index anew where it lacks records.")
@json_option
def doctor(home: Path | None, port: int, mend: bool, as_json: bool) -> None:
    """Check the embedded server.

    Prints what to do about each problem; the exit code is 1 if there is one.

    \b
    larf-curate review doctor
    """
    server = EmbeddedServer(home, port=port)
    if mend:
        _say(f"{server.mend_search_index()} records added to the search index")
    checks = server.doctor()
    if as_json:
        echo_json({"ok": all(check.ok for check in checks), "checks": [vars(check) for check in checks]})
    else:
        rows = [(check.name, "ok" if check.ok else "FAILED", check.found, check.remedy) for check in checks]
        echo_table("Embedded Argilla server", ("check", "", "found", "what to do"), rows)
    if not all(check.ok for check in checks):
        raise click.exceptions.Exit(1)


@click.command()
@click.argument("name")
@click.option(
    "--workspace", default=WORKSPACE, show_default=True, help="Workspace to join; created if it does not exist."
)
@home_option
@json_option
def user(name: str, workspace: str, home: Path | None, as_json: bool) -> None:
    """Create or show an annotator's account.

    NAME is the user name. The server must be running.

    \b
    larf-curate review user alice
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
