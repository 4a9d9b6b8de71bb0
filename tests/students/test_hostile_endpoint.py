"""Endpoints that break answers, and endpoints that send anything at all: every call is answered or has failed."""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from endpoints import FakeServer, Threaded
from faulty import ALL, FaultProxy, Forwarded
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from wst import AnswerCache, EndpointStudent, Message, Prompt, Response
from wst.errors import StudentStopped
from wst.students.cache import answer_key

CPU = torch.device("cpu")
KEY = "sk-Hostile/test+key=0123456789"
OTHER = "org-secret-9876543210"


def prompt(text: str) -> Prompt:
    return Prompt((Message("user", text),))


@pytest.mark.slow
@pytest.mark.parametrize("calls", [150, pytest.param(2000, marks=pytest.mark.long)])
def test_a_fifth_of_the_answers_is_spoilt(tmp_path: Path, calls: int) -> None:
    """Every fault there is: what can be answered is, and what cannot is unknown."""
    prompts = [prompt(f"number {i}") for i in range(calls)]
    options: dict[str, Any] = {"concurrency": 32, "retries": 8, "timeout": 3.0, "backoff": 0.1}
    cache = AnswerCache(str(tmp_path / "answers.sqlite"))
    with FakeServer() as server, FaultProxy(server.url, share=0.2, retry_after=0.1) as proxy:
        one = EndpointStudent("fake", proxy.url, None, cache=cache, **options)
        one.setup(CPU)
        answers = one.respond(prompts)
        asked_by_then = len(proxy.log)
        one.respond([p for p, a in zip(prompts, answers, strict=True) if a.error is None])
        assert len(proxy.log) == asked_by_then  # all are cached, nothing that failed is
        one.close()
        tries: dict[str, list[Forwarded]] = {}  # of each prompt, in order
        for entry in proxy.log:
            tries.setdefault(entry.messages[-1]["content"], []).append(entry)
    # Garbage with status 200 is not tried again: it may have been paid for. Null content is an empty answer.
    hopeless = {"malformed", "html", "no-choices"}
    for asked, answer in zip(prompts, answers, strict=True):
        text = asked.messages[0].content
        *before, last = tries[text]
        assert not {entry.fault for entry in before if not entry.abandoned} & {*hopeless, None, "null"}
        if last.fault is None:
            assert (answer.text, answer.error) == (text.upper(), None)
        elif last.fault == "null":
            assert (answer.text, answer.error) == ("", None)
        else:
            assert last.fault in hopeless
            assert answer.error is not None
    if calls >= 2000:
        assert set(proxy.counts) == set(ALL)
    failed = sum(answer.error is not None for answer in answers)
    print(
        f"\n{calls} calls: {sum(proxy.counts.values())} faults {dict(sorted(proxy.counts.items()))}, "
        f"{len(proxy.log) - calls} retries, {failed} unknown"
    )
    assert one.accounts.take()["failed"] == failed > 0


class Raw(Threaded):
    """Sends the same bytes in answer to every request, in pieces, and then perhaps for ever more."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.endless = b""
        self.heads: list[str] = []

    async def _serve(self, stack: contextlib.AsyncExitStack) -> int:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append(head)
                length = next(line for line in head.lower().splitlines() if line.startswith("content-length:"))
                await reader.readexactly(int(length.split(":")[1]))
                for piece in self.pieces:
                    writer.write(piece)
                    await writer.drain()
                while self.endless:
                    writer.write(self.endless)
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        stack.callback(server.close)
        return int(server.sockets[0].getsockname()[1])


class Elsewhere(Raw):
    """Where redirects lead: nothing may ever come here."""


# What an endpoint may repeat of the key it was sent.
SAID = st.sampled_from(
    [
        KEY,
        repr(KEY + "\n"),
        json.dumps(KEY).replace("/", "\\/"),
        "".join(f"\\u{ord(char):04x}" for char in KEY),
        quote(KEY, safe=""),
        quote(quote(KEY, safe=""), safe=""),
        "Basic " + base64.b64encode(f"user:{KEY}".encode()).decode(),
        "Basic " + base64.urlsafe_b64encode(f":{KEY}:".encode()).decode(),
        KEY.replace("/", "&#x2F;").replace("+", "&#43;"),
        "nothing of it",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([1e30, -5, "7", 10**400, "stop", "\ud83d", "\x1b[31m", "</think>", "<think>"])
    | st.text(max_size=8)
    | SAID
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "thinking", "refusal", "image_url", 3])},
        optional={"text": JSON, "thinking": JSON, "refusal": JSON},
    )
    | JSON,
    max_size=3,
)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "content": st.text(max_size=20) | PARTS | JSON,
        "refusal": JSON,
        "tool_calls": JSON,
        "reasoning_content": JSON,
    },
)
CHOICE = st.fixed_dictionaries(
    {"finish_reason": st.sampled_from(["stop", "length", "content_filter", "error", "tool_calls", None, 3]) | JSON},
    optional={"message": MESSAGE | JSON, "error": JSON},
)
USAGE = st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens", "total_tokens"]), JSON)
COMPLETION = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE | JSON, max_size=2) | JSON}, optional={"usage": USAGE | JSON, "error": JSON}
)
NEARLY = st.fixed_dictionaries(  # what mostly is an answer
    {
        "choices": st.fixed_dictionaries(
            {
                "finish_reason": st.sampled_from(["stop", "length", "content_filter"]),
                "message": st.fixed_dictionaries({"content": SAID | st.text(max_size=20) | PARTS}),
            }
        ).map(lambda choice: [choice])
    },
    optional={"usage": USAGE | JSON},
)
ERROR = st.fixed_dictionaries({"error": st.fixed_dictionaries({}, optional={"message": JSON, "code": JSON}) | JSON})
BODY = st.one_of(
    NEARLY.map(lambda value: json.dumps(value).encode()),
    NEARLY.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")),
    (COMPLETION | ERROR | st.lists(ERROR, max_size=2) | JSON).map(lambda value: json.dumps(value).encode()),
    SAID.map(str.encode),
    st.binary(max_size=60),
    st.sampled_from(
        [
            b"[" * 200_000 + b"]" * 200_000,
            b'{"a":' * 200_000,
            b'{"choices": "' + b"x" * 10_000_000 + b'"}',
            json.dumps({"choices": []}).encode("utf-16"),
            b"\x1f\x8b\x08\0garbage",
            b"",
        ]
    ),
)
HEADER = st.one_of(
    st.tuples(
        st.just("Retry-After"),
        st.sampled_from(["0", "-1", "nan", "1e400", "0.01", "Fri, 31 Dec 999999 23:59:59 GMT", "soon", "9999999999"]),
    ),
    st.tuples(st.just("Content-Encoding"), st.sampled_from(["gzip", "br", "identity", "deflate", "x"])),
    st.tuples(st.just("Content-Type"), st.sampled_from(["application/json", "text/html", "text/event-stream", ";;"])),
    st.tuples(st.just("Set-Cookie"), st.sampled_from(["a=b; Domain=.com", "\xff\xfe", "=;;=", "a=b; Path=/"])),
    st.tuples(st.just("X-Echo"), SAID),
)
ODD = st.fixed_dictionaries(
    {
        "status": st.sampled_from(
            [200, 200, 200, 200, 201, 204, 302, 307, 400, 403, 404, 408, 429, 500, 503, 599, 999]
        ),
        "phrase": SAID | st.sampled_from(["OK", ""]),
        "headers": st.lists(HEADER, max_size=3),
        "body": BODY,
        "framing": st.sampled_from(
            ["length", "chunked", "close"] * 3 + ["short", "long", "twice", "bad chunk", "endless"]
        ),
        "cuts": st.lists(st.integers(0, 300), max_size=3),
    }
)
PLAIN = st.fixed_dictionaries(  # odd in its body alone
    {
        "status": st.just(200),
        "phrase": SAID,
        "headers": st.just([]),
        "body": NEARLY.map(lambda value: json.dumps(value).encode()),
        "framing": st.sampled_from(["length", "chunked", "close"]),
        "cuts": st.lists(st.integers(0, 300), max_size=3),
    }
)
RESPONSE = st.booleans().flatmap(lambda plain: PLAIN if plain else ODD)


def bytes_of(drawn: dict[str, Any], elsewhere: str) -> tuple[list[bytes], bytes]:
    """Return the pieces of a response, and what it repeats for ever."""
    body, framing = drawn["body"], drawn["framing"]
    lines = [f"HTTP/1.1 {drawn['status']} {drawn['phrase']}", *(f"{name}: {value}" for name, value in drawn["headers"])]
    if drawn["status"] in (302, 307):
        lines.append(f"Location: {elsewhere}/chat/completions")
    endless = b""
    if framing in ("chunked", "bad chunk", "endless"):
        lines.append("Transfer-Encoding: chunked")
        size = b"zz" if framing == "bad chunk" else b"%x" % len(body)
        end = b"" if framing == "endless" else b"0\r\n\r\n"
        endless = b"10000\r\n" + b" " * 65536 + b"\r\n" if framing == "endless" else b""
        body = (size + b"\r\n" + body + b"\r\n" if body else b"") + end
    elif framing != "close":
        length = len(body) + {"short": -3, "long": 9}.get(framing, 0)
        lines += [f"Content-Length: {length}"] * (1 + (framing == "twice"))
        lines += ["Content-Length: 7"] if framing == "twice" else []
    whole = ("\r\n".join([*lines, "Connection: close", "", ""])).encode("latin-1", "replace") + body
    cuts = sorted({0, *drawn["cuts"], len(whole)})
    return [whole[start:end] for start, end in itertools.pairwise(cuts)], endless


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    with Raw() as server:
        yield server


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as server:
        yield server


def secret_forms() -> list[str]:
    coded = [base64.b64encode(b"\0" * i + KEY.encode()).decode()[4:-6] for i in range(3)]
    return [KEY, quote(KEY, safe=""), "Hostile", OTHER, *coded, *(c.replace("+", "-").replace("/", "_") for c in coded)]


@pytest.mark.parametrize(
    "examples", [pytest.param(110, marks=pytest.mark.slow), pytest.param(1500, marks=pytest.mark.long)]
)
def test_anything_that_an_endpoint_sends_is_an_answer_or_a_failed_call(
    raw: Raw, elsewhere: Elsewhere, examples: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"MY_KEY": KEY, "OPENAI_ORG_ID": OTHER, "OPENAI_PROJECT_ID": OTHER}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"Authorization: {OTHER}")
    monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
    caplog.set_level(logging.DEBUG)
    ended: Counter[str] = Counter()
    uncaught: list[object] = []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=RESPONSE)
    def check(drawn: dict[str, Any]) -> None:
        raw.pieces, raw.endless = bytes_of(drawn, elsewhere.url)
        student = EndpointStudent("m", raw.url, "MY_KEY", cache=False, retries=1, backoff=0.001, timeout=10)
        student.setup(CPU)
        try:
            (answer,) = student.respond([prompt("hello")])
            shown = answer.text + (answer.error or "")
            ended["failed" if answer.error is not None else "answered"] += 1
            assert answer.error is None or (answer.error.isprintable() and len(answer.error) <= 400)
            answer.text.encode()  # can be written to any file
            assert 0 <= answer.tokens <= 10**7
        except StudentStopped as stop:
            shown = str(stop)
            ended["stopped"] += 1
            assert drawn["status"] in (302, 307, 403, 404) or "error" in str(drawn["body"])
        finally:
            student.close()
        shown += caplog.text
        assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
        caplog.clear()
        assert [form for form in secret_forms() if form in shown] == []

    check()
    assert raw.heads
    assert all(f"authorization: bearer {KEY}".lower() in head.lower() for head in raw.heads)
    assert not any(OTHER in head or "cookie" in head.lower() for head in raw.heads)
    raw.heads.clear()
    assert elsewhere.heads == []
    assert uncaught == []
    print(f"\n{sum(ended.values())} odd responses: {dict(sorted(ended.items()))}")
    assert sum(ended.values()) >= 100
    assert ended["answered"] > 0
    assert ended["failed"] > 0


def test_half_characters_in_the_cache_are_replaced(tmp_path: Path) -> None:
    cache = AnswerCache(str(tmp_path / "answers.sqlite"))
    student = EndpointStudent("fake", "http://127.0.0.1:9/v1", api_key_env=None, cache=cache)
    asked = Prompt((Message("user", "half"),))
    cache.put({answer_key(student.identity(), asked, sampled=False): Response("nice \ud83d")}, "s")
    student.setup(CPU)
    assert [answer.text for answer in student.respond([asked])] == ["nice \ufffd"]
    student.close()
