"""`wst serve` between real clients and a student's server."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import httpx2
import openai
import pytest
from inference_servers import Upstream, serving

from wst import Instruction, Query, StudentPrompt
from wst.errors import ConfigError
from wst.inference.server import Gateway, Limits

MARK = "[help: "
TURNS = [("user", "a"), ("assistant", "b")]
CALL = [("assistant", None), ("tool", "5")]


def helpful(queries: Sequence[Query]) -> list[Instruction]:
    return [Instruction(f"{MARK}{query.text}]") for query in queries]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    student = Upstream()
    yield student
    student.go.set()


Make = Callable[..., tuple[Gateway, str]]


@pytest.fixture
def gateway(upstream: Upstream) -> Iterator[Make]:
    """Start gateways before the student."""
    stack: list[Any] = []

    def make(write: Any = helpful, prompt: StudentPrompt | None = None, **options: Any) -> tuple[Gateway, str]:
        stack.append(serving(upstream.app()))
        made = Gateway(write, prompt or StudentPrompt("after"), stack[-1].__enter__(), **options)
        stack.append(serving(made.app()))
        return made, stack[-1].__enter__()

    yield make
    upstream.go.set()
    for context in reversed(stack):
        context.__exit__(None, None, None)


def body(text: Any = "two plus two", **more: Any) -> dict[str, Any]:
    return {"model": "s", "messages": [{"role": "user", "content": text}], **more}


def post(url: str, content: Any = None, headers: Any = None) -> httpx2.Response:
    sent = content if isinstance(content, bytes) else json.dumps(body() if content is None else content).encode()
    return httpx2.post(f"{url}/chat/completions", content=sent, headers=headers, timeout=30, trust_env=False)


def client(url: str, kind: Any = openai.OpenAI) -> Any:
    return kind(base_url=url, api_key="sk-client", max_retries=0)


# ------------------------------------------------------------------ clients


def test_the_openai_client_gets_an_instructed_answer(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway()
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    answer = client(url).chat.completions.create(**body(), tools=tools, seed=3, extra_body={"mine": [1.0, None]})
    assert answer.choices[0].message.content == f"two plus two\n\n{MARK}two plus two]"
    asked = upstream.asked[0]
    assert (asked["tools"], asked["seed"], asked["mine"]) == (tools, 3, [1.0, None])
    assert upstream.headers[0]["authorization"] == "Bearer sk-client"
    assert [model.id for model in client(url).models.list()] == ["student"]


def test_async_and_streamed(gateway: Make) -> None:
    _, url = gateway()

    async def ask() -> str:
        async with client(url, openai.AsyncOpenAI) as asking:
            stream = await asking.chat.completions.create(**body("a b"), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == f"a b\n\n{MARK}a b] "


def test_the_instruction_stands_in_the_header_and_if_asked_in_the_body(gateway: Make) -> None:
    _, url = gateway(lambda queries: [Instruction("Sag «ja»,\nbitte.") for _ in queries])
    plain = post(url)
    assert plain.headers["x-wst-status"] == "instructed"
    assert unquote(plain.headers["x-wst-instruction"]) == "Sag «ja»,\nbitte."
    assert "wst" not in plain.json()
    told = post(url, headers={"x-wst-include": "body"})
    assert told.json()["wst"] == {"status": "instructed", "instruction": "Sag «ja»,\nbitte."}


@pytest.mark.parametrize(
    ("placement", "messages", "wanted"),
    [
        ("system", [("user", "q")], [("system", "Z"), ("user", "q")]),
        ("system", [("system", "Mine."), ("user", "q")], [("system", "Mine. Z"), ("user", "q")]),
        ("system", [("developer", "Mine."), ("user", "q")], [("developer", "Mine. Z"), ("user", "q")]),
        ("before", [("user", "q")], [("user", "Z q")]),
        (
            "after",
            [("user", "a"), ("assistant", "b"), ("user", "q")],
            [("user", "a"), ("assistant", "b"), ("user", "q Z")],
        ),
        (
            "after",
            [("user", "q"), ("assistant", None), ("tool", "5")],
            [("user", "q Z"), ("assistant", None), ("tool", "5")],
        ),
    ],
)
def test_placement(gateway: Make, upstream: Upstream, placement: Any, messages: Any, wanted: Any) -> None:
    _, url = gateway(lambda queries: [Instruction("Z")] * len(queries), StudentPrompt(placement, separator=" "))
    post(url, {"messages": [{"role": role, "content": content} for role, content in messages]})
    assert [(m["role"], m["content"]) for m in upstream.asked[0]["messages"]] == wanted


def test_images_and_parts_stay(gateway: Make, upstream: Upstream) -> None:
    asked: list[Query] = []
    _, url = gateway(lambda queries: (asked.extend(queries), helpful(queries))[1])
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    turns = [{"role": "user", "content": [image]}, {"role": "assistant", "content": "A cat."}]
    post(url, {"messages": [*turns, {"role": "user", "content": [{"type": "text", "text": "And?"}, image]}]})
    sent = upstream.asked[0]["messages"]
    assert sent[:2] == turns
    assert sent[2]["content"] == [{"type": "text", "text": "And?"}, image, {"type": "text", "text": f"{MARK}And?]"}]
    assert asked[0].text == "And?"
    assert [turn.content for turn in asked[0].history] == ["A cat."]


@pytest.mark.parametrize("user", [{"role": "user"}, {"role": "user", "content": None}])
def test_messages_without_content_go_through(gateway: Make, upstream: Upstream, user: Any) -> None:
    _, url = gateway(prompt=StudentPrompt("system"))
    assert post(url, {"messages": [{"role": "system"}, user]}).headers["x-wst-status"] == "empty"
    assert upstream.asked[-1]["messages"] == [{"role": "system"}, user]
    post(url, {"messages": [{"role": "system"}, {"role": "user", "content": "q"}]})
    assert upstream.asked[-1]["messages"][0] == {"role": "system", "content": f"{MARK}q]"}


# ------------------------------------------------------------------- the key


def test_the_own_key_takes_the_place_of_the_clients(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway(key="sk-own")
    post(url, headers={"authorization": "Bearer sk-client"})
    post(url)
    assert [headers["authorization"] for headers in upstream.headers] == ["Bearer sk-own"] * 2


def test_the_token_opens_the_door_and_goes_no_further(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway(key="sk-own", token="sesame")
    for headers in ({}, {"authorization": b"Bearer wrong"}, {"authorization": b"Bearer s\xe9same"}):
        refused = post(url, headers=headers)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
    assert not upstream.asked
    assert post(url, headers={"authorization": "Bearer sesame"}).status_code == 200
    assert upstream.headers[0]["authorization"] == "Bearer sk-own"


def test_a_redirect_is_not_followed(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway(key="sk-own")
    answer = post(url, body("redirect"))
    assert answer.status_code == 502
    assert "redirects" in answer.json()["error"]["message"]
    assert len(upstream.asked) == 1


NO_URLS = ["ftp://x/v1", "localhost:80", "http://key@host/v1", "http://host/v1?key=5", ""]
NO_URLS += ["http://[::1/v1", "http://host:abc/v1", "http://host:99999/v1", "http://☃☃.example/v1"]


@pytest.mark.parametrize("url", NO_URLS)
def test_an_upstream_that_is_none(url: str) -> None:
    with pytest.raises(ConfigError, match="--upstream"):
        Gateway(helpful, StudentPrompt(), url)


def test_a_token_needs_a_key() -> None:
    with pytest.raises(ConfigError, match="--key_env"):
        Gateway(helpful, StudentPrompt(), "http://host/v1", token="t")


# -------------------------------------------------------------- it fails open


def test_a_teacher_that_raises_lets_requests_go_unaided(gateway: Make, upstream: Upstream) -> None:
    def broken(queries: Sequence[Query]) -> list[Instruction]:
        raise RuntimeError("no weights")

    _, url = gateway(broken)
    answer = post(url)
    assert (answer.status_code, answer.headers["x-wst-status"]) == (200, "error")
    assert upstream.asked[0]["messages"] == body()["messages"]
    assert 'wst_requests_total{status="error"} 1.0' in httpx2.get(f"{url}/../metrics".replace("/v1/..", "")).text


def test_a_teacher_that_hangs_is_waited_for_until_the_deadline_and_then_not_at_all(gateway: Make) -> None:
    go = threading.Event()

    def hanging(queries: Sequence[Query]) -> list[Instruction]:
        go.wait(60)
        return helpful(queries)

    made, url = gateway(hanging, limits=Limits(deadline=0.05))
    try:
        while not made.batcher.hung:
            assert post(url).headers["x-wst-status"] == "timeout"
        assert httpx2.get(url.replace("/v1", "/health")).json()["teacher"] == "hung"
        assert post(url).headers["x-wst-status"] == "timeout"
        assert made.batcher.batches == 1
    finally:
        go.set()
    while made.batcher.hung:
        pass
    assert post(url).headers["x-wst-status"] in ("instructed", "timeout")


def test_a_teacher_that_says_nothing_leaves_the_request_as_it_is(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway(lambda queries: [Instruction(" ")] * len(queries))
    assert post(url).headers["x-wst-status"] == "empty"
    assert upstream.asked[0]["messages"] == body()["messages"]


# --------------------------------------------------------------------- load


@pytest.mark.slow
def test_each_request_gets_its_own_answer_and_the_teacher_writes_in_batches(gateway: Make) -> None:
    gate = threading.Event()

    def first_waits(queries: Sequence[Query]) -> list[Instruction]:
        gate.wait(20)
        return helpful(queries)

    made, url = gateway(first_waits, limits=Limits(deadline=30), batch_size=16)

    def ask(number: int) -> bool:
        text = post(url, body(f"mark {number} end")).json()["choices"][0]["message"]["content"]
        return bool(text == f"mark {number} end\n\n{MARK}mark {number} end]")

    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, number) for number in range(40)]
        while made._open < 40:
            pass
        gate.set()
        assert all(one.result() for one in asked)
    assert made.batcher.batches <= 4  # one that began at once, and 39 requests in batches of 16
    assert made._open == 0


def test_too_many_requests_are_told_to_come_again(gateway: Make, upstream: Upstream) -> None:
    made, url = gateway(limits=Limits(requests=2))
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(post, url, body("slow")) for _ in range(2)]
        while made._open < 2:
            pass
        refused = post(url)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        upstream.go.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert post(url).status_code == 200


# ------------------------------------------------------------------- streams


def test_bytes_come_as_they_are_sent(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway()
    with httpx2.stream("POST", f"{url}/chat/completions", json=body("now wait", stream=True), timeout=30) as answer:
        chunks = answer.iter_raw()
        assert b"now" in next(chunks)
        assert not upstream.go.is_set()  # the rest is not written yet
        upstream.go.set()
        assert b"[DONE]" in b"".join(chunks)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_upstream(gateway: Make, upstream: Upstream, stream: bool) -> None:
    made, url = gateway()
    text = "now wait" if stream else "slow"
    with httpx2.Client(timeout=30) as leaving:
        request = leaving.build_request("POST", f"{url}/chat/completions", json=body(text, stream=stream))
        if stream:
            answer = leaving.send(request, stream=True)
            next(answer.iter_raw())
            answer.close()
        else:
            with pytest.raises(httpx2.TimeoutException):
                leaving.send(leaving.build_request("POST", request.url, json=body(text), timeout=0.3))
    assert upstream.left.wait(10)
    while made._open:
        pass


def test_errors_and_rate_limits_of_upstream_reach_the_client(gateway: Make) -> None:
    _, url = gateway()
    for status in (400, 401, 429, 500):
        answer = post(url, body(f"HTTP {status}"))
        assert (answer.status_code, answer.json()) == (status, {"error": {"message": "from upstream"}})
        assert (answer.headers["retry-after"], answer.headers["x-own"]) == ("7", "kept")
    with pytest.raises(openai.RateLimitError):
        client(url).chat.completions.create(**body("HTTP 429"))


# --------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not JSON"),
        (b"[]", 400, "messages"),
        (b'{"messages": 5}', 400, "messages"),
        (b'{"messages": []}', 400, "messages"),
        (b'{"messages": [5]}', 400, r"messages\[0\].role"),
        (b'{"messages": [{"role": "king", "content": "x"}]}', 400, r"messages\[0\].role"),
        (b'{"messages": [{"role": "user", "content": {}}]}', 400, r"messages\[0\].content"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', 400, "no user message"),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', 400, "NaN"),
        (b'{"seed": 1e400, "messages": [{"role": "user", "content": "x"}]}', 400, "1e400 is too large"),
        (b'{"a":' + b"[" * 100_000, 400, "deeply|not JSON"),
        (b'"' + b"x" * 2_000_000 + b'"', 413, "larger than 1,000,000"),
    ],
)
def test_a_request_that_is_none(
    gateway: Make, caplog: pytest.LogCaptureFixture, content: bytes, status: int, says: str
) -> None:
    _, url = gateway(limits=Limits(body_bytes=1_000_000))
    with caplog.at_level(logging.ERROR):
        answer = post(url, content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(says, error["message"])
    assert not caplog.records


def test_half_a_surrogate_is_no_matter(gateway: Make, upstream: Upstream) -> None:
    _, url = gateway()
    assert post(url, b'{"messages": [{"role": "user", "content": "half \\ud83d"}]}').status_code == 200


def test_paths_that_are_not_there(gateway: Make) -> None:
    _, url = gateway()
    for answer in (httpx2.get(f"{url}/files"), httpx2.get(f"{url}/chat/completions")):
        assert answer.status_code in (404, 405)
        assert "not served here" in answer.json()["error"]["message"]


def test_upstream_is_down() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Gateway(helpful, StudentPrompt(), f"http://127.0.0.1:{port}/v1", key="sk-own")
    with serving(made.app()) as url:
        answer = post(url)
    assert answer.status_code == 502
    assert "cannot be reached" in answer.json()["error"]["message"]
    assert "sk-own" not in answer.text


def test_a_slow_client_is_let_go(gateway: Make) -> None:
    _, url = gateway(limits=Limits(body_seconds=0.2))
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(4096)
