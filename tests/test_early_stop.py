"""When a run has ended learning: the rule, from validations made up."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wst import EarlyStop, Query, Response, Rollout
from wst.errors import ConfigError


def stops(callback: EarlyStop, *validations: list[float]) -> list[bool]:
    """After each validation, whether the run was told to end."""
    trainer: Any = SimpleNamespace(
        sanity_checking=False, state=SimpleNamespace(fn="fit"), should_stop=False, is_global_zero=True
    )
    module: Any = SimpleNamespace(trained_steps=0)
    found = []
    for rewards in validations:
        module.trained_steps += 10
        callback.on_validation_epoch_start(trainer, module)
        half = len(rewards) // 2
        for start, part in ((0, rewards[:half]), (half, rewards[half:])):
            rollouts = [Rollout(Query(f"q{start + i}", "?"), None, Response("")) for i in range(len(part))]
            outputs = {"rollouts": rollouts, "figures": {"reward": torch.tensor(part)}}
            callback.on_validation_batch_end(trainer, module, outputs)
        callback.on_validation_end(trainer, module)
        found.append(trainer.should_stop)
    return found


def right(count: int, of: int = 40) -> list[float]:
    return [float(i < count) for i in range(of)]


def test_validations_without_a_gain_that_is_shown_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert stops(EarlyStop(2), right(10), right(20), right(21), right(19)) == [False, False, False, True]
    assert "show no gain over that of step 20; of the last one it is -0.025 (" in " ".join(
        capsys.readouterr().out.split()
    )


def test_small_steps_add_up() -> None:
    """Each alone is too small to be shown; three together are not."""
    assert not any(stops(EarlyStop(3), *(right(count) for count in (10, 12, 14, 17, 19, 21, 24))))


def test_a_rise_of_all_by_as_much_is_a_gain() -> None:
    assert stops(EarlyStop(1), [0.1] * 6, [0.2] * 6, [0.2] * 6) == [False, False, True]


def test_what_cannot_be_scored_says_nothing() -> None:
    nothing = [math.nan] * 40
    assert stops(EarlyStop(1), nothing, right(10), nothing, right(20), right(20)) == [False, False, False, False, True]


def test_its_state_goes_on() -> None:
    before, after = EarlyStop(2), EarlyStop(2)
    stops(before, right(10), right(10))
    after.load_state_dict(before.state_dict())
    assert stops(after, right(10)) == [True]
    assert stops(before, right(30)) == [False]


def test_impossible_patience_is_an_error() -> None:
    with pytest.raises(ConfigError, match="EarlyStop: patience must be at least 1"):
        EarlyStop(0)
