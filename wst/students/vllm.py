"""A student that vLLM runs in this process: continuous batching and paged attention, on CUDA only."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from wst.distributed import is_distributed
from wst.errors import ConfigError, ModelError
from wst.modeling.loading import weights_folder
from wst.modeling.spec import DType, ModelSpec
from wst.settings import check_arguments
from wst.students.cache import AnswerCache
from wst.students.in_process import InProcessStudent
from wst.types import Response


class VLLMStudent(InProcessStudent):
    """A frozen model that vLLM runs on the teacher's GPU.

    vLLM comes with ``pip install 'weak-to-strong-transfer[vllm]'``.

    vLLM takes its share of the GPU's memory when it starts, for weights and KV cache; the teacher needs the rest.
    With several processes, or on other GPUs, serve the model and take `EndpointStudent`.

    Args:
        model: Name of the model; for this and the other options of loading see `ModelSpec`.
        memory_share: Share of the GPU's memory that vLLM may take, above 0 and below 1.
        quantization: As vLLM names it, such as "bitsandbytes", "fp8" or "awq"; None: as the weights are stored.
        dtype: Number format of the weights.
        max_new_tokens: Largest number of tokens in an answer.
        temperature: 0 answers greedily; above 0 samples.
        stop: Texts that end an answer; they are not part of it.
        max_prompt_tokens: Largest number of tokens in a prompt; a longer one's last turn is cut at its end, with a
            warning.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template_options: Further arguments for the tokenizer's chat template.
        engine_options: Further arguments for ``vllm.LLM``, such as ``enforce_eager: true``.
        cache: Where greedy answers are stored for other runs; true: in the user's cache folder; false: nowhere.

    Raises:
        ConfigError: If a setting is impossible, or vLLM is not installed.
        ModelError: If the model named is not there.
    """

    kind = "vllm"

    def __init__(
        self,
        model: str,
        memory_share: float = 0.6,
        quantization: str | None = None,
        dtype: DType = "auto",
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        stop: list[str] | None = None,
        max_prompt_tokens: int = 2048,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
        engine_options: dict[str, Any] | None = None,
        cache: AnswerCache | bool = True,
    ) -> None:
        check_arguments(VLLMStudent, locals())
        if not 0 < memory_share < 1:
            raise ConfigError(f"VLLMStudent: memory_share must be above 0 and below 1, got {memory_share}")
        if importlib.util.find_spec("vllm") is None:
            raise ConfigError(
                "VLLMStudent: vLLM is not installed; pip install 'weak-to-strong-transfer[vllm]' (it needs CUDA), or "
                "take LocalStudent"
            )
        spec = ModelSpec(model, quantization, dtype, revision, trust_remote_code)
        super().__init__(spec, max_new_tokens, temperature, stop, max_prompt_tokens, chat_template_options, cache)
        self.memory_share = memory_share
        self.engine_options = engine_options or {}
        self._engine: Any = None
        self._commit: str | None = None

    def libraries(self) -> list[str]:
        """Return the versions of the libraries that compute the answers."""
        return [importlib.metadata.version("vllm")]

    def identity(self) -> dict[str, Any]:
        """Return what determines its answers besides the prompt, as far as it is known before loading."""
        return super().identity() | {"engine": self.engine_options}

    def setup(self, device: torch.device) -> None:
        """Start the engine; do nothing when called again.

        Raises:
            ConfigError: If the device is no GPU, or there are several processes.
            ModelError: If vLLM cannot load the model.
        """
        if self._engine is not None:
            return
        if device.type != "cuda":
            raise ConfigError(f"VLLMStudent: vLLM needs a CUDA GPU, this run is on {device.type}; take LocalStudent")
        if is_distributed():
            raise ConfigError(
                "VLLMStudent: there are several processes; serve the model (vllm serve) and take EndpointStudent"
            )
        if device.index not in (None, 0):
            raise ConfigError(
                f"VLLMStudent: vLLM starts on the first GPU, and this run is on {device}; choose the GPU by "
                "CUDA_VISIBLE_DEVICES and set trainer.devices to 1"
            )
        import vllm

        located = self.spec.located
        options = {
            "gpu_memory_utilization": self.memory_share,
            "max_model_len": self.max_prompt_tokens + self.max_new_tokens,
            **self.spec.options,
            **self.engine_options,
        }
        try:
            if located.kind == "hub":
                config = AutoConfig.from_pretrained(
                    located.path, revision=self.spec.revision, trust_remote_code=self.spec.trust_remote_code
                )
                self._commit = getattr(config, "_commit_hash", None)
            self._engine = vllm.LLM(weights_folder(located, self.spec.revision), **options)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(
                f"model {self.source!r}: vLLM cannot load it ({reason:.300}); if memory is short, change memory_share "
                f"(now {self.memory_share})"
            ) from error

    def close(self) -> None:
        """Stop the engine; `setup` starts it again."""
        if self._engine is not None:
            self._engine.llm_engine.engine_core.shutdown()
        self._engine = None
        super().close()

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; available after `setup`."""
        return self._loaded.get_tokenizer()

    @property
    def _loaded(self) -> Any:  # noqa: ANN401 - vLLM's LLM
        if self._engine is None:
            raise RuntimeError("VLLMStudent: call setup(device) first")
        return self._engine

    def determines(self) -> dict[str, Any]:
        """Return what determines a greedy answer besides the prompt, once the model is loaded."""
        template = [self.tokenizer.chat_template, self.chat_template_options]
        return self.identity() | {"template": template, "commit": self._commit}

    def answer(self, rows: Mapping[str, list[int]]) -> Iterator[dict[str, Response]]:
        """Answer all prompts in one call; vLLM makes the batches."""
        from vllm import SamplingParams

        # vLLM has a random state of its own, so each sampled answer gets a seed from the run's.
        settings = [
            SamplingParams(
                temperature=self.temperature,
                max_tokens=self.max_new_tokens,
                stop=self.stop or None,
                stop_token_ids=self.stop_ids() or None,
                seed=int(torch.randint(2**31, ())) if self.temperature else None,
            )
            for _ in rows
        ]
        prompts = [{"prompt_token_ids": row} for row in rows.values()]
        outputs = self._loaded.generate(prompts, settings, use_tqdm=False)
        yield {key: _response(output.outputs[0]) for key, output in zip(rows, outputs, strict=True)}


def _response(output: Any) -> Response:  # noqa: ANN401 - vLLM's CompletionOutput
    return Response(output.text.strip(), len(output.token_ids), truncated=output.finish_reason == "length")
