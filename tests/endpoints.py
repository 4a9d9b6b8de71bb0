"""A fake endpoint whose every answer can be foretold; see also faulty.py and servers.py.

It listens on 127.0.0.1 at a port of its own, in a thread of this process. Times are those of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

from wst import Message, Prompt

Body = dict[str, Any]  #: a request's or an answer's parsed JSON


class Threaded:
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


def prompt(text: str, sample: int = 0) -> Prompt:
    return Prompt((Message("user", text),), sample)


def last_user_text(body: Body) -> str:
    """Text of the last user turn of a request."""
    return next((str(m["content"]) for m in reversed(body["messages"]) if m["role"] == "user"), "")


def shout(body: Body) -> str:
    """The fake server's answer: the last user turn in capitals."""
    return last_user_text(body).upper()


class FakeServer(Threaded):
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
        retry_after: Seconds that a 429 tells to wait; None says nothing.

    Attributes:
        requests: What came to the chat, in order of arrival.
        peak: Largest number of requests that were in the server at once.
        status: Where set, every request gets this status and an error.
        code: The error's ``code``, where one is wanted ("insufficient_quota").
        script: Statuses of the errors that the next requests get, in order.
        adds: Tokens that it adds to each prompt, as a system message of its own would.
        hold: Tells of a request whether its answer has to wait still: by it tests order events.
    """

    def __init__(
        self,
        delay: float = 0.0,
        answer: Callable[[Body], str] | None = None,
        key: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__()
        self.delay = delay
        self.answer = answer or shout
        self.key = key
        self.retry_after = retry_after
        self.status: int | None = None
        self.code: str | None = None
        self.script: list[int] = []
        self.adds = 0
        self.hold: Callable[[Request], bool] = lambda _: False
        self.requests: list[Request] = []
        self.peak = 0
        self._inside = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def _serve(self, stack: contextlib.AsyncExitStack) -> int:
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
        if self.script:
            return self._error(request, self.script.pop(0), "As the test asked", self.code)
        if "[hang]" in said:
            await asyncio.Event().wait()
        await asyncio.sleep(self.delay)
        while self.hold(request):
            await asyncio.sleep(0.002)
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
        read += self.adds
        if "[no-usage]" not in said:
            completion["usage"] = {
                "prompt_tokens": read,
                "completion_tokens": tokens * count,
                "total_tokens": read + tokens * count,
            }
        return completion
