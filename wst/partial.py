"""Checkpoints of the trained weights alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lightning import LightningModule
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wst.errors import ModelError
from wst.processes import together


class TrainedWeightsOnly(LightningModule):
    """A module whose checkpoints leave the frozen base out: megabytes, not gigabytes."""

    #: What an error calls that which is trained.
    trained: str = "model"
    #: Heads of the keys of further state that a checkpoint keeps, and may lack when it is loaded.
    kept: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # load_state_dict checks what is missing

    def trainable(self) -> list[nn.Parameter]:
        """Give the parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def keep_frozen_apart(self) -> None:
        """Let DDP leave alone what is not trained; to be called once the weights are there.

        Every process loads the same, so that there is nothing to be sent around, and quantized weights could not be.
        """
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        buffers = [name for name, _ in self.named_buffers()]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, frozen + buffers)

    def _trained_keys(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained weights and the further state."""
        trained, state = self._trained_keys(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k in trained or k.startswith(self.kept)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False, assign: bool = False) -> Any:  # noqa: ANN401
        """Load a checkpoint's weights, which must be all of the trained ones and fit them.

        Raises:
            ModelError: If they are not, or do not.
        """
        with together():
            different = sorted(self._trained_keys() ^ {key for key in state_dict if not key.startswith(self.kept)})
            if different:
                raise ModelError(
                    f"the checkpoint is of another {self.trained}: {len(different)} weights are only here or only "
                    f"there, {different[0]} among them; give the settings it was trained with"
                )
            try:
                return super().load_state_dict(state_dict, strict=False, assign=assign)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ModelError(
                    f"the checkpoint is of another {self.trained} ({reason}); give the settings it was trained with"
                ) from error

    def save_plain_hyperparameters(self) -> None:
        """Remember the arguments of the constructor that calls this, for a checkpoint that can rebuild the run.

        The command line has them as class paths and plain values. Objects handed over from Python would be pickled,
        and such a checkpoint could not be loaded safely: of these only plain values are kept.
        """
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
            return
        frame = inspect.currentframe()
        init = frame.f_back if frame is not None else None
        values = init.f_locals if init is not None else {}
        plain = [name for name, value in values.items() if isinstance(value, bool | int | float | str | None)]
        self.save_hyperparameters(*[name for name in plain if name not in ("self", "__class__")], frame=init)
