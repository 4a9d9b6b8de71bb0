"""What `wst serve` passes on byte for byte and what it does not: headers, encodings, answers with the instruction."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from inference_servers import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from wst import Instruction, Query, StudentPrompt
from wst.inference.server import Gateway, Limits

BODY = b'{"messages": [{"role": "user", "content": "x"}]}'
ANSWER = b'{"choices": []}'


class Student:
    """Answers with the headers and the content that the test says, and notes what it got."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, bytes]] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.content = ANSWER
        self.drips = False  #: a first byte, and never the last
        self.dripped = threading.Event()
        self.left = threading.Event()

    async def chat(self, request: Request) -> Response:
        await request.body()
        self.got = list(request.headers.raw)
        content = self.drops() if self.drips else self.whole()
        answer = StreamingResponse(content, media_type="application/json")
        answer.raw_headers += self.headers
        return answer

    async def whole(self) -> AsyncIterator[bytes]:
        yield self.content

    async def drops(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b" "
                self.dripped.set()
                await asyncio.sleep(0.01)
        finally:
            self.left.set()


@pytest.fixture
def student() -> Student:
    return Student()


@pytest.fixture
def gateway(student: Student) -> Iterator[str]:
    app = Starlette(routes=[Route("/v1/chat/completions", student.chat, methods=["POST"])])
    with serving(app) as upstream:
        limits = Limits(body_bytes=1000)
        made = Gateway(lambda queries: [Instruction("Z")] * len(queries), StudentPrompt(), upstream, limits=limits)
        with serving(made.app()) as url:
            yield url.removeprefix("http://").removesuffix("/v1")


def post(address: str, *headers: tuple[str, bytes]) -> tuple[int, list[tuple[str, str]], bytes]:
    """Send these headers alone, with host and content-length."""
    client = http.client.HTTPConnection(address, timeout=30)
    client.putrequest("POST", "/v1/chat/completions", skip_accept_encoding=True)
    for name, value in (*headers, ("content-length", b"%d" % len(BODY))):
        client.putheader(name, value)
    client.endheaders(BODY)
    answer = client.getresponse()
    try:
        return answer.status, answer.getheaders(), answer.read()
    finally:
        client.close()


@pytest.mark.parametrize("title", ["Café".encode(), "Café".encode("latin-1")])
def test_headers_go_on_byte_for_byte(gateway: str, student: Student, title: bytes) -> None:
    student.headers = [(b"x-answer", title)]
    status, headers, _ = post(gateway, ("x-title", title), ("authorization", b"Bearer " + title))
    assert status == 200
    assert dict(student.got)[b"x-title"] == title
    assert dict(student.got)[b"authorization"] == b"Bearer " + title
    assert dict(headers)["x-answer"].encode("latin-1") == title


def test_upstream_is_asked_for_what_the_client_asked_for(gateway: str, student: Student) -> None:
    student.headers = [(b"set-cookie", b"session=of-one-client")]
    for _ in range(2):
        assert post(gateway)[0] == 200
        assert {name for name, _ in student.got} == {b"host", b"content-length", b"accept-encoding"}
        assert dict(student.got)[b"accept-encoding"] == b"identity"
    post(gateway, ("accept-encoding", b"br"), ("user-agent", b"mine"))
    assert (dict(student.got)[b"accept-encoding"], dict(student.got)[b"user-agent"]) == (b"br", b"mine")


def test_headers_of_one_connection_do_not_go_on(gateway: str, student: Student) -> None:
    student.headers = [(b"connection", b"X-Upstream, keep-alive"), (b"x-upstream", b"1"), (b"x-kept", b"2")]
    _, headers, _ = post(gateway, ("connection", b"close, X-Client"), ("x-client", b"1"), ("x-kept", b"2"))
    names = [name.lower() for name, _ in headers]
    assert b"x-client" not in dict(student.got)
    assert "x-upstream" not in names
    assert dict(student.got)[b"x-kept"] == b"2"
    assert [names.count(name) for name in ("date", "server", "x-kept")] == [1, 1, 1]


ASKED = ("x-wst-include", b"body")


def test_the_instruction_is_never_put_into_compressed_bytes(gateway: str, student: Student) -> None:
    _, _, content = post(gateway, ASKED, ("accept-encoding", b"br"))
    assert dict(student.got)[b"accept-encoding"] == b"identity"
    assert json.loads(content)["wst"] == {"status": "instructed", "instruction": "Z"}
    student.headers, student.content = [(b"content-encoding", b"br")], b"compressed unasked"
    _, headers, content = post(gateway, ASKED)
    assert (dict(headers)["content-encoding"], content) == ("br", b"compressed unasked")


def test_an_answer_that_is_held_has_a_limit(gateway: str, student: Student) -> None:
    student.content = json.dumps({"choices": ["x" * 1000]}).encode()
    assert post(gateway)[::2] == (200, student.content)
    status, _, content = post(gateway, ASKED)
    error: Any = json.loads(content)["error"]
    assert (status, error["type"]) == (502, "upstream_error")
    assert "leave out x-wst-include" in error["message"]


@pytest.mark.parametrize("header", [b"", b"x-wst-include: body\r\n"])
def test_a_client_that_leaves_in_the_middle_cancels_upstream(gateway: str, student: Student, header: bytes) -> None:
    student.drips = True
    host, port = gateway.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as leaving:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n"
        leaving.sendall(head % (header, len(BODY)) + BODY)
        assert student.dripped.wait(30)
    assert student.left.wait(30)


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://evil.example:8000"])
def test_a_page_of_another_site_does_not_spend_the_servers_key(student: Student, origin: bytes) -> None:
    app = Starlette(routes=[Route("/v1/chat/completions", student.chat, methods=["POST"])])
    with serving(app) as upstream:
        made = Gateway(lambda queries: [Instruction("Z")] * len(queries), StudentPrompt(), upstream, key="sk-server")
        with serving(made.app()) as url:
            address = url.removeprefix("http://").removesuffix("/v1")
            status, _, content = post(address, ("origin", origin), ("content-type", b"text/plain"))
            assert status == 403
            assert "--token_env" in json.loads(content)["error"]["message"]
            assert not student.got
            for fine in ((), (("origin", b"http://127.0.0.1:3000"),), (("origin", b"http://localhost"),)):
                assert post(address, *fine)[0] == 200
            assert dict(student.got)[b"authorization"] == b"Bearer sk-server"


def test_the_query_string_goes_on() -> None:
    seen: list[bytes] = []

    async def chat(request: Request) -> Response:
        seen.append(request.scope["query_string"])
        return Response(ANSWER)

    with serving(Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])) as upstream:
        made = Gateway(lambda queries: [Instruction("Z")] * len(queries), StudentPrompt(), upstream)
        with serving(made.app()) as url:
            for query in ("?api-version=preview&a=%2F%3F", ""):
                httpx2.post(f"{url}/chat/completions{query}", content=BODY, timeout=30, trust_env=False)
    assert seen == [b"api-version=preview&a=%2F%3F", b""]


def test_upstream_does_not_speak_for_the_teacher(gateway: str, student: Student) -> None:
    student.headers = [(b"x-wst-instruction", b"evil"), (b"x-wst-status", b"evil"), (b"x-kept", b"1")]
    _, headers, _ = post(gateway)
    assert [value for name, value in headers if name.startswith("x-")] == ["1", "instructed", "Z"]


def test_a_status_that_is_none_is_a_bad_gateway() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(65536).endswith(BODY[-2:]):
                    pass
                connection.sendall(b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        made = Gateway(lambda queries: [Instruction("Z")] * len(queries), StudentPrompt(), upstream)
        with serving(made.app()) as url:
            answer = httpx2.post(f"{url}/chat/completions", content=BODY, timeout=30, trust_env=False)
    assert answer.status_code == 502
    assert "status 600" in answer.json()["error"]["message"]


def test_a_client_that_left_while_it_waited_is_not_written_for() -> None:
    began, go, written = threading.Event(), threading.Event(), list[str]()

    def write(queries: Sequence[Query]) -> list[Instruction]:
        written.extend(query.text for query in queries)
        began.set()
        go.wait(30)
        return [Instruction("Z")] * len(queries)

    student = Student()
    with serving(Starlette(routes=[Route("/v1/chat/completions", student.chat, methods=["POST"])])) as upstream:
        made = Gateway(write, StudentPrompt(), upstream, batch_size=1, limits=Limits(deadline=60))
        with serving(made.app()) as url, ThreadPoolExecutor(1) as pool:
            staying = pool.submit(httpx2.post, f"{url}/chat/completions", content=BODY, timeout=60, trust_env=False)
            assert began.wait(30)
            host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
            body = BODY.replace(b"x", b"gone")
            with socket.create_connection((host, int(port)), timeout=30) as leaving:
                head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
                leaving.sendall(head % len(body) + body)
                while len(made.batcher._waiting) < 1:
                    time.sleep(0.01)
            while any(not one.future.done() for one in made.batcher._waiting):
                time.sleep(0.01)
            go.set()
            assert staying.result(60).status_code == 200
    assert written == ["x"]
