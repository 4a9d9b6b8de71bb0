"""One look at an endpoint before any model is loaded: what is surely wrong ends there, what may pass does not."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from endpoints import FakeServer

from wst import EndpointStudent, Message, Prompt
from wst.errors import ConfigError
from wst.students.accounts import Budget


def student(url: str, model: str = "fake", **options: Any) -> EndpointStudent:
    return EndpointStudent(model, url, None, cache=False, **options)


def test_a_listed_model_costs_no_call() -> None:
    with FakeServer() as server:
        student(server.url).check()
        assert server.requests == []


def test_an_unlisted_model_costs_one_call_that_is_booked_and_made_once(tmp_path: Path) -> None:
    with FakeServer() as server:
        asked = student(server.url, "alias", temperature=0.5, budget=Budget(calls=1))
        asked.accounts.open(tmp_path, "fit")
        asked.check()
        asked.check()
        (request,) = server.requests
        assert (request.body["temperature"], request.body["max_tokens"]) == (0.5, 256)
        assert asked.accounts.run()["fit"]["calls"] == 1
        again = student(server.url, "alias", budget=Budget(calls=1))  # the budget is spent: no fault of the settings
        again.accounts.open(tmp_path, "test")
        again.check()
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, r"no such model or address \(HTTP 404.*did you mean 'fake'\?\); check model 'fakee' and base_url http"),
        (401, "the key is refused .*; name the environment variable"),
        (403, "access is refused"),
        (400, r"the request is refused \(HTTP 400: As the test asked.*; correct the setting that it names"),
    ],
)
def test_what_is_surely_wrong_is_one_line(status: int, words: str) -> None:
    with FakeServer() as server:
        server.status = status
        with pytest.raises(ConfigError, match=words) as caught:
            student(server.url, "fakee").check()
        assert len(server.requests) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_what_may_pass_is_left_to_the_run(status: int) -> None:
    with FakeServer() as server:
        server.status = status
        student(server.url, "alias").check()
        assert len(server.requests) == 1


def test_a_port_at_which_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        asked = student(url)
        with pytest.raises(ConfigError, match=r"no server answers \(ConnectError.*\); start it, or correct base_url"):
            asked.check()
        assert asked.accounts.run() == {}
        monkeypatch.setenv("LOCAL_RANK", "1")
        student(url).check()  # the first process asks for all
        monkeypatch.delenv("LOCAL_RANK")
        known = student(url)
        known.accounts.open(tmp_path, "fit")
        known.accounts.end(known.accounts.begin(0.0) or 0, "answered", 0.1)
        known.check()  # it has answered this run: the cache may hold what is asked for


def test_a_student_in_use_stays_in_use() -> None:
    with FakeServer() as server:
        asked = student(server.url)
        asked.setup()
        asked.check()
        assert [r.text for r in asked.respond([Prompt((Message("user", "hi"),))])] == ["HI"]
        asked.close()


class WebPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>Welcome\x1b[31m</html>")

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def test_a_web_page_is_no_endpoint() -> None:
    with HTTPServer(("127.0.0.1", 0), WebPage) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(ConfigError, match=r"what answers there is no API .*no JSON: <html>") as caught:
            student(f"http://127.0.0.1:{server.server_port}/v1", "fake").check()
        server.shutdown()
    assert "\x1b" not in str(caught.value)
