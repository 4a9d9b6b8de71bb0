"""A student behind an OpenAI-compatible endpoint: OpenAI, Azure, Together, Groq, vLLM, llama.cpp, Ollama, LM Studio."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from wst.errors import CacheError, ConfigError, StudentStopped
from wst.settings import check_arguments, check_counts
from wst.students.accounts import Accounts, Budget, Call, Prices
from wst.students.base import Student, check_decoding, check_json
from wst.students.cache import AnswerCache, answer_key, open_cache
from wst.students.completions import OURS, ChatClient, Failure, check_address, read_completion, valid_text
from wst.students.keys import ApiKey
from wst.students.loops import start_loop, stop_loop
from wst.students.probe import is_due, probe
from wst.types import Message, Prompt, Response

if TYPE_CHECKING:
    import torch
    from aiolimiter import AsyncLimiter

_T = TypeVar("_T")

_PATIENCE = 900.0  #: seconds to wait for another run's answer; then it is asked for all the same


class EndpointStudent(Student):
    """A chat model behind an OpenAI-compatible endpoint.

    Calls run in the background, up to ``concurrency`` at once. Whatever the endpoint sends ends as an answer or as a
    failed call: a `Response` with ``error`` set, which is never scored, never cached, and never counts as wrong.
    Failures that may pass (408, 409, 425, 429, 5xx, an error body under status 200, time-outs, dropped connections) are
    tried again with exponential back-off and jitter, or when Retry-After says. A refused key (401), a spent quota and a
    spent budget end the run; so do 403 and 404 for two different prompts, if no call has ever succeeded. Otherwise they
    concern their prompt alone, as a 403 does whose body says that the content was moderated.
    A refusal, an empty answer and one cut off by the token limit are answers.

    Two runs that share a cache do not pay for the same answer twice: the second waits for the first's.

    The key is read from the environment when the student is set up. It is sent to ``base_url`` alone, and is taken out
    of whatever the endpoint says.

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
        strip_thinking: Whether to remove ``<think>`` sections from answers. Reasoning that comes apart from the text is
            left out in any case.
        extra_body: Further fields of the request's body. It stands in saved configs: no place for a secret.
        revision: Change it when the model behind the name has changed: answers cached under another one are not used.
        concurrency: Calls in flight at once.
        timeout: Seconds that one try may take in all.
        retries: Tries after the first.
        backoff: Seconds before the first retry, doubled for each one after, up to 60, and spread at random over half.
        requests_per_minute: Rate limit; None: none.
        tokens_per_minute: Rate limit over the tokens that a call may take at most; None: none.
        prices: Price of a million tokens.
        budget: Limit on what a run may spend.
        cache: Where answers are stored, so that none is paid for twice; true: in the user's cache folder; false:
            nowhere.

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
        strip_thinking: bool = True,
        cache: AnswerCache | bool = True,
    ) -> None:
        check_arguments(EndpointStudent, locals())
        check_address(base_url)
        rates = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        check_counts("EndpointStudent", max_new_tokens=max_new_tokens, concurrency=concurrency, **rates)
        check_decoding("EndpointStudent", temperature, stop)
        check_counts("EndpointStudent", 0, retries=retries)
        for option, number in (("timeout", timeout), ("backoff", backoff)):
            if not number > 0:
                raise ConfigError(f"EndpointStudent: {option} must be above 0 seconds, got {number}")
        if fixed := ", ".join(sorted(OURS & set(extra_body or {}))):
            raise ConfigError(f"EndpointStudent: extra_body must not hold {fixed}; take it out")
        check_json("EndpointStudent", extra_body=extra_body, top_p=top_p)
        self.source = model
        self.base_url = base_url.rstrip("/")
        self._key = ApiKey(api_key_env, self.base_url)
        self.azure_api_version = azure_api_version
        self.concurrency, self.timeout, self.retries, self.backoff = concurrency, timeout, retries, backoff
        self.max_new_tokens = max_new_tokens
        self.deterministic = temperature == 0
        self.cache = open_cache(cache)
        self.label = f"{model} at {urlsplit(base_url).netloc}"
        self.accounts = Accounts(self.label, prices, budget)
        self.rates = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self.on_progress: Callable[[int, int], None] | None = None  #: called with numbers received and expected
        self._request: dict[str, Any] = {"model": model, token_limit_field: max_new_tokens}
        for name, setting in (("temperature", temperature), ("top_p", top_p), ("stop", stop)):
            if setting is not None:
                self._request[name] = setting
        self._stop = list(stop or [])
        self._strip_thinking = strip_thinking
        self._extra_body = dict(extra_body or {})
        self._identity: dict[str, Any] = {
            "endpoint": self.base_url,
            "azure_api_version": azure_api_version,
            "revision": revision,
            "request": self._request | {"extra_body": self._extra_body},
        }
        if not strip_thinking:
            self._identity["strip_thinking"] = False
        self._asked: dict[str, Future[Response]] = {}
        self._stopped: StudentStopped | CacheError | None = None
        self._probed = self._succeeded = False  # whether this process has asked the endpoint, and had an answer
        self._denied: set[tuple[Message, ...]] = set()  # prompts that were refused access
        self._warned = set[str]()
        self._added = 0  #: tokens that the endpoint adds to a prompt, as far as it was seen to
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._jitter = random.Random()  # its own: a run's draws must not depend on how the network does

    def check(self) -> None:
        """Check key, address and model before any model is loaded; an endpoint that has answered the run may be down.

        Raises:
            ConfigError: If one of them is surely wrong.
        """
        self._key.read()
        probed, self._probed, running = self._probed, True, self._loop is not None
        if probed or not is_due((self.base_url, self.source), self.accounts):
            return
        self.setup()
        try:
            failure = self._run(probe(self._client, self.source, self._try)).result()
        finally:
            if not running:
                self.close()
        if failure is not None and not (failure.outcome == "connection" and self.accounts.ever_answered()):
            why = f"{failure.meaning} ({self._key.one_line(failure.reason)})"
            raise ConfigError(f"student {self.label}: {why}; {self._remedy(failure)}")

    def identity(self) -> dict[str, Any]:
        """Return what determines its answers besides the prompt."""
        return self._identity

    def setup(self, device: torch.device | None = None) -> None:
        """Start the background loop; does nothing when called again, unless the calls were stopped.

        Raises:
            ConfigError: If the key, or a variable for proxies or certificates, is unusable.
        """
        if self._loop is not None and self._pid == os.getpid():
            if self._stopped is None:
                return
            self.close()
        self._client = ChatClient(self.base_url, self._key, self.source, self.azure_api_version)
        self._pid, self._asked, self._stopped, self._denied = os.getpid(), {}, None, set()
        self._loop = start_loop("wst-endpoint")
        self._run(self._connect()).result()

    def prefetch(self, prompt: Prompt) -> None:
        """Start the call; `respond` will return its answer."""
        self._ask(prompt)

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Wait for the answers, of which some may be there already. Equal prompts are one call.

        Raises:
            StudentStopped: If no call can succeed, or the budget is spent. All answers that were on their way by then
                are waited for, and stored.
            CacheError: If an answer cannot be stored, or a call cannot be booked.
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
            wait(self._asked.values())  # prefetched answers are paid for too
            raise self._stopped
        return [future.result() for future in futures]

    def close(self) -> None:
        """Cancel calls in flight and close the connections; `setup` opens them again."""
        loop, self._loop = self._loop, None
        self._asked = {}
        if loop is not None and self._pid == os.getpid():
            stop_loop(loop, self._client.close)
        self.accounts.close()
        if self.cache is not None:
            self.cache.close()

    async def _connect(self) -> None:
        from aiolimiter import AsyncLimiter

        self._slots = asyncio.Semaphore(self.concurrency)
        self._limiters: dict[str, AsyncLimiter] = {
            what: AsyncLimiter(rate, 60) for what, rate in self.rates.items() if rate is not None
        }

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
        """Return the cached answer, or call; what was paid for is on disk before anyone sees it."""
        try:
            known = await self._cached(key)
            if known is None:
                async with self._slots:
                    known = await self._claimed(key, prompt)
        except (StudentStopped, CacheError) as stop:
            self._stopped = self._stopped or stop
            return Response("", error=str(stop))
        return known

    async def _cached(self, key: str) -> Response | None:
        known = None if self.cache is None else (await asyncio.to_thread(self.cache.get, [key])).get(key)
        if known is None:
            return None
        self.accounts.count("cache_hits")
        return replace(known, text=valid_text(known.text))  # the file may have come from elsewhere

    async def _claimed(self, key: str, prompt: Prompt) -> Response:
        """Call for an answer that no other run is asking for, or take the other's."""
        if self.cache is None:
            return await self._call(prompt)
        deadline = time.monotonic() + _PATIENCE
        while not (claimed := self.cache.claim(key)) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        try:
            known = await self._cached(key)  # another may have asked until now
            if known is None:
                known = await self._call(prompt)
                # In the slot: no more answers can be lost in a crash than calls may be in flight.
                if known.error is None:
                    # Shielded: an answer that has arrived is stored, even if the student is closed now.
                    await asyncio.shield(asyncio.to_thread(self.cache.put, {key: known}, self.label))
            return known
        finally:
            if claimed:
                self.cache.release(key)

    async def _call(self, prompt: Prompt) -> Response:
        """Call until there is an answer, or no hope of one.

        Raises:
            StudentStopped: If no call can succeed, or may be made.
        """
        for attempt in itertools.count():
            try:
                return await self._try(prompt)
            except Failure as error:
                failure = error
            if failure.kind != "passing" or attempt >= self.retries:
                break
            longest = min(60.0, self.backoff * 2.0 ** min(attempt, 20))
            await asyncio.sleep(longest * self._jitter.uniform(0.5, 1.0) if failure.wait is None else failure.wait)
            self.accounts.count("retries")
        if failure.kind == "filtered":
            self.accounts.count("refused")
            return Response("", refused=True)
        reason = self._key.one_line(failure.reason)
        if failure.kind == "never" or (failure.kind == "access" and await self._is_denied(prompt)):
            raise StudentStopped(
                f"student {self.label}: {failure.meaning} ({reason}); {self._remedy(failure)}, then resume"
            )
        self.accounts.count("failed")
        return Response("", error=reason)

    async def _is_denied(self, prompt: Prompt) -> bool:
        """Return whether a second prompt is refused access, and no call has succeeded, in the ledger either."""
        self._denied.add(prompt.messages)
        while not self._succeeded and self.accounts.in_flight:
            await asyncio.sleep(0.02)
        return len(self._denied) > 1 and not (self._succeeded or self.accounts.ever_answered())

    async def _try(self, prompt: Prompt) -> Response:
        """Make one call.

        Raises:
            Failure: If it returns no answer.
        """
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        # The endpoint's tokenizer is not at hand. A token is at least a byte, and each turn adds a few of its own.
        own = sum(len(message.content.encode("utf-8", "surrogatepass")) + 8 for message in prompt.messages)
        own += len(json.dumps(self._extra_body)) if self._extra_body else 0
        longest = own + self._added
        for what, limiter in self._limiters.items():
            await limiter.acquire(min(longest + self.max_new_tokens, limiter.max_rate) if what == "tokens" else 1)
        bound = self.accounts.bound(longest, self.max_new_tokens)
        while (call := self._begin(bound)) is None:
            await asyncio.sleep(0.02)
        start = time.perf_counter()
        outcome, tokens, cost = "unusable", (0, 0), bound
        try:
            async with asyncio.timeout(self.timeout):
                body = await self._client.ask({"messages": messages} | self._request | self._extra_body)
            response = read_completion(body, self._stop, self._strip_thinking)
            self._succeeded = True
            tokens = (response.prompt_tokens, response.tokens)
            outcome, cost = "answered", self._cost(response, own, bound)
        except Failure as failure:
            outcome, cost = failure.outcome, 0.0 if failure.free else bound
            raise
        except TimeoutError:
            outcome = "timeout"
            raise Failure(f"no answer within {self.timeout:g} s", "passing") from None
        except Exception as error:  # whatever the endpoint has made the HTTP client raise
            raise Failure(f"{type(error).__name__}: {error}") from None
        finally:
            try:
                self.accounts.end(call, outcome, time.perf_counter() - start, tokens, cost)
            except CacheError as error:  # the answer is kept all the same; then the run ends
                self._stopped = self._stopped or error
        for what, counted in (("refused", response.refused), ("empty", not response.text), ("cut", response.truncated)):
            if counted:
                self.accounts.count(what)
        return replace(response, text=self._key.redact_answer(response.text))

    def _begin(self, bound: float) -> Call | None:
        if self._stopped is not None:
            raise self._stopped
        return self.accounts.begin(bound)

    def _cost(self, response: Response, own: int, bound: float) -> float:
        """Return what an answer cost; note what the endpoint adds to prompts, such as a system message of its own."""
        if not (response.prompt_tokens or response.tokens):
            self._warn("does not say how many tokens an answer took; each is booked at the most that it can have cost")
            return bound
        if response.prompt_tokens > own:
            self._warn("adds tokens of its own to prompts; from now on each call's maximum cost includes them")
            self._added = max(self._added, response.prompt_tokens - own)
        return self.accounts.bound(response.prompt_tokens, response.tokens)

    def _warn(self, what: str) -> None:
        if self.accounts.prices is not None and what not in self._warned:
            self._warned.add(what)
            warnings.warn(f"student {self.label}: the endpoint {what}", stacklevel=2)

    def _remedy(self, failure: Failure) -> str:
        if failure.outcome == "connection":
            return f"start it, or correct base_url {self.base_url}"
        if failure.status in (401, 403) and self._key.variable is None:
            return "name the environment variable with the key in api_key_env"
        if failure.status in (401, 403):
            return f"check the key in {self._key.variable} and what it may use"
        if failure.status == 404 or 300 <= failure.status < 400:
            return f"check model {self.source!r} and base_url {self.base_url}"
        return "correct the setting that it names" if failure.kind == "prompt" else "raise the account's limit"
