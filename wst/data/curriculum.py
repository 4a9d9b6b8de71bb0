"""Which queries to train on next: fewer of those that teach nothing, more of those that might."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from wst.errors import ConfigError
from wst.settings import check_arguments, check_counts
from wst.types import Query


@dataclass
class _Past:
    """What the loader knows of a query.

    Attributes:
        seen: Step in which it was last trained on.
        alike: Times in a row that all its rewards were the same one.
        last: That one.
        count: Rewards in mean and square, the older the less.
        mean: Their mean.
        square: The mean of their squares.
    """

    seen: int
    alike: int = 0
    last: float = math.nan
    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of its rewards; of a success rate p, the root of p(1 - p)."""
        return math.sqrt(max(0.0, self.square - self.mean * self.mean))


class Curriculum:
    """Draws the queries of each batch: settled ones rest, and those of middling success come more often.

    A query is settled once all its rewards, of all its samples and visits, were the same ``patience`` times in a row
    (dynamic sampling of DAPO, arXiv 2503.14476; GRESO, arXiv 2506.02177). It is left out until ``rest`` epochs have
    passed since its last visit, then drawn first, as is any query that was not drawn for as long. The others are drawn
    without replacement by the standard deviation of their rewards, which for a success rate p is the root of p(1 - p)
    (LILO, arXiv 2502.12272; SPO, arXiv 2509.13232). A query that is new counts as the most promising, and none less
    than ``floor``.

    An epoch still has as many batches as it takes to hand out each query once. Which query a batch holds depends on the
    seed and on the rewards so far, which are part of checkpoints.

    Args:
        patience: Times in a row that all rewards are the same until a query is settled.
        rest: Epochs until a query that was not drawn for so long comes back.
        floor: Smallest weight of a query that is not settled, in (0, 1]; 1 draws them all alike.
        decay: Weight of a query's past rewards each time that it comes back, in [0, 1].

    Raises:
        ConfigError: If a setting is out of range.
    """

    def __init__(self, patience: int = 3, rest: int = 4, floor: float = 0.2, decay: float = 0.8) -> None:
        check_arguments(Curriculum, locals())
        check_counts("Curriculum", patience=patience, rest=rest)
        if not 0 < floor <= 1:
            raise ConfigError(f"Curriculum: floor must be above 0 and at most 1, got {floor}")
        if not 0 <= decay <= 1:
            raise ConfigError(f"Curriculum: decay must be in [0, 1], got {decay}")
        self.patience = patience
        self.rest = rest
        self.floor = floor
        self.decay = decay
        self._past: dict[str, _Past] = {}
        self._step = 0  #: steps that were observed
        self._items: Sequence[Query] = ()
        self._places: dict[str, int] = {}  #: index of each of the items by id

    def observe(self, queries: Sequence[str], rewards: Sequence[Sequence[float]]) -> None:
        """Remember the rewards of a step, of all ranks.

        Args:
            queries: Ids.
            rewards: For each query those of its samples, NaN where unknown.
        """
        self._step += 1
        for query, row in zip(queries, rewards, strict=True):
            past = self._past.setdefault(query, _Past(self._step))
            past.seen = self._step
            known = [reward for reward in row if not math.isnan(reward)]
            if not known:
                continue
            alike = len(set(known)) == 1
            past.alike = 1 + past.alike * (known[0] == past.last) if alike else 0
            past.last = known[-1]
            weight = self.decay * past.count
            past.count = weight + len(known)
            past.mean = (weight * past.mean + sum(known)) / past.count
            past.square = (weight * past.square + sum(reward * reward for reward in known)) / past.count

    def choose(self, items: Sequence[Query], count: int, seed: int, epoch: int, batch: int) -> list[int]:
        """Return the indices of the next batch of all ranks; the same call returns the same until `observe`.

        Args:
            items: All queries.
            count: Queries in the batch.
            seed: Seed of the order.
            epoch: Number of the epoch.
            batch: Number of the batch in it.
        """
        wait = self.rest * -(-len(items) // count)  # steps
        digest = hashlib.sha256(f"curriculum {seed} {epoch} {batch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        # The largest of log(w) + Gumbel noise are a draw by weight without replacement (Efraimidis and Spirakis 2006).
        noise = -(-torch.rand(len(items), generator=generator, dtype=torch.float64).log()).log()
        widest = max((past.spread for past in self._past.values()), default=0.0)
        new = math.inf if self._step + 1 >= wait else 0.0
        weights = torch.full((len(items),), new, dtype=torch.float64)
        for index, past in self._indexed(items):
            if self._step + 1 - past.seen >= wait:
                weights[index] = math.inf  # due: drawn first
            elif past.alike >= self.patience:
                weights[index] = -math.inf  # settled: drawn only if there are not enough others
            else:
                weights[index] = math.log(max(self.floor, past.spread / widest if widest else 1.0))
        # Between infinite weights, noise decides as well.
        keys = weights.clamp(-1e6, 1e6) + noise
        return keys.topk(min(count, len(items))).indices.tolist()

    def _indexed(self, items: Sequence[Query]) -> list[tuple[int, _Past]]:
        if self._items is not items:
            self._items, self._places = items, {query.id: index for index, query in enumerate(items)}
        return [(self._places[query], past) for query, past in self._past.items() if query in self._places]

    def state_dict(self) -> dict[str, Any]:
        """Return the memory."""
        rows = {k: [p.seen, p.alike, p.last, p.count, p.mean, p.square] for k, p in self._past.items()}
        return {"step": self._step, "queries": rows}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the memory.

        Raises:
            ConfigError: If it is no such memory.
        """
        try:
            self._past = {}
            for query, (seen, alike, *rest) in state_dict["queries"].items():
                past = _Past(int(seen), int(alike), *map(float, rest))
                if not min(past.alike, past.count) >= 0 or any(map(math.isinf, map(float, rest))):
                    raise ValueError(query)
                self._past[str(query)] = past
            self._step = int(state_dict["step"])
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ConfigError(
                "checkpoint: its curriculum cannot be read; give a checkpoint that `wst fit` wrote"
            ) from error
