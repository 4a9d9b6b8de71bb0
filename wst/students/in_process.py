"""What students have in common whose model runs in this process: prompts are encoded here, greedy answers are kept."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from wst.errors import ConfigError
from wst.modeling import loading as models
from wst.settings import check_counts
from wst.students.base import Student
from wst.students.cache import AnswerCache, answer_key, open_cache
from wst.types import Message, Prompt, Response


class InProcessStudent(Student):
    """A frozen causal language model in this process; `LocalStudent` says what the arguments are.

    Args:
        loading: Quantization, dtype, revision and trust_remote_code.

    Raises:
        ConfigError: If a setting is impossible.
        ModelError: If the model named is not there.
    """

    #: What its identity is kept under: students that compute in another way answer otherwise.
    kind: str

    def __init__(
        self,
        model: str,
        max_new_tokens: int,
        temperature: float,
        stop: list[str] | None,
        max_prompt_tokens: int,
        chat_template_options: dict[str, Any] | None,
        cache: AnswerCache | bool,
        loading: dict[str, Any],
    ) -> None:
        name = type(self).__name__
        check_counts(name, max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens)
        if temperature < 0:
            raise ConfigError(f"{name}: temperature must not be below 0, got {temperature}")
        if any(not text for text in stop or []):
            raise ConfigError(f"{name}: stop holds an empty text, which would end every answer; take it out")
        models.locate(model)
        self.source = model
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.stop = list(stop or [])
        self.max_prompt_tokens = max_prompt_tokens
        self.chat_template_options = chat_template_options
        self.deterministic = temperature == 0
        self.cache = open_cache(cache) if temperature == 0 else None
        self.shortened = 0  #: prompts cut to fit so far
        self._loading = loading

    def check(self) -> None:
        """Make sure that the model is there, reading its configuration alone.

        Raises:
            ModelError: If it is not.
        """
        models.check(self.source, self._loading["revision"], self._loading["trust_remote_code"])

    @abstractmethod
    def libraries(self) -> list[str]:
        """Give the versions of what computes the answers."""

    def identity(self) -> dict[str, Any]:
        """Give what determines its answers besides the prompt, as far as it is known before the model is loaded."""
        return {
            self.kind: models.fingerprint(self.source),
            "loading": self._loading,
            "limits": [self.max_new_tokens, self.max_prompt_tokens],
            "sampling": self.temperature,
            "stop": self.stop,
            "template": self.chat_template_options,
            "libraries": self.libraries(),
        }

    def close(self) -> None:
        """Give the memory back; `setup` loads again."""
        if self.cache is not None:
            self.cache.close()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; there once `setup` was called."""

    @abstractmethod
    def determines(self) -> dict[str, Any]:
        """Give what determines a greedy answer besides the prompt, now that the model is loaded."""

    @abstractmethod
    def answer(self, rows: Mapping[str, list[int]]) -> Iterator[dict[str, Response]]:
        """Answer prompts, some at a time and in any order: those handed out are kept, whatever comes after.

        Args:
            rows: Token ids of the prompts.
        """

    @torch.no_grad()
    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer the prompts. Greedy answers that are cached are not made again, and equal prompts answered once."""
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

        def prompt_ids(text: str) -> list[int]:
            return models.encode_chat(self.tokenizer, [*before, Message(last.role, text)], self.chat_template_options)

        ids, cut = models.encode_truncated(self.tokenizer, prompt_ids, last.content, self.max_prompt_tokens)
        if cut:
            self.shortened += 1
            warnings.warn(
                f"student {self.source!r}: a prompt was cut to fit max_prompt_tokens={self.max_prompt_tokens} "
                f"({self.shortened} so far)",
                stacklevel=3,
            )
        return ids
