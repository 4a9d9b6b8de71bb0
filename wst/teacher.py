"""The teacher: the policy that writes instructions, and the only model whose weights change."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wst.errors import ConfigError, ModelError, first_line
from wst.modeling import loading
from wst.modeling.adapters import (
    check_adapter,
    disable_dropout,
    keep_quantized_weights_differentiable,
    load_adapter,
)
from wst.modeling.chat import ChatEncoder
from wst.modeling.generation import Decoding, generate
from wst.modeling.logprobs import LogProbs, continuation_log_probs
from wst.modeling.prefix import prefix_sharing
from wst.modeling.spec import DType, FromSpec, ModelSpec, Quantization, file_fingerprint
from wst.prompts import Experience, TeacherPrompt
from wst.settings import check_arguments, check_counts, identity_of
from wst.types import Instruction, Message, Query

__all__ = ["LoRA", "Teacher"]

_TRAINED, _REFERENCE = "default", "reference"


@dataclass(frozen=True)
class LoRA:
    """Shape of the low-rank adapter (Hu et al. 2021, arXiv 2106.09685). It has no dropout; see `Teacher`.

    Args:
        r: Rank.
        alpha: Scale; the adapter's output is multiplied by alpha / r.
        target_modules: Names of the layers that get one, or "all-linear".
    """

    r: int = 16
    alpha: int = 32
    target_modules: str | list[str] = "all-linear"

    def __post_init__(self) -> None:
        """Check the settings; a `ConfigError` says which is impossible."""
        check_arguments(LoRA, vars(self))
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            raise ConfigError(f"LoRA: target_modules {self.target_modules!r:.80} must be all-linear or put in brackets")
        check_counts("LoRA", r=self.r, alpha=self.alpha)

    def add_to(
        self, base: PreTrainedModel, task_type: str, owner: str, model: str, layers: list[int] | None = None
    ) -> PeftModel:
        """Wrap a base model with a new adapter of this shape.

        Args:
            base: The base model.
            task_type: PEFT's name for what the model does.
            owner: Class that the error names.
            model: What the error calls the base.
            layers: Indices of the transformer layers that get an adapter; None: all.

        Raises:
            ConfigError: If the model has no such layers.
        """
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            target_modules=self.target_modules,
            layers_to_transform=layers,
            task_type=task_type,
        )
        try:
            return get_peft_model(base, config, adapter_name=_TRAINED)
        except ValueError as error:
            raise ConfigError(f"{owner}: lora does not fit model {model!r} ({first_line(error)})") from error


class Teacher(FromSpec, nn.Module):
    """A causal language model that samples instructions and says how probable they were.

    The weights are loaded by `load`, not by the constructor. There is no dropout, neither in sampling nor in the
    loss: both must see the same policy.

    Args:
        model: Name of the model; for this and the other options of loading see `ModelSpec`.
        prompt: What the teacher reads when it is to write an instruction.
        lora: Shape of the adapter to be trained; None trains all weights.
        adapter: Folder of an adapter to start from. Its own shape is used instead of ``lora``, and the KL is measured
            against it.
        quantization: "nf4" or "int8", for an adapter on a quantized base.
        dtype: Number format of the base; adapters are always float32.
        temperature: Sampling temperature. There is no top-p or top-k: they would bias the log-probabilities.
        max_new_tokens: Largest number of tokens in an instruction.
        max_prompt_tokens: Largest number of tokens in the prompt; a longer query is cut at its end, with a warning.
        sample_batch_size: Queries to sample for at once; None: the whole batch.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template_options: Further arguments for the tokenizer's chat template.

    Raises:
        ConfigError: If a setting is impossible.
        ModelError: If the model or adapter named is not there.
    """

    def __init__(
        self,
        model: str,
        prompt: TeacherPrompt | None = None,
        lora: LoRA | None = LoRA(),
        adapter: str | None = None,
        quantization: Quantization = "none",
        dtype: DType = "auto",
        temperature: float = 1.0,
        max_new_tokens: int = 48,
        max_prompt_tokens: int = 1024,
        sample_batch_size: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
    ) -> None:
        check_arguments(Teacher, locals())
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"Teacher: temperature must be above 0 to sample, got {temperature!r}")
        check_counts(
            "Teacher",
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            sample_batch_size=sample_batch_size,
        )
        if quantization != "none" and lora is None and adapter is None:
            raise ConfigError("Teacher: quantized weights cannot be trained; set lora, or quantization: none")
        self.spec = ModelSpec(model, quantization, dtype, revision, trust_remote_code)
        if adapter is not None:
            check_adapter(adapter)
        self.prompt = prompt or TeacherPrompt()
        self.experience = Experience() if self.prompt.has_experience else None
        self.lora = lora
        self.adapter = None if adapter is None else str(Path(adapter).absolute())
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.sample_batch_size = sample_batch_size
        self.chat_template_options = chat_template_options
        self.encoder = ChatEncoder(max_prompt_tokens, "the teacher's max_prompt_tokens", chat_template_options)
        self.network: PreTrainedModel | PeftModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        # In a list, so that nn.Module does not register it: the frozen copy must not reach state_dict or optimizer.
        self._frozen_copy: list[PreTrainedModel] = []

    # ---------------------------------------------------------------- loading

    @property
    def full_finetuning(self) -> bool:
        """Whether all weights are trained rather than an adapter."""
        return self.lora is None and self.adapter is None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; available after `load`."""
        if self._tokenizer is None:
            raise RuntimeError("Teacher: call load() first")
        return self._tokenizer

    @property
    def policy(self) -> PreTrainedModel | PeftModel:
        """The network; available after `load`."""
        if self.network is None:
            raise RuntimeError("Teacher: call load() first")
        return self.network

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine what it writes, apart from its training."""
        adapter = None if self.adapter is None else file_fingerprint(self.adapter)
        return {"model": self.spec.fingerprint(), "adapter": adapter, **self._settings()}

    def fixed_settings(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed, by option, as plain values for JSON.

        Models and adapters are compared by the names and sizes of their files, wherever these are.
        """
        adapter = None if self.adapter is None else file_fingerprint(self.adapter, portable=True)
        named = {
            "model": self.spec.fingerprint(portable=True),
            "adapter": adapter,
            "lora": None if adapter else self.lora,
        }
        return {option: identity_of(setting) for option, setting in (named | self._settings()).items()}

    def _settings(self) -> dict[str, Any]:
        return self.spec.options | {
            "prompt": self.prompt,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "chat_template_options": self.chat_template_options,
        }

    def unloaded(self, source: str | None = None, **changes: Any) -> Teacher:  # noqa: ANN401
        """Return a teacher with the same settings, except for the changes, and nothing loaded.

        Args:
            source: Name of another model; None: the same.
            changes: ``adapter``, ``lora``, ``prompt`` or ``experience``.

        Raises:
            ModelError: If the model or adapter named is not there.
        """
        twin = copy.copy(self)
        twin.__dict__["_modules"] = {}  # otherwise shared with the original
        twin.network, twin._tokenizer, twin._frozen_copy = None, None, []
        twin.encoder = replace(self.encoder, shortened=0)
        if source is not None:
            twin.spec = replace(self.spec, model=source)
        for name, value in changes.items():
            setattr(twin, name, value)
        if twin.adapter is not None:
            check_adapter(twin.adapter)
        return twin

    def load(self, device: torch.device) -> None:
        """Load the weights and put the adapter on them; do nothing when called again.

        Raises:
            ModelError: If the model or the adapter cannot be loaded.
            ConfigError: If ``max_prompt_tokens`` leaves no room for a query.
        """
        if self.network is not None:
            return
        base, self._tokenizer = loading.load_causal_lm(self.spec, device=device)
        self.encoder.check_room(self._tokenizer, self.prompt(Query("", "")).messages)
        if prefix_sharing(base) == "none":
            raise ModelError(
                f"teacher {self.source!r}: {type(base).__name__} has no KV cache of all its tokens, so that its "
                "instructions could not be scored; take a model with attention layers only"
            )
        disable_dropout(base)
        keep_quantized_weights_differentiable(base)
        if self.full_finetuning:
            self.network = base.requires_grad_(True)
        else:
            self.network = self._with_adapter(base)
        self.train()

    def _with_adapter(self, base: PreTrainedModel) -> PeftModel:
        if self.adapter is not None:
            policy = load_adapter(base, self.adapter, _TRAINED, _REFERENCE, self.source)
        else:
            policy = (self.lora or LoRA()).add_to(base, "CAUSAL_LM", "Teacher", self.source)
        disable_dropout(policy)
        policy.peft_config[_TRAINED].base_model_name_or_path = self.source
        return policy

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever is asked: sampling and loss must see the same policy."""
        del mode
        return super().train(False)

    # --------------------------------------------------------------- sampling

    def encode(self, query: Query) -> tuple[int, ...]:
        """Return the token ids of the prompt for a query, at most ``max_prompt_tokens``."""
        experience, turns = self.experience.text(query.id) if self.experience is not None else "", query.history

        def chat(text: str, start: int) -> tuple[Message, ...]:
            return self.prompt(Query(query.id, text, history=turns[start:]), experience).messages

        name, starts = f"query {query.id!r}", range(len(turns) + 1)
        return tuple(self.encoder.prompt(self.tokenizer, chat, query.text, name, starts))

    @torch.no_grad()
    def sample(
        self,
        queries: Sequence[Query],
        samples: int = 1,
        greedy: bool = False,
        on_done: Callable[[int, Instruction], None] | None = None,
    ) -> list[Instruction]:
        """Write instructions.

        Args:
            queries: Any number.
            samples: Instructions a query, K.
            greedy: Whether to take the most probable token each time instead of sampling.
            on_done: Called with each instruction and its index in the result as soon as it has ended, while others of
                its batch may still be sampled.

        Returns:
            ``len(queries) * samples`` instructions; the K of a query are neighbours.
        """
        size = (self.sample_batch_size or max(len(queries), 1)) * samples
        rows = [prompt for prompt in map(self.encode, queries) for _ in range(samples)]
        temperature = 0.0 if greedy else self.temperature
        how = Decoding(tuple(self.end_ids), self._pad_id, self.max_new_tokens, temperature)
        written: dict[int, Instruction] = {}

        def done(start: int, row: int, tokens: list[int]) -> None:
            place = start + row
            written[place] = self._instruction(rows[place], tokens)
            if on_done is not None:
                on_done(place, written[place])

        for start in range(0, len(rows), size):
            generate(self.policy, rows[start : start + size], how, on_end=partial(done, start))
        return [written[place] for place in range(len(rows))]

    def _instruction(self, prompt: tuple[int, ...], row: list[int]) -> Instruction:
        end = next((i for i, token in enumerate(row) if token in self.end_ids), None)
        tokens = row if end is None else row[: end + 1]
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        return Instruction(text, prompt, tuple(tokens), truncated=end is None)

    @property
    def end_ids(self) -> list[int]:
        """Token ids that end an instruction."""
        ends = self.policy.generation_config.eos_token_id
        return list(ends) if isinstance(ends, list) else [ends]

    @property
    def _pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)

    # ------------------------------------------------------- log-probabilities

    def log_probs(
        self, instructions: Sequence[Instruction], entropy: bool = False, entropy_gradient: bool = False
    ) -> LogProbs:
        """Return the log-probabilities of the sampled tokens, end token included, at the sampling temperature.

        Args:
            instructions: From `sample`, in any order.
            entropy: Whether to return the entropies too.
            entropy_gradient: Whether gradients flow through them, which takes longer.
        """
        return self._log_probs(self.policy, instructions, entropy, entropy_gradient)

    @torch.no_grad()
    def reference_log_probs(self, instructions: Sequence[Instruction]) -> LogProbs:
        """Return the same of the policy that training started from, without gradient."""
        with self.reference() as network:
            return self._log_probs(network, instructions)

    def _log_probs(self, network: nn.Module, instructions: Sequence[Instruction], *entropy: bool) -> LogProbs:
        prompts = [instruction.prompt_ids for instruction in instructions]
        sampled = [instruction.token_ids for instruction in instructions]
        return continuation_log_probs(network, prompts, sampled, self._pad_id, self.temperature, *entropy)

    # ------------------------------------------------------ other policies

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """Yield the network as it was when training started: with the adapter started from, or the bare base."""
        if self.adapter is None:
            with self.untrained() as network:
                yield network
            return
        policy = self.policy
        policy.set_adapter(_REFERENCE, inference_mode=True)  # type: ignore[call-arg]
        try:
            yield policy
        finally:
            policy.set_adapter(_TRAINED)

    @contextmanager
    def untrained(self) -> Iterator[nn.Module]:
        """Turn the teacher back, for a while, into the base model without any experience; `sample` follows."""
        trained, experience = self.network, self.experience
        self.experience = experience and Experience()
        try:
            if isinstance(trained, PeftModel):
                with trained.disable_adapter():
                    yield trained
                return
            if not self._frozen_copy:
                self._frozen_copy.append(loading.load_causal_lm(self.spec, device=self.policy.device)[0])
            self.network = self._frozen_copy[0]
            yield self.network
        finally:
            self.network, self.experience = trained, experience

    # ----------------------------------------------------------------- export

    def save(self, folder: Path) -> None:
        """Write the trained adapter (or, without one, the whole model) and the tokenizer, weights as safetensors."""
        if isinstance(self.policy, PeftModel):
            self.policy.save_pretrained(str(folder), selected_adapters=[_TRAINED], save_embedding_layers=False)
        else:
            self.policy.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
