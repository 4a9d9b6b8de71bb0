"""The end of a run that has ended learning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer

from wst.callbacks.curve import step_number
from wst.errors import ConfigError
from wst.evaluation.metrics import Estimate, Values, estimate_gain, is_binary
from wst.settings import check_arguments, check_counts
from wst.terminal import show


class EarlyStop(Callback):
    """Ends a run once several validations in a row show no gain over the last one that did, and says so.

    A validation shows a gain if the 95% interval of the mean paired difference, query by query, lies above 0 (see
    `wst.evaluation.metrics.estimate_gain`); it is then what later ones are compared with. So small steps add up, and a
    rise that may be chance does not keep a run going. Intervals shrink with the number of validation queries: with 32
    queries and rewards of 0 or 1, a gain below about 0.2 is not shown, so give more queries or more patience.

    Args:
        patience: Validations in a row without a gain.

    Raises:
        ConfigError: If the patience is below 1.
    """

    def __init__(self, patience: int = 4) -> None:
        check_arguments(EarlyStop, locals())
        check_counts("EarlyStop", patience=patience)
        self.patience = patience
        self._rewards: dict[str, float] = {}  #: of the validation under way, by query
        self._reference: dict[str, float] = {}  #: of the last validation that showed a gain
        self._step = 0  #: its step
        self._waited = 0
        self._gain = Estimate(math.nan, math.nan, math.nan)  #: of the last validation
        self._compared = 0  #: queries that it is over

    def state_dict(self) -> dict[str, Any]:
        """Return what later validations are compared with, and how many showed no gain."""
        state = {"reference": self._reference, "step": self._step, "waited": self._waited, "gain": list(self._gain)}
        return {key: dict(value) if isinstance(value, dict) else value for key, value in state.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what later validations are compared with.

        Raises:
            ConfigError: If the state is not one that was saved.
        """
        try:
            self._reference = {str(query): float(reward) for query, reward in state_dict["reference"].items()}
            self._step, self._waited = int(state_dict["step"]), int(state_dict["waited"])
            mean, low, high = map(float, state_dict["gain"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ConfigError(
                "checkpoint: the state of EarlyStop cannot be read; give a checkpoint that `wst fit` wrote"
            ) from error
        self._gain = Estimate(mean, low, high)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module whose validations have no rewards.

        Raises:
            ConfigError: If the module is not a `WeakToStrong`.
        """
        if not hasattr(pl_module, "environment"):
            raise ConfigError("EarlyStop: it compares rewards of validations; use it with model wst.WeakToStrong alone")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End a resumed run that had ended."""
        self._end(trainer)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the rewards of a validation that was broken off."""
        self._rewards = {}

    def on_validation_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Collect the rewards of all ranks."""
        ids = [rollout.query.id for rollout in outputs["rollouts"]]
        self._rewards |= dict(zip(ids, outputs["figures"]["reward"].tolist(), strict=True))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, and end the run if it has ended learning."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        now = {query: reward for query, reward in self._rewards.items() if not math.isnan(reward)}
        shared = sorted(now.keys() & self._reference.keys())
        if not shared:
            if now:
                self._reference, self._step = now, step_number(pl_module)
            return
        before, after = (np.array([of[query] for query in shared]) for of in (self._reference, now))
        self._gain, self._compared = paired_gain(before, after), len(shared)
        if self._gain.low > 0:
            self._reference, self._step, self._waited = now, step_number(pl_module), 0
        else:
            self._waited += 1
        self._end(trainer)

    def _end(self, trainer: Trainer) -> None:
        if self._waited < self.patience or trainer.should_stop:
            return
        trainer.should_stop = True
        if trainer.is_global_zero:
            gain = f"{self._gain.mean:+.3f} ({self._gain.low:+.3f} to {self._gain.high:+.3f})"
            rows = self._compared or len(self._reference)
            show(
                f"early stop: {self._waited} validations in a row show no gain over that of step {self._step}; of the "
                f"last one it is {gain} on {rows} queries. To go on, resume with more patience"
            )


def paired_gain(before: Values, after: Values) -> Estimate:
    """Return the mean paired difference with its interval; where all differences are equal, it is the interval."""
    gain = estimate_gain(after - before, is_binary(np.concatenate([before, after])))
    return gain if not math.isnan(gain.low) else Estimate(gain.mean, gain.mean, gain.mean)
