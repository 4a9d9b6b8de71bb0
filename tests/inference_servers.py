"""A student's server and the gateway before it, in threads of the test."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve on a free port of the loopback and give the base URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True  # it ends within its next tick; to wait for it takes longer than most of the tests


class Upstream:
    """A student that repeats the last message, and remembers what it was sent.

    A message ``HTTP 429`` is answered with that status, ``redirect`` with a redirect, ``slow`` once ``go`` is set.
    """

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()  #: a client has left before its answer came
        self.go = threading.Event()

    def app(self) -> Starlette:
        async def models(request: Request) -> Response:
            self.headers.append(dict(request.headers))
            return JSONResponse({"object": "list", "data": [{"id": "student", "object": "model"}]})

        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/models", models, methods=["GET"]),
            ]
        )

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        last = body["messages"][-1].get("content")
        text = last if isinstance(last, str) else json.dumps(last)
        if text.startswith("HTTP "):
            status = int(text.split()[1])
            return JSONResponse({"error": {"message": "from upstream"}}, status, {"retry-after": "7", "x-own": "kept"})
        if text.startswith("redirect"):
            return Response(status_code=307, headers={"location": "http://127.0.0.1:9/v1/chat/completions"})
        if "slow" in text:  # wherever the instruction stands
            while not self.go.is_set():
                if await request.is_disconnected():
                    self.left.set()
                    return Response(status_code=499)
                await asyncio.sleep(0.01)
        if body.get("stream"):
            return StreamingResponse(self.events(text, request), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "s", "choices": [choice]}
        return Response(
            json.dumps(answer), media_type="application/json"
        )  # ASCII alone: a text may hold half a surrogate

    async def events(self, text: str, request: Request) -> Any:
        try:
            for place, word in enumerate([*text.split(" "), None]):
                if place == 1 and "wait" in text:
                    while not self.go.is_set():
                        await asyncio.sleep(0.01)
                delta = {} if word is None else {"role": "assistant", "content": f"{word} "}
                choice = {"index": 0, "delta": delta, "finish_reason": "stop" if word is None else None}
                chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "s", "choices": [choice]}
                yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.left.set()
            raise
