"""A proxy between client and server that spoils a share of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import hashlib
import json
import math
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
from endpoints import Body, Threaded

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


class FaultProxy(Threaded):
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
        self.log: list[Forwarded] = []
        self._attempts: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """How often each fault was injected."""
        return dict(Counter(entry.fault for entry in self.log if entry.fault is not None))

    def _draw(self, digest: str, attempt: int) -> str | None:
        draw = random.Random(f"{self.seed} {digest} {attempt}")
        spoil = draw.random() < self.share and bool(self.faults)
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
