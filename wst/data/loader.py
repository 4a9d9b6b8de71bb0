"""The training loader: batches of queries in an order that a checkpoint can take up again at any step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Sampler, SequentialSampler

from wst.data.queries import ids
from wst.distributed import collective_errors, share
from wst.errors import ConfigError, DataError, WSTError
from wst.types import Query

_T = TypeVar("_T")


class EpochSampler(DistributedSampler[int]):
    """Gives the indices of one epoch, in an order that depends on the seed and the epoch alone.

    The order is that of all processes together; `QueryLoader` takes a process's share of each batch. By its base class
    the trainer knows that it has nothing to divide; what that does is not used.

    Args:
        length: Number of queries.
        seed: Seed of the order.
        shuffle: Whether to shuffle; if not, every epoch has the order of the data.
    """

    def __init__(self, length: int, seed: int = 0, shuffle: bool = True) -> None:
        super().__init__(range(length), num_replicas=1, rank=0)  # type: ignore[arg-type]
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to come; the trainer calls it at the start of each."""
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """Give the indices in the order of an epoch."""
        if not self.shuffle:
            return list(range(self.length))
        # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
        digest = hashlib.sha256(f"{self.seed} {epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        indices: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return indices

    def __iter__(self) -> Iterator[int]:
        """Go through the epoch that is set when the first index is asked for."""
        yield from self.order(self.epoch)

    def __len__(self) -> int:
        """Give the number of queries."""
        return self.length


class Batches(Generic[_T]):
    """Hands items out in their order, a list at a time; of several processes each gets its share of every batch.

    It is no ``DataLoader``: of one, the trainer would make each process see as many items, and so some of them twice.

    Args:
        items: What is handed out.
        batch_size: Items a batch, in each process.
        rank: Number of this process.
        processes: How many there are.
    """

    def __init__(self, items: Sequence[_T], batch_size: int, rank: int = 0, processes: int = 1) -> None:
        self.items = items
        self.together = batch_size * processes  #: items a batch, in all processes
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        """Give the number of batches, the same in each process."""
        return -(-len(self.items) // self.together)

    def __getitem__(self, number: int) -> list[_T]:
        """Give this process's share of a batch; none where the last one has fewer items than there are processes."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        batch = self.items[number * self.together : (number + 1) * self.together]
        return list(share(batch, self.rank, self.processes))

    def __iter__(self) -> Iterator[list[_T]]:
        """Go through the batches."""
        return (self[number] for number in range(len(self)))


class QueryLoader(DataLoader[Query]):
    """Hands out ``list[Query]`` for training, and remembers how far it came.

    The last batch of an epoch may be smaller: no query is dropped. Of several processes each gets its share of every
    batch, none in another's; where a last batch is smaller than the number of processes, some get an empty list, and
    take part in the step all the same. After `load_state_dict` the first iteration continues behind the last batch
    handed out, provided that it is asked for the same epoch; otherwise, and ever after, an iteration begins at the
    beginning. A batch counts as seen once it is handed out, so a state fits the end of a training step, not its middle.

    Args:
        dataset: The queries.
        batch_size: Queries a batch, in each process.
        shuffle: Whether to shuffle, anew for each epoch.
        seed: Seed of the order.
        rank: Number of this process.
        processes: How many there are.
        resume_changed: Whether to go on, at the same place in the epoch, from a state of other queries or settings.
        sampler: Not for users: what the trainer puts in when it rebuilds the loader (``overfit_batches``).
        batch_sampler: As `sampler`.

    Raises:
        ConfigError: If the trainer wants to put in an order of its own.
    """

    def __init__(
        self,
        dataset: Sequence[Query],
        batch_size: int = 8,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        processes: int = 1,
        resume_changed: bool = False,
        sampler: Sampler[int] | None = None,
        batch_sampler: Sampler[list[int]] | None = None,
    ) -> None:
        # A sequential sampler is what `shuffle=False` gives anyway; any other order could not be resumed.
        if batch_sampler is not None or not isinstance(sampler, SequentialSampler | EpochSampler | None):
            raise ConfigError(
                "QueryLoader: it keeps its own order, and the trainer wants another; leave the trainer's options for "
                "data loading at their defaults"
            )
        self.epoch_sampler = EpochSampler(len(dataset), seed=seed, shuffle=shuffle)
        self.rank = rank
        self.processes = processes
        self.resume_changed = resume_changed
        super().__init__(
            cast("Dataset[Query]", dataset),
            batch_size=batch_size,
            sampler=self.epoch_sampler,
        )
        digest = hashlib.sha256()
        for place, id_ in enumerate(ids(dataset)):
            digest.update(f"\n{id_}".encode() if place else id_.encode())
        self._digest = digest.hexdigest()
        self._epoch = 0
        self._batches = 0
        self._resumed = False

    def _in_batches(self, order: Sequence[int]) -> Batches[int]:
        return Batches(order, cast(int, self.batch_size), self.rank, self.processes)

    def __len__(self) -> int:
        """Give the number of batches, the same in each process."""
        return len(self._in_batches(range(self.epoch_sampler.length)))

    def __iter__(self) -> Iterator[list[Query]]:  # type: ignore[override]
        """Go through the epoch, or what is left of it after `load_state_dict`."""
        # A generator decides nothing until the first batch is asked for: the trainer asks for the iterator first
        # and sets the epoch only then.
        epoch = self.epoch_sampler.epoch
        first = self._batches if self._resumed and epoch == self._epoch else 0
        self._resumed = False
        batches = self._in_batches(self.epoch_sampler.order(epoch))
        for number in range(first, len(batches)):
            self._epoch, self._batches = epoch, number + 1
            yield [cast(Any, self.dataset)[i] for i in batches[number]]

    def put_back(self) -> None:
        """Count the last batch as not handed out: nothing was learnt from it."""
        self._batches = max(0, self._batches - 1)

    def state_dict(self) -> dict[str, Any]:
        """Give how far it came, and what that counts."""
        return {"epoch": self._epoch, "batches": self._batches, **self._identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where a state was taken.

        Raises:
            DataError: If the state was taken with other queries.
            ConfigError: If it was taken with other settings, or is not a state of this loader.
        """
        identity = self._identity()
        with collective_errors():
            if missing := {"epoch", "batches", *identity} - state_dict.keys():
                raise ConfigError(
                    f"checkpoint: the training data's state lacks {', '.join(sorted(missing))}; "
                    "resume with the data module that the checkpoint was made with"
                )
            fault = self._difference(state_dict, identity)
            if fault is not None and not self.resume_changed:
                raise fault
        if fault is not None:
            rank_zero_warn(f"{fault}; going on all the same, from the same place in the epoch")
        self._epoch, self._batches = state_dict["epoch"], min(state_dict["batches"], len(self))
        self.epoch_sampler.set_epoch(self._epoch)
        self._resumed = True

    def _difference(self, state: dict[str, Any], identity: dict[str, Any]) -> WSTError | None:
        anyway = "or set data.init_args.resume_changed to true to go on all the same"
        if state["queries"] != identity["queries"]:
            return DataError(
                f"checkpoint: it was made with {state['queries']} training queries, now there are "
                f"{identity['queries']}; resume with the same data, split and limit, {anyway}"
            )
        if state["ids"] != identity["ids"]:
            return DataError(
                "checkpoint: it was made with other training queries (as many, but their ids or their order differ); "
                f"resume with the same data, split and limit, {anyway}"
            )
        for key in ("batch_size", "shuffle", "seed"):
            if state[key] != identity[key]:
                option = "shuffle_seed" if key == "seed" else key
                all_told = " in all processes together" if key == "batch_size" and self.processes > 1 else ""
                return ConfigError(
                    f"checkpoint: it was made with {option} {state[key]}, now it is {identity[key]}{all_told}; "
                    f"set {option} to {state[key]}{all_told} to resume, {anyway}"
                )
        return None

    def _identity(self) -> dict[str, Any]:
        """Give what must be the same for a position to mean the same batch."""
        return {
            "queries": self.epoch_sampler.length,
            "ids": self._digest,
            "batch_size": cast(int, self.batch_size) * self.processes,
            "shuffle": self.epoch_sampler.shuffle,
            "seed": self.epoch_sampler.seed,
        }
