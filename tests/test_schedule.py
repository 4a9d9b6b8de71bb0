"""The learning rate, step by step."""

import pytest
import torch
from torch.optim import AdamW

from wst import WarmupLinear
from wst.errors import ConfigError


def rates(scheduler: WarmupLinear, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def optimizer() -> AdamW:
    return AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_it_warms_up_decays_and_stays() -> None:
    scheduler = WarmupLinear(optimizer(), warmup_steps=2, decay_steps=4, start_factor=0.2, end_factor=0.6)
    assert rates(scheduler, 9) == pytest.approx([0.2, 0.6, 1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6])


def test_without_warm_up_and_decay_it_is_constant() -> None:
    assert rates(WarmupLinear(optimizer()), 3) == [1.0] * 3


def test_resumed_with_other_settings_it_goes_on_at_its_step() -> None:
    first = WarmupLinear(optimizer(), decay_steps=2, end_factor=0.0)
    rates(first, 2)
    longer = WarmupLinear(optimizer(), decay_steps=4, end_factor=0.0)
    longer.load_state_dict(first.state_dict())
    longer.optimizer.step()
    longer.step()
    assert longer.get_last_lr() == pytest.approx([0.25])


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"warmup_steps": -1}, "warmup_steps"), ({"decay_steps": -1}, "decay_steps"), ({"end_factor": 2.0}, "end_factor")],
)
def test_impossible_settings_are_named(settings: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        WarmupLinear(optimizer(), **settings)  # type: ignore[arg-type]
