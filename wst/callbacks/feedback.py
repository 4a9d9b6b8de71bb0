"""What training learns of its queries goes back to where they are drawn, and to the teacher's prompt."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer

from wst.data.loader import QueryLoader
from wst.training.record import StepRecord


class QueryFeedback(Callback):
    """Tells the training data's curriculum and the teacher's experience, if there are any, the rewards of each step."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Pass on the rewards of all ranks, before the checkpoint is saved and the next batch is drawn."""
        record: StepRecord = outputs["record"]
        loader = trainer.train_dataloader
        if isinstance(loader, QueryLoader) and loader.curriculum is not None:
            loader.curriculum.observe(record.queries, record.rewards.tolist())
        experience = cast(Any, module).teacher.experience
        if experience is not None:
            leaks = torch.zeros_like(record.rewards) if record.leaks is None else record.leaks
            rows = zip(record.rollouts, record.rewards.flatten().tolist(), leaks.flatten().tolist(), strict=True)
            experience.observe(
                [(r.query.id, r.instruction.text, x) for r, x, leak in rows if r.instruction and leak != 1]
            )
