"""The training loader, by itself and under a trainer that is stopped and resumed at every step."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from wst.data import QueryDataModule, QueryLoader
from wst.data.datamodule import Split
from wst.data.loader import epoch_order
from wst.errors import ConfigError, DataError
from wst.types import Query

ROWS, BATCH, EPOCHS = 10, 3, 3
PER_EPOCH = 4  # batches, the last with one row
STEPS = PER_EPOCH * EPOCHS
PINNED = [6, 4, 7, 5, 3, 2, 9, 8, 1, 0]

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def queries(count: int = ROWS, prefix: str = "q") -> list[Query]:
    return [Query(f"{prefix}{number}", "?") for number in range(count)]


def ids(loader: QueryLoader, epoch: int = 0) -> list[list[str]]:
    loader.set_epoch(epoch)
    return [[query.id for query in batch] for batch in loader]


def resumed(state: dict[str, Any]) -> QueryLoader:
    loader = QueryLoader(queries(), BATCH)
    loader.load_state_dict(state)
    return loader


# The two ways to end a run after a step.
STOPS: dict[str, Callable[[int], dict[str, Any]]] = {
    "steps": lambda step: {"max_steps": step},
    "error": lambda step: {"fail_at": step},
}


# --- The loader by itself


def test_batches_are_lists_of_queries_and_the_smaller_last_one_is_kept() -> None:
    loader = QueryLoader(queries(), BATCH, shuffle=False)
    assert ids(loader) == [["q0", "q1", "q2"], ["q3", "q4", "q5"], ["q6", "q7", "q8"], ["q9"]]
    assert all(type(batch) is list and isinstance(batch[0], Query) for batch in loader)
    assert len(loader) == PER_EPOCH


def test_an_epoch_holds_every_query_once_in_an_order_of_its_own() -> None:
    orders = [tuple(epoch_order(ROWS, seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert all(sorted(order) == list(range(ROWS)) for order in orders)
    assert len(set(orders)) == len(orders)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    # Written down, so that an order which changes between runs or releases is noticed.
    assert list(epoch_order(ROWS, 1, 2)) == PINNED
    torch.manual_seed(5)
    loader = QueryLoader(queries(), BATCH, seed=1)
    list(loader)
    assert sum(ids(loader, epoch=2), []) == [f"q{index}" for index in PINNED]  # noqa: RUF017
    assert ids(loader, epoch=2) == ids(QueryLoader(queries(), BATCH, seed=1), epoch=2)


def test_iterating_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(QueryLoader(queries(), BATCH))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_iteration_that_was_broken_off_is_not_continued_without_a_state() -> None:
    loader = QueryLoader(queries(), BATCH)
    next(iter(loader))
    assert ids(loader) == ids(QueryLoader(queries(), BATCH))


@pytest.mark.parametrize("seen", range(PER_EPOCH + 1))
def test_a_state_continues_behind_the_last_batch_once(seen: int) -> None:
    whole = ids(QueryLoader(queries(), BATCH), epoch=1)
    loader = QueryLoader(queries(), BATCH)
    loader.set_epoch(1)
    batches = iter(loader)
    for _ in range(seen):
        next(batches)
    again = resumed(loader.state_dict())
    assert again.state_dict() == loader.state_dict()
    # Asking for the iterator alone changes nothing.
    iter(again)
    assert ids(again, epoch=1) == whole[seen:]
    assert ids(again, epoch=1) == whole
    assert len(again) == PER_EPOCH


def test_a_state_is_dropped_when_another_epoch_is_asked_for() -> None:
    loader = QueryLoader(queries(), BATCH)
    next(iter(loader))
    assert ids(resumed(loader.state_dict()), epoch=1) == ids(loader, epoch=1)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"items": queries(12)}, DataError, ["10 training queries", "12"]),
        ({"items": queries(prefix="other")}, DataError, ["ids"]),
        ({"items": queries()[::-1]}, DataError, ["order"]),
        ({"batch_size": 4}, ConfigError, ["batch_size 3", "4"]),
        ({"shuffle": False}, ConfigError, ["shuffle True", "False"]),
        ({"seed": 1}, ConfigError, ["shuffle_seed 0", "1"]),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    state = QueryLoader(queries(), BATCH).state_dict()
    other = QueryLoader(**{"items": queries(), "batch_size": BATCH, **change})
    with pytest.raises(error) as caught:
        other.load_state_dict(state)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith("checkpoint: it was made with ")
    assert "; " in message
    for word in words:
        assert word in message


def test_a_state_of_another_loader_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lacks .*batches"):
        QueryLoader(queries(), BATCH).load_state_dict({"epoch": 0})


# --- Under a trainer


class Data(QueryDataModule):
    """Queries from memory, to validate on as well or not."""

    validates = False

    def load(self, split: Split) -> list[Query]:
        return queries(ROWS if split == "train" else 2 * self.validates, prefix=split)


class Recorder(LightningModule):
    """Writes down what it is trained on, as the real module does with manual optimization."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.fail_at = fail_at
        self.seen: list[list[str]] = []
        self.clock: list[tuple[int, int]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: list[Query], batch_idx: int) -> None:
        if self.global_step == self.fail_at:
            raise RuntimeError("stop here")
        self.seen.append([query.id for query in batch])
        self.clock.append((self.current_epoch, self.global_step))
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.manual_backward(self.weight * len(batch))
        optimizer.step()

    def validation_step(self, batch: list[Query], batch_idx: int) -> None:
        assert isinstance(batch[0], Query)


def fit(
    folder: Path,
    *,
    resume: bool = False,
    fail_at: int | None = None,
    validate: bool = False,
    trigger: dict[str, Any] | None = None,
    **options: Any,
) -> list[list[str]]:
    """Train, with a checkpoint after every step or as `trigger` says; give the ids of every batch."""
    module = Recorder(fail_at)
    checkpoints = ModelCheckpoint(
        folder,
        save_last=True,
        enable_version_counter=False,
        **(trigger or {"every_n_train_steps": 1, "save_top_k": 0}),
    )
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoints],
        **{"max_epochs": EPOCHS, "val_check_interval": 2 if validate else None, **options},
    )
    data = Data(batch_size=BATCH, shuffle_seed=3)
    data.validates = validate
    checkpoint = str(folder / "last.ckpt") if resume else None
    if fail_at is None:
        trainer.fit(module, data, ckpt_path=checkpoint)
    else:
        with pytest.raises(RuntimeError, match="stop here"):
            trainer.fit(module, data, ckpt_path=checkpoint)
    per_epoch = trainer.num_training_batches
    assert all(epoch == step // per_epoch for epoch, step in module.clock)
    return module.seen


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    return fit(tmp_path_factory.mktemp("unbroken"))


def test_an_unbroken_run_sees_every_query_once_an_epoch(unbroken: list[list[str]]) -> None:
    assert [len(batch) for batch in unbroken] == [3, 3, 3, 1] * EPOCHS
    for epoch in range(EPOCHS):
        seen = [id_ for batch in unbroken[epoch * PER_EPOCH : (epoch + 1) * PER_EPOCH] for id_ in batch]
        assert seen == [f"train{index}" for index in epoch_order(ROWS, 3, epoch)]


@pytest.mark.parametrize("validate", [False, True], ids=["train", "train+val"])
@pytest.mark.parametrize("limit", ["epochs", "steps"])
@pytest.mark.parametrize("stop", ["steps", "error"])
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_resumed_run_sees_what_is_left(
    tmp_path: Path, unbroken: list[list[str]], step: int, stop: str, limit: str, validate: bool
) -> None:
    first = fit(tmp_path, validate=validate, **STOPS[stop](step))
    # A limit in steps makes the trainer take the other of its two ways to restart.
    options: dict[str, Any] = {"max_steps": STEPS} if limit == "steps" else {}
    second = fit(tmp_path, resume=True, validate=validate, **options)
    assert first == unbroken[:step]
    assert second == unbroken[step:]


@pytest.mark.parametrize("validate", [False, True], ids=["train", "train+val"])
@pytest.mark.parametrize("stop", ["steps", "error"])
def test_a_run_may_be_resumed_after_every_single_step(
    tmp_path: Path, unbroken: list[list[str]], stop: str, validate: bool
) -> None:
    seen: list[list[str]] = []
    for step in range(1, STEPS + 1):
        how = STOPS["steps" if step == STEPS else stop](step)
        seen += fit(tmp_path, resume=step > 1, validate=validate, **how)
    assert seen == unbroken


@pytest.mark.parametrize("validate", [False, True], ids=["train", "train+val"])
@pytest.mark.parametrize("step", range(PER_EPOCH + 1, STEPS))
def test_a_run_resumed_at_the_end_of_an_epoch_may_be_resumed_again(
    tmp_path: Path, unbroken: list[list[str]], step: int, validate: bool
) -> None:
    seen = fit(tmp_path, fail_at=PER_EPOCH, validate=validate)
    seen += fit(tmp_path, fail_at=step, resume=True, validate=validate)
    assert seen + fit(tmp_path, resume=True, validate=validate) == unbroken


@pytest.mark.parametrize(
    ("at_epoch_end", "validate"),
    [(True, False), (True, True), (False, True)],
    ids=["epoch end", "epoch end+val", "validation end"],
)
@pytest.mark.parametrize("limit", ["epochs", "steps"])
@pytest.mark.parametrize("epochs", [1, 2])
def test_checkpoints_of_whole_epochs(
    tmp_path: Path, unbroken: list[list[str]], at_epoch_end: bool, validate: bool, limit: str, epochs: int
) -> None:
    step = epochs * PER_EPOCH
    options: dict[str, Any] = {"validate": validate, "val_check_interval": 1.0}
    first = fit(tmp_path, fail_at=step + 1, trigger={"save_on_train_epoch_end": at_epoch_end}, **options)
    assert first == unbroken[: step + 1]
    if limit == "steps":
        options["max_steps"] = STEPS
    # Stopped once more, in the midst of an epoch: the first resumption must have left the trainer's counters right.
    second = fit(tmp_path, resume=True, fail_at=step + 2, **options)
    assert second == unbroken[step : step + 2]
    assert fit(tmp_path, resume=True, **options) == unbroken[step + 2 :]


@pytest.mark.parametrize("trigger", [None, {"save_on_train_epoch_end": True}, {"save_on_train_epoch_end": False}])
@pytest.mark.parametrize("validate", [False, True], ids=["train", "train+val"])
def test_a_finished_run_may_be_prolonged(
    tmp_path: Path, unbroken: list[list[str]], trigger: dict[str, bool] | None, validate: bool
) -> None:
    runs: list[tuple[int, dict[str, Any]]] = [(1, {}), (2, {"max_steps": 2 * PER_EPOCH}), (3, {})]
    for epochs, limit in runs:
        seen = fit(tmp_path, resume=epochs > 1, max_epochs=epochs, validate=validate, trigger=trigger, **limit)
        assert seen == unbroken[(epochs - 1) * PER_EPOCH : epochs * PER_EPOCH]


def test_a_resumed_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=2)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=EPOCHS
    )
    with pytest.raises(ConfigError, match="batch_size 3, now it is 4"):
        trainer.fit(Recorder(), Data(batch_size=4, shuffle_seed=3), ckpt_path=str(tmp_path / "last.ckpt"))


def test_fewer_batches_an_epoch(tmp_path: Path, unbroken: list[list[str]]) -> None:
    wanted = [batch for epoch in range(EPOCHS) for batch in unbroken[epoch * PER_EPOCH :][:3]]
    assert fit(tmp_path, limit_train_batches=3) == wanted
    for step in (2, 3, 4):
        fit(tmp_path, limit_train_batches=3, max_steps=step)
        assert fit(tmp_path, resume=True, limit_train_batches=3) == wanted[step:]


def test_overfitting_goes_over_the_same_batches(tmp_path: Path) -> None:
    seen = fit(tmp_path, overfit_batches=2)
    assert seen == [["train0", "train1", "train2"], ["train3", "train4", "train5"]] * EPOCHS


def test_a_light_import_stays_light() -> None:
    code = "import sys, wst; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
