"""A preference model on a tiny classifier, and pairs that it can learn."""

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from trainers import quiet_trainer

from wst import LoRA, Message, PreferenceModel, Query, QueryDataModule, Response, RewardModel, Rollout
from wst.data.datamodule import Split

CPU = torch.device("cpu")
RUN = Path("runs/tiny/version_0")
SOME = LoRA(r=4, target_modules=["q_proj", "down_proj"])
STEPS = 24

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def pair(number: int) -> Query:
    """A pair that "yes" and "no" tell apart; the preferred answer is longer in a quarter, as long in another."""
    leads = (("", ""), ("", "a "), ("", "well, "), ("so ", "well, "))[number % 4]
    chosen, rejected = f"{leads[0]}{number} yes yes", f"{leads[1]}{number} no no"
    history = (Message("user", "hello"), Message("assistant", "hi")) if number % 3 == 0 else ()
    return Query(f"p{number}", f"query {number}", history=history, extra={"chosen": chosen, "rejected": rejected})


class Pairs(QueryDataModule):
    """Pairs from 0 up to train on, and others from 100 up to validate and to test on."""

    def __init__(self, train: int = 32, held_out: int = 16, **settings: Any) -> None:
        super().__init__(**{"batch_size": 8} | settings)
        self.rows: dict[str, range] = {"train": range(train), "val": range(100, 100 + held_out)}

    def load(self, split: Split) -> list[Query]:
        return [pair(number) for number in self.rows.get("train" if split == "train" else "val", ())]


def make(model: str, **settings: Any) -> PreferenceModel:
    defaults: dict[str, Any] = {
        "lora": LoRA(r=8, alpha=16),
        "dtype": "float32",
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-2),
    }
    return PreferenceModel(model, **(defaults | settings))


def trainer(folder: Path, steps: int = 2, **settings: Any) -> Trainer:
    defaults: dict[str, Any] = {"limit_val_batches": 0, "num_sanity_val_steps": 0}
    return quiet_trainer(folder, max_steps=steps, **(defaults | settings))


def fit(module: PreferenceModel, folder: Path, steps: int = 2, **settings: Any) -> PreferenceModel:
    torch.manual_seed(0)
    trainer(folder, steps, **settings).fit(module, Pairs())
    return module


def load(module: PreferenceModel) -> PreferenceModel:
    """Load the network, without a run."""
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.configure_model()
    return module


def weights(module: PreferenceModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def trained_weights(module: PreferenceModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}


def scrambled(module: PreferenceModel) -> PreferenceModel:
    """Let every trained weight say something: a new adapter's says nothing yet."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        for value in module.trainable():
            value.add_(0.05 * torch.randn_like(value))
    return module


def margins(module: PreferenceModel, queries: list[Query]) -> Tensor:
    with torch.no_grad():
        return module.margins(queries)


def exported_margins(folder: Path, queries: list[Query]) -> Tensor:
    """What `wst.RewardModel` makes of the pairs with an exported folder."""
    reward = RewardModel(str(folder), dtype="float32")
    reward.setup(CPU)
    sides = [
        reward.score([Rollout(query, None, Response(query.extra[side])) for query in queries])
        for side in ("chosen", "rejected")
    ]
    return torch.tensor(sides[0]) - torch.tensor(sides[1])
