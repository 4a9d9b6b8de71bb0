"""The teacher: the policy that writes instructions, and the only model whose weights change."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, PromptLearningConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wst.errors import ConfigError, ModelError
from wst.modeling import loading as models
from wst.modeling.generation import Decoding, common_prefix, pad_left, read, sharing, write
from wst.modeling.logprobs import score, split_backbone_and_head
from wst.prompts import TeacherPrompt
from wst.settings import check_counts, identity_of
from wst.types import Instruction, Query

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


@dataclass(frozen=True)
class LogProbs:
    """Log-probabilities of instructions; all [rows, tokens] in float32, padded on the right with 0.

    Attributes:
        values: Log-probability of each sampled token.
        mask: True where a token was sampled.
        entropy: Entropy of the distribution it was sampled from, in nats; None unless asked for.
    """

    values: Tensor
    mask: Tensor
    entropy: Tensor | None = None

    def rows(self, places: Sequence[int]) -> LogProbs:
        """Give those of some rows."""
        chosen = list(places)
        entropy = None if self.entropy is None else self.entropy[chosen]
        return LogProbs(self.values[chosen], self.mask[chosen], entropy)


class Teacher(nn.Module):
    """A causal language model that samples instructions and says how probable they were.

    The weights are loaded by `load`, not by the constructor. There is no dropout, neither in sampling nor in the
    loss: both must see the same policy.

    Args:
        model: Name of the model; see `wst.modeling.loading`.
        prompt: What it reads when it is to write an instruction.
        lora: Shape of the adapter to be trained; None trains all weights.
        adapter: Folder of an adapter to start from. Its own shape then counts instead of ``lora``, and it is also
            the reference that the KL is measured against.
        quantization: "nf4" or "int8" for an adapter on a quantized base.
        dtype: Number format of the base; adapters are always float32.
        temperature: Of sampling. There is no top-p or top-k, under which log-probabilities would be biased.
        max_new_tokens: Length limit of an instruction.
        max_prompt_tokens: Length limit of the prompt; a longer query is cut at its end, with a warning.
        sample_batch_size: Queries that are sampled for at once; None: all of a batch.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether Python code that comes with the model may run.
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
        quantization: models.Quantization = "none",
        dtype: models.DType = "auto",
        temperature: float = 1.0,
        max_new_tokens: int = 48,
        max_prompt_tokens: int = 1024,
        sample_batch_size: int | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"Teacher: temperature must be above 0 to sample, got {temperature}")
        check_counts(
            "Teacher",
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            sample_batch_size=sample_batch_size,
        )
        if quantization != "none" and lora is None and adapter is None:
            raise ConfigError("Teacher: quantized weights cannot be trained; set lora, or quantization: none")
        models.locate(model)
        if adapter is not None:
            _check_adapter(adapter)
        self.source = model
        self.prompt = prompt or TeacherPrompt()
        self.lora = lora
        self.adapter = adapter
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.max_prompt_tokens = max_prompt_tokens
        self.sample_batch_size = sample_batch_size
        self.chat_template_options = chat_template_options
        self.shortened = 0  #: queries cut to fit so far
        self._loading: dict[str, Any] = {
            "quantization": quantization,
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self.network: PreTrainedModel | PeftModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        # In a list, lest nn.Module take it for a part: the frozen copy must not reach state_dict or optimizer.
        self._frozen_copy: list[PreTrainedModel] = []

    # ---------------------------------------------------------------- loading

    @property
    def full_finetuning(self) -> bool:
        """Whether all weights are trained rather than an adapter."""
        return self.lora is None and self.adapter is None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; there once `load` was called."""
        if self._tokenizer is None:
            raise RuntimeError("Teacher: call load() first")
        return self._tokenizer

    @property
    def policy(self) -> PreTrainedModel | PeftModel:
        """The network; there once `load` was called."""
        if self.network is None:
            raise RuntimeError("Teacher: call load() first")
        return self.network

    def check(self) -> None:
        """Make sure that the model is there, reading its configuration alone.

        Raises:
            ModelError: If it is not.
        """
        models.check(self.source, self._loading["revision"], self._loading["trust_remote_code"])

    def identity(self) -> dict[str, Any]:
        """Give the settings that determine what it writes, with its training left out."""
        adapter = None if self.adapter is None else models.fingerprint_files(self.adapter)
        return {"model": models.fingerprint(self.source), "adapter": adapter, **self._settings()}

    def fixed_settings(self) -> dict[str, Any]:
        """Give the settings that must stay for a run to go on as it began, as JSON knows them, by option.

        Of models and adapters the files' names and sizes count, not where they lie.
        """
        adapter = None if self.adapter is None else models.portable_file_fingerprint(self.adapter)
        named = {
            "model": models.portable_fingerprint(self.source),
            "adapter": adapter,
            "lora": None if adapter else self.lora,
        }
        return {option: identity_of(setting) for option, setting in (named | self._settings()).items()}

    def _settings(self) -> dict[str, Any]:
        return self._loading | {
            "prompt": self.prompt,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "max_prompt_tokens": self.max_prompt_tokens,
            "chat_template_options": self.chat_template_options,
        }

    def unloaded(self, **changes: Any) -> Teacher:  # noqa: ANN401
        """Give a teacher with the same settings, or other ones, and nothing loaded.

        Args:
            changes: ``source``, ``adapter`` or ``lora``.
        """
        twin = copy.copy(self)
        twin.__dict__["_modules"] = {}  # the copy would share them
        twin.network, twin._tokenizer, twin._frozen_copy, twin.shortened = None, None, [], 0
        for name, value in changes.items():
            setattr(twin, name, value)
        if twin.adapter is not None:
            _check_adapter(twin.adapter)
        return twin

    def load(self, device: torch.device) -> None:
        """Load the weights and put the adapter on; does nothing when called again.

        Raises:
            ModelError: If the model or the adapter cannot be loaded.
        """
        if self.network is not None:
            return
        base, self._tokenizer = models.load_causal_lm(self.source, device=device, **self._loading)
        if sharing(base) == "none":
            raise ModelError(
                f"teacher {self.source!r}: {type(base).__name__} keeps no keys and values of all its tokens, and its "
                "instructions could not be scored; take a model with attention alone"
            )
        self.network = self._trainable(base)
        self.train()

    def _trainable(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        _switch_off_dropout(base)
        _keep_quantized_weights_differentiable(base)
        if self.adapter is not None:
            try:
                policy = PeftModel.from_pretrained(base, self.adapter, adapter_name=_TRAINED, is_trainable=True)
                policy.load_adapter(self.adapter, adapter_name=_REFERENCE, is_trainable=False)
            except models.LOADING_ERRORS as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise ModelError(f"adapter {self.adapter!r} does not fit model {self.source!r} ({reason})") from error
            policy.set_adapter(_TRAINED)
        elif self.lora is not None:
            targets = self.lora.target_modules
            config = LoraConfig(
                r=self.lora.r, lora_alpha=self.lora.alpha, target_modules=targets, task_type="CAUSAL_LM"
            )
            try:
                policy = get_peft_model(base, config, adapter_name=_TRAINED)
            except ValueError as error:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                raise ConfigError(f"Teacher: lora does not fit model {self.source!r} ({reason})") from error
        else:
            return base.requires_grad_(True)
        _switch_off_dropout(policy)
        policy.peft_config[_TRAINED].base_model_name_or_path = self.source
        return policy

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever is asked: sampling and loss must see the same policy."""
        del mode
        return super().train(False)

    # --------------------------------------------------------------- sampling

    def encode(self, query: Query) -> tuple[int, ...]:
        """Token ids of the prompt for a query, at most ``max_prompt_tokens``."""

        def prompt_ids(text: str) -> list[int]:
            shortened = Query(query.id, text, history=query.history)
            return models.encode_chat(self.tokenizer, self.prompt(shortened).messages, self.chat_template_options)

        ids, cut = models.encode_truncated(self.tokenizer, prompt_ids, query.text, self.max_prompt_tokens)
        if cut:
            self.shortened += 1
            warnings.warn(
                f"query {query.id!r} was cut to fit the teacher's max_prompt_tokens={self.max_prompt_tokens} "
                f"({self.shortened} so far)",
                stacklevel=2,
            )
        return tuple(ids)

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
            on_done: Told of each instruction, with its place in the list, as soon as it has ended; others of its
                batch may still be sampled.

        Returns:
            ``len(queries) * samples`` instructions; the K of a query stand together.
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
            write(self.policy, rows[start : start + size], how, on_end=partial(done, start))
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
        """Log-probabilities of the sampled tokens, end token included, at the sampling temperature.

        Each distinct prompt is read once, and its keys and values serve all instructions sampled from it;
        gradients flow back through them. Padding changes nothing.

        Args:
            instructions: From `sample`, in any order.
            entropy: Whether to give the entropies too.
            entropy_gradient: Whether gradients must flow through them, which takes longer.
        """
        return self._log_probs(self.policy, instructions, entropy, entropy_gradient)

    @torch.no_grad()
    def reference_log_probs(self, instructions: Sequence[Instruction]) -> LogProbs:
        """Like `log_probs`, of the policy that training started from, and without gradient."""
        with self.reference() as network:
            return self._log_probs(network, instructions)

    def _log_probs(
        self,
        network: nn.Module,
        instructions: Sequence[Instruction],
        entropy: bool = False,
        entropy_gradient: bool = False,
    ) -> LogProbs:
        device = self.policy.device
        prompts = list(dict.fromkeys(instruction.prompt_ids for instruction in instructions))
        order = {prompt: i for i, prompt in enumerate(prompts)}
        row_prompt = torch.tensor([order[instruction.prompt_ids] for instruction in instructions], device=device)
        shared = common_prefix(network, prompts)
        prefix, prefix_mask = pad_left([prompt[:-1] for prompt in prompts], self._pad_id, device, shared)
        # [rows, tokens], padded on the right; the input is shifted by one and starts with the prompt's last token
        lengths = torch.tensor([len(instruction.token_ids) for instruction in instructions], device=device)
        width = int(lengths.max())
        mask = torch.arange(width, device=device) < lengths[:, None]
        targets = torch.tensor([_padded(i.token_ids, width, self._pad_id) for i in instructions], device=device)
        first = torch.tensor([[instruction.prompt_ids[-1]] for instruction in instructions], device=device)
        cache = None
        if prefix.shape[1]:
            cache = read(network, prefix, prefix_mask, shared)
            cache.batch_select_indices(row_prompt)
        seen = prefix_mask[row_prompt]
        inputs = {
            "input_ids": torch.cat([first, targets[:, :-1]], dim=1),
            "attention_mask": torch.cat([seen, mask.to(seen)], dim=1),
            "position_ids": seen.sum(dim=1, keepdim=True) + torch.arange(width, device=device),
            "past_key_values": cache,
            "use_cache": True,
        }
        parts = split_backbone_and_head(network)
        if parts is None:
            states, head = network(**inputs).logits, None
        else:
            states, head = parts[0](**inputs).last_hidden_state, parts[1]
        found = score(states[mask], targets[mask], head, self.temperature, entropy, entropy_gradient)
        values, entropies = (None if of is None else _placed(of, mask) for of in found)
        return LogProbs(cast(Tensor, values), mask, entropies)

    # ------------------------------------------------------ other policies

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """Give the network as it was when training started: the adapter started from, or the bare base."""
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
        """Let the teacher be, for a while, the base model as it was before any training; `sample` follows it."""
        if isinstance(self.network, PeftModel):
            with self.network.disable_adapter():
                yield self.network
            return
        if not self._frozen_copy:
            copy, _ = models.load_causal_lm(self.source, device=self.policy.device, **self._loading)
            self._frozen_copy.append(copy)
        trained, self.network = self.network, self._frozen_copy[0]
        try:
            yield self.network
        finally:
            self.network = trained

    # ----------------------------------------------------------------- export

    def save(self, folder: Path) -> None:
        """Write the trained adapter (or, without one, the whole model) and the tokenizer, weights as safetensors."""
        if isinstance(self.policy, PeftModel):
            self.policy.save_pretrained(str(folder), selected_adapters=[_TRAINED], save_embedding_layers=False)
        else:
            self.policy.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _placed(values: Tensor, mask: Tensor) -> Tensor:
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _padded(row: tuple[int, ...], width: int, pad_id: int) -> list[int]:
    return [*row, *[pad_id] * (width - len(row))]


def _switch_off_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            cast(Any, module).p = 0.0


def _keep_quantized_weights_differentiable(base: nn.Module) -> None:
    """Stop bitsandbytes from repacking 4-bit weights for inference.

    On a CPU with AVX-512 BF16 a layer in eval mode would do so at its first call without gradient (sampling), for
    good; no gradient passes through a layer once repacked, and nothing would say so.
    """
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            cast(Any, module).support_avx512bf16_for_cpu = False


def _check_adapter(folder: str) -> None:
    path = Path(folder)
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"adapter {folder!r}: no adapter_config.json there; give a folder that PEFT saved")
    if not (path / "adapter_model.safetensors").is_file():
        raise ModelError(f"adapter {folder!r}: no adapter_model.safetensors; adapters are read from safetensors alone")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"adapter {folder!r}: adapter_config.json is not JSON ({error})") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    shape = PEFT_TYPE_TO_CONFIG_MAPPING.get(cast(Any, kind))
    if shape is None or issubclass(shape, PromptLearningConfig) or config.get("alora_invocation_tokens"):
        raise ModelError(
            f"adapter {folder!r}: one of peft_type {kind!r} with these settings does more than change layers, and "
            "prompts could not be read once for several instructions; give a LoRA or its like"
        )
