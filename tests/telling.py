"""A teacher whose instructions are given, queries with and without targets, and the figures of their test."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Trainer
from trainers import quiet_trainer

from wst import (
    Instruction,
    Query,
    QueryDataModule,
    WeakToStrong,
)
from wst.data.datamodule import Split
from wst.evaluation.rows import TEST_ARMS

TRAIN, HELD_OUT = 6, 4  #: queries


class Queries(QueryDataModule):
    """Queries by split, with targets or without."""

    def __init__(self, target: str | None = None, splits: Sequence[Split] = ("train", "val", "test")) -> None:
        super().__init__(batch_size=3, eval_batch_size=3)
        self.target = target
        self.splits = splits

    def load(self, split: Split) -> list[Query]:
        count = TRAIN if split == "train" else HELD_OUT
        rows = range(count if split in self.splits else 0)
        return [Query(f"{split}{i}", f"{split} query {10**i}", target=self.target) for i in rows]


def runner(folder: Path, steps: int = 2, **settings: Any) -> Trainer:
    return quiet_trainer(folder, max_steps=steps, num_sanity_val_steps=0, **settings)


def telling(module: WeakToStrong, *texts: str) -> WeakToStrong:
    """Let the teacher's instructions read like these, in turn; what was sampled stays."""
    original = module.teacher.sample

    def sample(*args: Any, on_done: Callable[[int, Instruction], None], **settings: Any) -> list[Instruction]:
        def retold(place: int, z: Instruction) -> Instruction:
            return replace(z, text=texts[place % len(texts)])

        sampled = original(*args, on_done=lambda i, z: on_done(i, retold(i, z)), **settings)
        return [retold(i, z) for i, z in enumerate(sampled)]

    module.teacher.sample = sample  # type: ignore[method-assign]
    return module


TEST_NAMES = [arm for arm, _ in TEST_ARMS.values()]
TOLD = ("The answer is 42.", "Think of 4 and 2.", "Say 42!", "Count to 420.")


def cells(folder: Path) -> dict[str, Any]:
    """Return the figures of a test by arm."""
    figures: dict[str, Any] = json.loads((folder / "test/results.json").read_text())["students"]["student"]["arms"]
    return figures
