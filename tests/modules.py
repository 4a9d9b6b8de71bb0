"""A small module, its data and runs of it, and the records of its steps."""

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from peft.utils import get_peft_model_state_dict
from torch import Tensor
from toys import Lowercase, Parrot
from trainers import quiet_trainer, records

from wst import (
    LoRA,
    Query,
    QueryDataModule,
    StudentPrompt,
    Teacher,
    TeacherPrompt,
    WeakToStrong,
)
from wst.training.record import StepRecord

CPU = torch.device("cpu")


def make(tiny_model: str, student: Any = None, reward: Any = None, **settings: Any) -> WeakToStrong:
    teacher_settings = {"dtype": "float32", "max_new_tokens": 8, "lora": LoRA(r=4, alpha=8)}
    teacher_settings |= settings.pop("teacher", {})
    defaults: dict[str, Any] = {
        "student_prompt": StudentPrompt(),
        "samples_per_query": 4,
        "optimizer": lambda params: torch.optim.AdamW(params, lr=1e-2),
    }
    return WeakToStrong(
        Teacher(tiny_model, TeacherPrompt("{query}"), **teacher_settings),
        student or Parrot(),
        reward or Lowercase(),
        **(defaults | settings),
    )


def data(tmp_path: Path, rows: int = 12, **settings: Any) -> QueryDataModule:
    lines = [f'{{"id": "q{i}", "text": "query {i}", "label": "yes"}}\n' for i in range(rows)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines))
    defaults: dict[str, Any] = {"train": str(path), "test": str(path), "batch_size": 4}
    return QueryDataModule(**(defaults | settings))


def fit(module: WeakToStrong, datamodule: QueryDataModule, folder: Path, steps: int = 2, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = quiet_trainer(folder, max_steps=steps, **settings)
    trainer.fit(module, datamodule)
    return trainer


def adapter(module: WeakToStrong) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in get_peft_model_state_dict(module.teacher.policy).items()}


def one_step(module: WeakToStrong, queries: int = 4) -> StepRecord:
    """Make one step outside a trainer's loop, and return its record."""
    kept = records(module)
    loader = torch.utils.data.DataLoader(
        [Query(f"q{i}", f"query {i}") for i in range(queries)], queries, collate_fn=list
    )
    torch.manual_seed(0)
    quiet_trainer(max_steps=1).fit(module, loader)
    return kept[0]
