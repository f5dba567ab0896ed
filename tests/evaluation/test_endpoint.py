"""The endpoint judge against a real HTTP server that refuses what real ones refuse."""

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.errors import InputError, TrainingError
from larf_curate.evaluation.endpoint import API_KEY, ATTEMPTS, MAX_FAILURES, Endpoint
from larf_curate.evaluation.judges import ChatJudge

KEY = "key-of-the-test"
CHATS = [[{"role": "user", "content": text}] for text in ("one", "two", "three")]


class Handler(BaseHTTPRequestHandler):
    """Answers as an OpenAI-compatible server; ``server.script`` has responses that come first."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        if self.server.script:
            status, headers, text = self.server.script.pop(0)
        elif self.path != "/v1/chat/completions":
            status, headers, text = 404, {}, '{"error": "no such path"}'
        elif self.headers.get("Authorization") != f"Bearer {KEY}":
            status, headers, text = 401, {}, json.dumps({"error": f"wrong {self.headers.get('Authorization')}"})
        elif body["model"] != "judge":
            status, headers, text = 404, {}, '{"error": "no such model"}'
        else:
            said = self.server.says(body["messages"][-1]["content"])
            status, headers, text = 200, {}, json.dumps({"choices": [{"message": {"content": said}}]})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.seen, running.script, running.says = [], [], lambda text: text.upper()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def ask(server, waits):
    def endpoint(path="/v1", model="judge", **options):
        url = f"http://127.0.0.1:{server.server_port}{path}"
        return Endpoint(url, model, sleep=waits.append, **options)

    return endpoint


def test_texts_come_in_the_order_of_the_chats(ask, server, waits):
    assert ask()(CHATS) == ["ONE", "TWO", "THREE"]
    assert ask("/v1/")(CHATS[:1]) == ["ONE"]
    assert server.seen[0] == {"model": "judge", "messages": CHATS[0], "temperature": 0, "max_tokens": 16}
    assert waits == []


@pytest.mark.parametrize(
    ("path", "model", "message"),
    [("", "judge", "often in /v1"), ("/v1", "other", "no such model.*check the model's name")],
)
def test_a_wrong_path_or_model_is_an_error_without_retries(ask, server, path, model, message):
    with pytest.raises(InputError, match=message):
        ask(path, model)(CHATS)
    assert len(server.seen) == 1


def test_a_missing_or_wrong_key_is_an_error_that_does_not_show_it(ask, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(API_KEY, "secret-and-wrong")
    with pytest.raises(InputError, match=r"401 .*\*\*\*.*set the environment variable") as error:
        ask()(CHATS)
    monkeypatch.delenv(API_KEY)
    with pytest.raises(InputError, match="401"):
        ask()(CHATS)
    assert "secret-and-wrong" not in str(error.value) + caplog.text + repr(ask())


def test_a_limited_or_broken_request_is_sent_again_after_the_time_asked_for(ask, server, waits):
    server.script = [
        (429, {"Retry-After": "7"}, ""),
        (503, {}, ""),
        (429, {"Retry-After": "9999"}, ""),
        (429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, ""),
    ]
    assert ask()(CHATS) == ["ONE", "TWO", "THREE"]
    assert waits == [7.0, 2.0, 60.0, 0.0]


def test_nonsense_of_a_proxy_is_a_failed_attempt(ask, server, waits):
    server.script = [(200, {"Content-Encoding": "gzip"}, "no gzip"), (429, {"Retry-After": "nan"}, "")]
    assert ask()(CHATS) == ["ONE", "TWO", "THREE"]
    assert waits == [1.0, 2.0]


def test_an_endpoint_that_is_down_is_an_error(waits):
    with pytest.raises(TrainingError, match="gives no answer .ConnectError"):
        Endpoint("http://127.0.0.1:9/v1", "judge", sleep=waits.append)(CHATS)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    with pytest.raises(InputError, match="wanted an address"):
        Endpoint("localhost/v1", "judge", sleep=waits.append)(CHATS)


def test_a_slow_endpoint_is_given_up_after_its_attempts(ask, server, waits):
    release = threading.Event()
    server.says = lambda text: release.wait(30) and "" or "late"
    with pytest.raises(TrainingError, match="ReadTimeout"):
        ask(timeout=0.05)(CHATS)
    release.set()
    assert len(waits) == ATTEMPTS - 1


def test_answers_after_a_failure_are_unjudged_and_counted(ask, server, caplog):
    chats = CHATS * 2
    for _ in range(ATTEMPTS * MAX_FAILURES):
        server.script.append((500, {}, ""))
    server.script.insert(0, (200, {}, json.dumps({"choices": [{"message": {"content": "first"}}]})))
    assert ask()(chats) == ["first", *[None] * 5]
    assert "5 of 6 answers are not judged" in caplog.text
    assert len(server.seen) == 1 + ATTEMPTS * MAX_FAILURES  # the rest is not asked


@pytest.mark.parametrize(
    "body", ["<html>", "{}", "[" * 100_000, '{"choices": []}', '{"choices": [{"message": {"content": null}}]}']
)
def test_a_body_that_is_no_completion_leaves_the_answer_unjudged(ask, server, body):
    server.script = [(200, {}, body)]
    assert ask()(CHATS) == [None, "TWO", "THREE"]


def test_a_judge_takes_only_one_of_the_two_words(ask, server):
    said = {
        "a": "REFUSED.", "b": "**answered**", "c": "It answered, then refused", "d": "42", "e": "It has not refused.",
        "f": "It wasn\u2019t answered",
    }  # fmt: skip
    server.says = lambda text: said[text.partition("Answer:\n")[2][0]]
    assert ChatJudge(ask())(["q"] * 6, list("abcdef")) == [True, False, None, None, None, None]


def test_an_endpoint_is_tried_before_the_model_answers(ask, server, waits, tmp_path):
    ask().check()
    assert len(server.seen) == 1
    with pytest.raises(TrainingError, match="gives no answer .ConnectError"):
        Endpoint("http://127.0.0.1:9/v1", "judge", sleep=waits.append).check()
    judge = f"endpoint:judge@http://127.0.0.1:{server.server_port}"
    done = CliRunner().invoke(main, ["evaluate", "no/model", "-o", str(tmp_path), "--second-judge", judge])
    assert "often in /v1" in done.output


def test_figures_are_kept_if_a_further_judge_fails(server, start, tmp_path):
    server.script = [(200, {}, "{}"), (400, {}, "too long")]
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say it"}\n')
    prompts = [part for name in ("--harmful", "--safe") for part in (name, str(tmp_path / "p.jsonl"))]
    judge = f"endpoint:judge@http://127.0.0.1:{server.server_port}/v1"
    command = ["evaluate", start, "-o", str(tmp_path / "out"), "--max-new-tokens", "4", *prompts]
    done = CliRunner().invoke(main, [*command, "--second-judge", judge])
    assert "answers 400 (too long)" in done.output
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["harmful"]["rows"] == 1


def test_messages_have_no_password_of_the_address():
    with pytest.raises(InputError, match="got 'nothing://somewhere/v1'") as error:
        Endpoint(url="nothing://bob:SECRET@somewhere/v1?key=SECRET", model="m")([[{"role": "user", "content": "a"}]])
    assert "SECRET" not in str(error.value)
