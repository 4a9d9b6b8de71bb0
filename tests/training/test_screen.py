"""Screening: the expected gradient is that of plain sampling, what promises more is asked more often, K are asked."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import FailingParrot, Lowercase, Parrot, SixQueries, small_module
from trainers import quiet_trainer, records

from wst import LeaveOneOut, MovingAverage, Prompt, Replay, Screen, Student, WeakToStrong
from wst.errors import ConfigError, ModelError
from wst.training import screen as screening
from wst.training.record import StepRecord

SIZE = 64


def step(features: Tensor) -> StepRecord:
    return StepRecord(features=features, weights=torch.ones(features.shape[:2]))


def taught(rows: int = 60, **settings: Any) -> tuple[Screen, Tensor]:
    """Return a screen that was shown rewards which depend on the features, and on how."""
    generator = torch.Generator().manual_seed(1)
    screen, slope = Screen(**settings), torch.randn(SIZE, dtype=torch.float64, generator=generator)
    for _ in range(rows):
        features = torch.randn(2, 4, SIZE, dtype=torch.float64, generator=generator)
        ease = 50 * torch.randn(2, 1, generator=generator)  # of the query: no instruction's merit
        noise = torch.randn(2, 4, generator=generator)
        screen(step(features), (features @ slope + ease + noise).float(), torch.zeros(2, 4))
    return screen, slope


def test_the_expected_gradient_is_that_of_plain_sampling() -> None:
    """A policy of three instructions: all candidates that it may write, and all choices among them."""
    screen, _ = taught(candidates=2, explore=0.3)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(3, SIZE, dtype=torch.float64, generator=generator)
    rewards = torch.tensor([1.0, 0.2, -0.7], dtype=torch.float64)
    logits = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64, requires_grad=True)
    log_probs = logits.log_softmax(dim=0)
    (plain,) = torch.autograd.grad(log_probs.exp() @ rewards, logits, retain_graph=True)
    total, mass, uneven = torch.zeros(3, dtype=torch.float64), 0.0, 0.0
    for written in itertools.product(range(3), repeat=4):
        groups = torch.tensor(written).view(2, 2)
        chances = screen.probabilities(features[groups])
        uneven = max(uneven, float(chances.max()))
        for choice in itertools.product(range(2), repeat=2):
            chosen = groups[torch.arange(2), torch.tensor(choice)]
            p = chances[torch.arange(2), torch.tensor(choice)]
            advantages = LeaveOneOut()(rewards[chosen][None])[0] / (2 * p)
            (gradient,) = torch.autograd.grad((advantages * log_probs[chosen]).mean(), logits, retain_graph=True)
            probability = float(log_probs.detach().exp()[groups].prod() * p.prod())
            total += probability * gradient
            mass += probability
    assert mass == pytest.approx(1)
    assert uneven > 0.8
    torch.testing.assert_close(total, plain, atol=1e-12, rtol=0)


def test_what_promises_more_is_asked_more_often() -> None:
    screen, slope = taught()
    generator = torch.Generator().manual_seed(3)
    seen = torch.randn(50, 4, SIZE, dtype=torch.float64, generator=generator)
    merits = seen @ slope
    # Whatever all candidates of a query have in common does not matter.
    chances = screen.probabilities(seen + 100 * torch.randn(50, 1, SIZE, dtype=torch.float64, generator=generator))
    torch.testing.assert_close(chances.sum(dim=1), torch.ones(50, dtype=torch.float64))
    assert float(chances.min()) >= 0.5 / 4
    best, worst = merits.argmax(dim=1, keepdim=True), merits.argmin(dim=1, keepdim=True)
    assert float(chances.gather(1, best).mean()) > 0.5
    assert float(chances.gather(1, worst).mean()) < 0.14


@pytest.mark.parametrize("rows", [0, 3])
def test_chances_are_equal_until_enough_is_known(rows: int) -> None:
    screen, _ = taught(rows)  # eight answers each
    seen = torch.randn(2, 4, SIZE, dtype=torch.float64)
    assert screen.probabilities(seen).eq(0.25).all()
    assert not taught(4)[0].probabilities(seen).eq(0.25).all()


def test_equal_rewards_and_unknown_ones_teach_nothing() -> None:
    screen = Screen()
    features = torch.randn(20, 4, SIZE, dtype=torch.float64)
    unknown = torch.full((20, 4), float("nan"))
    unknown[:, 0] = torch.randn(20)  # one answer a query is compared with none
    screen(step(features), unknown, torch.zeros(20, 4))
    assert screen.state_dict()["answers"] == 0
    screen(step(features), torch.ones(20, 4), torch.zeros(20, 4))
    assert screen.state_dict()["answers"] == 80
    assert screen.probabilities(features).eq(0.25).all()


def test_the_features_are_those_of_the_base(tiny_model: str) -> None:
    """By plain passes, without cache, padding or batches, and whatever the adapter is."""
    module = small_module(tiny_model)
    module.teacher.load(torch.device("cpu"))
    queries = SixQueries(batch_size=6).load("train")
    instructions = module.teacher.sample(queries, 2)
    for parameter in module.trainable():
        parameter.data.normal_()
    found = screening.features(module.teacher, instructions, 2)
    rows = []
    with torch.no_grad(), module.teacher.untrained() as base:
        for z in instructions:
            tokens = torch.tensor([[*z.prompt_ids, *z.token_ids]])
            states = base(tokens, output_hidden_states=True).hidden_states[-1][0]
            rows.append(states[len(z.prompt_ids) - 1 : -1].mean(dim=0).double())
    matrix = torch.randn(rows[0].numel(), SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.stack(rows) @ matrix / rows[0].numel() ** 0.5, atol=1e-5, rtol=1e-4)


class Background(Parrot):
    """Hears of what it will be asked."""

    def __init__(self) -> None:
        super().__init__()
        self.announced: list[Prompt] = []

    def prefetch(self, prompt: Prompt) -> None:
        self.announced.append(prompt)


def trained(
    model: str, folder: Path, steps: int, student: Student | None = None, **settings: Any
) -> tuple[WeakToStrong, list[StepRecord]]:
    module = small_module(model, student or Parrot(), Lowercase(), **settings)
    kept = records(module)
    torch.manual_seed(0)
    quiet_trainer(folder, max_steps=steps, limit_val_batches=0).fit(module, SixQueries(batch_size=6))
    return module, kept


@pytest.mark.slow
def test_a_step_asks_for_k_answers_and_weighs_them(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = Background()
    written: list[int] = []
    original = screening.sample_distinct
    monkeypatch.setattr(
        screening, "sample_distinct", lambda *args: written.append(len(found := original(*args))) or found
    )
    module, kept = trained(
        tiny_model,
        tmp_path,
        4,
        student,
        screen=Screen(3, explore=0.4, temperature=0.01),
        replay=Replay(1),
        kl_coef=0.1,
        resample=2,
        micro_batch_size=5,
        samples_per_query=4,
    )
    assert written == [72] * 4
    sampled = [prompt for prompt in student.asked if prompt.sample]
    assert len(sampled) == 4 * 24
    assert sampled == [prompt for prompt in student.announced if prompt.sample]
    draws = [1 + 4 * n + k for n in range(4) for _ in range(6) for k in range(4)]
    assert [prompt.sample for prompt in sampled] == draws
    for number, record in enumerate(kept):
        assert record.weights is not None
        assert record.kl is not None
        plain = LeaveOneOut()(record.rewards - 0.1 * record.kl)
        torch.testing.assert_close(record.advantages, plain * record.weights)
        assert float(record.weights.max()) <= 1 / 0.4 + 1e-6
        assert bool((record.weights == 1).all()) == (number < 2)  # 24 answers are not enough, 48 are
    kept_advantages = [paid.advantage for paid in module.update.replay.paid]
    assert kept_advantages == [a for a in kept[-1].advantages.flatten().tolist() if a]


def test_failed_answers_are_left_out(tiny_model: str, tmp_path: Path) -> None:
    module, kept = trained(
        tiny_model, tmp_path, 2, FailingParrot(), screen=Screen(), max_failed=1.0, samples_per_query=4
    )
    assert [int(record.rewards.isnan().sum()) for record in kept] == [12, 12]
    assert module.memories["screen"].state_dict()["answers"] == 24
    skipped = small_module(tiny_model, FailingParrot(), Lowercase(), screen=Screen(), max_failed=0.4, max_skips=9)
    with pytest.warns(UserWarning, match="answers failed"):
        quiet_trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(skipped, SixQueries(batch_size=6))
    assert skipped.memories["screen"].state_dict()["answers"] == 0


def test_without_one_nothing_changes(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the base was asked")

    monkeypatch.setattr(screening, "features", refuse)
    module, kept = trained(tiny_model, tmp_path, 1)
    assert kept[0].weights is None
    assert kept[0].features is None
    assert "screen" not in module.memories


def test_the_state_goes_round(tiny_model: str) -> None:
    screen, _ = taught()
    module = small_module(tiny_model, screen=screen)
    again = small_module(tiny_model, screen=Screen())
    again.on_load_checkpoint({"wst": {"memories": {"screen": screen.state_dict()}}})
    seen = torch.randn(5, 4, SIZE, dtype=torch.float64)
    assert torch.equal(again.memories["screen"].probabilities(seen), module.memories["screen"].probabilities(seen))


@pytest.mark.parametrize(
    "change",
    [
        {"answers": "x"},
        {"answers": -1},
        {"squares": float("nan")},
        {"normal": torch.ones(2, 2)},
        {"normal": -torch.eye(SIZE)},
        {"vector": torch.full((SIZE,), float("inf"))},
        {"vector": [1.0]},
        {"vector": torch.ones(SIZE).to_sparse()},
        {"normal": torch.full((SIZE, SIZE), float("nan"))},
    ],
    ids=str,
)
def test_a_checkpoint_of_something_else_is_refused(tiny_model: str, change: dict[str, Any]) -> None:
    module = small_module(tiny_model, screen=Screen())
    state = taught()[0].state_dict() | change
    with pytest.raises(ModelError, match="checkpoint: its screen cannot be read"):
        module.on_load_checkpoint({"wst": {"memories": {"screen": state}}})


@pytest.mark.parametrize(
    "setting",
    [
        {"candidates": 1},
        {"candidates": 2.5},
        {"explore": 0},
        {"explore": 1.1},
        {"explore": float("nan")},
        {"temperature": 0},
        {"ridge": float("inf")},
    ],
    ids=str,
)
def test_impossible_settings_are_errors(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Screen: {next(iter(setting))} must be"):
        Screen(**setting)


def test_one_sample_a_query_is_refused(tiny_model: str) -> None:
    with pytest.raises(ConfigError, match="set samples_per_query to at least 2"):
        small_module(tiny_model, screen=Screen(), baseline=MovingAverage(), samples_per_query=1)
