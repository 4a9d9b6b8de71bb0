"""A comparison: its arms, what it keeps, what it does when something cannot be run."""

import json
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from endpoints import FakeServer
from rich.console import Console
from toys import Lowercase, Parrot

from wst import (
    EndpointStudent,
    FieldMap,
    Length,
    LocalStudent,
    LoRA,
    Prices,
    Prompt,
    QueryDataModule,
    Response,
    Reward,
    Rollout,
    StudentPrompt,
    Teacher,
    TeacherPrompt,
)
from wst.errors import ConfigError, DataError
from wst.evaluation import NONE, compare, rebuild
from wst.evaluation.tables import show


def reviews(folder: Path, count: int = 10) -> QueryDataModule:
    rows = [{"id": f"q{i}", "text": f"Query NUMBER {i}", "label": "yes"} for i in range(count)]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QueryDataModule(test=str(path), fields=FieldMap(id="id", query="text", target="label"), eval_batch_size=4)


def tiny_teacher(model: str) -> Teacher:
    return Teacher(model, TeacherPrompt("{query}"), max_new_tokens=5, dtype="float32", lora=LoRA(r=4, alpha=8))


BEFORE = StudentPrompt(placement="before")


class Shout(Parrot):
    """Writes instructions in capitals, and counts."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response(prompt.messages[0].content.upper(), tokens=3) for prompt in prompts]


class Down(Parrot):
    """Never answers."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response("", error="connection refused") for _ in prompts]


class KillsItself(Parrot):
    """Kills its process when asked for the nth time."""

    left = -1  # of the class: it is no setting of the student's

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        if KillsItself.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        KillsItself.left -= 1
        return super().respond(prompts)


def test_every_arm_gets_a_row_for_every_query_and_student(tmp_path: Path) -> None:
    students = {"plain": Parrot(), "loud": Shout()}
    found = compare(
        reviews(tmp_path),
        students,
        Lowercase(),
        fixed=["be kind", "BE LOUD"],
        student_prompt=BEFORE,
        output=str(tmp_path / "out"),
        resamples=1000,
    )
    assert not found.errors
    assert list(found.results["arms"]) == [NONE, "be kind", "BE LOUD"]
    assert len(found.rows) == 10 * 3 * 2
    plain = found.results["students"]["plain"]["arms"]
    text = "be kind\n\nQuery NUMBER 3"
    expected = sum(map(str.islower, text)) / len(text)
    assert plain["be kind"]["mean"] == pytest.approx(expected)
    assert found.results["students"]["plain"]["best_fixed"] == "be kind"
    assert plain["BE LOUD"]["vs_unaided"]["mean"] < 0 < plain["be kind"]["vs_unaided"]["mean"]
    assert plain["BE LOUD"]["harm"] == 1.0
    assert plain["be kind"]["help"] == 1.0
    loud = found.results["students"]["loud"]["arms"]
    assert loud[NONE]["mean"] == 0.0
    assert loud["be kind"]["vs_unaided"]["relative"] is None  # there is nothing to be relative to
    table = found.to_pandas()
    assert len(table) == 6
    assert table.loc[(table.student == "plain") & (table.arm == "be kind"), "vs_unaided.mean"].item() > 0
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    assert rows == found.rows
    assert json.loads((tmp_path / "out/results.json").read_text()) == json.loads(json.dumps(found.results))


class BesideUnaided(Lowercase):
    """Compares with the unaided answer."""

    needs_unaided = True

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(r.unaided is not None and len(r.response.text) > len(r.unaided.text)) for r in rollouts]


class Calibrated(Lowercase):
    """Gives the number of unaided answers that it was shown."""

    calibration_size = 10
    calibrations = 0

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        self.shown, self.calibrations, self.calibration_size = len(unaided), self.calibrations + 1, 0

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(self.shown)] * len(rollouts)


def test_a_reward_may_compare_with_the_unaided_answer_and_be_calibrated_on_it(tmp_path: Path) -> None:
    def means(reward: Reward, output: str) -> dict[str, float]:
        compare(
            reviews(tmp_path),
            {"parrot": Parrot()},
            reward,
            fixed=["be kind"],
            student_prompt=BEFORE,
            output=str(tmp_path / output),
            resamples=1000,
        )
        rows = [json.loads(line) for line in (tmp_path / output / "rows.jsonl").read_text().splitlines()]
        return {
            arm: fmean(row["reward"] for row in rows if row["arm"] == arm)
            for arm in dict.fromkeys(r["arm"] for r in rows)
        }

    assert means(BesideUnaided(), "beside") == {NONE: 0.0, "be kind": 1.0}
    reward = Calibrated()
    assert means(reward, "calibrated")[NONE] == 10.0
    assert reward.calibrations == 1


def test_what_is_answered_is_not_asked_again(tmp_path: Path) -> None:
    first = Parrot()
    arguments: dict[str, Any] = {
        "fixed": ["a"],
        "student_prompt": BEFORE,
        "output": str(tmp_path / "out"),
        "resamples": 1000,
    }
    data = reviews(tmp_path)

    one = compare(data, {"s": first}, Lowercase(), **arguments)
    assert len(first.asked) == 20
    again = Parrot()
    two = compare(data, {"s": again}, Lowercase(), **arguments)
    assert again.asked == []
    assert two.results == one.results
    more = Parrot()
    compare(data, {"s": more}, Lowercase(), **(arguments | {"fixed": ["a", "b"]}))
    assert {prompt.messages[0].content.split("\n")[0] for prompt in more.asked} == {"b"}


def test_failed_answers_are_asked_again_and_count_as_unknown(tmp_path: Path) -> None:
    class Flaky(Parrot):
        failing = True

        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            answers = super().respond(prompts)
            return [r if i or not Flaky.failing else Response("", error="timeout") for i, r in enumerate(answers)]

    arguments: dict[str, Any] = {"fixed": [], "output": str(tmp_path / "out"), "resamples": 1000}
    one = compare(reviews(tmp_path), {"s": Flaky()}, Lowercase(), **arguments)
    cell = one.results["students"]["s"]["arms"][NONE]
    assert (cell["n"], cell["scored"], cell["failed"]) == (10, 7, 3)
    Flaky.failing = False
    student = Flaky()
    two = compare(reviews(tmp_path), {"s": student}, Lowercase(), **arguments)
    assert len(student.asked) == 3
    assert two.results["students"]["s"]["arms"][NONE]["failed"] == 0


def _compare_and_die(folder: Path, calls: int) -> None:
    KillsItself.left = calls
    compare(
        reviews(folder),
        {"s": KillsItself(), "t": Shout()},
        Lowercase(),
        fixed=["a", "b"],
        output=str(folder / "out"),
        resamples=1000,
    )


@pytest.mark.parametrize("calls", [0, 1, 4, 8])
def test_killed_and_started_again_it_ends_as_if_it_had_not_been(tmp_path: Path, calls: int) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    _compare_and_die(whole, 1000)
    process = multiprocessing.get_context("fork").Process(target=_compare_and_die, args=(tmp_path, calls))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    journal = tmp_path / "out/journal.jsonl"
    if journal.exists():
        journal.write_bytes(journal.read_bytes() + b'{"key": "torn')  # as a crash of the machine may leave it
    _compare_and_die(tmp_path, 1000)
    assert 1000 - KillsItself.left == 9 - calls  # three arms of three batches; none is asked twice
    for name in ("results.json", "rows.jsonl"):
        mine = (tmp_path / "out" / name).read_text()
        assert mine == (whole / "out" / name).read_text()


def test_an_arm_or_student_that_cannot_be_run_stops_no_other(tmp_path: Path, tiny_model: str) -> None:
    down = Down()
    found = compare(
        reviews(tmp_path),
        {"up": Parrot(), "down": down},
        Lowercase(),
        teacher=tiny_teacher(tiny_model),
        trained={"gone": str(tmp_path / "nowhere")},
        asked={"deaf": Down()},
        fixed=["a"],
        output=str(tmp_path / "out"),
        resamples=1000,
    )
    assert set(found.errors) == {
        "arm gone",
        "arm deaf",
        *(f"arm {arm} with student down" for arm in (NONE, "a", "untrained teacher")),
    }
    assert "nowhere" in found.errors["arm gone"]
    assert "connection refused" in found.errors["arm deaf"]
    assert found.results["students"]["up"]["arms"]["untrained teacher"]["scored"] == 10
    assert len(down.asked) == 3 * 8  # of ten: no further batch of an arm all of whose first answers failed


@pytest.fixture
def trained(fitted: Path) -> Path:
    return fitted / "runs/tiny/version_0"


def test_adapter_and_checkpoint_are_the_same_teacher_and_not_the_untrained_one(
    tmp_path: Path, tiny_model: str, trained: Path
) -> None:
    teacher = Teacher(tiny_model, TeacherPrompt("{query}"), max_new_tokens=6, dtype="float32", lora=LoRA(r=4, alpha=8))
    found = compare(
        reviews(tmp_path),
        {"s": Parrot()},
        Lowercase(),
        teacher=teacher,
        trained={"adapter": str(trained / "teacher/last"), "checkpoint": str(trained / "checkpoints/last.ckpt")},
        asked={"asked": LocalStudent(tiny_model, dtype="float32", max_new_tokens=6)},
        fixed=[],
        output=str(tmp_path / "out"),
        run=str(trained),
        resamples=1000,
    )
    assert not found.errors
    written = {arm: [row["instruction"] for row in found.rows if row["arm"] == arm] for arm in found.results["arms"]}
    assert written["adapter"] == written["checkpoint"]
    assert written["adapter"] != written["untrained teacher"]
    assert written["asked"] == written["untrained teacher"]  # the same model, asked the same
    assert [step for step, _ in found.results["curve"]["train"]] == list(range(1, 7))


def test_mistakes_are_told_before_anything_is_asked(tmp_path: Path) -> None:
    student = Parrot()
    data = reviews(tmp_path)
    for message, change in {
        "students is empty": {"students": {}},
        "limit must be at least 1": {"limit": 0},
        "resamples must be at least 1000": {"resamples": 5},
        "two arms are called 'a'": {"fixed": ["a", "a"]},
        "fixed holds an empty instruction": {"fixed": [" "]},
        "asked needs teacher": {"asked": {"x": Shout()}},
        "holds no TensorBoard log": {"run": str(tmp_path)},
    }.items():
        with pytest.raises(ConfigError, match=message):
            compare(**({"data": data, "students": {"s": student}, "reward": Lowercase()} | change))  # type: ignore[arg-type]
    assert student.asked == []


def test_a_loaded_teacher_gives_each_adapter_its_own_arm(tmp_path: Path, tiny_model: str, trained: Path) -> None:
    loaded = tiny_teacher(tiny_model)
    loaded.load(torch.device("cpu"))
    folders = {"mine": str(trained / "teacher/last")}
    arguments: dict[str, Any] = {"fixed": [], "trained": folders, "resamples": 1000}
    one = compare(
        reviews(tmp_path),
        {"s": Parrot()},
        Lowercase(),
        teacher=loaded,
        output=str(tmp_path / "one"),
        **arguments,
    )
    two = compare(
        reviews(tmp_path),
        {"s": Parrot()},
        Lowercase(),
        teacher=tiny_teacher(tiny_model),
        output=str(tmp_path / "two"),
        **arguments,
    )
    assert one.rows == two.rows
    by_arm = {arm: [row["instruction"] for row in one.rows if row["arm"] == arm] for arm in one.results["arms"]}
    assert by_arm["mine"] != by_arm["untrained teacher"]


def test_an_endpoint_is_paid_once_and_its_accounts_stay(tmp_path: Path) -> None:
    with FakeServer() as server:

        def student() -> EndpointStudent:
            prices = Prices(prompt=1.0, completion=2.0)
            return EndpointStudent("fake", base_url=server.url, api_key_env=None, cache=False, prices=prices)

        arguments: dict[str, Any] = {"fixed": ["go"], "output": str(tmp_path / "out"), "resamples": 1000}
        one = compare(reviews(tmp_path), {"s": student()}, Lowercase(), **arguments)
        asked = len(server.requests)
        assert asked == 20
        cell = one.results["students"]["s"]["arms"]["go"]
        assert cell["calls"] == 10
        assert cell["cost"] > 0
        two = compare(reviews(tmp_path), {"s": student()}, Lowercase(), **arguments)
        assert len(server.requests) == asked
        assert two.results == one.results


def test_one_failure_costs_one_row(tmp_path: Path) -> None:
    class LastFails(Parrot):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            return [Response("", error="timeout") if len(prompts) == 1 else r for r in super().respond(prompts)]

    data = reviews(tmp_path, 9)  # the last batch is of one query
    found = compare(data, {"s": LastFails()}, Lowercase(), fixed=[], output=str(tmp_path / "out"), resamples=1000)
    assert not found.errors
    cell = found.results["students"]["s"]["arms"][NONE]
    assert (cell["scored"], cell["failed"]) == (8, 1)


def test_words_that_look_like_markup_or_half_a_letter_are_words(tmp_path: Path) -> None:
    class Odd(Parrot):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            super().respond(prompts)
            return [Response("[/red] half \ud83d") for _ in prompts]

    fixed = ["[/INST] say [bold]it[/bold]"]
    arguments: dict[str, Any] = {"fixed": fixed, "output": str(tmp_path / "out"), "resamples": 1000}
    found = compare(reviews(tmp_path), {"[/s]": Odd()}, Lowercase(), **arguments)
    with (tmp_path / "shown.txt").open("w") as file:
        show(found, Console(file=file, width=200))
    shown = (tmp_path / "shown.txt").read_text()
    assert "[/s]: mean reward" in shown
    assert "[/INST] say [bold]it[/bold]" in shown
    again = Odd()
    assert compare(reviews(tmp_path), {"[/s]": again}, Lowercase(), **arguments).rows == found.rows
    assert again.asked == []


def test_a_students_own_error_is_that_students(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Parrot):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            raise KeyError("no such thing")

    class Unloadable(Parrot):
        def setup(self, device: torch.device) -> None:
            raise RuntimeError("out of memory\nand so on")

    students = {"broken": Broken(), "unloadable": Unloadable(), "good": Parrot()}
    arguments: dict[str, Any] = {"fixed": [], "output": str(tmp_path / "out"), "resamples": 1000}
    found = compare(reviews(tmp_path), students, Lowercase(), **arguments)
    assert found.errors == {
        f"arm {NONE} with student broken": "KeyError: 'no such thing'",
        "student unloadable": "RuntimeError: out of memory",
    }
    assert found.results["students"]["good"]["arms"][NONE]["scored"] == 10
    monkeypatch.setenv("WST_DEBUG", "1")
    with pytest.raises(KeyError):
        compare(reviews(tmp_path), students, Lowercase(), **arguments)


def test_more_queries_and_another_reward_ask_nothing_twice(tmp_path: Path) -> None:
    student = Parrot()
    arguments: dict[str, Any] = {"fixed": [], "output": str(tmp_path / "out"), "resamples": 1000}
    compare(reviews(tmp_path), {"s": student}, Lowercase(), limit=5, **arguments)
    assert len(student.asked) == 5
    found = compare(reviews(tmp_path), {"s": student}, Length(1), **arguments)
    assert len(student.asked) == 10
    assert found.results["students"]["s"]["arms"][NONE]["mean"] == 0.0


def test_rows_of_another_name_do_not_overwrite_results(tmp_path: Path) -> None:
    compare(reviews(tmp_path), {"s": Parrot()}, Lowercase(), fixed=[], output=str(tmp_path), resamples=1000)
    whole = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "some.jsonl").write_text("".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(ConfigError, match="give --output"):
        rebuild(str(tmp_path / "some.jsonl"))
    found = rebuild(str(tmp_path / "some.jsonl"), str(tmp_path / "some"))
    assert found.results["n"] == 3
    assert (tmp_path / "rows.jsonl").read_text() == whole


def test_results_of_something_else_are_not_overwritten(tmp_path: Path) -> None:
    compare(reviews(tmp_path), {"s": Parrot()}, Lowercase(), fixed=[], output=str(tmp_path), resamples=1000)
    (tmp_path / "results.json").write_text('{"n": 3}')
    with pytest.raises(DataError, match=r"results\.json: not a results\.json of wst\.results/2"):
        rebuild(str(tmp_path / "rows.jsonl"))
    assert (tmp_path / "results.json").read_text() == '{"n": 3}'
