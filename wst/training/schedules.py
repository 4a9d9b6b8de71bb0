"""The learning rate over the steps of a run."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from wst.errors import ConfigError
from wst.settings import check_arguments


class WarmupLinear(LambdaLR):
    """Linear warm-up, then linear decay to a rate that stays constant for the rest of the run.

    A checkpoint holds the step alone, so a resumed run may change the settings.

    Args:
        optimizer: Its learning rate is the full rate.
        warmup_steps: Steps until the full rate is reached.
        decay_steps: Steps from there until the final rate is reached.
        start_factor: Share of the full rate in the first step.
        end_factor: Share of the full rate at the end.

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int = 0,
        decay_steps: int = 0,
        start_factor: float = 0.25,
        end_factor: float = 1.0,
    ) -> None:
        check_arguments(WarmupLinear, locals())
        for name, steps in (("warmup_steps", warmup_steps), ("decay_steps", decay_steps)):
            if steps < 0:
                raise ConfigError(f"WarmupLinear: {name} must be at least 0, got {steps}")
        for name, factor in (("start_factor", start_factor), ("end_factor", end_factor)):
            if not 0 <= factor <= 1:
                raise ConfigError(f"WarmupLinear: {name} is a share, from 0 to 1, got {factor}")

        def share(step: int) -> float:
            if step < warmup_steps:
                return start_factor + (1 - start_factor) * step / warmup_steps
            gone = 1.0 if not decay_steps else min(1.0, (step - warmup_steps) / decay_steps)
            return 1.0 + (end_factor - 1.0) * gone

        super().__init__(optimizer, share)
