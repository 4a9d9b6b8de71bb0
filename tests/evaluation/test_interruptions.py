"""A comparison that is interrupted, fails in parts, or is run again: nothing is asked twice, nothing is lost."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison_rows import BEFORE, Down, Shout, reviews, tiny_teacher
from endpoints import FakeServer
from toys import Lowercase, Parrot

from wst import EndpointStudent, Length, Prices, Prompt, Response, Rollout
from wst.errors import StorageError
from wst.evaluation import NONE, compare
from wst.evaluation.tables import show


class KillsItself(Parrot):
    """Kills its process when asked for the nth time."""

    left = -1  # of the class: it is no setting of the student's

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        if KillsItself.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        KillsItself.left -= 1
        return super().respond(prompts)


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


def test_a_reward_sees_all_of_an_answer(tmp_path: Path) -> None:
    class Refusing(Parrot):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            return [Response("no", 1, prompt_tokens=3, refused=True) for _ in super().respond(prompts)]

    class Seen(Lowercase):
        def score(self, rollouts: Sequence[Rollout]) -> list[float]:
            return [float(r.response.refused and r.response.prompt_tokens == 3) for r in rollouts]

    for _ in range(2):  # asked, and read from the journal
        arguments: dict[str, Any] = {"fixed": ["a"], "output": str(tmp_path / "out"), "resamples": 1000}
        found = compare(reviews(tmp_path), {"s": Refusing()}, Seen(), **arguments)
        assert {row["reward"] for row in found.rows} == {1.0}


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


@pytest.mark.slow
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


def test_a_failed_comparison_leaves_the_earlier_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"fixed": [], "output": str(tmp_path / "out"), "resamples": 1000}
    compare(reviews(tmp_path), {"s": Parrot()}, Lowercase(), **arguments)
    names = ("rows.jsonl", "results.json", "report.html")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    failed = compare(reviews(tmp_path), {"s": Down()}, Lowercase(), **arguments)
    assert failed.errors
    assert not failed.written
    show(failed)
    assert "the earlier results in" in capsys.readouterr().out
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names} == before


@pytest.mark.parametrize("full_at", ["journal.jsonl", "rows.jsonl"])
def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    arguments: dict[str, Any] = {"fixed": [], "output": str(tmp_path / "out"), "resamples": 1000}
    data = reviews(tmp_path)
    compare(data, {"s": Parrot()}, Lowercase(), limit=4, **arguments)
    before = (tmp_path / "out/rows.jsonl").read_bytes()
    sync = os.fsync

    def full(descriptor: int) -> None:
        if full_at in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=rf"out/{full_at}: cannot be used \(No space left on device\)"):
        compare(data, {"s": Parrot()}, Lowercase(), **arguments)
    assert (tmp_path / "out/rows.jsonl").read_bytes() == before
    monkeypatch.undo()
    student = Parrot()
    assert len(compare(data, {"s": student}, Lowercase(), **arguments).rows) == 10


def test_an_output_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match=r"out/journal\.jsonl: cannot be used"):
        compare(reviews(tmp_path), {"s": Parrot()}, Lowercase(), output=str(tmp_path / "out"), resamples=1000)
