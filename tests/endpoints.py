"""Endpoints to test against: an obedient fake, a proxy that breaks answers, and two real servers of the same protocol.

All listen on 127.0.0.1 at a port of their own and are context managers. The fake and the proxy run in a thread of
this process, the real servers in processes that end with it, even if it is killed. Times are those of
`time.monotonic`, which the processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import math
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from aiohttp import web

Body = dict[str, Any]  #: a request's or an answer's parsed JSON


class _Threaded:
    """What serves in a thread with its own event loop, between entering and leaving it.

    Subclasses write ``_serve``, which gives the port and leaves the way to stop on the stack.
    """

    def __init__(self) -> None:
        self._port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._end: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """What a client takes as ``base_url``."""
        if not self._port:
            raise RuntimeError(f"{type(self).__name__}: enter it first")
        return f"http://127.0.0.1:{self._port}/v1"

    async def _serve(self, stack: contextlib.AsyncExitStack) -> int:
        raise NotImplementedError

    def __enter__(self) -> Self:
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(started)), name=type(self).__name__, daemon=True
        )
        self._thread.start()
        self._port = started.result(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is None or self._end is None or self._thread is None or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        if self._thread.is_alive():
            raise RuntimeError(f"{type(self).__name__} does not stop")

    async def _run(self, started: Future[int]) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with contextlib.AsyncExitStack() as stack:
                started.set_result(await self._serve(stack))
                await self._end.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)


# ---------------------------------------------------------------------------------------------------- the fake server


@dataclass
class Request:
    """What the fake server was asked.

    Attributes:
        body: The request, parsed.
        headers: Its headers, with lower-case names.
        arrived: When it was read.
        finished: When its answer was written, or when the client went away; None while it is in work.
        status: Status of the answer, or None while there is none.
        sent: Whether the whole answer was handed to a client that was still there.
    """

    body: Body
    headers: dict[str, str]
    arrived: float
    finished: float | None = None
    status: int | None = None
    sent: bool = False

    @property
    def key(self) -> str | None:
        """The key that came with it."""
        scheme, _, key = self.headers.get("authorization", "").partition(" ")
        return key if scheme == "Bearer" else None


def last_user_text(body: Body) -> str:
    """Text of the last user turn of a request."""
    return next((str(m["content"]) for m in reversed(body["messages"]) if m["role"] == "user"), "")


def shout(body: Body) -> str:
    """The fake server's answer: the last user turn in capitals."""
    return last_user_text(body).upper()


class FakeServer(_Threaded):
    """An endpoint whose every answer can be foretold.

    It answers with the last user turn in capitals. A word is a token. An answer longer than ``max_tokens`` or
    ``max_completion_tokens`` is cut there with finish reason "length"; the texts in ``stop`` end it; ``n`` answers
    are given where that many are asked for.

    A marker in any turn asks for something special:

    - ``[refuse]``: ``refusal`` instead of ``content``; ``[filter]``: finish reason "content_filter", content null;
    - ``[null]``: content null; ``[empty]``: content ""; ``[cut]``: finish reason "length";
    - ``[no-usage]``: no usage; ``[hang]``: no answer, ever; ``[status 400]``: an error with that status.

    Error messages repeat the key that came with the request.

    Args:
        delay: Seconds that each answer takes, whatever the load; `delay` may be changed at any time.
        answer: Gives the answer to a parsed request instead, before it is cut; it must be quick.
        key: What has to come as bearer token; anything else gets status 401.
        capacity: A request that comes while so many are in work gets status 429 at once.
        slots: So many are in work at once, the others wait for a slot as with llama.cpp.
        retry_after: Seconds that a 429 tells to wait; None says nothing.

    Attributes:
        requests: What came to the chat, in order of arrival.
        peak: Largest number of requests that were in the server at once.
        status: Where set, every request gets this status and an error.
        code: The error's ``code``, where one is wanted ("insufficient_quota").
    """

    def __init__(
        self,
        delay: float = 0.0,
        answer: Callable[[Body], str] | None = None,
        key: str | None = None,
        capacity: int | None = None,
        slots: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__()
        self.delay = delay
        self.answer = answer or shout
        self.key = key
        self.capacity = capacity
        self.slots = slots
        self.retry_after = retry_after
        self.status: int | None = None
        self.code: str | None = None
        self.requests: list[Request] = []
        self.peak = 0
        self._inside = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def _serve(self, stack: contextlib.AsyncExitStack) -> int:
        self._slots = asyncio.Semaphore(self.slots) if self.slots else contextlib.nullcontext()
        app = web.Application(client_max_size=2**26)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        # A handler is cancelled when its client goes away.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        stack.callback(lambda: [task.cancel() for task in self._tasks])
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        return int(runner.addresses[0][1])

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "fake", "object": "model", "owned_by": "tests"}]})

    async def _chat(self, call: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in call.headers.items()}
        request = Request({}, headers, time.monotonic())
        self.requests.append(request)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._inside += 1
        self.peak = max(self.peak, self._inside)
        try:
            response = await self._respond(call, request)
            request.status = response.status
            await response.prepare(call)
            await response.write_eof()
            request.sent = call.transport is not None and not call.transport.is_closing()
            return response
        finally:
            self._inside -= 1
            self._tasks.discard(task)
            request.finished = time.monotonic()

    async def _respond(self, call: web.Request, request: Request) -> web.Response:
        try:
            request.body = body = json.loads(await call.read())
            said = "\n".join(str(message["content"]) for message in body["messages"])
        except (ValueError, KeyError, TypeError) as error:
            return self._error(request, 400, f"not a chat: {error!r}")
        if self.key is not None and request.key != self.key:
            return self._error(request, 401, "Incorrect API key provided", "invalid_api_key")
        if self.capacity is not None and self._inside > self.capacity:
            return self._error(request, 429, "Rate limit reached", "rate_limit_exceeded")
        async with self._slots:
            if "[hang]" in said:
                await asyncio.Event().wait()
            await asyncio.sleep(self.delay)
            special = re.search(r"\[status (\d{3})\]", said)
            if self.status is not None or special:
                status = int(special[1]) if special else self.status
                return self._error(request, status or 500, "As the test asked", self.code)
            return web.json_response(self._completion(body, said))

    def _error(self, request: Request, status: int, message: str, code: str | None = None) -> web.Response:
        error = {
            "message": f"{message}: {request.key}. You can find your key at https://example.com/keys.",
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": None,
            "code": code,
        }
        headers = {"Retry-After": f"{self.retry_after:g}"} if status == 429 and self.retry_after is not None else {}
        return web.json_response({"error": error}, status=status, headers=headers)

    def _completion(self, body: Body, said: str) -> Body:
        text: str | None = self.answer(body)
        assert text is not None
        reason = "stop"
        stops = body.get("stop") or []
        for stop in [stops] if isinstance(stops, str) else stops:
            text = text.split(stop)[0]
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        if limit and len(text.split()) > limit:
            text, reason = " ".join(text.split()[:limit]), "length"
        tokens = len(text.split())
        refusal = None
        if "[empty]" in said:
            text, tokens = "", 0
        elif "[null]" in said:
            text, tokens = None, 0
        elif "[filter]" in said:
            text, tokens, reason = None, 0, "content_filter"
        elif "[refuse]" in said:
            text, refusal = None, "I cannot help with that."
            tokens = len(refusal.split())
        elif "[cut]" in said:
            reason = "length"
        message = {"role": "assistant", "content": text, "refusal": refusal}
        count = body.get("n") or 1
        read = sum(len(str(message["content"]).split()) for message in body["messages"])
        completion: Body = {
            "id": f"chatcmpl-{len(self.requests)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.get("model"),
            "choices": [{"index": i, "message": message, "finish_reason": reason} for i in range(count)],
        }
        if "[no-usage]" not in said:
            completion["usage"] = {
                "prompt_tokens": read,
                "completion_tokens": tokens * count,
                "total_tokens": read + tokens * count,
            }
        return completion


# --------------------------------------------------------------------------------------------------------- the proxy

#: Faults that the upstream server never hears of.
BEFORE = ("429-seconds", "429-date", "429", "500", "503", "reset", "drip", "silent", "malformed", "html")
#: Faults in what the upstream server answered.
AFTER = ("cut-reset", "cut-close", "no-choices", "null")
ALL = (*BEFORE, *AFTER)

#: Hop-by-hop headers, and those that a changed body makes wrong.
_DROPPED = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "expect"}


@dataclass
class Forwarded:
    """A request that came by the proxy.

    Attributes:
        digest: Hash of the body: equal for the attempts of one call, and for calls that ask alike.
        messages: The chat in it.
        attempt: Which request with this body it is, from 1.
        fault: What was done to it, or None.
        arrived: When it was read.
        status: Status that the client was sent, or None where it got none.
        finished: When the proxy was done with it.
        abandoned: Whether the client went away before it had its answer.
    """

    digest: str
    messages: list[Body]
    attempt: int
    fault: str | None
    arrived: float
    status: int | None = None
    finished: float | None = None
    abandoned: bool = False


class FaultProxy(_Threaded):
    """Stands between client and server and spoils a share of the answers.

    Whether a request is spoilt and how is drawn from the seed, the body and its attempt, so that it does not depend
    on which request came first. Every response closes its connection. The faults:

    - ``429-seconds``, ``429-date``: too many requests, with Retry-After as a number or as a date; ``429``: without;
    - ``500``, ``503``: as a gateway says it, in HTML the second;
    - ``reset``: the connection is reset before the first byte;
    - ``cut-reset``, ``cut-close``: half of the body, then the connection is reset, or closed;
    - ``drip``: headers, then a space now and then for ever; ``silent``: nothing at all, for ever;
    - ``malformed``: status 200 and half of a JSON; ``html``: status 200 and a web page;
    - ``no-choices``: the answer with no choice in it; ``null``: the answer with content null.

    Args:
        upstream_url: The server's ``base_url``, with or without ``/v1``.
        share: Share of requests to spoil.
        seed: Of the draws.
        faults: What to draw from.
        retry_after: Seconds that a 429 tells to wait; a date is rounded up to the next full second.
        drip: Seconds between two bytes of an answer that never ends.
        most: How many times in a row a body is spoilt at most; None: no limit.

    Attributes:
        log: The requests to the chat in order of arrival. Other paths are passed on and not logged.
        share: May be changed at any time, like ``faults`` and ``retry_after``.
    """

    def __init__(
        self,
        upstream_url: str,
        share: float = 0.2,
        seed: int = 0,
        faults: Sequence[str] = ALL,
        retry_after: float = 1.0,
        drip: float = 0.05,
        most: int | None = None,
    ) -> None:
        super().__init__()
        if unknown := set(faults) - set(ALL):
            raise ValueError(f"unknown faults {sorted(unknown)}; there are {ALL}")
        self.upstream = upstream_url.rstrip("/").removesuffix("/v1")
        self.share = share
        self.seed = seed
        self.faults = tuple(faults)
        self.retry_after = retry_after
        self.drip = drip
        self.most = most
        self.log: list[Forwarded] = []
        self._attempts: Counter[str] = Counter()
        self._row: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """How often each fault was injected."""
        return dict(Counter(entry.fault for entry in self.log if entry.fault is not None))

    def _draw(self, digest: str, attempt: int) -> str | None:
        draw = random.Random(f"{self.seed} {digest} {attempt}")
        spoil = draw.random() < self.share and bool(self.faults)
        if self.most is not None and self._row[digest] >= self.most:
            spoil = False
        self._row[digest] = self._row[digest] + 1 if spoil else 0
        return draw.choice(self.faults) if spoil else None

    async def _serve(self, stack: contextlib.AsyncExitStack) -> int:
        # A connection a request: none can be found closed by the server in the moment of its use.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self._session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None))
        )
        working: set[asyncio.Task[None]] = set()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            working.add(task)
            try:
                await self._connection(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                working.discard(task)
                writer.close()

        async def stop() -> None:
            server.close()
            for task in tuple(working):
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024, limit=2**20)
        stack.push_async_callback(stop)
        return int(server.sockets[0].getsockname()[1])

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = head.rstrip().split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method != "POST" or not path.endswith("/chat/completions"):
            await self._pass_on(reader, writer, method, path, headers, body, None)
            return
        digest = hashlib.sha256(body).hexdigest()[:16]
        self._attempts[digest] += 1
        attempt = self._attempts[digest]
        messages: list[Body] = []
        with contextlib.suppress(ValueError, KeyError, TypeError):
            messages = json.loads(body)["messages"]
        entry = Forwarded(digest, messages, attempt, self._draw(digest, attempt), time.monotonic())
        self.log.append(entry)
        try:
            if entry.fault in BEFORE:
                await self._spoil(reader, writer, entry)
            else:
                await self._pass_on(reader, writer, method, path, headers, body, entry)
        except ConnectionError:
            entry.abandoned = True
        finally:
            entry.finished = time.monotonic()

    async def _spoil(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, entry: Forwarded) -> None:
        fault = str(entry.fault)
        match fault:
            case "reset":
                _reset(writer)
            case "silent":
                await _departure(reader)
                entry.abandoned = True
            case "drip":
                entry.status = 200
                writer.write(_head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}))
                leaving = asyncio.create_task(_departure(reader))
                while not leaving.done():
                    writer.write(b"1\r\n \r\n")
                    await writer.drain()
                    await asyncio.wait({leaving}, timeout=self.drip)
                entry.abandoned = True
            case "malformed":
                await self._send(writer, entry, 200, b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess')
            case "html":
                page = b"<!doctype html><html><body><h1>Sign in to the network</h1></body></html>"
                await self._send(writer, entry, 200, page, {"Content-Type": "text/html"})
            case "503":
                page = b"<html><head><title>503 Service Temporarily Unavailable</title></head></html>"
                await self._send(writer, entry, 503, page, {"Content-Type": "text/html"})
            case _:
                status = int(fault[:3])
                wait = {}
                if fault == "429-seconds":
                    wait = {"Retry-After": f"{self.retry_after:g}"}
                elif fault == "429-date":
                    then = math.ceil(time.time() + self.retry_after)
                    wait = {"Retry-After": email.utils.formatdate(then, usegmt=True)}
                error = {"message": f"The proxy says {status}.", "type": "proxy", "param": None, "code": None}
                await self._send(writer, entry, status, json.dumps({"error": error}).encode(), wait)

    async def _pass_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
        entry: Forwarded | None,
    ) -> None:
        kept = {name: value for name, value in headers.items() if name not in _DROPPED}
        kept["accept-encoding"] = "identity"

        async def ask() -> tuple[int, dict[str, str], bytes]:
            async with self._session.request(method, self.upstream + path, data=body, headers=kept) as response:
                answer = await response.read()
                return response.status, {n: v for n, v in response.headers.items() if n.lower() not in _DROPPED}, answer

        asking, leaving = asyncio.create_task(ask()), asyncio.create_task(_departure(reader))
        try:
            await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise ConnectionError("the client went away")
            try:
                status, given, answer = asking.result()
            except aiohttp.ClientError:  # the server broke its connection: so is the client's
                _reset(writer)
                return
            fault = entry.fault if entry is not None else None
            if fault is not None and status != 200 and entry is not None:
                entry.fault = fault = None  # it is spoilt already
            await self._send(writer, entry, status, answer, given, fault)
        finally:
            for task in (asking, leaving):
                task.cancel()
            await asyncio.gather(asking, leaving, return_exceptions=True)

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        entry: Forwarded | None,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        fault: str | None = None,
    ) -> None:
        if entry is not None:
            entry.status = status
        if fault in {"no-choices", "null"}:
            completion = json.loads(body)
            if fault == "no-choices":
                completion["choices"] = []
            else:
                completion["choices"][0]["message"]["content"] = None
            body = json.dumps(completion).encode()
        head = _head(status, {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))})
        if fault in {"cut-reset", "cut-close"}:
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            if fault == "cut-reset":
                await asyncio.sleep(0.01)  # the client is to read the first half before it hears of the reset
                _reset(writer)
            return
        writer.write(head + body)
        await writer.drain()


def _head(status: int, headers: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} As-The-Test-Asked", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


async def _departure(reader: asyncio.StreamReader) -> None:
    """Wait until the client closes its side."""
    while await reader.read(2**16):
        pass


def _reset(writer: asyncio.StreamWriter) -> None:
    """End the connection by a reset instead of a farewell."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# -------------------------------------------------------------------------------------------------- the real servers

#: Runs before a server in its process: ends it with the process that started it, whose pipe is its standard input.
_WATCH = """
import os, sys, threading

def watch():
    os.read(0, 1)
    os.killpg(os.getpgid(0), 9)

threading.Thread(target=watch, daemon=True).start()
"""

_TRANSFORMERS = """
from transformers.cli.transformers import app

app(sys.argv[1:])
"""

_LLAMA = """
import threading, xllamacpp

path, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = slots
params.n_ctx = slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print("LISTENING", server.listening_address, flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def _process(code: str, arguments: list[str], address: str, timeout: float, threads: int = 1) -> Iterator[str]:
    """Run Python code that serves, and give its root URL once it answers.

    Args:
        code: The program.
        arguments: Its arguments.
        address: Regular expression that finds the root URL in what it writes.
        timeout: Seconds it may take until then.
        threads: Of its arithmetic.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(threads)}
    with tempfile.NamedTemporaryFile("w+b", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCH + code, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

        def written() -> str:
            with open(log.name, encoding="utf-8", errors="replace") as file:
                return file.read()

        try:
            deadline = time.monotonic() + timeout
            while True:
                found = re.search(address, written())
                if found and _answers(found[1] + "/health"):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    state = f"ended with {process.returncode}" if process.returncode is not None else "does not answer"
                    end = "\n".join(written().splitlines()[-30:])
                    raise RuntimeError(f"the server {state} after {arguments}; the end of its log:\n{end}")
                time.sleep(0.05)
            yield found[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            if process.stdin is not None:
                process.stdin.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def transformers_server(
    model_folder: str | os.PathLike[str], continuous_batching: bool = False, threads: int = 1, timeout: float = 120
) -> Iterator[tuple[str, str]]:
    """Serve a folder of ``save_pretrained`` in float32 on the CPU with ``transformers serve``.

    Args:
        model_folder: The folder.
        continuous_batching: Whether requests are answered together; otherwise one after the other.
        threads: Of the arithmetic; see `llama_server`.
        timeout: Seconds it may take to start.

    Yields:
        ``base_url``, and the model's name, which it insists on.
    """
    name = os.fspath(model_folder)
    options = ["--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--dtype", "float32"]
    options += ["--continuous-batching"] if continuous_batching else []
    running = r"Uvicorn running on (http://[\d.]+:\d+)"
    with _process(_TRANSFORMERS, ["serve", name, *options], running, timeout, threads) as root:
        yield f"{root}/v1", name


@contextlib.contextmanager
def llama_server(
    gguf_path: str | os.PathLike[str],
    slots: int = 4,
    context: int = 2048,
    threads: int = 1,
    timeout: float = 120,
) -> Iterator[tuple[str, str]]:
    """Serve a GGUF file on the CPU with llama.cpp's server.

    Args:
        gguf_path: The file.
        slots: Requests answered at once; the others wait.
        context: Tokens that prompt and answer of each may have together.
        threads: Of the arithmetic. They wait for each other spinning: with as many as there are cores on a machine
            that does something else too, it becomes more than ten times slower.
        timeout: Seconds it may take to start.

    Yields:
        ``base_url``, and the model's name, which it does not look at.
    """
    arguments = [os.fspath(gguf_path), str(slots), str(context), str(threads)]
    # The server's log runs in between what we print, but names no other address.
    with _process(_LLAMA, arguments, r"(http://127\.0\.0\.1:\d+)\s", timeout, threads) as root:
        yield f"{root}/v1", os.path.basename(arguments[0]).removesuffix(".gguf")
