"""A teacher whose words a server writes: vLLM with the adapter, or any OpenAI-compatible endpoint that serves it.

The turns are those of training: the artefact's tokenizer cuts them to ``max_prompt_tokens`` and neutralizes control
tokens. The server applies its chat template and computes, so instructions are those of training as far as its template,
number format and end tokens are.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError, ModelError, first_line
from wst.inference.artefact import Artefact
from wst.modeling.chat import ChatEncoder, prepared_turns
from wst.settings import check_arguments, check_counts
from wst.students.base import check_json
from wst.students.completions import OURS, ChatClient, Failure, check_address, read_completion
from wst.students.keys import ApiKey
from wst.students.loops import start_loop, stop_loop
from wst.types import Instruction, Message, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OWNER = "TeacherServer"
_CLOSED = "Instructor: it was closed; make another one"


@dataclass(frozen=True)
class TeacherServer:
    """An OpenAI-compatible endpoint that serves the trained teacher.

    Args:
        base_url: Address up to and including the version, such as ``http://127.0.0.1:8000/v1``.
        model: Name of the teacher there, such as the one given to ``vllm serve --lora-modules teacher=FOLDER``.
        api_key_env: Name of the environment variable that holds the key; None: the endpoint wants none.
        concurrency: Calls in flight at once.
        timeout: Seconds that one try may take in all.
        retries: Tries after the first, of what may pass: 429, 5xx, dropped connections.
        extra_body: Further fields of each request, for what a server does by default and training did not.

    Raises:
        ConfigError: If a setting is impossible.
    """

    base_url: str
    model: str = "teacher"
    api_key_env: str | None = None
    concurrency: int = 32
    timeout: float = 60.0
    retries: int = 3
    extra_body: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        check_arguments(TeacherServer, vars(self))
        check_address(self.base_url, _OWNER)
        check_counts(_OWNER, concurrency=self.concurrency)
        check_counts(_OWNER, 0, retries=self.retries)
        if not self.timeout > 0:
            raise ConfigError(f"{_OWNER}: timeout must be above 0 seconds, got {self.timeout}")
        if fixed := ", ".join(sorted((OURS - {"stop"}) & set(self.extra_body or {}))):
            raise ConfigError(f"{_OWNER}: extra_body may not hold {fixed}: they follow from the teacher; take them out")
        check_json(_OWNER, extra_body=self.extra_body)
        self.key.read()

    @property
    def key(self) -> ApiKey:
        """The key, which is read from the environment when it is needed."""
        return ApiKey(self.api_key_env, self.base_url, _OWNER)


class RemoteTeacher:
    """Writes instructions through a server, from any thread.

    Args:
        artefact: The trained teacher's settings; its folder holds the tokenizer.
        server: Where it is served.

    Raises:
        ConfigError: If the artefact has a gate: servers do not report the log-probabilities that it looks at. Or if its
            ``max_prompt_tokens`` leaves no room for a query.
        ModelError: If the tokenizer cannot be read, or has no chat template.
    """

    def __init__(self, artefact: Artefact, server: TeacherServer) -> None:
        if artefact.gate is not None:
            raise ConfigError(
                f"{artefact.folder}: its gate looks at log-probabilities at the temperature of training, which a "
                "server does not give; leave out server, or export the teacher without a gate"
            )
        self.artefact = artefact
        self.server = server
        self._key = server.key
        self._client = ChatClient(server.base_url.rstrip("/"), self._key, server.model, None)
        self._tokenizer = _tokenizer(artefact)
        self._encoder = ChatEncoder(
            artefact.max_prompt_tokens, "the teacher's max_prompt_tokens", artefact.chat_template_options
        )
        self._encoder.check_room(self._tokenizer, artefact.prompt(Query("", "")).messages)
        self._closed = False
        self._lock = threading.Lock()  # nothing is handed to the loop once it is closed: nobody would answer
        self._jitter = random.Random()
        self._slots = asyncio.Semaphore(server.concurrency)
        self._loop = start_loop("wst-teacher")

    def sample(self, queries: Sequence[Query], greedy: bool = False) -> list[Instruction]:
        """Write one instruction for each query.

        Raises:
            ModelError: If the server gives none.
            ConfigError: After `close`, and if another thread closes it meanwhile.
        """
        requests = [self._request(query, greedy) for query in queries]
        with self._lock:
            if self._closed:
                raise ConfigError(_CLOSED)
            writing = asyncio.run_coroutine_threadsafe(self._written(requests), self._loop)
        try:
            return writing.result()
        except CancelledError:
            raise ConfigError(_CLOSED) from None

    def close(self) -> None:
        """Cancel calls in flight and close the connections; nothing can be written afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        stop_loop(self._loop, self._client.close)

    def turns(self, query: Query) -> list[Message]:
        """Return the turns that the server gets: what training encoded, before the chat template."""
        fitting: tuple[Message, ...] = ()

        def chat(text: str, start: int) -> tuple[Message, ...]:
            nonlocal fitting
            fitting = self.artefact.prompt(replace(query, text=text, history=query.history[start:])).messages
            return fitting

        starts = range(len(query.history) + 1)
        self._encoder.prompt(self._tokenizer, chat, query.text, f"query {query.id!r}", starts)
        return prepared_turns(self._tokenizer, fitting, self.artefact.chat_template_options or {})

    def _request(self, query: Query, greedy: bool) -> dict[str, Any]:
        stored = self.artefact
        body: dict[str, Any] = {
            "model": self.server.model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in self.turns(query)],
            "max_tokens": stored.max_new_tokens,
            "temperature": 0.0 if greedy else stored.temperature,
            "top_p": 1.0,
        }
        if stored.chat_template_options:
            body["chat_template_kwargs"] = stored.chat_template_options
        return body | (self.server.extra_body or {})

    async def _written(self, requests: list[dict[str, Any]]) -> list[Instruction]:
        try:
            async with asyncio.TaskGroup() as group:  # the first failure cancels the others
                tasks = [group.create_task(self._one(request)) for request in requests]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _one(self, request: dict[str, Any]) -> Instruction:
        async with self._slots:
            for attempt in range(self.server.retries + 1):
                try:
                    async with asyncio.timeout(self.server.timeout):
                        body = await self._client.ask(request)
                    said = read_completion(body, strip_thinking=False)
                    text = "" if said.refused else said.text  # a refusal instructs nobody
                    return Instruction(self._key.redact_answer(text), truncated=said.truncated)
                except Failure as error:
                    failure = error
                except TimeoutError:
                    failure = Failure(f"no answer within {self.server.timeout:g} s", "passing")
                except Exception as error:  # whatever the endpoint has made the HTTP client raise
                    failure = Failure(f"{type(error).__name__}: {error}")
                if failure.kind != "passing" or attempt == self.server.retries:
                    break
                wait = (
                    min(60.0, 0.5 * 2.0 ** min(attempt, 20)) * self._jitter.uniform(0.5, 1.0)
                    if failure.wait is None
                    else failure.wait
                )
                await asyncio.sleep(wait)
        place = f"{self.server.model!r} at {self.server.base_url}"
        raise ModelError(f"teacher {place}: it wrote nothing ({self._key.one_line(failure.reason)}); see to the server")


def _tokenizer(artefact: Artefact) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(artefact.folder, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises over an odd file
        raise ModelError(f"{artefact.folder}: its tokenizer cannot be read ({first_line(error)})") from error
    if not tokenizer.chat_template:
        raise ModelError(
            f"{artefact.folder}: the teacher has no chat template, so that a chat server would ask it something else "
            "than training did; leave out server"
        )
    return tokenizer
