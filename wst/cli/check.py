"""``wst check``: try a config before it costs anything: the gold answers, and a few queries all the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning import LightningModule

from wst.cli.errors import guarded
from wst.cli.lightning import SETTINGS, WSTCommandLine
from wst.cli.trust import take_option
from wst.data.datamodule import QueryDataModule
from wst.errors import ConfigError
from wst.module import WeakToStrong
from wst.rewards.base import Reward, score
from wst.terminal import printable
from wst.types import Query, Response, Rollout

_SHOWN = 5  #: rows named for each split
_BATCH = 256
_TRIED = 2  #: queries tried all the way
_LINES = 40  #: of a text, at most


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
    return _build(command, args)[:2]


def _build(command: str, args: list[str]) -> tuple[WeakToStrong, QueryDataModule, torch.device]:
    built = WSTCommandLine(LightningModule, None, run=False, save_config_callback=None, args=args, **SETTINGS)
    module, data = built.model, built.datamodule
    if not isinstance(module, WeakToStrong) or not isinstance(data, QueryDataModule):
        raise ConfigError(f"{command}: the config must have a wst.WeakToStrong and a wst.QueryDataModule")
    return module, data, built.trainer.strategy.root_device


def run(args: list[str]) -> int:
    """Check a config's data against its reward, and try a few queries all the way.

    Args:
        args: Options of ``wst fit``, and ``--queries``.

    Returns:
        0 if every gold answer scores 1.0 and every query tried has a reward, 1 if not, 2 after a user error.
    """

    def command() -> int:
        rest, queries = take_option(args, "queries")
        if queries is not None and not queries.isdecimal():
            raise ConfigError(f"check: --queries must be a number of queries, 0 for none, got {queries!r}")
        module, data, device = _build("check", rest)
        tried = (data.queries("train") or data.queries("test"))[: _TRIED if queries is None else int(queries)]
        if tried:  # what can be seen without models comes first
            module.teacher.check()
            module.environment.check()
        failed = _check_golds(module.reward, data)
        return int(_try(module, tried, data, device) | failed) if tried else int(failed)

    return guarded(command)


def _check_golds(reward: Reward, data: QueryDataModule) -> bool:
    """Print for each split how many gold answers score 1.0, and return whether one does not."""
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
                named = printable(", ".join(query.id for query in wrong[:_SHOWN]))
                more = f"; not: {named}{', ...' if len(wrong) > _SHOWN else ''}" if wrong else ""
                what = "gold answers" if field is None else f"worked answers (field {field})"
                print(f"{split}: {len(queries) - len(wrong)} of {len(queries)} {what} score 1.0{more}")
    finally:
        reward.close()
    return failed


def _try(module: WeakToStrong, queries: Sequence[Query], data: QueryDataModule, device: torch.device) -> bool:
    """Print what each model reads and writes for some queries, and return whether one of them has no reward."""
    teacher, environment = module.teacher, module.environment
    print(f"loading teacher {printable(teacher.source)} and student ...", flush=True)
    try:
        teacher.load(device)
        environment.setup(device)
        if size := environment.reward.calibration_size:
            environment.calibrate(data.queries("train")[:size])
        instructions = teacher.sample(queries)
        rollouts = environment.respond(queries, [*instructions])
        scores, leaks = environment.score(rollouts), environment.leaks(rollouts)
    finally:
        environment.close()
    for i, (rollout, instruction) in enumerate(zip(rollouts, instructions, strict=True)):
        read, response = teacher.tokenizer.decode(list(instruction.prompt_ids)), rollout.response
        print(f"\n{printable(rollout.query.id)}")
        _show(f"teacher's prompt ({len(instruction.prompt_ids)} tokens)", str(read))
        _show(f"instruction ({len(instruction.token_ids)} tokens{_cut(instruction.truncated)})", instruction.text)
        for message in environment.prompt(rollout.query, instruction).messages:
            _show(f"student's prompt, {message.role}", message.content)
        flags = ", refused" * response.refused + _cut(response.truncated)
        _show(f"answer ({response.tokens} tokens{flags})", response.error or response.text)
        parts = "".join(f", {name} {values[i]:g}" for name, values in scores.parts.items())
        leak = "; the instruction gives the answer away" if leaks[i] == 1 else ""
        _show("reward", f"{scores.total[i]:g}{parts}{leak}")
    for student in (environment.student, *environment.reward.students().values()):
        if student.accounts is not None:
            for sums in student.accounts.run().values():
                cost = "" if sums["cost"] is None else f", cost {sums['cost']:.6g}"
                print(f"\n{student.accounts.student}: {sums['calls']} calls{cost}")
    return any(reward != reward for reward in scores.total)


def _cut(truncated: bool) -> str:
    return ", cut off at max_new_tokens" if truncated else ""


def _show(name: str, text: str) -> None:
    lines = text.splitlines() or [""]
    more = [f"... {len(lines) - _LINES} more lines"] if len(lines) > _LINES else []
    print(f"  {name}:")
    for line in [*lines[:_LINES], *more]:
        print(f"    {printable(line, 500)}")
