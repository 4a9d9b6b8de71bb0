"""What training learns of its queries goes back to where they are drawn."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from wst.data.loader import QueryLoader
from wst.training.record import StepRecord


class QueryFeedback(Callback):
    """Tells the curriculum of the training data, if it has one, the rewards of each step."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Pass on the rewards of all ranks, before the checkpoint is saved and the next batch is drawn."""
        record: StepRecord = outputs["record"]
        loader = trainer.train_dataloader
        if isinstance(loader, QueryLoader) and loader.curriculum is not None:
            loader.curriculum.observe(record.queries, record.rewards.tolist())
