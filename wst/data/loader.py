"""Batches of queries: in the order of the data for evaluation, in a shuffled and resumable order for training."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn

from wst.data.curriculum import Curriculum
from wst.distributed import collective_errors, share
from wst.errors import ConfigError, DataError, WSTError
from wst.terminal import printable
from wst.types import Query

_T = TypeVar("_T")


class Batches(Generic[_T]):
    """Lists of consecutive items; each rank gets its own share of every batch.

    Not a ``DataLoader``: Lightning would pad its distributed sampler so that every rank gets the same number of items,
    which repeats some.

    Args:
        items: The items to hand out.
        batch_size: Items per batch on each rank.
        rank: Rank of this process.
        world_size: Number of processes.
    """

    def __init__(self, items: Sequence[_T], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.items = items
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    @property
    def global_batch_size(self) -> int:
        """Items per batch on all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Return the number of batches, which is the same on every rank."""
        return -(-len(self.items) // self.global_batch_size)

    def __getitem__(self, number: int) -> list[_T]:
        """Return this rank's share of a batch; it is empty if the last batch has fewer items than there are ranks."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start = number * self.global_batch_size
        return list(share(self.items[start : start + self.global_batch_size], self.rank, self.world_size))

    def __iter__(self) -> Iterator[list[_T]]:
        """Iterate over the batches."""
        return (self[number] for number in range(len(self)))


def epoch_order(length: int, seed: int, epoch: int) -> Sequence[int]:
    """Return a permutation of ``range(length)`` that depends on the seed and the epoch alone."""
    # Hashed, so that epoch 1 of seed 0 is not epoch 0 of seed 1.
    digest = hashlib.sha256(f"{seed} {epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    # The integers of a list would take five times the memory.
    return array("q", torch.randperm(length, generator=generator).numpy().tobytes())


class QueryLoader(Batches[Query]):
    """Batches for training, with a position that a checkpoint saves and restores.

    The last batch of an epoch may be smaller: no query is dropped. If it has fewer queries than there are ranks, some
    ranks get an empty list and still take part in the step. After `load_state_dict` the first iteration continues
    after the last batch handed out, provided that it is for the same epoch; every other iteration starts at the
    beginning. A batch counts as seen once it is handed out, so take the state at the end of a step, not within it.

    Args:
        items: The queries.
        batch_size: Queries per batch on each rank.
        rank: Rank of this process.
        world_size: Number of processes.
        shuffle: Whether to shuffle, in a new order each epoch.
        seed: Seed of the order.
        resume_changed: Whether a state of other queries or settings is accepted; its position is then kept.
        curriculum: Draws the queries of each batch by the rewards so far; None: each query once an epoch. Its memory
            is part of the state.
    """

    def __init__(
        self,
        items: Sequence[Query],
        batch_size: int = 8,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        seed: int = 0,
        resume_changed: bool = False,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__(items, batch_size, rank, world_size)
        self.curriculum = curriculum
        self.shuffle = shuffle
        self.seed = seed
        self.resume_changed = resume_changed
        digest = hashlib.sha256()
        for place, query in enumerate(items):
            digest.update(f"\n{query.id}".encode() if place else query.id.encode())
        self._digest = digest.hexdigest()
        self._next_epoch = 0
        self._position = 0, 0  # epoch, and batches of it that were handed out
        self._resumed = False

    @property
    def sampler(self) -> QueryLoader:
        """The loader itself: Lightning calls ``loader.sampler.set_epoch`` at the start of each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self._next_epoch = epoch

    def __iter__(self) -> Iterator[list[Query]]:
        """Iterate over the epoch, or over the rest of it after `load_state_dict`."""
        # A generator reads the epoch when the first batch is asked for: Lightning creates the iterator before it
        # sets the epoch.
        epoch = self._next_epoch
        first = self._position[1] if self._resumed and epoch == self._position[0] else 0
        self._resumed = False
        order = epoch_order(len(self.items), self.seed, epoch) if self.shuffle else range(len(self.items))
        batches = Batches(order, self.batch_size, self.rank, self.world_size)
        for number in range(first, len(batches)):
            self._position = epoch, number + 1
            if self.curriculum is None:
                yield [self.items[index] for index in batches[number]]
            else:
                drawn = self.curriculum.choose(self.items, self.global_batch_size, self.seed, epoch, number)
                yield [self.items[index] for index in share(drawn, self.rank, self.world_size)]

    def put_back(self) -> None:
        """Count the last batch as not handed out, because its step was not finished."""
        epoch, batches = self._position
        self._position = epoch, max(0, batches - 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the queries and settings for which it is valid."""
        state = dict(zip(("epoch", "batches"), self._position, strict=True)) | self._identity()
        return state if self.curriculum is None else state | {"curriculum": self.curriculum.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the position of a state.

        Raises:
            DataError: If the state was taken with other queries.
            ConfigError: If it was taken with other settings, or is not a state of this loader.
        """
        identity = self._identity()
        with collective_errors():
            if missing := {"epoch", "batches", *identity} - state_dict.keys():
                raise ConfigError(
                    f"checkpoint: the state of the training data lacks {', '.join(sorted(missing))}; "
                    "resume with the data module that the checkpoint was made with"
                )
            kinds = {name: type(value) for name, value in identity.items()} | {"epoch": int, "batches": int}
            unlike = [name for name, kind in kinds.items() if type(state_dict[name]) is not kind]
            if unlike or min(state_dict["epoch"], state_dict["batches"]) < 0:
                raise ConfigError(
                    "checkpoint: the position in the training data cannot be read; give one that `wst fit` wrote"
                )
            fault = self._difference(state_dict, identity)
            if fault is not None and not self.resume_changed:
                raise fault
        if fault is not None:
            rank_zero_warn(f"{fault}; resuming anyway, from the same position in the epoch")
        self._position = state_dict["epoch"], min(state_dict["batches"], len(self))
        self._next_epoch = state_dict["epoch"]
        self._resumed = True
        if self.curriculum is not None and "curriculum" in state_dict:
            self.curriculum.load_state_dict(state_dict["curriculum"])

    def _difference(self, state: dict[str, Any], identity: dict[str, Any]) -> WSTError | None:
        """Return the first difference that makes the position meaningless."""
        changed = {
            "queries": "{} training queries, now there are {}",
            "ids": "other training queries (the same number, but their ids or their order differ)",
            "batch_size": "batch_size {}, now it is {}" + (" over all ranks" if self.world_size > 1 else ""),
            "shuffle": "shuffle {}, now it is {}",
            "seed": "shuffle_seed {}, now it is {}",
        }
        for key, words in changed.items():
            if state[key] != identity[key]:
                kind = DataError if key in ("queries", "ids") else ConfigError
                made = printable(words.format(state[key], identity[key]))
                return kind(
                    f"checkpoint: it was made with {made}; resume with the same "
                    "data and settings, or set data.init_args.resume_changed to true to resume anyway"
                )
        if ("curriculum" in state) != (self.curriculum is not None):
            with_or_without = "with" if "curriculum" in state else "without"
            return ConfigError(
                f"checkpoint: it was made {with_or_without} a curriculum; resume {with_or_without} one, or set "
                "data.init_args.resume_changed to true to resume anyway"
            )
        return None

    def _identity(self) -> dict[str, Any]:
        """Return everything that must be equal for a position to mean the same batch."""
        return {
            "queries": len(self.items),
            "ids": self._digest,
            "batch_size": self.global_batch_size,
            "shuffle": self.shuffle,
            "seed": self.seed,
        }
