"""What processes that train together tell each other. Each function does nothing of note in a lone process.

Each must be called by all processes, and in the same order; that is why a process that has nothing to do, or that has
failed, calls them as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy, SingleDeviceStrategy
from torch import distributed as dist
from torch import nn

from wst.errors import ConfigError, WSTError

_T = TypeVar("_T")


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank, 0 in a lone process."""
    return dist.get_rank() if is_distributed() else 0


def gather(item: _T) -> list[_T]:
    """Give what each process holds, in the order of their ranks, to all of them.

    Args:
        item: Anything that can be pickled, of any size in each process.
    """
    if not is_distributed():
        return [item]
    items: list[_T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items  # type: ignore[return-value]


def gather_rows(rows: Sequence[_T]) -> list[_T]:
    """Give the rows of all processes, in the order of their ranks, as one list."""
    return [row for part in gather(list(rows)) for row in part]


def share(items: Sequence[_T], rank: int, size: int) -> Sequence[_T]:
    """Give one process's part of what is to be divided: consecutive, and none more than one longer than another.

    >>> [share("abcde", rank, 3) for rank in range(3)]
    ['ab', 'cd', 'e']
    """
    least, more = divmod(len(items), size)
    start = rank * least + min(rank, more)
    return items[start : start + least + (rank < more)]


def local_share(items: Sequence[_T]) -> Sequence[_T]:
    """Give this process's part."""
    return share(items, dist.get_rank(), dist.get_world_size()) if is_distributed() else items


def check_strategy(trainer: Trainer) -> None:
    """Refuse what divides the model among processes: a divided teacher cannot sample.

    Raises:
        ConfigError: If the trainer's strategy is neither for one device nor DDP.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"trainer: strategy {type(trainer.strategy).__name__} divides the model, and a divided teacher cannot "
            "sample; set strategy to ddp (each process holds the teacher), and quantize it if it is too large"
        )


def local_backward(trainer: Trainer) -> AbstractContextManager[None]:
    """Keep the strategy from exchanging gradients: processes with no rows would be waited for in vain.

    `sum_gradients` exchanges them afterwards.
    """
    strategy = trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes; where one has none, it counts as 0."""
    if not is_distributed():
        return
    with_gradient = list(parameters)
    for parameter in with_gradient:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    # One message for each number format: adapters are hundreds of small tensors.
    for dtype in sorted({p.dtype for p in with_gradient}, key=str):
        gradients = [p.grad for p in with_gradient if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


@contextmanager
def collective_errors() -> Iterator[None]:
    """Let no process go on alone: what one of them raises inside, all raise at the end, each an error of its class.

    The same class, because what is done about an error (such as saving a checkpoint) all must do. Nothing inside may
    wait for the other processes.

    Raises:
        RuntimeError: In a process where all was well, if another one failed in a way that is not known here.
    """
    if not is_distributed():
        yield
        return
    failed: Exception | None = None
    try:
        yield
    except Exception as error:
        failed = error
    faults = gather(None if failed is None else _Fault.of(failed))
    told = (fault.told_by(rank) for rank, fault in enumerate(faults) if fault is not None)
    raised = failed or next(told, None)
    if raised is not None:
        raised._raised_by_all = True  # type: ignore[attr-defined]
        raise raised


def raised_by_all(error: BaseException) -> bool:
    """Whether no other process goes on: only then may what is done about the error wait for the others."""
    return not is_distributed() or getattr(error, "_raised_by_all", False)


@dataclass(frozen=True)
class _Fault:
    """An error as it is told to other processes."""

    kind: type[Exception]
    text: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, error: Exception) -> _Fault:
        known = isinstance(error, WSTError | torch.OutOfMemoryError)
        text = f"{type(error).__name__}: {error}"
        return cls(type(error) if known else RuntimeError, text, tuple(getattr(error, "__notes__", ())))

    def told_by(self, rank: int) -> Exception:
        error = self.kind(f"process {rank} was stopped: {self.text}")
        for note in self.notes:
            error.add_note(note)
        return error
