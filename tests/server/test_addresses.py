"""The embedded server on an address that other machines reach."""

import json
import os
import socket
import sys

import pytest
import requests
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.errors import InputError, ReviewServerError
from larf_curate.server import EmbeddedServer, addresses
from larf_curate.server.addresses import Listening, own_addresses, parse_host
from larf_curate.server.credentials import ensure_credentials
from larf_curate.server.home import ServerHome
from tests.fixtures.long import at_length

ELSEWHERE = "203.0.113.77"  # of a block for documentation: no machine has it (RFC 5737)


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["review", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def has_ipv6():
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


def test_the_default_is_this_machine_only():
    assert Listening() == Listening("127.0.0.1", None)
    assert not Listening().is_public
    assert Listening().names == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("host", "address", "public"),
    [
        ("127.0.0.1", "127.0.0.1", False),
        ("127.0.0.2", "127.0.0.2", False),
        (" 0.0.0.0 ", "0.0.0.0", True),
        ("::ffff:127.0.0.1", "127.0.0.1", False),
        pytest.param("::1", "::1", False, marks=pytest.mark.skipif(not has_ipv6(), reason="without IPv6")),
        pytest.param("[::]", "::", True, marks=pytest.mark.skipif(not has_ipv6(), reason="without IPv6")),
    ],
)
def test_addresses_are_read_and_told_apart(host, address, public):
    assert parse_host(host) == Listening(address)
    assert parse_host(host).is_public == public


def test_a_name_of_the_machine_gives_its_address_and_is_answered(monkeypatch):
    found = [(socket.AF_INET6, 1, 6, "", ("2001:db8::7", 0, 0, 0)), (socket.AF_INET, 1, 6, "", ("127.0.0.3", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    listening = parse_host("Box.Example.Org")
    assert listening == Listening("127.0.0.3", "Box.Example.Org")
    assert listening.names == ["box.example.org", "127.0.0.3"]
    assert socket.gethostname().lower() in Listening("0.0.0.0").names


@pytest.mark.parametrize("host", [ELSEWHERE, "2001:db8::7", "224.0.0.1", "999.1.1.1", "no such host", "", "fe80::1"])
def test_what_is_no_address_of_this_machine_is_refused_before_anything_is_made(tmp_path, host):
    home = tmp_path / "home"
    with pytest.raises(InputError, match="address") as error:
        EmbeddedServer(home, host=host)
    assert "\n" not in str(error.value)
    assert "this machine" in run("up", "--home", home, "--host", host, code=2).output
    assert not home.exists()


@pytest.mark.parametrize("password", ["s3cret", "12345678", "fourteen chars", "a" * 40, "abab" * 5])
def test_passwords_that_can_be_guessed_are_refused_on_a_public_address(tmp_path, monkeypatch, password):
    monkeypatch.setattr(EmbeddedServer, "environment", type("E", (), {"ensure": lambda *_: sys.executable})())
    home = ServerHome(tmp_path / "home")
    home.make()
    ensure_credentials(home.credentials)
    content = json.loads(home.credentials.read_text())
    content["accounts"].append({"username": "eve", "role": "annotator", "password": password, "api_key": "k" * 64})
    home.credentials.write_text(json.dumps(content))
    with pytest.raises(ReviewServerError, match="passwords of eve, which are too short") as error:
        EmbeddedServer(home.path, port=0, host="0.0.0.0").start()
    assert password not in str(error.value)
    assert not home.log.exists()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server on all addresses of the machine."""
    with EmbeddedServer(tmp_path_factory.mktemp("public"), port=0, host="0.0.0.0") as started:
        yield started


public_server = pytest.mark.skipif(not own_addresses(), reason="the machine has no address beside the loopback's")


@at_length
@pytest.mark.server
@public_server
def test_on_all_addresses_it_is_reached_at_each_and_says_so_everywhere(server):
    urls = server.status().public_urls
    assert server.url.startswith("http://127.0.0.1:")
    assert len(urls) == sum("." in address for address in own_addresses())
    form = {"username": "argilla", "password": server.credentials.owner.password}
    for url in (server.url, *urls):
        assert "Argilla" in requests.get(url, timeout=60).text
        assert requests.post(f"{url}/api/v1/token", data=form, timeout=60).status_code == 201
    name = {"Host": f"{socket.gethostname()}:80"}
    assert requests.get(urls[0], headers=name, timeout=60).ok
    assert requests.get(urls[0], headers={"Host": "evil.example"}, timeout=60).status_code == 400

    told = run("up", "--home", server.home.path)
    assert urls[0] in told.stdout
    assert "nothing is encrypted" in told.stderr
    assert json.loads(run("up", "--home", server.home.path, "--json").stdout)["public_urls"] == list(urls)
    check = next(check for check in server.doctor() if check.name == "network")
    assert check.ok
    assert urls[0] in check.found


@at_length
@pytest.mark.server
@public_server
def test_without_an_account_only_what_the_sign_in_page_shows_is_read_and_no_other_origin_is_let_in(server):
    url = server.status().public_urls[0]
    paths = requests.get(f"{url}/api/v1/openapi.json", timeout=60).json()["paths"]
    identifier = "00000000-0000-0000-0000-000000000000"
    answered = set()
    for path, methods in paths.items():
        filled = "/".join(identifier if part.startswith("{") else part for part in path.split("/"))
        for method in methods:
            answer = requests.request(method, f"{url}/api/v1{filled}", json={}, timeout=60, allow_redirects=False)
            if answer.ok:
                answered.add(path)
            assert answer.status_code < 500
    assert answered == {"/version", "/status", "/settings", "/oauth2/providers"}

    origin = {"Origin": "http://evil.example", "Access-Control-Request-Method": "GET"}
    for answer in (
        requests.options(f"{url}/api/v1/me", headers=origin, timeout=60),
        requests.get(f"{url}/api/v1/version", headers=origin, timeout=60),
    ):
        assert "Access-Control-Allow-Origin" not in answer.headers
    # What a signed-in page keeps is sent by its scripts only: a form of another page has no cookie to use.
    form = {"username": "argilla", "password": server.credentials.owner.password}
    with requests.Session() as session:
        assert session.post(f"{url}/api/v1/token", data=form, timeout=60).status_code == 201
        assert not session.cookies
        assert session.get(f"{url}/api/v1/me", timeout=60).status_code == 401


@at_length
@pytest.mark.server
@public_server
def test_a_running_server_is_not_taken_for_one_on_another_address(server):
    with pytest.raises(ReviewServerError, match=r"runs already on 0\.0\.0\.0, not on 127\.0\.0\.1: .*review down"):
        EmbeddedServer(server.home.path, host="127.0.0.1").start()
    assert EmbeddedServer(server.home.path, host="0.0.0.0").start() == server.url
    assert EmbeddedServer(server.home.path).start() == server.url


@at_length
@pytest.mark.server
@pytest.mark.skipif(not has_ipv6(), reason="without IPv6")
def test_on_all_addresses_of_ipv6_those_of_ipv4_are_answered_too(tmp_path):
    with EmbeddedServer(tmp_path / "home", port=0, host="::") as server:
        assert server.url.startswith("http://[::1]:")
        port = server.url.rsplit(":", 1)[1]
        for address in ("127.0.0.1", "[::1]"):
            assert requests.get(f"http://{address}:{port}", timeout=60).ok
        assert server.status().answering


@pytest.mark.skipif(os.geteuid() == 0, reason="root may use all ports")
@at_length
@pytest.mark.server
def test_a_port_that_only_root_may_use_is_told(tmp_path):
    with pytest.raises(ReviewServerError, match="above 1023"):
        EmbeddedServer(tmp_path / "home", port=1).start()


def test_urls_have_brackets_around_addresses_of_ipv6():
    assert addresses.url("::1", 1) == "http://[::1]:1"
    assert addresses.url("192.0.2.1", 1) == "http://192.0.2.1:1"
    assert [addresses.local_address(address) for address in ("0.0.0.0", "::", ELSEWHERE)] == [
        "127.0.0.1",
        "::1",
        ELSEWHERE,
    ]
