"""Runs with a judge behind an endpoint: its cost is accounted separately, and an exhausted budget loses no work."""

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import Body, FakeServer, last_user_text
from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from runs import write_config, wst
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Lowercase, Parrot, SixQueries, small_module
from trainers import quiet_trainer

from wst import (
    Budget,
    EndpointStudent,
    Judge,
    Prices,
    Reward,
    Rollout,
    Standardized,
    StudentPrompt,
    WeakToStrong,
    WeightedSum,
)
from wst.errors import StudentStopped

RUN = Path("runs/tiny/version_0")
FIT = ["fit", "--config", "config.yaml"]
RESUME = [*FIT, "--ckpt_path", "last"]
RUBRIC = "Judge from 1 to 10: {response}"

pytestmark = pytest.mark.filterwarnings("ignore")


def student_or_judge(body: Body) -> str:
    """Answer as a judge whose verdict depends on the prompt's length, or as a student that echoes."""
    said = last_user_text(body)
    return f"Verdict: {len(said) % 10 + 1}" if said.startswith("Judge") else said


def judgements(server: FakeServer) -> list[str]:
    """Return the prompts that the server received as a judge."""
    asked = [last_user_text(request.body) for request in server.requests]
    return [text for text in asked if text.startswith("Judge")]


def label(server: FakeServer) -> str:
    """Return the name of the server's model in the ledger and in messages."""
    return f"fake at {server.url.removeprefix('http://').removesuffix('/v1')}"


def write_judged_config(folder: Path, model: str, server: FakeServer, **judge: Any) -> Path:
    """Write a config whose student and judge are the same model of the same server."""

    def endpoint(**options: Any) -> dict[str, Any]:
        shared = {"model": "fake", "base_url": server.url, "api_key_env": None, "backoff": 0.02}
        return {"class_path": "wst.EndpointStudent", "init_args": shared | options}

    changes = {
        "model.init_args.student": endpoint(prices={"prompt": 1.0, "completion": 2.0}),
        "model.init_args.student_prompt": {"placement": "before"},
        "model.init_args.reward": {
            "class_path": "wst.Judge",
            "init_args": {"rubric": RUBRIC, "judge": endpoint(prices={"prompt": 10.0, "completion": 20.0}, **judge)},
        },
        "trainer.max_steps": 3,
    }
    return write_config(folder, model, **changes)


def scalars(folder: Path) -> dict[str, list[float]]:
    log = EventAccumulator(str(folder / RUN))
    log.Reload()
    return {name: [event.value for event in log.Scalars(name)] for name in log.Tags()["scalars"]}


def ledger(folder: Path) -> dict[str, tuple[int, float]]:
    """Return calls and cost in the ledger, by student."""
    rows = sqlite3.connect(folder / "calls.sqlite").execute("SELECT student, calls, cost FROM spent").fetchall()
    return {student: (calls, cost) for student, calls, cost in rows}


@pytest.mark.slow
def test_a_spent_budget_of_the_judge_stops_after_a_checkpoint(tmp_path: Path, tiny_model: str) -> None:
    with FakeServer(answer=student_or_judge) as server:
        limit = 18  # at twelve answers a step, it runs out in the middle of the second
        write_judged_config(tmp_path, tiny_model, server, budget={"calls": limit, "cost": 1.0})
        done = wst(FIT, tmp_path)
        assert done.code == 2
        lines = [line for line in done.err.splitlines() if line.startswith("wst: error:")]
        assert len(lines) == 1
        assert f"student judge {label(server)}: budget.calls: {limit} of {limit} calls are made; raise it" in lines[0]
        assert "Traceback" not in done.err
        assert len(judgements(server)) == limit
        last = torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == 1
        raised = "--model.init_args.reward.init_args.judge.init_args.budget.calls=1000"
        done = wst([*RESUME, raised], tmp_path)
        assert done.code == 0, done.err
        assert len(judgements(server)) > limit
        assert len(set(judgements(server))) == len(judgements(server))  # no prompt is paid for twice
    figures = scalars(tmp_path)
    assert [round(reward, 6) >= 0 for reward in figures["train/reward"]] == [True] * 3
    assert figures["train/unscored"] == [0.0] * 3
    assert ledger(tmp_path / RUN)[f"judge {label(server)}"][0] == len(judgements(server))


# ------------------------------------------------------------------------------------------------- inside a process


class Noted(Lowercase):
    """Records which hooks were called."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def setup(self, device: torch.device) -> None:
        self.events.append("setup")

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        self.events.append("score")
        return super().score(rollouts)

    def close(self) -> None:
        self.events.append("close")


class Broken(Noted):
    """Fails in ``score``."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        raise ZeroDivisionError


def run(folder: Path, steps: int = 1, logger: TensorBoardLogger | bool = False) -> Trainer:
    return quiet_trainer(folder, max_steps=steps, logger=logger, log_every_n_steps=1, num_sanity_val_steps=0)


def endpoint(server: FakeServer, **options: Any) -> EndpointStudent:
    return EndpointStudent("fake", server.url, None, backoff=0.02, **options)


@pytest.mark.slow
def test_what_a_judge_costs_is_told_apart_from_the_student(tiny_model: str, tmp_path: Path) -> None:
    """Both are the same model of the same server."""
    logger = TensorBoardLogger(tmp_path / "runs", "tiny", version=0)
    with FakeServer(answer=student_or_judge) as server:
        student, judge = endpoint(server, prices=Prices(1, 2)), endpoint(server, prices=Prices(10, 20))
        prompt = StudentPrompt("before")  # the server echoes the instruction too
        module = small_module(tiny_model, student, Judge(judge, rubric=RUBRIC), student_prompt=prompt)
        run(tmp_path, 3, logger).fit(module, SixQueries(batch_size=3))
        fitted, answered = len(judgements(server)), len(server.requests) - len(judgements(server))
        run(tmp_path, 3, logger).test(module, SixQueries(), verbose=False)
        tested = len(judgements(server)) - fitted
        asked = len(server.requests) - fitted - tested

    figures = scalars(tmp_path)
    assert len(figures["vitals/judge/calls"]) == len(figures["vitals/student/calls"]) == 3
    assert sum(figures["vitals/judge/calls"]) + sum(figures["vitals/val/judge/calls"]) == fitted
    assert sum(figures["vitals/student/calls"]) + sum(figures["vitals/val/student/calls"]) == answered
    assert min(figures["vitals/judge/cost"]) > 0
    assert min(figures["vitals/judge/seconds_p50"]) > 0
    assert figures["train/reward/unparsed"] == [0.0] * 3

    results = json.loads((tmp_path / RUN / "results.json").read_text())
    assert results["accounts"]["judge"]["test"]["calls"] == tested > 0
    for name, prices, calls in (
        ("judge", (10, 20), (fitted, tested)),
        ("student", (1, 2), (answered, asked - answered)),
    ):
        stages = results["accounts"][name]["run"]
        assert [stages[stage]["calls"] for stage in ("fit", "test")] == list(calls)
        for stage in stages.values():
            tokens = stage["prompt_tokens"], stage["completion_tokens"]
            assert stage["cost"] == pytest.approx((prices[0] * tokens[0] + prices[1] * tokens[1]) / 1e6)
    spent = ledger(tmp_path / RUN)
    assert {name: calls for name, (calls, _) in spent.items()} == {
        label(server): asked,
        f"judge {label(server)}": fitted + tested,
    }
    run_cost = sum(stage["cost"] for stage in results["accounts"]["judge"]["run"].values())
    assert spent[f"judge {label(server)}"][1] == pytest.approx(run_cost)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_reward_is_closed_at_the_end(tiny_model: str, tmp_path: Path, wrapped: bool) -> None:
    inner = Noted()
    reward: Reward = WeightedSum({"a": Standardized(inner)}) if wrapped else inner
    module = small_module(tiny_model, Parrot(), reward)
    run(tmp_path).fit(module, SixQueries(batch_size=6))
    assert inner.events[0] == "setup"
    assert inner.events[-1] == "close"
    assert inner.events.count("close") == 1
    inner.events.clear()
    run(tmp_path).validate(module, SixQueries(), verbose=False)  # and set up again
    assert inner.events[0] == "setup"
    assert "score" in inner.events
    assert inner.events[-1] == "close"


def test_a_reward_is_closed_when_a_run_breaks(tiny_model: str, tmp_path: Path) -> None:
    reward = Broken()
    with pytest.raises(ZeroDivisionError):
        run(tmp_path).fit(small_module(tiny_model, Parrot(), reward), SixQueries(batch_size=6))
    assert reward.events == ["setup", "close"]


def test_judges_in_a_sum_have_a_name_and_a_budget_each(tiny_model: str, tmp_path: Path) -> None:
    with FakeServer(answer=student_or_judge) as server:
        judges = {name: Judge(endpoint(server), rubric=f"Judge {name}: {{response}}") for name in ("form", "content")}
        trainer = run(tmp_path)
        trainer.fit(small_module(tiny_model, Parrot(), WeightedSum({**judges})), SixQueries(batch_size=6))
        names = {f"{name}/judge {label(server)}" for name in judges}
    spent = ledger(tmp_path / "version_0")
    assert set(spent) == names
    assert {f"vitals/{name}/judge/calls" for name in judges} <= set(trainer.callback_metrics)
    assert sum(calls for calls, _ in spent.values()) == len(server.requests)


def test_a_pairwise_judge_in_a_run_compares_with_the_unaided_answer(tiny_model: str, tmp_path: Path) -> None:
    with FakeServer(answer=lambda body: "Verdict: A") as server:
        judge = Judge(endpoint(server), mode="pairwise", rubric="{response_a} or {response_b}")
        trainer = run(tmp_path)
        trainer.fit(small_module(tiny_model, Parrot(), judge), SixQueries(batch_size=6))
        texts = [last_user_text(request.body) for request in server.requests]
    assert all(sum(side.startswith(("train 1", "val 1")) for side in text.split(" or ")) == 1 for text in texts)
    assert {text.split(" or ")[0] for text in texts} == {text.split(" or ")[1] for text in texts}  # both orders
    assert float(trainer.callback_metrics["train/reward"]) == 0.5
    assert float(trainer.callback_metrics["train/reward/position_bias"]) == 1.0
    assert float(trainer.callback_metrics["val/unaided"]) == 0.5


def test_a_budget_that_is_spent_while_measuring_loses_nothing_either(tiny_model: str, tmp_path: Path) -> None:
    """Calibration happens before the first step; its answers are not paid for twice either."""
    with FakeServer(answer=student_or_judge) as server:

        def made(calls: int) -> WeakToStrong:
            judge = endpoint(server, budget=Budget(calls=calls))
            return small_module(tiny_model, Parrot(), Standardized(Judge(judge, rubric=RUBRIC)))

        with pytest.raises(StudentStopped, match=r"judge fake at .*: budget\.calls: 2 of 2 calls are made"):
            run(tmp_path).fit(made(2), SixQueries(batch_size=6))
        last = tmp_path / "version_0/checkpoints/last.ckpt"
        assert torch.load(last, weights_only=True)["global_step"] == 0
        trainer = run(tmp_path)
        trainer.fit(made(100), SixQueries(batch_size=6), ckpt_path=last)
        asked = [last_user_text(request.body) for request in server.requests]
    assert trainer.global_step == 1
    assert len(set(asked)) == len(asked)
    assert abs(float(trainer.callback_metrics["train/reward"])) < 10
