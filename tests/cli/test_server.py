import json
import os
import signal
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from larf_curate.cli.server import commands
from larf_curate.errors import ReviewServerError

GROUP = click.Group("review", commands={command.name: command for command in commands})
SCRIPT = (
    "import click\nfrom larf_curate.cli.server import commands\n"
    "click.Group('review', commands={command.name: command for command in commands})()"
)


def run(*arguments, code=0):
    result = CliRunner().invoke(GROUP, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


@pytest.mark.server
@pytest.mark.slow
def test_up_in_the_foreground_ends_its_server_when_it_is_ended(tmp_path):
    arguments = ["up", "--home", str(tmp_path), "--port", "0"]
    command = [sys.executable, "-c", SCRIPT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        ready = [process.stdout.readline() for _ in range(3)]
        state = json.loads(run("up", "--home", tmp_path, "--json").stdout)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    kept = json.loads((tmp_path / "credentials.json").read_text())["accounts"][0]
    assert ready[0] == f"Argilla is ready: {state['url']}\n"
    assert kept["password"] in ready[2]
    assert state["already_running"]
    assert kept["api_key"] not in "".join(ready) + said + json.dumps(state)
    assert kept["password"] not in said + json.dumps(state)
    assert process.returncode == 0
    assert not json.loads(run("down", "--home", tmp_path, "--json").stdout)["stopped"]


def test_up_finds_a_running_server_and_shows_no_password_again(argilla_server):
    output = run("up", "--home", argilla_server.home.path).output
    assert f"Argilla runs already: {argilla_server.url}" in output
    assert argilla_server.credentials.owner.password not in output
    assert str(argilla_server.home.credentials) in output
    assert argilla_server.status().answering


def test_user_shows_the_account_and_doctor_is_content(argilla_server):
    shown = json.loads(run("user", "carol", "--home", argilla_server.home.path, "--json").stdout)
    account = argilla_server.credentials.account("carol")
    assert (shown["password"], shown["api_key"]) == (account.password, account.api_key)
    assert account.password in run("user", "carol", "--home", argilla_server.home.path).output
    assert json.loads(run("doctor", "--home", argilla_server.home.path, "--json").stdout)["ok"]
    assert "records added to the search index" in run("doctor", "--mend", "--home", argilla_server.home.path).stderr


def test_doctor_fails_with_code_1_and_the_remedy(tmp_path):
    (tmp_path / "credentials.json").write_text("{}")
    os.chmod(tmp_path / "credentials.json", 0o644)
    tmp_path.chmod(0o700)
    result = run("doctor", "--home", tmp_path, "--port", "0", code=1)
    assert "FAILED" in result.output
    assert "chmod 600" in result.output


def test_down_without_a_server_says_so(tmp_path):
    assert "no server runs" in run("down", "--home", tmp_path).output


def test_user_without_a_server_is_a_clear_error(tmp_path):
    with pytest.raises(ReviewServerError, match="review up"):
        CliRunner().invoke(GROUP, ["user", "x", "--home", str(tmp_path)], catch_exceptions=False)
