"""A student behind an OpenAI-compatible endpoint: OpenAI, Azure, Together, Groq, vLLM, llama.cpp, Ollama, LM Studio."""

from __future__ import annotations

import asyncio
import os
import random
import re
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from wst.errors import CacheError, ConfigError, StudentStopped
from wst.students.accounts import Accounts, Budget, Prices
from wst.students.base import Student
from wst.students.cache import AnswerCache, answer_key, open_cache
from wst.types import Prompt, Response

if TYPE_CHECKING:
    import torch
    from aiolimiter import AsyncLimiter
    from openai import AsyncOpenAI
    from tenacity import RetryCallState

_T = TypeVar("_T")

_FATAL = {401: "the key is refused", 403: "access is refused", 404: "no such model or address"}
_OURS = {"model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop"}
_LONGEST_WAIT = 120.0  #: seconds; a server that asks for a longer one is not waited for


class _Unusable(Exception):
    """The endpoint answered with something that is no chat completion."""


class EndpointStudent(Student):
    """A chat model behind an OpenAI-compatible endpoint.

    Calls run in the background, up to ``concurrency`` at once. What passes (429, 5xx, time-outs, dropped connections)
    is tried again with exponential back-off and jitter, or when the server's Retry-After says. A call that fails for
    good is a `Response` with ``error`` set: it is never scored, never cached, and never counts as wrong. A refusal, an
    empty answer and one cut off by the token limit are answers. 401, 403, 404 and a spent budget end the run.

    The key is read from the environment when the first call is made. It is kept nowhere else, and is taken out of
    whatever the endpoint says.

    Args:
        model: Name of the model at the endpoint.
        base_url: Address up to and including the version, such as ``http://127.0.0.1:8000/v1``.
        api_key_env: Name of the environment variable that holds the key; None: the endpoint wants none.
        azure_api_version: Version of Azure's own interface, for Azure deployments that have no ``/openai/v1``.
        temperature: 0 answers greedily, as far as the endpoint does; None: not sent, for models that refuse it.
        top_p: Share of the probability mass that is sampled from; None: not sent.
        max_new_tokens: Length limit of an answer.
        token_limit_field: What the endpoint calls that limit.
        stop: Texts that end an answer.
        extra_body: Further fields of the request's body. It stands in saved configs: no place for a secret.
        revision: Yours to change when the model behind the name has changed: what is cached under another one is not
            used.
        concurrency: Calls in flight at once.
        timeout: Seconds that one try may take in all.
        retries: Tries after the first.
        backoff: Seconds before the first retry, doubled for each one after, up to 60, and spread at random over half.
        requests_per_minute: Rate limit; None: none.
        tokens_per_minute: Rate limit over the tokens that a call may take at most; None: none.
        prices: What a million tokens cost.
        budget: What may be spent on a run.
        cache: Where answers are kept, so that none is paid for twice; true: in the user's cache folder; false: nowhere.

    Raises:
        ConfigError: If a setting is impossible.
    """

    accounts: Accounts

    def __init__(
        self,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        api_key_env: str | None = "OPENAI_API_KEY",
        azure_api_version: str | None = None,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        max_new_tokens: int = 256,
        token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        stop: list[str] | None = None,
        extra_body: dict[str, Any] | None = None,
        revision: str | None = None,
        concurrency: int = 16,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 0.5,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        prices: Prices | None = None,
        budget: Budget | None = None,
        cache: AnswerCache | bool = True,
    ) -> None:
        _check_address(base_url)
        if api_key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", api_key_env):
            # What came is not repeated: it may be the key.
            raise ConfigError(
                "EndpointStudent: api_key_env is not the name of an environment variable in capitals; put the key into "
                "a variable, and the variable's name here"
            )
        for option, value, least in (
            ("max_new_tokens", max_new_tokens, 1),
            ("concurrency", concurrency, 1),
            ("retries", retries, 0),
            ("requests_per_minute", requests_per_minute, 1),
            ("tokens_per_minute", tokens_per_minute, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"EndpointStudent: {option} must be at least {least}, got {value}")
        for option, number in (("timeout", timeout), ("backoff", backoff)):
            if not number > 0:
                raise ConfigError(f"EndpointStudent: {option} must be above 0 seconds, got {number}")
        if any(not text for text in stop or []):
            raise ConfigError("EndpointStudent: stop holds an empty text, which would end every answer; take it out")
        if fixed := sorted(_OURS & set(extra_body or {})):
            raise ConfigError(
                f"EndpointStudent: extra_body holds {', '.join(fixed)}, which the student itself sends, or which would "
                "change what a call costs; take it out"
            )
        if temperature is not None and temperature < 0:
            raise ConfigError(f"EndpointStudent: temperature must not be below 0, got {temperature}")
        self.source = model
        self.base_url = base_url.rstrip("/")
        self.api_key_env = api_key_env
        self.azure_api_version = azure_api_version
        self.concurrency = concurrency
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.max_new_tokens = max_new_tokens
        self.deterministic = temperature == 0
        self.cache = open_cache(cache)
        self.label = f"{model} at {urlsplit(base_url).netloc}"
        self.accounts = Accounts(self.label, prices, budget)
        self.rates = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self.on_progress: Callable[[int, int], None] | None = None  #: told of answers that are there, and of all
        self._request: dict[str, Any] = {"model": model, token_limit_field: max_new_tokens}
        for name, setting in (("temperature", temperature), ("top_p", top_p), ("stop", stop)):
            if setting is not None:
                self._request[name] = setting
        self._stop = list(stop or [])
        self._extra_body = dict(extra_body or {})
        self._identity = {
            "endpoint": self.base_url,
            "azure_api_version": azure_api_version,
            "revision": revision,
            "request": self._request | {"extra_body": self._extra_body},
        }
        self._asked: dict[str, Future[Response]] = {}
        self._stopped: StudentStopped | CacheError | None = None
        self._secret = ""
        self._warned: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._jitter = random.Random()  # its own: a run's draws must not depend on how the network does

    # ------------------------------------------------------------ the student

    def check(self) -> None:
        """Make sure that there is a key, before any model is loaded.

        Raises:
            ConfigError: If there is none.
        """
        self._key()

    def identity(self) -> dict[str, Any]:
        """Give what determines its answers besides the prompt."""
        return self._identity

    def setup(self, device: torch.device) -> None:
        """Start what makes the calls; does nothing when called again, unless the calls were stopped."""
        if self._loop is not None and self._pid == os.getpid():
            if self._stopped is None:
                return
            self.close()
        key = self._key()
        self._secret = "" if self.api_key_env is None else key
        self._pid, self._asked, self._stopped = os.getpid(), {}, None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="wst-endpoint", daemon=True).start()
        self._run(self._connect(key)).result()

    def prefetch(self, prompt: Prompt) -> None:
        """Make the call now; `respond` will ask for its answer."""
        self._ask(prompt)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Wait for the answers, of which some may be there already. Equal prompts are one call.

        Raises:
            StudentStopped: If the endpoint refuses us, or the budget is spent. All answers that were on their way by
                then are waited for, and kept.
            CacheError: If an answer cannot be kept, or a call not be booked.
        """
        keys, futures = zip(*(self._ask(prompt) for prompt in prompts), strict=True)
        waiting = set(futures)
        while waiting:
            _, waiting = wait(waiting, timeout=0.2)
            if self.on_progress is not None:
                self.on_progress(sum(future.done() for future in futures), len(futures))
        for key in keys:
            self._asked.pop(key, None)
        if self._stopped is not None:
            wait(self._asked.values())  # what was only prefetched is paid for too
            raise self._stopped
        return [future.result() for future in futures]

    def close(self) -> None:
        """Drop what is under way, and close the connections; `setup` opens them again."""
        loop, self._loop = self._loop, None
        self._asked = {}
        if loop is not None and self._pid == os.getpid():
            asyncio.run_coroutine_threadsafe(self._disconnect(), loop).result(timeout=30)
            loop.call_soon_threadsafe(loop.stop)
        self.accounts.close()
        if self.cache is not None:
            self.cache.close()

    # ------------------------------------------------- in the background loop

    async def _connect(self, key: str) -> None:
        from aiolimiter import AsyncLimiter
        from openai import AsyncAzureOpenAI, AsyncOpenAI, DefaultAsyncHttpxClient

        # Ours is the only word on retries and on time. Redirects would carry the key elsewhere.
        options: dict[str, Any] = {
            "api_key": key,
            "max_retries": 0,
            "timeout": self.timeout,
            "http_client": DefaultAsyncHttpxClient(follow_redirects=False),
        }
        if self.azure_api_version is None:
            self._client: AsyncOpenAI = AsyncOpenAI(base_url=self.base_url, **options)
        else:
            self._client = AsyncAzureOpenAI(azure_endpoint=self.base_url, api_version=self.azure_api_version, **options)
        _ = self._client.chat.completions  # imported at its first use, which takes long: not in the first step
        self._slots = asyncio.Semaphore(self.concurrency)
        self._limiters: dict[str, AsyncLimiter] = {
            what: AsyncLimiter(rate, 60) for what, rate in self.rates.items() if rate is not None
        }

    async def _disconnect(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _run(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        if self._loop is None:
            raise RuntimeError("EndpointStudent: call setup(device) first")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def _ask(self, prompt: Prompt) -> tuple[str, Future[Response]]:
        key = answer_key(self._identity, prompt, sampled=not self.deterministic)
        known = self._asked.get(key)
        if known is None or (known.done() and (known.cancelled() or known.exception() or known.result().error)):
            self._asked[key] = self._run(self._answer(key, prompt))
        return key, self._asked[key]

    async def _answer(self, key: str, prompt: Prompt) -> Response:
        """Give the cached answer, or call; what was paid for is on disk before anyone sees it."""
        try:
            if self.cache is not None:
                known = await asyncio.to_thread(self.cache.get, [key])
                if key in known:
                    self.accounts.count("cache_hits")
                    return known[key]
            async with self._slots:
                response = await self._call(prompt)
                # In the slot: no more answers can be lost in a crash than calls may be in flight.
                if self.cache is not None and response.error is None:
                    # Shielded: an answer that is there is kept, even if the student is closed now.
                    await asyncio.shield(asyncio.to_thread(self.cache.put, {key: response}, self.label))
        except (StudentStopped, CacheError) as stop:
            self._stopped = self._stopped or stop
            return Response("", error=str(stop))
        return response

    async def _call(self, prompt: Prompt) -> Response:
        """Call until there is an answer, or no hope of one.

        Raises:
            StudentStopped: If no call can succeed, or may be made.
        """
        from openai import APIConnectionError, APIResponseValidationError, APIStatusError
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt

        tries = AsyncRetrying(
            retry=retry_if_exception(_passes),
            wait=self._wait,
            stop=stop_after_attempt(self.retries + 1),
            reraise=True,
        )
        stop = None
        try:
            async for attempt in tries:
                with attempt:
                    if attempt.retry_state.attempt_number > 1:
                        self.accounts.count("retries")
                    return await self._try(prompt)
        except APIStatusError as error:
            if _refused(error):
                self.accounts.count("refused")
                return Response("", refused=True)
            reason = self._clean(error)
            if error.status_code in _FATAL or error.code == "insufficient_quota":
                what = _FATAL.get(error.status_code, "the quota is spent")
                stop = f"student {self.label}: {what} ({reason}); {self._remedy(error.status_code)}"
        except TimeoutError:
            reason = f"no answer within {self.timeout:g} s"
        except (APIConnectionError, APIResponseValidationError, _Unusable, ValueError) as error:
            reason = f"{type(error).__name__.strip('_')}: {self._clean(error.__cause__ or error)}"
        if stop is not None:  # not raised above, where it would carry the error with it, and the key that may be in it
            raise StudentStopped(stop)
        self.accounts.count("failed")
        return Response("", error=reason)

    async def _try(self, prompt: Prompt) -> Response:
        """Make one call."""
        from openai import APIConnectionError, APIStatusError

        messages: Any = [{"role": message.role, "content": message.content} for message in prompt.messages]
        # No tokenizer of theirs is at hand. A token is at least a byte, and each turn adds a few of its own.
        longest = sum(len(message.content.encode()) + 8 for message in prompt.messages)
        for what, limiter in self._limiters.items():
            await limiter.acquire(min(longest + self.max_new_tokens, limiter.max_rate) if what == "tokens" else 1)
        bound = self.accounts.bound(longest, self.max_new_tokens)
        while (call := self._begin(bound)) is None:
            await asyncio.sleep(0.02)
        start = time.perf_counter()
        outcome, tokens, cost = "unusable", (0, 0), bound
        try:
            async with asyncio.timeout(self.timeout):
                completion = await self._client.chat.completions.create(
                    messages=messages, **self._request, extra_body=self._extra_body
                )
            try:
                response = _read(completion, self._stop)
            except Exception as error:  # the client does not check what it was sent
                raise _Unusable(f"no chat completion: {completion!r:.200}") from error
            tokens = (response.prompt_tokens, response.tokens)
            outcome = "answered"
            cost = self.accounts.bound(*tokens) if any(tokens) else self._unknown_cost(bound)
        except APIStatusError as error:
            outcome = f"HTTP {error.status_code}"
            if error.status_code < 500 or error.status_code == 503:
                cost = 0.0  # a gateway's other errors may come after the answer was made, and charged for
            raise
        except APIConnectionError as error:
            outcome = "connection"
            if type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout"):
                cost = 0.0  # it was never sent; any other may have been answered, and charged for
            raise
        except TimeoutError:
            outcome = "timeout"
            raise
        finally:
            try:
                self.accounts.end(call, outcome, time.perf_counter() - start, tokens, cost)
            except CacheError as error:  # the answer is kept all the same; then the run ends
                self._stopped = self._stopped or error
        for what, counted in (("refused", response.refused), ("empty", not response.text), ("cut", response.truncated)):
            if counted:
                self.accounts.count(what)
        return replace(response, text=self._without_key(response.text))

    def _begin(self, bound: float) -> int | None:
        if self._stopped is not None:
            raise self._stopped
        return self.accounts.begin(bound)

    def _unknown_cost(self, bound: float) -> float:
        if self.accounts.prices is not None and "usage" not in self._warned:
            self._warned.add("usage")
            warnings.warn(
                f"student {self.label}: the endpoint does not say how many tokens an answer took; each is booked at "
                "the most that it can have cost",
                stacklevel=2,
            )
        return bound

    def _wait(self, state: RetryCallState) -> float:
        """Seconds until the next try: what the server asks for, else exponential back-off with jitter."""
        error = state.outcome.exception() if state.outcome is not None else None
        asked = _retry_after(error)
        if asked is not None:
            return asked
        longest = min(60.0, self.backoff * 2.0 ** (state.attempt_number - 1))
        return longest * self._jitter.uniform(0.5, 1.0)

    # ------------------------------------------------------------ the key

    def _key(self) -> str:
        if self.api_key_env is None:
            return "none"
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"EndpointStudent: the environment variable {self.api_key_env} is not set; put the key for "
                f"{self.base_url} there, or set api_key_env: null if it wants none"
            )
        return key

    def _without_key(self, text: str) -> str:
        key = "" if self.api_key_env is None else os.environ.get(self.api_key_env, "").strip()
        for secret in filter(None, (self._secret, key)):
            text = text.replace(secret, "[key]")
        return text

    def _clean(self, error: BaseException) -> str:
        """One short line of what the endpoint said, without the key."""
        said, body = str(error), getattr(error, "body", None)
        if isinstance(body, dict) and "detail" in body:  # servers on FastAPI; the client's own text leaves it out
            said = f"{said}: {body['detail']}"
        return " ".join(self._without_key(said).split())[:300] or type(error).__name__

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            if self.api_key_env is None:
                return "name the environment variable with the key in api_key_env, then resume"
            return f"check the key in {self.api_key_env} and what it may use, then resume"
        if status == 404:
            return f"check model {self.source!r} and base_url {self.base_url}, then resume"
        return "raise the account's limit, then resume"


def _check_address(base_url: str) -> None:
    parts = urlsplit(base_url)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("EndpointStudent: base_url holds a user or password; put the key into api_key_env's variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"EndpointStudent: base_url must be like https://host/v1, got {base_url!r}")
    if parts.query or parts.fragment:
        raise ConfigError("EndpointStudent: base_url ends at the path; put what follows '?' into extra_body or the key")


def _passes(error: BaseException) -> bool:
    """Whether a failure may pass: too many requests, the server's own faults, time-outs, dropped connections."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIStatusError):
        passes = error.status_code >= 500 or (error.status_code == 429 and error.code != "insufficient_quota")
        return passes and (_retry_after(error) or 0.0) <= _LONGEST_WAIT
    return isinstance(error, TimeoutError | APIConnectionError)


def _refused(error: Any) -> bool:  # noqa: ANN401 - openai's APIStatusError
    """Whether a filter before the model declined (Azure says so with status 400)."""
    return error.status_code == 400 and error.code == "content_filter"


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds that the server asks to wait, from Retry-After-Ms or Retry-After (seconds or a date)."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _read(completion: Any, stop: Sequence[str] = ()) -> Response:  # noqa: ANN401 - whatever the endpoint sent
    """Read a chat completion. Some servers leave the stop text that ended it in: it is cut off.

    Raises:
        _Unusable: If it is none.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise _Unusable(f"no choices in {completion!r:.200}")
    choice = choices[0]
    message = getattr(choice, "message", None)
    if message is None:
        raise _Unusable(f"no message in {choice!r:.200}")
    refusal = getattr(message, "refusal", None)
    finish = getattr(choice, "finish_reason", None)
    content = getattr(message, "content", None)
    text = content if isinstance(content, str) else ""
    text = min((text.split(end, 1)[0] for end in stop), key=len, default=text)
    usage = getattr(completion, "usage", None)
    return Response(
        (text or refusal or "").strip(),
        tokens=max(0, int(getattr(usage, "completion_tokens", None) or 0)),
        prompt_tokens=max(0, int(getattr(usage, "prompt_tokens", None) or 0)),
        truncated=finish == "length",
        refused=bool(refusal) or finish == "content_filter",
    )
