"""The size of what is trained, in one line."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import ModelSummary, RichModelSummary

from wst.terminal import show


class _Size(ModelSummary):
    """Prints how many parameters there are and how many are trained; Lightning's table also counts 0 FLOPs."""

    @staticmethod
    def summarize(
        summary_data: Any,  # noqa: ANN401 - as Lightning has it
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> None:
        """Print the line."""
        show(f"{total_parameters:,} parameters, {trainable_parameters:,} of them trained; about {model_size:,.0f} MB")


def shorten_summary(trainer: Trainer) -> None:
    """Replace the summary that the trainer makes by default; one of another class, or none, is left alone."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [_Size() if type(one) in (ModelSummary, RichModelSummary) else one for one in callbacks]
