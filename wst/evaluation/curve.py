"""The reward curve of a training run, read from its TensorBoard log."""

from __future__ import annotations

import math
from pathlib import Path

from wst.errors import ConfigError


def training_curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the reward by step.

    Args:
        folder: The run's log folder, such as ``runs/quickstart/version_0``.

    Returns:
        ``{"train": [(step, reward), ...], "val": [...]}``, steps counted from 1, without those whose reward is unknown.

    Raises:
        ConfigError: If there is no TensorBoard log with a reward in it.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        raise ConfigError(
            f"compare: run {str(folder)!r} holds no TensorBoard log; give a run's version_N folder, or "
            "--run null to go without its curve"
        )
    log = EventAccumulator(str(folder))
    log.Reload()
    known = log.Tags()["scalars"]
    curve = {
        name: [(event.step, event.value) for event in log.Scalars(f"{name}/reward") if math.isfinite(event.value)]
        for name in ("train", "val")
        if f"{name}/reward" in known
    }
    curve = {name: points for name, points in curve.items() if points}
    if not curve.get("train"):
        raise ConfigError(f"compare: the TensorBoard log in run {str(folder)!r} has no train/reward")
    return curve
