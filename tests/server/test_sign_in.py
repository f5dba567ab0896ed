import pytest
import requests

from larf_curate.server.inside.hosts import allowed, is_allowed
from larf_curate.server.inside.sign_in import FORGET_AFTER, FREE_ATTEMPTS, MAX_ENTRIES, MAX_PAUSE, Throttle

LOOPBACK = allowed(["127.0.0.1"], public=False)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def throttle(clock):
    return Throttle(clock)


def test_pauses_double_up_to_a_minute_and_attempts_in_a_pause_do_not_prolong_it(throttle, clock):
    assert [throttle.attempt("a", "x") for _ in range(FREE_ATTEMPTS)] == [0.0] * FREE_ATTEMPTS
    for pause in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        assert throttle.attempt("a", "x") == pause
        clock.now += pause / 2
        assert throttle.attempt("a", "x") == pause / 2
        clock.now += pause / 2
        assert throttle.attempt("a", "x") == 0
    assert MAX_PAUSE == 60


def test_accounts_and_clients_are_counted_apart(throttle):
    for _ in range(FREE_ATTEMPTS):
        throttle.attempt("a", "x")
    assert throttle.attempt("a", "x") > 0
    assert throttle.attempt("b", "x") == 0
    assert throttle.attempt("a", "y") == 0


def test_the_right_password_and_a_quarter_of_an_hour_end_it(throttle, clock):
    for end in (lambda: throttle.succeed("a", "x"), lambda: setattr(clock, "now", clock.now + FORGET_AFTER + 1)):
        for _ in range(FREE_ATTEMPTS):
            assert throttle.attempt("a", "x") == 0
        assert throttle.attempt("a", "x") > 0
        end()
    assert throttle.attempt("a", "x") == 0


def test_what_is_remembered_has_a_bound(throttle):
    for number in range(MAX_ENTRIES + 10):
        throttle.attempt(f"{number}" * 50, "x")
    assert len(throttle._attempts) == MAX_ENTRIES
    assert max(len(key) for key in throttle._attempts) <= 16


def sign_in(server, name, password):
    form = {"username": name, "password": password}
    return requests.post(f"{server.url}/api/v1/token", data=form, timeout=60)


def test_sixty_wrong_passwords_are_nearly_all_refused_unread_and_the_right_one_lets_in_after_its_pause(argilla_server):
    account, other = argilla_server.add_user("guessed"), argilla_server.add_user("bystander")
    answers = [sign_in(argilla_server, "guessed", f"wrong{number}") for number in range(60)]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:FREE_ATTEMPTS] == [401] * FREE_ATTEMPTS
    # The first, or a later one where a busy machine takes longer for an attempt than the first pauses last.
    assert 429 in statuses[FREE_ATTEMPTS : FREE_ATTEMPTS + 4]
    assert statuses.count(401) < 15  # one more for each second, then two, that the sixty take
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers if answer.status_code == 429)
    assert sign_in(argilla_server, "bystander", other.password).status_code == 201
    key = {"X-Argilla-Api-Key": account.api_key}
    assert requests.get(f"{argilla_server.url}/api/v1/me", headers=key, timeout=60).ok
    while (answer := sign_in(argilla_server, "guessed", account.password)).status_code == 429:
        assert int(answer.headers["Retry-After"]) <= MAX_PAUSE
    assert answer.status_code == 201
    assert sign_in(argilla_server, "guessed", "wrong").status_code == 401


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost", True),
        ("LocalHost:6900", True),
        ("127.0.0.1", True),
        ("127.0.0.1:1", True),
        ("[::1]", True),
        ("[::1]:6900", True),
        ("evil.example", False),
        ("evil.example:6900", False),
        ("localhost.evil.example", False),
        ("evil.example.localhost", False),
        ("127.0.0.1.evil.example:6900", False),
        ("127.0.0.1:6900@evil.example", False),
        ("localhost:evil.example", False),
        ("[::1]evil.example", False),
        ("[2001:db8::1]:6900", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("", False),
        (":6900", False),
    ],
)
def test_only_names_of_this_machine_are_answered(argilla_server, host, answered):
    assert is_allowed([(b"accept", b"*/*"), (b"Host", host.encode())], LOOPBACK) == answered
    for path in ("/", "/api/v1/status", "/api/v1/me"):
        answer = requests.get(argilla_server.url + path, headers={"Host": host}, timeout=60)
        assert (answer.status_code != 400) == answered
        assert ("Invalid Host header" in answer.text) != answered
        assert "script-src" in answer.headers["Content-Security-Policy"]


def test_no_host_and_two_hosts_are_refused():
    assert not is_allowed([(b"accept", b"*/*")], LOOPBACK)
    assert not is_allowed([(b"host", b"localhost"), (b"host", b"localhost")], LOOPBACK)


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("192.0.2.7:6900", True),  # also addresses that a router or a container has for this machine
        ("[2001:db8::1]:6900", True),
        ("Box.Example.Org", True),
        ("localhost:1", True),
        ("evil.example", False),
        ("box.example.org.evil.example", False),
        ("192.0.2.7.evil.example", False),
        ("192.0.2", False),
        ("0xc0000207", False),
        ("3221225991", False),
        ("[192.0.2.7]", False),
        ("2001:db8::1", False),
        ("0.0.0.0:6900", False),
        ("[::]:6900", False),
        ("", False),
    ],
)
def test_on_a_public_address_ip_addresses_and_the_names_that_were_given_are_answered(host, answered):
    allows = allowed(["box.example.org", "192.0.2.8"], public=True)
    assert is_allowed([(b"host", host.encode())], allows) == answered


def test_the_header_of_a_proxy_does_not_make_a_guess_that_of_another_client(argilla_server):
    account = argilla_server.add_user("forwarded")
    for number in range(30):  # more than those for which pauses of 1, 2 and 4 seconds may pass on a busy machine
        form = {"username": account.username, "password": f"wrong{number}"}
        headers = {"X-Forwarded-For": f"198.51.100.{number}", "Forwarded": f"for=198.51.100.{number}"}
        answer = requests.post(f"{argilla_server.url}/api/v1/token", data=form, headers=headers, timeout=60)
        if answer.status_code == 429:
            return
    raise AssertionError("no guess was slowed down")
