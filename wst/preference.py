"""A reward model of one's own, trained on pairs of a preferred and a rejected answer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wst.callbacks import USUAL_OF_PREFERENCE, missing
from wst.distributed import check_strategy, collective_errors, gather
from wst.errors import ConfigError, DataError
from wst.evaluation.metrics import PairedRewards
from wst.modeling import loading as models
from wst.modeling.classifiers import encode_dialogue, load_scorer, score_rows
from wst.settings import check_counts
from wst.teacher import LoRA
from wst.training.checkpoint import TrainedWeightsOnly
from wst.types import Query

ARMS = ("model", "length", "chance")


class PreferenceModel(TrainedWeightsOnly):
    """Learns to give the preferred answer of a pair the larger number.

    The loss is that of Bradley and Terry (1952), as Christiano et al. (2017, arXiv 1706.03741) use it:
    -log sigmoid(s(x, chosen) - s(x, rejected)). The network is a causal language model with a scalar head on its last
    token. It is exported as an ordinary Hugging Face sequence classifier, which `wst.RewardModel` takes.

    It is trained on the queries of a data module whose `Query.extra` holds ``chosen`` and ``rejected``, such as
    `wst.HHRLHF`. A test says how often the model ranks a pair rightly, and how often its length alone would.

    Args:
        model: Name of the causal language model to start from; see `wst.modeling.loading`.
        lora: Shape of the adapter; None trains all weights.
        layers: Only so many layers from the top get an adapter: the pass backwards ends below them. It needs a lora
            whose target_modules are listed by name. None: all.
        quantization: "nf4" or "int8" for an adapter on a quantized base.
        dtype: Number format of the base; adapter and head are float32.
        max_tokens: Length limit of a dialogue with its answer; of a longer one the last tokens are kept.
        batch_size: Dialogues in one pass.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether Python code that comes with the model may run.
        chat_template_options: Further arguments for the tokenizer's chat template.
        optimizer: Makes the optimizer from the trainable parameters.
        lr_scheduler: Makes the scheduler, which moves once a step; None: constant.

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
        quantization: models.Quantization = "none",
        dtype: models.DType = "auto",
        max_tokens: int = 1024,
        batch_size: int = 16,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-4),
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_plain_hyperparameters()
        check_counts("PreferenceModel", max_tokens=max_tokens, batch_size=batch_size, layers=layers)
        if quantization != "none" and lora is None:
            raise ConfigError("PreferenceModel: quantized weights cannot be trained; set lora, or quantization: none")
        if layers is not None and (lora is None or isinstance(lora.target_modules, str)):
            raise ConfigError("PreferenceModel: layers needs a lora whose target_modules are listed by name")
        models.locate(model)
        self.source = model
        self.lora = lora
        self.layers = layers
        self.max_tokens = max_tokens
        self.batch_size = batch_size
        self.chat_template_options = chat_template_options
        self.make_optimizer = optimizer
        self.make_scheduler = lr_scheduler
        self.trained_steps = 0  #: updates that the weights have behind them, over all resumes
        self.network: PreTrainedModel | PeftModel | None = None
        self.scores = PairedRewards(ARMS, sync_on_compute=False)  # every process is told of all rows
        self._loading: dict[str, Any] = {
            "quantization": quantization,
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._tokenizer: PreTrainedTokenizerBase | None = None

    # ------------------------------------------------------------- the method

    def training_step(self, queries: list[Query], batch_idx: int) -> Tensor:
        """Give the Bradley-Terry loss of a batch of pairs."""
        margins = self.margins(queries)
        everyone = torch.cat(gather(margins.detach().cpu()))
        # The strategy takes the mean over processes, which need not have equally many pairs.
        loss = -functional.logsigmoid(margins).sum() * self.trainer.world_size / len(everyone)
        self.log_dict(_figures("train", everyone), batch_size=len(everyone), prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ANN401 - as Lightning has it
        """Count the update."""
        self.trained_steps += 1

    def margins(self, queries: Sequence[Query]) -> Tensor:
        """Score of the chosen less that of the rejected answer, [queries]; dialogues of a length go together.

        Raises:
            DataError: If a query has no pair of answers.
        """
        if not queries:  # of several processes, one that has nothing left takes part in the step all the same
            return sum(parameter.sum() for parameter in self.trainable()) * torch.zeros(0, device=self.device)
        rows = [self._encode(query, side) for side in ("chosen", "rejected") for query in queries]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        pad_id = int(cast(Any, self._tokenizer).pad_token_id)
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        scores = torch.cat([score_rows(self.network, [rows[i] for i in batch], pad_id) for batch in batches])
        chosen, rejected = scores[torch.tensor(order, device=scores.device).argsort()].chunk(2)
        return chosen - rejected

    def _encode(self, query: Query, side: str) -> list[int]:
        answer = query.extra.get(side)
        if not isinstance(answer, str):
            raise DataError(
                f"query {query.id!r}: it has no {side!r} answer, which PreferenceModel needs; take a data module of "
                "preference pairs, such as wst.HHRLHF"
            )
        tokenizer = cast(PreTrainedTokenizerBase, self._tokenizer)
        return encode_dialogue(tokenizer, query, answer, self.max_tokens, self.chat_template_options)[0]

    # ------------------------------------------------------------- evaluation

    def validation_step(self, queries: list[Query], batch_idx: int) -> None:
        """Log loss and accuracy."""
        margins = torch.cat(gather(self.margins(queries).cpu()))
        self.log_dict(_figures("val", margins), batch_size=len(margins), prog_bar=True, sync_dist=False)

    def on_test_start(self) -> None:
        """Refuse to test a head that was never trained.

        Raises:
            ConfigError: If nothing was trained.
        """
        self.scores.reset()
        if not self.trained_steps:
            raise ConfigError("test: there is no trained preference model; give --ckpt_path (last, best or a file)")

    def test_step(self, queries: list[Query], batch_idx: int) -> None:
        """Rank each pair, by the model and by length alone; a tie counts half."""
        margins = self.margins(queries).cpu()
        lengths = torch.tensor([len(query.extra["chosen"]) - len(query.extra["rejected"]) for query in queries])
        rows = [(sign.sign() + 1) / 2 for sign in (margins, lengths.float())]
        table = torch.stack([*rows, torch.full_like(margins, 0.5)], dim=1)
        self.scores.update(torch.cat(gather(table)).to(self.device))

    def results(self) -> dict[str, Any]:
        """Give the share of pairs that model and length rank rightly, with 95% intervals, and the model's gains."""
        arms = {name: estimate.to_dict() for name, estimate in self.scores.compute().items() if name != "chance"}
        gains = {
            f"model_vs_{other}": self.scores.gain("model", other).to_dict()
            | {"p_value": self.scores.p_value("model", other)}
            for other in ("chance", "length")
        }
        return {"n": self.scores.n, "accuracy": arms, "gain": gains}

    def on_test_epoch_end(self) -> None:
        """Log the accuracies."""
        for arm in ("model", "length"):
            self.log(f"test/accuracy/{arm}", self.scores.compute()[arm].mean)

    # ------------------------------------------------- set-up and checkpoints

    def setup(self, stage: str) -> None:
        """Make sure that the model is there before it is loaded.

        Raises:
            ConfigError: If the trainer's strategy divides the model.
            ModelError: If it is not there.
        """
        with collective_errors():
            check_strategy(self.trainer)
            models.check(self.source, self._loading["revision"], self._loading["trust_remote_code"])

    def configure_model(self) -> None:
        """Load the network onto this process's device; does nothing when called again."""
        if self.network is not None:
            return
        device = self.trainer.strategy.root_device
        with collective_errors():
            base, self._tokenizer = load_scorer(self.source, device=device, new_head=True, **self._loading)
            self.network = self._trainable_network(base)
        self.exclude_frozen_from_ddp()

    def _trainable_network(self, base: PreTrainedModel) -> PreTrainedModel | PeftModel:
        if self.lora is None:
            return base.requires_grad_(True)
        count = base.config.get_text_config().num_hidden_layers
        if self.layers is not None and self.layers > count:
            raise ConfigError(f"PreferenceModel: layers is {self.layers}, but the model has {count}")
        top = None if self.layers is None else list(range(count - self.layers, count))
        config = LoraConfig(
            r=self.lora.r,
            lora_alpha=self.lora.alpha,
            target_modules=self.lora.target_modules,
            layers_to_transform=top,
            task_type="SEQ_CLS",
        )
        try:
            network = get_peft_model(base, config)
        except ValueError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ConfigError(f"PreferenceModel: lora does not fit model {self.source!r} ({reason})") from error
        for wrapper in network.modules():
            if isinstance(wrapper, ModulesToSaveWrapper):  # peft leaves the head in the base's number format
                for head in wrapper.modules_to_save.float().values():
                    head.register_forward_pre_hook(_in_float32)
        return network

    def configure_callbacks(self) -> list[Callback]:
        """Add what every run has: the report of a test, and an end in good order."""
        return missing(self.trainer, USUAL_OF_PREFERENCE)

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - as Lightning has it
        """Make the optimizer for what is trained, and the scheduler."""
        optimizer = self.make_optimizer(self.trainable())
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.make_scheduler(optimizer), "interval": "step"}]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights and the count of steps."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["wst"] = {"trained_steps": self.trained_steps}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the count of steps."""
        self.trained_steps = checkpoint.get("wst", {}).get("trained_steps", 0)

    def save(self, folder: Path) -> None:
        """Write the model as an ordinary sequence classifier, the adapter merged into unquantized weights."""
        network = cast(Any, self.network)
        if self.lora is None:
            merged = network
        elif self._loading["quantization"] == "none":
            merged = copy.deepcopy(network).merge_and_unload()
        else:  # merged into rounded weights, the adapter would no longer be what was trained
            options = self._loading | {"quantization": "none"}
            base, _ = load_scorer(self.source, device=torch.device("cpu"), new_head=True, **options)
            plain = cast(Any, self._trainable_network(base))
            set_peft_model_state_dict(plain, get_peft_model_state_dict(network))
            merged = plain.merge_and_unload()
        merged.save_pretrained(folder)
        cast(PreTrainedTokenizerBase, self._tokenizer).save_pretrained(folder)


def _figures(stage: str, margins: Tensor) -> dict[str, Tensor]:
    loss = -functional.logsigmoid(margins).mean()
    return {f"{stage}/loss": loss, f"{stage}/accuracy": (margins > 0).float().mean()}


def _in_float32(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.float() if isinstance(value, Tensor) else value for value in given)
