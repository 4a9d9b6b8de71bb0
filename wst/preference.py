"""Training of a reward model on pairs of a preferred and a rejected answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wst.callbacks import USUAL_OF_PREFERENCE, missing
from wst.distributed import check_strategy, collective_errors, gather
from wst.errors import ConfigError, DataError, Diverged
from wst.evaluation.instructors import check_finite
from wst.evaluation.metrics import Estimate, PairedRewards, estimate_gain, estimate_mean, is_binary
from wst.modeling.chat import ChatEncoder, dialogue
from wst.modeling.classifiers import load_classifier, score_rows
from wst.modeling.spec import DType, FromSpec, ModelSpec, Quantization
from wst.settings import check_arguments, check_counts
from wst.teacher import LoRA
from wst.training.checkpoint import TrainedWeightsOnly, check_functions
from wst.types import Query

ARMS = ("model", "length", "chance")


class PreferenceModel(FromSpec, TrainedWeightsOnly):
    """A model that learns to give the preferred answer of a pair the higher score.

    The loss is that of Bradley and Terry (1952), as Christiano et al. (2017, arXiv 1706.03741) use it:
    -log sigmoid(s(x, chosen) - s(x, rejected)). The network is a causal language model with a scalar head on its last
    token. It is exported as a Hugging Face sequence classifier, which `wst.RewardModel` loads.

    The data module's queries must hold ``chosen`` and ``rejected`` in `Query.extra`, as those of `wst.HHRLHF` do. A
    test reports how often the model ranks a pair correctly, and how often the answers' lengths alone would.

    Args:
        model: Name of the causal language model to start from; for this and the other options of loading see
            `ModelSpec`.
        lora: Shape of the adapter; None trains all weights.
        layers: Number of layers, from the top, that get an adapter; the backward pass ends below them. Needs a lora
            whose target_modules are listed by name. None: all.
        quantization: "nf4" or "int8", for an adapter on a quantized base.
        dtype: Number format of the base; adapter and head are float32.
        max_tokens: Largest number of tokens in a dialogue with its answer; of a longer one the last tokens are read.
        batch_size: Dialogues in one forward pass.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template_options: Further arguments for the tokenizer's chat template.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes the scheduler, which is stepped once a step; None: constant learning rate.

    Raises:
        ConfigError: If a setting is impossible.
        ModelError: If the model named is not there.
    """

    trained = "preference model"

    def __init__(
        self,
        model: str,
        lora: LoRA | None = LoRA(),  # noqa: B008 - frozen
        layers: int | None = None,
        quantization: Quantization = "none",
        dtype: DType = "auto",
        max_tokens: int = 1024,
        batch_size: int = 16,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        check_arguments(PreferenceModel, locals())
        check_functions(optimizer, lr_scheduler)
        super().__init__()
        self.save_plain_hyperparameters()
        check_counts("PreferenceModel", max_tokens=max_tokens, batch_size=batch_size, layers=layers)
        if quantization != "none" and lora is None:
            raise ConfigError("PreferenceModel: quantized weights cannot be trained; set lora, or quantization: none")
        if layers is not None and (lora is None or isinstance(lora.target_modules, str)):
            raise ConfigError("PreferenceModel: layers needs a lora whose target_modules are listed by name")
        self.spec = ModelSpec(model, quantization, dtype, revision, trust_remote_code)
        self.lora = lora
        self.layers = layers
        self.encoder = ChatEncoder(max_tokens, "max_tokens", chat_template_options)
        self.batch_size = batch_size
        self.make_optimizer = optimizer
        self.make_scheduler = lr_scheduler
        self.network: PreTrainedModel | PeftModel | None = None
        self.scores = PairedRewards(ARMS, sync_on_compute=False)  # every rank gets all rows
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # ------------------------------------------------------------- the method

    def training_step(self, queries: list[Query], batch_idx: int) -> Tensor:
        """Return the Bradley-Terry loss of a batch of pairs.

        Raises:
            Diverged: If a score is not a number.
        """
        margins = self.margins(queries)
        everyone = torch.cat(gather(margins.detach().cpu()))
        if not bool(everyone.isfinite().all()):
            raise Diverged(
                f"the preference model's scores are not numbers after {self.trained_steps} steps; lower the learning "
                "rate, or set a dtype with a larger range"
            )
        # DDP averages gradients over ranks, which may have different numbers of pairs.
        loss = -functional.logsigmoid(margins).sum() * self.trainer.world_size / len(everyone)
        self.log_dict(_figures("train", everyone), batch_size=len(everyone), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ANN401 - as Lightning has it
        """Count the optimizer step."""
        self.trained_steps += 1

    def margins(self, queries: Sequence[Query]) -> Tensor:
        """Return the chosen answer's score minus the rejected one's, [queries]. Batches are sorted by length.

        Raises:
            DataError: If a query has no pair of answers.
        """
        if not queries:  # a rank without queries takes part in the step all the same
            return sum(parameter.sum() for parameter in self.trainable()) * torch.zeros(0, device=self.device)
        tokenizer = cast(PreTrainedTokenizerBase, self._tokenizer)
        dialogues = [dialogue(query, _answer(query, side)) for side in ("chosen", "rejected") for query in queries]
        rows = self.encoder.dialogues(tokenizer, dialogues)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        pad_id = int(cast(Any, tokenizer).pad_token_id)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        scores = torch.cat([score_rows(self.network, [rows[i] for i in batch], pad_id) for batch in batches])
        chosen, rejected = scores[torch.tensor(order, device=scores.device).argsort()].chunk(2)
        return chosen - rejected

    # ------------------------------------------------------------- evaluation

    def validation_step(self, queries: list[Query], batch_idx: int) -> None:
        """Log loss and accuracy."""
        margins = torch.cat(gather(self.margins(queries).cpu()))
        self.log_dict(_figures("val", margins), batch_size=len(margins), prog_bar=True, sync_dist=False)

    def on_test_start(self) -> None:
        """Refuse to test a head that was never trained.

        Raises:
            ConfigError: If nothing was trained.
            ModelError: If a weight is not finite.
        """
        self.scores.reset()
        if not self.trained_steps:
            raise ConfigError("test: there is no trained preference model; give --ckpt_path (last, best or a file)")
        check_finite(cast(nn.Module, self.network), "preference model")

    def test_step(self, queries: list[Query], batch_idx: int) -> None:
        """Rank each pair by the model and by length; a tie counts as half correct."""
        margins = self.margins(queries).cpu()
        lengths = torch.tensor([len(query.extra["chosen"]) - len(query.extra["rejected"]) for query in queries])
        rows = [(sign.sign() + 1) / 2 for sign in (margins, lengths.float())]
        table = torch.stack([*rows, torch.full_like(margins, 0.5)], dim=1)
        self.scores.update(torch.cat(gather(table)).to(self.device))

    def results(self) -> dict[str, Any]:
        """Return the share of pairs that model and length rank correctly, with 95% intervals, and the model's gains."""
        model, length = self.scores.column("model"), self.scores.column("length")
        accuracy = estimate_mean(model, is_binary(model))
        over = {
            "chance": Estimate(*(value - 0.5 for value in accuracy)),  # a gain over a constant has the same interval
            "length": estimate_gain(model - length, is_binary(model) and is_binary(length)),
        }
        arms = {"model": accuracy.to_dict(), "length": estimate_mean(length, is_binary(length)).to_dict()}
        gains = {
            f"model_vs_{other}": gain.to_dict() | {"p_value": self.scores.p_value("model", other)}
            for other, gain in over.items()
        }
        return {"n": self.scores.n, "accuracy": arms, "gain": gains}

    def on_test_epoch_end(self) -> None:
        """Log the accuracies."""
        for arm in ("model", "length"):
            self.log(f"test/accuracy/{arm}", self.scores.compute()[arm].mean)

    # ------------------------------------------------- set-up and checkpoints

    def setup(self, stage: str) -> None:
        """Check that the model is there before it is loaded.

        Raises:
            ConfigError: If the trainer's strategy shards the model.
            ModelError: If it is not there.
        """
        with collective_errors():
            check_strategy(self.trainer)
            self.check()

    def configure_model(self) -> None:
        """Load the network onto this rank's device; do nothing when called again."""
        if self.network is not None:
            return
        device = self.trainer.strategy.root_device
        with collective_errors():
            base, self._tokenizer = load_classifier(self.spec, device=device, new_head=True)
            self.network = self._trainable_network(base)
        self.exclude_frozen_from_ddp()

    def _trainable_network(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        if self.lora is None:
            return base.requires_grad_(True)
        count = base.config.get_text_config().num_hidden_layers
        if self.layers is not None and self.layers > count:
            raise ConfigError(f"PreferenceModel: layers is {self.layers}, but the model has {count}")
        top = None if self.layers is None else list(range(count - self.layers, count))
        network = self.lora.add_to(base, "SEQ_CLS", "PreferenceModel", self.source, top)
        for wrapper in network.modules():
            if isinstance(wrapper, ModulesToSaveWrapper):  # peft keeps the head in the base's number format
                for head in wrapper.modules_to_save.float().values():
                    head.register_forward_pre_hook(_in_float32)
        return network

    def configure_callbacks(self) -> list[Callback]:
        """Add the callbacks of every run: the report of a test, and an orderly end."""
        return missing(self.trainer, USUAL_OF_PREFERENCE)

    def save(self, folder: Path) -> None:
        """Write the model as a sequence classifier, with the adapter merged into unquantized weights."""
        network = cast(Any, self.network)
        if self.lora is None:
            merged = network
        elif self.spec.quantization == "none":
            merged = copy.deepcopy(network).merge_and_unload()
        else:  # merging into quantized weights would round the adapter away
            plain_spec = replace(self.spec, quantization="none")
            base, _ = load_classifier(plain_spec, device=torch.device("cpu"), new_head=True)
            plain = cast(Any, self._trainable_network(base))
            set_peft_model_state_dict(plain, get_peft_model_state_dict(network))
            merged = plain.merge_and_unload()
        merged.save_pretrained(folder)
        cast(PreTrainedTokenizerBase, self._tokenizer).save_pretrained(folder)


def _answer(query: Query, side: str) -> str:
    answer = query.extra.get(side)
    if not isinstance(answer, str):
        raise DataError(
            f"query {query.id!r}: it has no {side!r} answer, which PreferenceModel needs; take a data module of "
            "preference pairs, such as wst.HHRLHF"
        )
    return answer


def _figures(stage: str, margins: Tensor) -> dict[str, Tensor]:
    loss = -functional.logsigmoid(margins).mean()
    return {f"{stage}/loss": loss, f"{stage}/accuracy": (margins > 0).float().mean()}


def _in_float32(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, Tensor) else value for value in given)
