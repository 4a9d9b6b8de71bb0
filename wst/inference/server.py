"""An OpenAI-compatible server that puts a trained teacher before any student.

``POST /v1/chat/completions`` writes an instruction for the last user message, puts it where training put it, and passes
the request on; the answer comes back byte for byte as the upstream server sends it, streamed or not. All else under
``/v1/`` that a client may ask for is ``GET /v1/models``. It fails open: a teacher that errs or misses its deadline lets
the request go unaided.

Response headers: ``x-wst-status`` (instructed, empty, timeout, error) and ``x-wst-instruction`` (percent-encoded UTF-8,
cut at 4096 characters). A request with the header ``x-wst-include: body`` gets both in the JSON body as well, under
``wst``, if it is not streamed.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from wst.errors import ConfigError
from wst.inference.batching import Batcher, Outcome, Write
from wst.inference.chat import BadRequest, ChatRequest
from wst.inference.headers import Headers, about, is_foreign, is_plain_json, returned, sent_on
from wst.prompts import StudentPrompt
from wst.students.completions import check_address

_T = TypeVar("_T")

# What httpcore says of a request: a connection was made for it; it could not be written.
_CONNECTED = "connection.connect_tcp.started"
_AT_ONCE = 1.0  #: seconds within which a reset says that the connection was closed before
_NOT_WRITTEN = {"http11.send_request_headers.failed", "http11.send_request_body.failed"}


@dataclass(frozen=True)
class Limits:
    """What the server takes at most.

    Attributes:
        deadline: Seconds a request waits for its instruction.
        requests: Requests at once; more get 503 with Retry-After.
        body_bytes: Size of a request's body; a larger one gets 413.
        body_seconds: Seconds to receive a body; a slower client gets 408.
        upstream_seconds: Seconds without a byte from upstream.
    """

    deadline: float = 2.0
    requests: int = 256
    body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    upstream_seconds: float = 600.0


class Refused(Exception):
    """A request that is answered here, with an error in OpenAI's form."""

    def __init__(self, status: int, kind: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        headers = {} if retry_after is None else {"retry-after": str(retry_after)}
        error = {"message": message, "type": kind, "param": None, "code": None}
        self.response = JSONResponse({"error": error}, status, headers)


class Gateway:
    """The server's state and its handlers.

    Args:
        write: Writes an instruction for each query (`Instructor.write`).
        prompt: Where the instruction goes.
        upstream: Base URL of the student's server, such as https://api.openai.com/v1.
        key: The server's own key for upstream; None: each client's Authorization header is passed on.
        token: Bearer token that clients must show; needs ``key``, since Authorization can hold but one.
        limits: What is taken at most.
        batch_size: Queries in one batch of the teacher's.
        workers: Batches of the teacher's at a time.

    Raises:
        ConfigError: If the URL is not one, or there is a token without a key.
    """

    def __init__(
        self,
        write: Write,
        prompt: StudentPrompt,
        upstream: str,
        *,
        key: str | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        batch_size: int = 32,
        workers: int = 1,
    ) -> None:
        self.upstream = _checked_url(upstream)
        if token is not None and key is None:
            raise ConfigError("wst serve: --token_env needs --key_env: clients' Authorization holds the token, no key")
        self.prompt = prompt
        self.limits = limits or Limits()
        self.batcher = Batcher(write, batch_size, self.limits.deadline, workers)
        self._key = key
        self._token = token
        self._client: httpx2.AsyncClient  #: from the start of the application to its end
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("wst_requests", "Requests by status of the instruction", ["status"], registry=registry)
        self.refused = Counter("wst_refused", "Requests answered here, by HTTP status", ["code"], registry=registry)
        self.upstream_codes = Counter("wst_upstream", "Upstream's answers by status", ["code"], registry=registry)
        self.teacher_seconds = Histogram("wst_teacher_seconds", "Wait for the instruction", registry=registry)
        self.open = Gauge("wst_open_requests", "Requests under way", registry=registry)
        self._open = 0

    def app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/v1/chat/completions", self._answered(self.chat), methods=["POST"]),
            Route("/v1/models", self._answered(self.models), methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={404: _not_found, 405: _not_found})

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        timeout = httpx2.Timeout(self.limits.upstream_seconds, connect=10.0)
        # Many servers close idle connections after 5 s; one that is being closed must not be used again.
        pool = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        # No proxies and no .netrc of the environment, no redirects: the key goes to upstream alone.
        async with httpx2.AsyncClient(timeout=timeout, limits=pool, trust_env=False, follow_redirects=False) as client:
            self._client = client
            yield

    # --------------------------------------------------------------- handlers

    def _answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """Count what is under way, and answer refusals in OpenAI's form."""

        async def answer(request: Request) -> Response:
            try:
                self._check_token(request)
                if self._open >= self.limits.requests:
                    raise Refused(503, "overloaded_error", "too many requests at once; try again", retry_after=1)
                self._change_open(1)
                try:
                    response = await handler(request)
                except BaseException:
                    self._change_open(-1)
                    raise
                if not isinstance(response, _Passed):
                    self._change_open(-1)
                return response
            except Refused as error:
                refused = error
            except ClientDisconnect:
                return Response(status_code=499)
            except asyncio.CancelledError:  # the server ends, and the request has outlasted --drain
                refused = Refused(503, "overloaded_error", "the server is stopping; try again", retry_after=1)
            self.refused.labels(str(refused.response.status_code)).inc()
            return refused.response

        return answer

    def _change_open(self, by: int) -> None:
        self._open += by
        self.open.set(self._open)

    async def chat(self, request: Request) -> Response:
        """Insert the instruction and forward the request."""
        try:
            asked = ChatRequest.parse(await self._body(request))
        except BadRequest as error:
            raise Refused(400, "invalid_request_error", str(error)) from None
        if asked.query.text.strip():
            outcome = await _unless_left(request, self.batcher.ask(asked.query))
            self.teacher_seconds.observe(outcome.seconds)
        else:
            outcome = Outcome("empty", None, 0.0)
        self.requests.labels(outcome.status).inc()
        body = json.dumps(asked.instructed(self.prompt, outcome.instruction)).encode()
        sent = self._request("POST", "chat/completions", request, body)
        return await self._passed_on(request, sent, outcome)

    async def models(self, request: Request) -> Response:
        """Pass on upstream's list of models."""
        return await self._passed_on(request, self._request("GET", "models", request), None)

    async def health(self, _: Request) -> Response:
        """Report that the server is up, and whether the teacher answers."""
        return JSONResponse({"status": "ok", "teacher": "hung" if self.batcher.hung else "ok"})

    async def metrics(self, _: Request) -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    # --------------------------------------------------------------- upstream

    def _request(self, method: str, path: str, request: Request, content: bytes | None = None) -> httpx2.Request:
        """Return the request for upstream, with the client's query string."""
        query = request.scope["query_string"]
        try:
            url = httpx2.URL(f"{self.upstream}/{path}", **({"query": query} if query else {}))
        except httpx2.InvalidURL:
            raise Refused(400, "invalid_request_error", "the query string holds characters that no URL has") from None
        return httpx2.Request(method, url, content=content, headers=self._headers(request))

    def _headers(self, request: Request) -> Headers:
        """Return upstream's headers: the client's alone, none of httpx's, and its key or the server's, never both."""
        headers = sent_on(request.headers.raw)
        ours = {} if self._key is None else {b"authorization": f"Bearer {self._key}".encode()}
        # Without the header upstream may choose any encoding.
        if request.headers.get("x-wst-include") == "body" or "accept-encoding" not in request.headers:
            ours[b"accept-encoding"] = b"identity"
        return [pair for pair in headers if pair[0] not in ours] + list(ours.items())

    async def _passed_on(self, request: Request, sent: httpx2.Request, outcome: Outcome | None) -> Response:
        """Send a request on, and return upstream's answer as it comes; a client that leaves cancels it."""
        try:
            response = await _unless_left(request, self._send(sent))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            status, what = (504, "did not answer in time") if isinstance(error, httpx2.TimeoutException) else (502, "")
            reason = what or f"cannot be reached ({type(error).__name__})"
            raise Refused(status, "upstream_error", f"the upstream server {reason}") from None
        self.upstream_codes.labels(str(response.status_code)).inc()
        if 300 <= response.status_code < 400:
            await response.aclose()
            raise Refused(502, "upstream_error", "the upstream server redirects; give --upstream its final address")
        if not 200 <= response.status_code < 600:
            await response.aclose()
            raise Refused(502, "upstream_error", f"the upstream server answers with status {response.status_code}")
        headers = returned(response.headers.raw)
        if outcome is not None:
            headers += about(outcome)
            if request.headers.get("x-wst-include") == "body" and is_plain_json(response.headers):
                return await _unless_left(request, self._with_instruction(response, outcome, headers))
        passed = _Passed(response, lambda: self._change_open(-1))
        passed.raw_headers = headers
        return passed

    async def _send(self, sent: httpx2.Request) -> httpx2.Response:
        """Send a request, and once more where upstream closed an idle connection that was taken for it.

        Answers are paid for, so it is sent again only where upstream can hardly have read all of it: writing failed, or
        the connection was reset at once, which a system does if data were not read. After an orderly end, or a reset
        that comes later, nobody knows.
        """
        events, began = set[str](), time.monotonic()

        async def note(event: str, _: object) -> None:
            events.add(event)

        sent.extensions["trace"] = note
        try:
            return await self._client.send(sent, stream=True)
        except (httpx2.NetworkError, httpx2.RemoteProtocolError) as error:
            reset = isinstance(error, httpx2.NetworkError) and time.monotonic() - began < _AT_ONCE
            if _CONNECTED in events or not (reset or events & _NOT_WRITTEN):
                raise
            return await self._client.send(sent, stream=True)

    async def _with_instruction(self, response: httpx2.Response, outcome: Outcome, headers: Headers) -> Response:
        content, most = bytearray(), self.limits.body_bytes
        try:
            async for chunk in response.aiter_raw():
                content += chunk
                if len(content) > most:
                    raise Refused(502, "upstream_error", f"answer of more than {most:,} bytes; leave out x-wst-include")
        except httpx2.HTTPError as error:
            raise Refused(502, "upstream_error", f"the upstream server broke off ({type(error).__name__})") from None
        finally:
            await response.aclose()
        try:
            body = json.loads(content)
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict):
            words = outcome.instruction.text if outcome.instruction is not None else None
            content[:] = json.dumps(body | {"wst": {"status": outcome.status, "instruction": words}}).encode()
        own = Response(bytes(content), response.status_code)
        own.raw_headers += [pair for pair in headers if pair[0] != b"content-length"]
        return own

    # ----------------------------------------------------------------- clients

    def _check_token(self, request: Request) -> None:
        if self._token is not None:
            scheme, _, shown = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode(), self._token.encode()):
                raise Refused(401, "authentication_error", "the bearer token is missing or wrong")
        elif self._key is not None and is_foreign(request.headers.get("origin")):
            # Any page that the user opens can send requests to this machine, and the key pays for them.
            raise Refused(403, "permission_error", "a page of another site asks; start the server with --token_env")

    async def _body(self, request: Request) -> bytes:
        """Receive a body within the limits."""
        content = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    content += chunk
                    if len(content) > self.limits.body_bytes:
                        limit = f"{self.limits.body_bytes:,} bytes"
                        raise Refused(413, "invalid_request_error", f"the body is larger than {limit}")
        except TimeoutError:
            raise Refused(408, "invalid_request_error", "the body did not arrive in time") from None
        return bytes(content)


class _Passed(StreamingResponse):
    """Upstream's answer, passed on byte for byte as it comes, and closed whatever happens."""

    def __init__(self, response: httpx2.Response, on_end: Callable[[], None]) -> None:
        super().__init__(response.aiter_raw(), response.status_code)
        self._response = response
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Where upstream breaks off, or the server ends, the connection is closed before it is complete."""
        try:
            with suppress(httpx2.HTTPError, asyncio.CancelledError):
                await super().__call__(scope, receive, send)
        finally:
            self._on_end()
            await self._response.aclose()


async def _unless_left(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what comes of the work; if the client leaves, cancel it and raise `ClientDisconnect`."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _left(request: Request) -> None:
    """Return when the client has left; its body is received by now, so the next message says so."""
    while (await request.receive())["type"] != "http.disconnect":
        await asyncio.sleep(0)


async def _not_found(request: Request, error: Exception) -> Response:
    status = int(getattr(error, "status_code", 404))
    message = f"{request.method} {request.url.path!s:.100} is not served here; POST /v1/chat/completions is"
    return Refused(status, "invalid_request_error", message).response


def _checked_url(upstream: str) -> str:
    try:
        check_address(upstream)
    except ConfigError:
        raise ConfigError(
            "wst serve: --upstream must be an http(s) URL such as https://api.openai.com/v1, with no key in it"
        ) from None
    return upstream.rstrip("/")
