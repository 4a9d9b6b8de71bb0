"""Communication between the ranks of a run. In a run of one process each function is trivial.

All ranks must call these functions, and in the same order. A rank that has nothing to do, or that has failed, must call
them too.
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
    """Return whether there is more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank, 0 in a lone process."""
    return dist.get_rank() if is_distributed() else 0


def gather(item: _T) -> list[_T]:
    """Return what every rank passes, in the order of the ranks.

    Args:
        item: Anything that can be pickled, of a different size in each rank if need be.
    """
    if not is_distributed():
        return [item]
    items: list[_T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(items, item)
    return items  # type: ignore[return-value]


def gather_rows(rows: Sequence[_T]) -> list[_T]:
    """Return the rows of all ranks, in the order of the ranks, as one list."""
    return [row for part in gather(list(rows)) for row in part]


def share(items: Sequence[_T], rank: int, size: int) -> Sequence[_T]:
    """Return one rank's share of the items: consecutive, and of the same length as any other's or one longer.

    >>> [share("abcde", rank, 3) for rank in range(3)]
    ['ab', 'cd', 'e']
    """
    least, more = divmod(len(items), size)
    start = rank * least + min(rank, more)
    return items[start : start + least + (rank < more)]


def local_share(items: Sequence[_T]) -> Sequence[_T]:
    """Return this rank's share of the items."""
    return share(items, dist.get_rank(), dist.get_world_size()) if is_distributed() else items


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that shards the model: a sharded teacher cannot sample.

    Raises:
        ConfigError: If the trainer's strategy is neither for one device nor DDP.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ConfigError(
            f"trainer: strategy {type(trainer.strategy).__name__} shards the model, and a sharded teacher cannot "
            "sample; set strategy to ddp (each rank holds the teacher), and quantize it if it is too large"
        )


def local_backward(trainer: Trainer) -> AbstractContextManager[None]:
    """Keep the strategy from reducing gradients, which would wait for ranks that have no rows.

    `sum_gradients` reduces them afterwards.
    """
    strategy = trainer.strategy
    return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of all ranks; a gradient that a rank does not have counts as 0."""
    if not is_distributed():
        return
    with_gradient = list(parameters)
    for parameter in with_gradient:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    # One all-reduce for each dtype: adapters are hundreds of small tensors.
    for dtype in sorted({p.dtype for p in with_gradient}, key=str):
        gradients = [p.grad for p in with_gradient if p.dtype == dtype and p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, total in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))


@contextmanager
def collective_errors() -> Iterator[None]:
    """Raise in all ranks, at the end of the block, what one rank raises inside it, with the same class.

    The class is the same because all ranks must handle the error alike, for instance save a checkpoint. Nothing inside
    the block may wait for other ranks.

    Raises:
        RuntimeError: In a rank without an error, if another one raised an error of an unknown class.
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
    """Return whether all ranks raised the error; only then may handling it involve the other ranks."""
    return not is_distributed() or getattr(error, "_raised_by_all", False)


@dataclass(frozen=True)
class _Fault:
    """An error in the form in which it is sent to other ranks."""

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
