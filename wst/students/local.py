"""A student whose weights are on this machine: unquantized, or in 4 or 8 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

from wst.modeling.generation import Decoding, generate
from wst.modeling.loading import load_causal_lm
from wst.modeling.prefix import order_by_prefix
from wst.modeling.spec import DType, ModelSpec, Quantization
from wst.settings import check_arguments, check_counts
from wst.students.cache import AnswerCache
from wst.students.in_process import InProcessStudent
from wst.types import Response


class LocalStudent(InProcessStudent):
    """A frozen causal language model that answers in batches.

    Args:
        model: Name of the model; for this and the other options of loading see `ModelSpec`.
        quantization: "nf4", "int8" or "none".
        dtype: Number format of the weights.
        max_new_tokens: Largest number of tokens in an answer.
        temperature: 0 answers greedily; above 0 samples.
        stop: Texts that end an answer; they are not part of it.
        batch_size: Prompts answered at once, the longest first and those with a common prefix in one batch. If CUDA
            runs out of memory, it is halved and the work goes on.
        max_prompt_tokens: Largest number of tokens in a prompt; a longer one's last turn is cut at its end, with a
            warning.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template_options: Further arguments for the tokenizer's chat template.
        cache: Where greedy answers are stored for other runs; true: in the user's cache folder; false: nowhere.
            Sampled answers depend on the run's random state and are not stored.

    Raises:
        ConfigError: If a setting is impossible.
        ModelError: If the model named is not there.
    """

    kind = "local"

    def __init__(
        self,
        model: str,
        quantization: Quantization = "none",
        dtype: DType = "auto",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: list[str] | None = None,
        batch_size: int = 32,
        max_prompt_tokens: int = 2048,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
        cache: AnswerCache | bool = True,
    ) -> None:
        check_arguments(LocalStudent, locals())
        check_counts("LocalStudent", batch_size=batch_size)
        spec = ModelSpec(model, quantization, dtype, revision, trust_remote_code)
        super().__init__(spec, max_new_tokens, temperature, stop, max_prompt_tokens, chat_template_options, cache)
        self.batch_size = batch_size
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def libraries(self) -> list[str]:
        """Return the versions of the libraries that compute the answers."""
        return [torch.__version__, transformers.__version__]

    def setup(self, device: torch.device) -> None:
        """Load the weights onto the device; do nothing when called again."""
        if self._model is None:
            self._model, self._tokenizer = load_causal_lm(self.spec, device=device)

    def close(self) -> None:
        """Free the memory; `setup` loads again."""
        self._model = self._tokenizer = None
        super().close()

    @property
    def memory_bytes(self) -> int:
        """Size of the weights in bytes."""
        return int(self._loaded[0].get_memory_footprint())

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; available after `setup`."""
        return self._loaded[1]

    @property
    def _loaded(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        if self._model is None or self._tokenizer is None:
            raise RuntimeError("LocalStudent: call setup(device) first")
        return self._model, self._tokenizer

    def determines(self) -> dict[str, Any]:
        """Return what determines a greedy answer besides the prompt, once the model is loaded."""
        model, tokenizer = self._loaded
        return {
            "local": self.spec.fingerprint(getattr(model.config, "_commit_hash", None)),
            "quantization": self.spec.quantization,
            "dtype": str(model.dtype),
            "device": model.device.type,
            "limits": [self.max_new_tokens, self.max_prompt_tokens],
            "stop": self.stop,
            "template": [tokenizer.chat_template, self.chat_template_options],
            "libraries": self.libraries(),
        }

    def answer(self, rows: Mapping[str, list[int]]) -> Iterator[dict[str, Response]]:
        """Answer in batches of at most ``batch_size``.

        Raises:
            torch.OutOfMemoryError: If a single prompt needs more memory than there is.
        """
        keys = list(rows)
        todo = [keys[i] for i in order_by_prefix(list(rows.values()))]
        while todo:
            batch = todo[: self.batch_size]
            responses = None
            try:
                responses = self._generate([rows[key] for key in batch])
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
            if responses is None:
                self._halve(len(batch))
                continue
            yield dict(zip(batch, responses, strict=True))
            todo = todo[len(batch) :]

    def _halve(self, tried: int) -> None:
        # Not inside the except block: the exception's traceback would keep the batch's memory alive.
        torch.cuda.empty_cache()
        self.batch_size = tried // 2
        warnings.warn(
            f"student {self.source!r}: out of memory with {tried} prompts at once; going on with {self.batch_size} "
            f"(set batch_size: {self.batch_size} to start with that)",
            stacklevel=4,
        )

    def _generate(self, rows: list[list[int]]) -> list[Response]:
        model, tokenizer = self._loaded
        ends = (*cast(Any, model.generation_config).eos_token_id, *self.stop_ids())
        stop = StopStringCriteria(tokenizer, self.stop) if self.stop else None
        how = Decoding(ends, int(cast(Any, tokenizer).pad_token_id), self.max_new_tokens, self.temperature, stop)
        return [self._response(tokenizer, row, ends) for row in generate(model, rows, how)]

    def _response(self, tokenizer: PreTrainedTokenizerBase, row: list[int], ends: tuple[int, ...]) -> Response:
        end = next((i for i, token in enumerate(row) if token in ends), None)
        text = str(tokenizer.decode(row if end is None else row[:end], skip_special_tokens=True))
        cuts = [found for stop in self.stop if (found := text.find(stop)) >= 0]
        if cuts:
            text = text[: min(cuts)]
        return Response(text.strip(), len(row), truncated=end is None and not cuts)
