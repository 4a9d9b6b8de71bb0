"""The curve of a run, from its TensorBoard log."""

import math
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from wst.errors import ConfigError
from wst.evaluation.curve import training_curve


def write(folder: Path, **values: list[float]) -> None:
    with SummaryWriter(str(folder)) as log:
        for name, rewards in values.items():
            for step, reward in enumerate(rewards, 1):
                log.add_scalar(f"{name}/reward", reward, step)


def test_a_reward_that_is_unknown_is_no_point(tmp_path: Path) -> None:
    """JSON has no NaN, and a report that holds one cannot be read."""
    write(tmp_path, train=[0.5, math.nan, 1.0], val=[math.nan])
    assert training_curve(tmp_path) == {"train": [(1, 0.5), (3, 1.0)]}


def test_a_log_without_rewards_is_refused(tmp_path: Path) -> None:
    write(tmp_path, train=[math.nan])
    with pytest.raises(ConfigError, match="has no train/reward"):
        training_curve(tmp_path)
