"""Checkpoints that hold the trained weights alone, written whole or not at all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from wst.distributed import collective_errors
from wst.errors import ConfigError, ModelError, StorageError
from wst.files import replaced, storage_fault
from wst.training.lightning_internals import built_by_command_line, ignore_in_ddp, is_fitting

_GIVE_ANOTHER = "give one that `wst fit` wrote"


class TrainedWeightsOnly(LightningModule):
    """A module whose checkpoints leave the frozen base out: megabytes, not gigabytes."""

    #: How error messages call what is trained.
    trained: str = "model"
    #: Prefixes of further state_dict keys that a checkpoint keeps, and may lack when it is loaded.
    checkpoint_keys: tuple[str, ...] = ()
    make_optimizer: OptimizerCallable
    make_scheduler: LRSchedulerCallable | None

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False  # load_state_dict checks what is missing
        self.trained_steps = 0  #: updates that made the weights what they are, over all resumes
        self._settings: list[dict[str, Any]] = []  #: of the optimizer's groups, as configured
        self._settings_before: list[dict[str, Any]] = []  #: and as they were configured when the checkpoint was saved

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - as Lightning has it
        """Build the optimizer of the trainable parameters, and the scheduler, which counts steps."""
        optimizer = self.make_optimizer(self.trainable())
        self._settings = [_plain(group) for group in optimizer.param_groups]
        if self.make_scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.make_scheduler(optimizer), "interval": "step"}]

    def on_train_start(self) -> None:
        """Apply the optimizer's settings that have changed since the checkpoint, which has restored the old ones.

        A schedule goes on at its step, from the learning rate that is configured now.
        """
        if not self._settings_before:
            return
        groups = self.trainer.optimizers[0].param_groups
        for group, before, now in zip(groups, self._settings_before, self._settings, strict=False):
            changed = {name: now[name] for name in now.keys() & before.keys() if now[name] != before[name]}
            if (rate := changed.pop("lr", None)) is not None:
                group["lr"] = group["lr"] * rate / before["lr"] if before["lr"] else rate
                group["initial_lr"] = rate
            group |= changed
        for plan in self.trainer.lr_scheduler_configs:
            scheduler: Any = plan.scheduler
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [group["initial_lr"] for group in groups]
            if isinstance(scheduler, LambdaLR):  # its rate depends on the step alone, so it may be another schedule too
                for group, base, share in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                    group["lr"] = base * share(scheduler.last_epoch)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the count of steps; callbacks may remember files of the run's own folder only.

        Raises:
            ModelError: If that, or the optimizer's settings of then, cannot be read.
        """
        state = checkpoint.get("wst", {})
        steps = state.get("trained_steps", 0) if isinstance(state, Mapping) else None
        if type(steps) is not int or steps < 0:
            raise ModelError(f"checkpoint: its steps cannot be read; {_GIVE_ANOTHER}")
        self.trained_steps = steps
        before = checkpoint.get("optimizer_settings", [])
        rates = [group.get("lr", 0.0) for group in before] if _are_mappings(before) else [None]
        if not all(isinstance(rate, int | float) and 0 <= rate < math.inf for rate in rates):
            raise ModelError(f"checkpoint: its optimizer_settings cannot be read; {_GIVE_ANOTHER}")
        self._settings_before = [_plain(group) for group in before]
        if is_fitting(self):
            folder = Path(self.trainer.ckpt_path or "").resolve().parent
            for state in checkpoint.get("callbacks", {}).values():
                _forget_other_places(state, folder)

    def exclude_frozen_from_ddp(self) -> None:
        """Exclude frozen weights and buffers from DDP; call it once the weights are loaded.

        Every rank loads the same weights, so nothing needs broadcasting, and quantized weights cannot be broadcast.
        """
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        buffers = [name for name, _ in self.named_buffers()]
        ignore_in_ddp(self, frozen + buffers)

    def _trained_keys(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the trained weights and the keys of `checkpoint_keys`; add steps and the optimizer's settings."""
        trained, state = self._trained_keys(), checkpoint["state_dict"]
        checkpoint["state_dict"] = {
            k: v for k, v in state.items() if k in trained or k.startswith(self.checkpoint_keys)
        }
        checkpoint["optimizer_settings"] = self._settings
        checkpoint["wst"] = {"trained_steps": self.trained_steps}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = False, assign: bool = False) -> Any:  # noqa: ANN401
        """Load a checkpoint's weights, which must be exactly the trained ones.

        Raises:
            ModelError: If names or shapes differ, or a weight is no tensor of the kind of number that it is here.
        """
        with collective_errors():
            self._check_kinds(state_dict)
            different = sorted(
                self._trained_keys() ^ {key for key in state_dict if not key.startswith(self.checkpoint_keys)}
            )
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

    def _check_kinds(self, state_dict: Mapping[Any, Any]) -> None:
        """Refuse what torch would convert without a word: whole and complex numbers become other weights."""
        own = self.state_dict()
        for name, value in state_dict.items():
            if isinstance(name, str) and name.endswith("_extra_state"):
                continue  # no weight: who reads it checks it
            if not isinstance(value, torch.Tensor):
                raise ModelError(f"checkpoint: {name!r:.100} is a {type(value).__name__}, no tensor; {_GIVE_ANOTHER}")
            if name in own and _kind(value) != _kind(own[name]):
                raise ModelError(
                    f"checkpoint: {name!r:.100} is of {value.dtype}, where {self.trained} has {own[name].dtype}; "
                    f"{_GIVE_ANOTHER}"
                )

    def save_plain_hyperparameters(self) -> None:
        """Save the arguments of the constructor that calls this as hyperparameters.

        The command line has class paths and plain values for all of them. Objects passed from Python would be pickled,
        and such a checkpoint could not be loaded safely, so from Python only plain values are saved.
        """
        if built_by_command_line():
            self.save_hyperparameters()
            return
        frame = inspect.currentframe()
        init = frame.f_back if frame is not None else None
        values = init.f_locals if init is not None else {}
        plain = [name for name, value in values.items() if isinstance(value, bool | int | float | str | None)]
        self.save_hyperparameters(*[name for name in plain if name not in ("self", "__class__")], frame=init)


def check_functions(optimizer: object, lr_scheduler: object) -> None:
    """Check what builds the optimizer and the scheduler.

    Raises:
        ConfigError: If one is no function; a scheduler may be None.
    """
    for name, value in {"optimizer": optimizer, "lr_scheduler": lr_scheduler}.items():
        if not callable(value) and (value is not None or name == "optimizer"):
            raise ConfigError(
                f"{name} must be a function, got a {type(value).__name__}; write lambda params: torch.optim.AdamW("
                "params, lr=1e-4), or for the scheduler, a function of the optimizer"
            )


def _plain(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings in an optimizer's group that are plain values, or tuples of numbers."""
    return {
        name: value
        for name, value in group.items()
        if isinstance(value, bool | int | float | str | None)
        or (isinstance(value, tuple) and all(isinstance(number, int | float) for number in value))
    }


def _kind(tensor: torch.Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a scratch file and renames it, so that a kill leaves the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write the checkpoint whole or not at all.

        Raises:
            StorageError: If it cannot be written; an older one of that name is unchanged.
        """
        target = Path(path)
        try:
            with replaced(target) as scratch:
                super().save_checkpoint(checkpoint, scratch, storage_options)
        except OSError as error:
            raise StorageError(storage_fault(target, error)) from error

    def remove_checkpoint(self, path: Any) -> None:  # noqa: ANN401
        """Delete a checkpoint: a file, never a folder."""
        Path(path).unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ANN401
        """Load a checkpoint without running code that it may contain, whatever the caller asks for.

        Raises:
            ModelError: If it contains more than weights and plain values, or is not a checkpoint.
        """
        del weights_only
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged archive or pickle makes torch raise
            raise ModelError(
                f"checkpoint {str(path)!r} does not load with weights_only ({type(error).__name__}); give one that "
                "`wst fit` wrote"
            ) from error
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise ModelError(f"checkpoint {str(path)!r} holds no weights; {_GIVE_ANOTHER}")
        for name, fits in _SHAPES.items():
            if name in checkpoint and not fits(checkpoint[name]):
                raise ModelError(f"checkpoint {str(path)!r}: its {name} cannot be read; {_GIVE_ANOTHER}")
        return checkpoint


def _are_mappings(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, Mapping) for value in values)


#: What Lightning takes for granted in a checkpoint.
_SHAPES: dict[str, Callable[[Any], bool]] = {
    "state_dict": lambda value: isinstance(value, Mapping) and all(isinstance(name, str) for name in value),
    "callbacks": lambda value: isinstance(value, Mapping) and _are_mappings(list(value.values())),
    "loops": lambda value: isinstance(value, Mapping),
    "optimizer_states": lambda value: (
        _are_mappings(value) and all({"state", "param_groups"} <= state.keys() for state in value)
    ),
    "lr_schedulers": _are_mappings,
}


def _forget_other_places(state: dict[str, Any], folder: Path) -> None:
    """Take from a `ModelCheckpoint`'s state what it keeps count of, if any of that lies outside the run's folder.

    It deletes what it has saved when something newer takes its place; whoever wrote the file would choose what that is.
    """
    if "best_model_path" not in state:
        return
    models = state.get("best_k_models", {})
    paths = [state.get(name, "") for name in ("best_model_path", "kth_best_model_path", "last_model_path")]
    paths += list(models) if isinstance(models, dict) else [None]
    if not all(path == "" or (isinstance(path, str) and Path(path).resolve().parent == folder) for path in paths):
        state |= {"best_model_path": "", "kth_best_model_path": "", "last_model_path": "", "best_k_models": {}}
        state["best_model_score"] = None
