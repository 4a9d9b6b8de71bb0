"""Everything that leans on a private member of Lightning, torch or TensorBoard, one function for each.

Each function says which private member it uses, and why no public one does. tests/training/test_lightning_internals.py
has a test for each, so that a release that moves a member fails there. Tested with lightning 2.6.0 to 2.6.6.
"""

from __future__ import annotations

from lightning import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def is_fitting(module: LightningModule) -> bool:
    """Return whether a trainer that fits has the module. `trainer` raises where there is none; `_trainer` does not."""
    return module._trainer is not None and module._trainer.state.fn == "fit"


def built_by_command_line() -> bool:
    """Return whether LightningCLI is calling the constructor: `_given_hyperparameters` then has its plain arguments."""
    return _given_hyperparameters.get() is not None


def ignore_in_ddp(module: nn.Module, names: list[str]) -> None:
    """Let DDP neither broadcast nor average these parameters and buffers. DDP offers it under a private name alone."""
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)
