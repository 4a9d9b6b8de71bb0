"""The equipment that tests of endpoints stand on."""

import asyncio
import contextlib
import email.utils
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import endpoints
import pytest
from endpoints import AFTER, ALL, FakeServer, FaultProxy

Asked = tuple[int, str, dict[str, str]]  #: status, body, headers


def body(text: str, **options: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **options}


async def ask(session: aiohttp.ClientSession, url: str, text: str, **options: Any) -> Asked:
    async with session.post(f"{url}/chat/completions", json=body(text, **options)) as response:
        return response.status, await response.text(), {n.lower(): v for n, v in response.headers.items()}


def talk(work: Callable[[aiohttp.ClientSession], Awaitable[Any]], key: str = "sk-test") -> Any:
    async def run() -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
            return await asyncio.wait_for(work(session), 20)

    return asyncio.run(run())


def one(url: str, text: str, key: str = "sk-test", **options: Any) -> Asked:
    return talk(lambda session: ask(session, url, text, **options), key)


def choice(answer: Asked) -> dict[str, Any]:
    return json.loads(answer[1])["choices"][0]


@contextlib.contextmanager
def soon(what: Callable[[], bool]) -> Iterator[None]:
    """What comes true within two seconds after the block."""
    yield
    deadline = time.monotonic() + 2
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


def test_the_fake_server_answers_as_foretold(server: FakeServer) -> None:
    status, text, _ = one(server.url, "say one two")
    completion = json.loads(text)
    assert status == 200
    assert completion["choices"][0]["message"]["content"] == "SAY ONE TWO"
    assert completion["choices"][0]["finish_reason"] == "stop"
    assert completion["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    (request,) = server.requests
    assert (request.body, request.key, request.status, request.sent) == (body("say one two"), "sk-test", 200, True)
    assert request.finished is not None
    assert request.arrived <= request.finished <= time.monotonic()


def test_the_fake_server_keeps_to_limits_stops_and_counts(server: FakeServer) -> None:
    for option in ("max_tokens", "max_completion_tokens"):
        cut = choice(one(server.url, "a b c d", **{option: 2}))
        assert (cut["message"]["content"], cut["finish_reason"]) == ("A B", "length")
    stopped = choice(one(server.url, "a b c d", stop=[" C"]))
    assert (stopped["message"]["content"], stopped["finish_reason"]) == ("A B", "stop")
    assert len(json.loads(one(server.url, "a", n=3)[1])["choices"]) == 3


@pytest.mark.parametrize(
    ("marker", "content", "reason", "refused"),
    [
        ("[refuse]", None, "stop", True),
        ("[filter]", None, "content_filter", False),
        ("[null]", None, "stop", False),
        ("[empty]", "", "stop", False),
        ("[cut]", "[CUT] X", "length", False),
        ("[no-usage]", "[NO-USAGE] X", "stop", False),
    ],
)
def test_markers_ask_for_special_answers(
    server: FakeServer, marker: str, content: str | None, reason: str, refused: bool
) -> None:
    answer = one(server.url, f"{marker} x")
    message = choice(answer)["message"]
    assert (message["content"], choice(answer)["finish_reason"]) == (content, reason)
    assert (message["refusal"] is not None) == refused
    assert ("usage" in json.loads(answer[1])) == (marker != "[no-usage]")


def test_errors_are_told_as_openai_does_and_repeat_the_key(server: FakeServer) -> None:
    assert one(server.url, "[status 404] x")[0] == 404
    server.status, server.code = 429, "insufficient_quota"
    status, text, headers = one(server.url, "x", key="sk-secret")
    assert status == 429
    assert "retry-after" not in headers
    assert json.loads(text)["error"]["code"] == "insufficient_quota"
    assert "sk-secret" in text
    server.status = None
    assert one(server.url, "x")[0] == 200


def test_a_wrong_key_is_refused_and_repeated() -> None:
    with FakeServer(key="sk-right") as server:
        assert one(server.url, "x", key="sk-right")[0] == 200
        status, text, _ = one(server.url, "x", key="sk-wrong")
    assert status == 401
    assert "sk-wrong" in json.loads(text)["error"]["message"]


def burst(url: str, count: int) -> list[Asked]:
    return talk(lambda session: asyncio.gather(*(ask(session, url, f"query {i}") for i in range(count))))


def test_the_delay_does_not_grow_with_the_load() -> None:
    with FakeServer(delay=0.2) as server:
        start = time.monotonic()
        answers = burst(server.url, 20)
        assert 0.2 <= time.monotonic() - start < 1
        assert server.peak == 20
    assert [choice(answer)["message"]["content"] for answer in answers] == [f"QUERY {i}" for i in range(20)]


def test_beyond_its_capacity_it_refuses_and_beyond_its_slots_it_waits() -> None:
    with FakeServer(delay=0.1, capacity=4, retry_after=0.5) as server:
        answers = burst(server.url, 6)
        assert Counter(status for status, *_ in answers) == {200: 4, 429: 2}
        assert {headers.get("retry-after") for status, _, headers in answers if status == 429} == {"0.5"}
    with FakeServer(delay=0.1, slots=2) as server:
        start = time.monotonic()
        assert {status for status, *_ in burst(server.url, 6)} == {200}
        assert time.monotonic() - start >= 0.3


def test_it_notices_who_leaves_and_stops_while_one_waits(server: FakeServer) -> None:
    async def leave(session: aiohttp.ClientSession) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ask(session, server.url, "[hang]"), 0.2)

    with soon(lambda: server.requests[0].finished is not None):
        talk(leave)
    assert not server.requests[0].sent

    def wait() -> None:
        with pytest.raises(aiohttp.ClientError):
            one(server.url, "[hang]")

    waiting = threading.Thread(target=wait)
    with soon(lambda: len(server.requests) == 2):
        waiting.start()
    start = time.monotonic()
    server.__exit__()
    waiting.join(5)
    assert not waiting.is_alive()
    assert time.monotonic() - start < 2


def _call(url: str, answers: Any) -> None:
    answers.put(one(url, "from afar"))


def test_other_processes_can_call(server: FakeServer) -> None:
    context = multiprocessing.get_context("forkserver")
    answers = context.Queue()
    process = context.Process(target=_call, args=(server.url, answers))
    process.start()
    assert choice(answers.get(timeout=20))["message"]["content"] == "FROM AFAR"
    process.join(10)


async def _outcome(session: aiohttp.ClientSession, url: str, text: str) -> Asked | str:
    try:
        return await asyncio.wait_for(ask(session, url, text), 0.4)
    except TimeoutError:
        return "endless"
    except aiohttp.ClientError as error:
        return "reset" if "reset by peer" in str(error) else "closed"


EXPECTED = {
    "429-seconds": 429,
    "429-date": 429,
    "429": 429,
    "500": 500,
    "503": 503,
    "reset": "reset",
    "cut-reset": "reset",
    "cut-close": "closed",
    "drip": "endless",
    "silent": "endless",
    "malformed": 200,
    "html": 200,
    "no-choices": 200,
    "null": 200,
}


@pytest.mark.parametrize("fault", ALL)
def test_faults_are_what_they_are_called(server: FakeServer, fault: str) -> None:
    with FaultProxy(server.url, share=1, faults=[fault], retry_after=0.3) as proxy:
        asked = time.time()
        outcome = talk(lambda session: _outcome(session, proxy.url, "hello there"))
        (entry,) = proxy.log
        with soon(lambda: entry.finished is not None):
            pass
    assert (outcome if isinstance(outcome, str) else outcome[0]) == EXPECTED[fault]
    assert proxy.counts == {fault: 1}
    assert (entry.fault, entry.attempt, entry.messages) == (fault, 1, body("hello there")["messages"])
    assert entry.status == (None if fault in {"reset", "silent"} else int(fault[:3]) if fault[0].isdigit() else 200)
    assert entry.abandoned == (fault in {"drip", "silent"})
    assert len(server.requests) == (fault in AFTER)
    if isinstance(outcome, str):
        return
    _, text, headers = outcome
    assert headers["connection"] == "close"
    match fault:
        case "429-seconds":
            assert headers["retry-after"] == "0.3"
        case "429-date":
            assert 0 <= email.utils.parsedate_to_datetime(headers["retry-after"]).timestamp() - asked <= 2
        case "429":
            assert "retry-after" not in headers
        case "malformed":
            with pytest.raises(json.JSONDecodeError):
                json.loads(text)
        case "html":
            assert headers["content-type"] == "text/html"
        case "no-choices":
            assert json.loads(text)["choices"] == []
        case "null":
            assert choice(outcome)["message"]["content"] is None


def test_what_is_not_spoilt_comes_through_unchanged(server: FakeServer) -> None:
    with FaultProxy(server.url, share=0) as proxy:
        _, told, _ = one(proxy.url, "hello", key="sk-7")
        assert choice((200, told, {}))["message"]["content"] == "HELLO"
        assert server.requests[-1].key == "sk-7"
        assert one(proxy.url, "[status 404] x")[0] == 404
        assert [(entry.fault, entry.status) for entry in proxy.log] == [(None, 200), (None, 404)]


def test_the_proxy_passes_a_departure_on(server: FakeServer) -> None:
    with FaultProxy(server.url, share=0) as proxy, soon(lambda: server.requests[0].finished is not None):
        talk(lambda session: _outcome(session, proxy.url, "[hang]"))
    assert proxy.log[0].abandoned


def test_the_draws_follow_from_seed_and_body_alone(server: FakeServer) -> None:
    quick = [fault for fault in ALL if fault not in {"drip", "silent"}]

    def run(order: list[int], seed: int) -> dict[tuple[str, int], str | None]:
        async def work(session: aiohttp.ClientSession) -> None:
            await asyncio.gather(*(_outcome(session, proxy.url, f"query {i}") for i in order))

        with FaultProxy(server.url, share=0.5, seed=seed, faults=quick) as proxy:
            talk(work)
            talk(work)
            return {(entry.digest, entry.attempt): entry.fault for entry in proxy.log}

    first = run(list(range(40)), 0)
    assert first == run(list(reversed(range(40))), 0)
    assert first != run(list(range(40)), 1)
    assert len(first) == 80


def test_a_body_can_be_spared_after_so_many_faults(server: FakeServer) -> None:
    with FaultProxy(server.url, share=1, faults=["500"], most=2) as proxy:
        assert [one(proxy.url, "x")[0] for _ in range(6)] == [500, 500, 200, 500, 500, 200]
    with pytest.raises(ValueError, match="earthquake"):
        FaultProxy(server.url, faults=["earthquake"])


def test_many_requests_pass_quickly_with_faults_among_them(server: FakeServer) -> None:
    quick = [fault for fault in ALL if fault not in {"drip", "silent"}]
    with FaultProxy(server.url, share=0.2, faults=quick) as proxy:

        async def work(session: aiohttp.ClientSession) -> None:
            queue = iter(range(600))

            async def worker() -> None:
                for i in queue:
                    with contextlib.suppress(aiohttp.ClientError):
                        await ask(session, proxy.url, f"query {i}")

            await asyncio.gather(*(worker() for _ in range(32)))

        start = time.monotonic()
        talk(work)
        took = time.monotonic() - start
    assert len(proxy.log) == 600
    assert 0.14 <= sum(proxy.counts.values()) / 600 <= 0.26
    assert set(proxy.counts) == set(quick)
    assert took < 10


SLEEPER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("AT http://127.0.0.1:%d" % server.server_port, flush=True)
server.serve_forever()
"""


def test_a_server_process_is_gone_after_its_block() -> None:
    with endpoints._process(SLEEPER, [], r"AT (http://\S+)", 20) as root:
        assert endpoints._answers(root)
    assert not endpoints._answers(root)


def test_a_server_process_that_fails_shows_why() -> None:
    broken = endpoints._process("raise SystemExit('no such model')", [], r"AT (http://\S+)", 20)
    with pytest.raises(RuntimeError, match="no such model"):
        broken.__enter__()


def test_a_server_process_ends_with_a_killed_parent(tmp_path: Path) -> None:
    parent = (
        f"import sys, time; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "import endpoints\n"
        f"with endpoints._process({SLEEPER!r}, [], r'AT (http://\\S+)', 20) as root:\n"
        "    print(root, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    root = process.stdout.readline().strip()
    assert endpoints._answers(root)
    with soon(lambda: not endpoints._answers(root)):
        process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
