"""Base of the students whose model runs in this process: encoding of prompts, caching of greedy answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from wst.modeling.allocator import release_memory
from wst.modeling.chat import ChatEncoder
from wst.modeling.spec import FromSpec, ModelSpec
from wst.settings import check_counts
from wst.students.base import Student, check_decoding
from wst.students.cache import AnswerCache, answer_key, open_cache
from wst.types import Message, Prompt, Response


class InProcessStudent(FromSpec, Student):
    """A frozen causal language model in this process; for the arguments see `LocalStudent`.

    Raises:
        ConfigError: If a setting is impossible.
    """

    #: Key of the model in the identity: students that compute in another way give other answers.
    kind: str

    def __init__(
        self,
        spec: ModelSpec,
        max_new_tokens: int,
        temperature: float,
        stop: list[str] | None,
        max_prompt_tokens: int,
        chat_template_options: dict[str, Any] | None,
        cache: AnswerCache | bool,
    ) -> None:
        name = type(self).__name__
        check_counts(name, max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens)
        check_decoding(name, temperature, stop)
        self.spec = spec
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.stop = list(stop or [])
        self.max_prompt_tokens = max_prompt_tokens
        self.chat_template_options = chat_template_options
        self.deterministic = temperature == 0
        self.cache = open_cache(cache) if temperature == 0 else None
        self.encoder = ChatEncoder(max_prompt_tokens, "max_prompt_tokens", chat_template_options)

    @abstractmethod
    def libraries(self) -> list[str]:
        """Return the versions of the libraries that compute the answers."""

    def identity(self) -> dict[str, Any]:
        """Return what determines its answers besides the prompt, as far as it is known before loading."""
        return {
            self.kind: self.spec.fingerprint(),
            "loading": self.spec.options,
            "limits": [self.max_new_tokens, self.max_prompt_tokens],
            "sampling": self.temperature,
            "stop": self.stop,
            "template": self.chat_template_options,
            "libraries": self.libraries(),
        }

    def close(self) -> None:
        """Free the memory; `setup` loads again."""
        if self.cache is not None:
            self.cache.close()
        release_memory()

    def stop_ids(self) -> list[int]:
        """Return the ids of stop texts that are special tokens, which decoded answers do not show."""
        special = {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        return [special[text] for text in self.stop if text in special]

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; available after `setup`."""

    @abstractmethod
    def determines(self) -> dict[str, Any]:
        """Return what determines a greedy answer besides the prompt, once the model is loaded."""

    @abstractmethod
    def answer(self, rows: Mapping[str, list[int]]) -> Iterator[dict[str, Response]]:
        """Answer prompts, some at a time and in any order. What was yielded is cached, whatever happens later.

        Args:
            rows: Token ids of the prompts, by key.
        """

    @torch.no_grad()
    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer the prompts. If greedy: take cached answers from the cache, and answer equal prompts once."""
        determines = self.determines() if self.deterministic else {}
        keys = [
            answer_key(determines, prompt, sampled=False) if self.deterministic else str(place)
            for place, prompt in enumerate(prompts)
        ]
        answers = self.cache.get(keys) if self.cache is not None else {}
        encoded = {key: self._encode(prompt) for key, prompt in zip(keys, prompts, strict=True) if key not in answers}
        for new in self.answer(encoded) if encoded else ():
            if self.cache is not None:
                self.cache.put(new, self.source)
            answers |= new
        return [answers[key] for key in keys]

    def _encode(self, prompt: Prompt) -> list[int]:
        *before, last = prompt.messages
        system = [turn for turn in before[:1] if turn.role == "system"]
        turns = before[len(system) :]

        def chat(text: str, start: int) -> list[Message]:
            return [*system, *turns[start:], Message(last.role, text)]

        name = f"student {self.source!r}: a prompt"
        # Templates refuse a dialogue that begins with an answer.
        later = (n for n, turn in enumerate(turns) if turn.role == "user")
        return self.encoder.prompt(self.tokenizer, chat, last.content, name, sorted({0, *later, len(turns)}))
