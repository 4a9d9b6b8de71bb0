"""``wst check``: check a config's data against its reward; the gold answer of every row must score 1.0."""

from __future__ import annotations

import torch
from lightning import LightningModule

from wst.cli.errors import guarded
from wst.cli.lightning import SETTINGS, WSTCommandLine
from wst.data.datamodule import QueryDataModule
from wst.errors import ConfigError
from wst.module import WeakToStrong
from wst.rewards.base import Reward, score
from wst.types import Query, Response, Rollout

_SHOWN = 5  #: rows named for each split
_BATCH = 256


def wrong_golds(reward: Reward, queries: list[Query], field: str | None = None) -> list[Query]:
    """Return the queries of which a gold answer, as the response, does not score 1.0.

    Args:
        reward: A reward that compares with `Query.target`, after `setup`.
        queries: Queries with a target.
        field: Field of `Query.extra` to use as the response instead of the target, such as the worked solution.
    """
    wrong = []
    for start in range(0, len(queries), _BATCH):
        rollouts = [
            Rollout(query, None, Response(answer))
            for query in queries[start : start + _BATCH]
            for answer in (query.targets if field is None else [str(query.extra[field])])
        ]
        rewards = score(reward, rollouts).total
        missed = [r.query for r, value in zip(rollouts, rewards, strict=True) if value != 1.0]
        wrong += list({query.id: query for query in missed}.values())
    return wrong


def load_run(command: str, args: list[str]) -> tuple[WeakToStrong, QueryDataModule]:
    """Build a config's module and data module without loading a model.

    Args:
        command: Name of the command in error messages.
        args: Options of ``wst fit``.

    Raises:
        ConfigError: If the config has another module or data module.
    """
    built = WSTCommandLine(LightningModule, None, run=False, save_config_callback=None, args=args, **SETTINGS)
    module, data = built.model, built.datamodule
    if not isinstance(module, WeakToStrong) or not isinstance(data, QueryDataModule):
        raise ConfigError(f"{command}: the config must have a wst.WeakToStrong and a wst.QueryDataModule")
    return module, data


def run(args: list[str]) -> int:
    """Check a config's data against its reward; only the reward's models are loaded.

    Args:
        args: Options of ``wst fit``.

    Returns:
        0 if every gold answer scores 1.0, 1 if one does not, 2 after a user error.
    """

    def command() -> int:
        module, data = load_run("check", args)
        reward = module.reward
        failed = False
        reward.check()
        reward.setup(torch.device("cpu"))
        try:
            for split in ("train", "val", "test"):
                queries = [q for q in data.queries(split) if q.targets]
                if not queries:
                    print(f"{split}: no rows with a gold answer")
                    continue
                fields: list[str | None] = [None]
                if all("solution" in query.extra for query in queries):
                    fields.append("solution")
                for field in fields:
                    wrong = wrong_golds(reward, queries, field)
                    failed |= bool(wrong)
                    named = ", ".join(query.id for query in wrong[:_SHOWN])
                    more = f"; not: {named}{', ...' if len(wrong) > _SHOWN else ''}" if wrong else ""
                    what = "gold answers" if field is None else f"worked answers (field {field})"
                    print(f"{split}: {len(queries) - len(wrong)} of {len(queries)} {what} score 1.0{more}")
        finally:
            reward.close()
        return int(failed)

    return guarded(command)
