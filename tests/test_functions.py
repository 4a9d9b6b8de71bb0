"""Plain functions serve as student and as reward."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import write_config, wst
from test_module import data, fit, make

from wst import (
    FunctionReward,
    FunctionStudent,
    Judge,
    Prompt,
    Query,
    QueryDataModule,
    Response,
    Rollout,
    Student,
    compare,
)
from wst.environment import Environment
from wst.errors import ConfigError, ContractError


def echo(messages: list[dict[str, str]]) -> str:
    if "2" in messages[-1]["content"]:
        raise TimeoutError("no answer")
    return f"{messages[-1]['role']}: {messages[-1]['content']}"


async def slow_echo(messages: list[dict[str, str]]) -> str:
    await asyncio.sleep(0)
    return echo(messages)


def length(rollouts: Sequence[Rollout]) -> list[float]:
    return [float(len(rollout.response.text)) for rollout in rollouts]


@pytest.mark.parametrize("student", [echo, slow_echo])
def test_functions_are_student_and_reward(student: object) -> None:
    environment = Environment(student, length)  # type: ignore[arg-type]
    queries = [Query("a", "one"), Query("b", "2")]
    rollouts = environment.respond(queries, [None, None])
    assert rollouts[0].response.text == "user: one"
    assert rollouts[1].response.error == "TimeoutError: no answer"
    assert environment.score(rollouts).total[0] == 9.0
    assert environment.unaided_rewards(queries).isnan().tolist() == [False, True]


def looping(messages: list[dict[str, str]]) -> str:
    return asyncio.run(slow_echo(messages))


def test_an_async_function_keeps_its_loop() -> None:
    """What it holds, such as the connections of a client, belongs to the loop of its first call."""
    loops = set()

    async def student(messages: list[dict[str, str]]) -> str:
        loops.add(asyncio.get_running_loop())
        return Environment(slow_echo, length).respond([Query("b", "two")], [None])[0].response.text  # type: ignore[arg-type]

    environment = Environment(student, length)  # type: ignore[arg-type]
    for _ in range(2):
        assert environment.respond([Query("a", "one")], [None])[0].response.text == "user: two"
    assert len(loops) == 1


def test_two_splits_may_number_their_queries_alike() -> None:
    environment = Environment(echo, length)  # type: ignore[arg-type]
    assert environment.unaided_rewards([Query("0", "one")]).tolist() == [9.0]
    assert environment.unaided_rewards([Query("0", "longer")]).tolist() == [12.0]


@pytest.mark.parametrize("student", [echo, slow_echo, looping])
def test_functions_answer_inside_the_running_loop_of_a_notebook(student: object) -> None:
    if student is looping:  # has a loop of its own, so there is none around it
        assert Environment(looping, length).respond([Query("a", "one")], [None])[0].response.text == "user: one"
        return

    async def cell() -> list[Rollout]:
        return Environment(student, length).respond([Query("a", "one")], [None])  # type: ignore[arg-type]

    assert asyncio.run(cell())[0].response.text == "user: one"


def test_functions_serve_as_students_of_a_comparison_and_as_a_judge(tmp_path: Path) -> None:
    data = QueryDataModule.from_records(None, test=[{"text": "one", "label": "x"}, {"text": "three", "label": "y"}])
    found = compare(data, {"s": echo}, length, fixed=[], output=str(tmp_path / "out"), resamples=1000, device="cpu")  # type: ignore[dict-item]
    assert [row["reward"] for row in found.rows] == [9.0, 11.0]
    judge = Judge(lambda messages: "Verdict: 10")  # type: ignore[arg-type]
    assert judge.score([Rollout(Query("a", "one"), None, Response("1"))]) == [1.0]


def test_a_run_with_functions(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model, lambda messages: messages[0]["content"], length)
    fit(module, data(tmp_path), tmp_path, steps=1)
    assert module.trained_steps == 1
    assert isinstance(module.student, FunctionStudent)
    assert isinstance(module.reward, FunctionReward)


@pytest.mark.slow
def test_functions_in_a_config(tiny_model: str, tmp_path: Path) -> None:
    config = {
        "trainer.max_steps": 1,
        "trainer.val_check_interval": 1,
        "model.init_args.student": {
            "class_path": "wst.FunctionStudent",
            "init_args": {"function": "test_functions.echo"},
        },
        "model.init_args.reward": {
            "class_path": "wst.FunctionReward",
            "init_args": {"function": "test_functions.length"},
        },
    }
    write_config(tmp_path, tiny_model, **config)
    done = wst(["fit", "--config", "config.yaml"], tmp_path)
    assert done.code == 0, done.err
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], tmp_path)
    assert done.code == 0, done.err


def test_an_async_respond_is_told_what_to_write() -> None:
    class Late(Student):
        async def respond(self, prompts: Sequence[Prompt]) -> list[Response]:  # type: ignore[override]
            return [Response("late") for _ in prompts]

    with pytest.raises(ContractError, match=r"student Late: respond\(\) is async; .*wst.FunctionStudent"):
        Environment(Late(), length).respond([Query("a", "x")], [None])


@pytest.mark.parametrize(("place", "function"), [("reward", "length"), ("student", "echo")])
def test_a_function_in_a_config_is_told_its_class(place: str, function: str, tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    done = wst(["fit", "--config", "config.yaml", f"--model.init_args.{place}=test_functions.{function}"], tmp_path)
    name = f"test_functions.{function}"
    assert done.code == 2
    assert f"{name} is a function; name wst.Function{place.capitalize()} with function: {name}" in done.err


@pytest.mark.parametrize(("student", "reward", "words"), [("gpt", length, "student"), (echo, None, "reward")])
def test_what_is_no_function_is_refused_where_it_is_given(student: object, reward: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"{words}: expected a wst"):
        Environment(student, reward)  # type: ignore[arg-type]


def test_an_answer_that_is_no_text_is_refused() -> None:
    environment = Environment(lambda messages: 3, length)  # type: ignore[arg-type, return-value]
    with pytest.raises(ContractError, match="expected a text, got 3"):
        environment.respond([Query("a", "x")], [None])
