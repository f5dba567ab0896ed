"""Accounts from a file, on the real server."""

import csv
import json
import os
import stat

import click
import pytest
import requests
from click.testing import CliRunner

from larf_curate.cli.accounts import commands
from larf_curate.cli.accounts_file import read_accounts
from larf_curate.errors import InputError
from larf_curate.server.accounts import AccountEntry, check_entries
from tests.fixtures.server_client import Client, owner_of

GROUP = click.Group("review", commands={command.name: command for command in commands})
STRONG = "correct-horse-7"


def run(server, *arguments, code=0):
    result = CliRunner().invoke(GROUP, ["users", *map(str, arguments), "--home", str(server.home.path)])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def signs_in(server, name, password):
    """Whether the server takes a password, as the page asks it."""
    reply = requests.post(f"{server.url}/api/v1/token", data={"username": name, "password": password}, timeout=60)
    return reply.status_code == 201


def on_server(server):
    """Role and workspaces of each user, as the server has them."""
    owner = owner_of(server)
    users = owner.send("GET", "/users")["items"]
    found = {}
    for user in users:
        spaces = owner.send("GET", f"/users/{user['id']}/workspaces")["items"]
        found[user["username"]] = (user["role"], {space["name"] for space in spaces})
    return found


@pytest.mark.server
def test_a_table_creates_and_changes_accounts_and_running_it_again_changes_nothing(argilla_server, tmp_path):
    file = tmp_path / "people.csv"
    file.write_text(f"username;role;workspaces;password\numa;;;\nvic;admin;argilla,north;{STRONG}\nwes;annotator;;\n")
    os.chmod(file, 0o644)
    shown = run(argilla_server, file)
    assert "others can read it: chmod 600" in shown.stderr
    assert STRONG not in shown.output
    found = on_server(argilla_server)
    assert (found["uma"], found["wes"]) == (("annotator", {"argilla"}), ("annotator", {"argilla"}))
    assert found["vic"] == ("admin", {"argilla", "north"})
    assert signs_in(argilla_server, "vic", STRONG)
    password = argilla_server.credentials.account("uma").password
    assert f"uma  password  {password}" in shown.stdout
    assert signs_in(argilla_server, "uma", password)

    accounts = json.loads(run(argilla_server, file, "--json").stdout)["accounts"]
    assert [(a["username"], a["changes"], a["password"]) for a in accounts] == [
        ("uma", [], ""),
        ("vic", [], ""),
        ("wes", [], ""),
    ]
    file.write_text(f"username,role,workspaces,password\numa,admin,north,\nvic,,,{STRONG}-new\n")
    accounts = json.loads(run(argilla_server, file, "--json").stdout)["accounts"]
    changes = {account["username"]: account["changes"] for account in accounts}
    assert changes == {"uma": ["role annotator → admin", "joins north", "leaves argilla"], "vic": ["password"]}
    found = on_server(argilla_server)
    assert (found["uma"], found["vic"][1]) == (("admin", {"north"}), {"argilla", "north"})
    assert found["wes"] == ("annotator", {"argilla"})  # accounts that it does not name stay
    assert signs_in(argilla_server, "vic", f"{STRONG}-new")
    assert not signs_in(argilla_server, "vic", STRONG)
    assert argilla_server.credentials.account("vic").password == f"{STRONG}-new"
    assert argilla_server.credentials.account("uma").role == "admin"
    log = b"".join(path.read_bytes() for path in argilla_server.home.path.rglob("*.log"))
    assert STRONG.encode() not in log


@pytest.mark.server
def test_random_passwords_go_to_a_private_file(argilla_server, tmp_path):
    file, out = tmp_path / "people.yaml", tmp_path / "passwords.csv"
    file.write_text("xena:\nyan:\n  role: annotator\n  workspaces: [argilla]\n")
    shown = run(argilla_server, file, "-o", out)
    with open(out, newline="") as stream:
        passwords = {row["username"]: row["password"] for row in csv.DictReader(stream)}
    assert set(passwords) == {"xena", "yan"}
    assert all(signs_in(argilla_server, name, password) for name, password in passwords.items())
    assert not [name for name, password in passwords.items() if password in shown.output]
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "exists" in str(run(argilla_server, file, "-o", out, code=1).exception)


@pytest.mark.server
def test_an_account_that_differs_by_case_or_whose_password_nobody_knows_is_told(argilla_server, tmp_path):
    body = {"first_name": "x", "username": "made-elsewhere", "role": "annotator", "password": STRONG}
    owner_of(argilla_server).send("POST", "/users", body)
    (tmp_path / "people.jsonl").write_text('{"username": "made-elsewhere"}\n')
    (told,) = json.loads(run(argilla_server, tmp_path / "people.jsonl", "--json").stdout)["accounts"]
    assert "nobody knows its password" in told["note"]
    (tmp_path / "people.jsonl").write_text(f'{{"username": "made-elsewhere", "password": "{STRONG}-2"}}\n')
    run(argilla_server, tmp_path / "people.jsonl")
    assert signs_in(argilla_server, "made-elsewhere", f"{STRONG}-2")
    assert argilla_server.credentials.account("made-elsewhere").password == f"{STRONG}-2"
    argilla_server.add_user("Zoe")
    (tmp_path / "people.jsonl").write_text('{"username": "zoe"}\n')
    done = run(argilla_server, tmp_path / "people.jsonl", code=1)
    assert "line 1: the server has the user 'Zoe'" in str(done.exception)


def entry(line, **given):
    return AccountEntry(**{"place": f"line {line}", "username": f"user{line}"} | given)


def test_every_fault_is_told_with_its_line_and_no_password_is_quoted():
    weak = ["short-9", "aaaaaaaaaaaaaa", "user4-password", "x" * 40 + "abcdefg" * 8]
    entries = [
        entry(2, role="anotator", password=weak[0]),
        entry(3, password=weak[1]),
        entry(4, password=weak[2]),
        entry(5, password=weak[3]),
        entry(6, username="has blank"),
        entry(7, username="argilla"),
        entry(8, username="Twice"),
        entry(9, username="twice"),
        entry(10, workspaces=("good", "bad name")),
        entry(11, password=STRONG),
    ]
    with pytest.raises(InputError) as caught:
        check_entries(entries)
    told = str(caught.value).splitlines()
    assert told == [
        "no account was changed; correct these:",
        "line 2: wanted the role annotator or admin, got 'anotator' (did you mean annotator?)",
        "line 2: the password of user2 has fewer than 12 characters: give a longer one, or none for a random one",
        "line 3: the password of user3 has fewer than 5 different characters: give another one, or none for a random "
        "one",
        "line 4: the password of user4 contains the user name: give another one, or none for a random one",
        "line 5: the password of user5 has more than 72 bytes, of which the server reads no more: give a shorter one, "
        "or none for a random one",
        "line 6: wanted a user name of 1 to 64 letters, digits and . _ - @, got 'has blank'",
        "line 7: argilla is the owner of the server and stays as it is: leave it out",
        "line 8: the user name Twice is there twice, up to case: keep one",
        "line 9: the user name twice is there twice, up to case: keep one",
        "line 10: wanted a workspace of letters, digits, _ and -, got 'bad name'",
    ]
    assert not [password for password in [*weak, STRONG] if password in str(caught.value)]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "alice,annotator,,secret-secret-1\n", "line 1: wanted the columns .* got no username"),
        ("a.csv", "username,passwort\nalice,secret-secret-1\n", "line 1: wanted the columns .*, got 'passwort'"),
        ("a.csv", "username,role\nalice\n", "line 2: wanted 2 cells as in the first line, got 1"),
        ("a.csv", 'username,password\nalice,"secret-secret-1\n', "no complete CSV"),
        ("a.csv", "username\n", "has no accounts"),
        ("a.jsonl", '{"username": "alice"}\n{"username": "bob", secret-secret-1\n', "line 2: wanted a JSON object"),
        ("a.jsonl", '{"username": "alice", "password": 123456789012}\n', "line 1: wanted a text in password"),
        ("a.jsonl", '["secret-secret-1"]\n', "line 1: wanted a JSON object"),
        ("a.yaml", "alice: secret-secret-1\n", "line 1: wanted settings below the name"),
        ("a.yaml", "alice:\n  passwort: secret-secret-1\n", "line 1: wanted the columns .* got 'passwort'"),
        ("a.yaml", "alice:\nalice:\n", "line 2: alice is there twice"),
        ("a.txt", "alice", "wanted a file ending in .csv, .jsonl, .yaml, .yml"),
        ("a.csv", b"username\n\xff\n", "wanted text in UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_accounts_is_refused_and_not_quoted(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=told) as caught:
        read_accounts(tmp_path / name)
    assert "secret" not in str(caught.value)


def test_the_same_accounts_are_read_from_each_kind_of_file(tmp_path):
    (tmp_path / "a.csv").write_text(
        f'\ufeffUsername,role,workspaces,password\n"alice",Admin,north south,{STRONG}\nbob,,,\n', encoding="utf-8"
    )
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"username": "alice", "role": "admin", "workspaces": ["north", "south"], "password": STRONG})
        + '\n{"username": "bob"}\n'
    )
    (tmp_path / "a.yaml").write_text(
        f"alice:\n  role: admin\n  workspaces: [north, south]\n  password: {STRONG}\nbob:\n"
    )
    files = [tmp_path / f"a.{kind}" for kind in ("csv", "jsonl", "yaml")]
    plain = [[vars(each) | {"place": ""} for each in read_accounts(file)] for file in files]
    assert plain[0] == plain[1] == plain[2]
    assert plain[0][0] == {
        "place": "",
        "username": "alice",
        "role": "admin",
        "workspaces": ("north", "south"),
        "password": STRONG,
    }


def test_an_account_that_was_deleted_on_the_server_is_created_again(argilla_server):
    old = argilla_server.add_user("returning")
    owner = Client(argilla_server.url, argilla_server.api_key)
    (user,) = [user for user in owner.send("GET", "/users")["items"] if user["username"] == "returning"]
    owner.send("DELETE", f"/users/{user['id']}")
    new = argilla_server.add_user("returning")
    assert new.api_key != old.api_key
    assert Client(argilla_server.url, new.api_key).send("GET", "/me")["username"] == "returning"
