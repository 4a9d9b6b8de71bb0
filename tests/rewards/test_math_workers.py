"""The worker processes of the mathematical reward: nothing hangs, breaks or outlives it."""

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rewards.math_rollouts import boxed, rollout_of

from wst.errors import ConfigError, DataError
from wst.rewards.math import workers
from wst.rewards.math.reward import MathAnswer
from wst.rewards.math.workers import Workers

TIMEOUT = 0.5
HANGS = ["9!!!!!!!!!", "10^{10^{10}}"]  # the first for a second or two, until it is too deep
BREAKS = [r"\sqrt{" * 300 + "2" + "}" * 300, "(" * 900 + "1" + ")" * 900]


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def soon(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def pids(reward: MathAnswer) -> list[int]:
    return [] if reward._pool is None else reward._pool.pids


@pytest.fixture(scope="module")
def hasty() -> Iterator[MathAnswer]:
    reward = MathAnswer(timeout=TIMEOUT, unverified="nan")
    yield reward
    reward.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, r"it has no target, which MathAnswer needs; map a target field"),
        ("  ", r"it holds no answer of 1 to 4000 characters; correct the target"),
        (boxed("7" * 5000), r"it holds no answer of 1 to 4000 characters; correct the target"),
        ("?!", r"it holds no answer that could be compared; correct the target"),
        (
            boxed(BREAKS[1]),
            r"it cannot be verified \(RecursionError\); correct the target, or raise timeout",
        ),
        (boxed(HANGS[1]), r"it cannot be verified within 2.5 s; correct the target, or raise timeout or memory_mb"),
    ],
)
def test_a_gold_answer_that_is_no_use_is_the_users_to_mend(hasty: MathAnswer, target: str | None, message: str) -> None:
    with pytest.raises(DataError, match=rf"^query 'row-7': .*{message}") as caught:
        hasty.score([rollout_of("1", "1"), rollout_of("5", target)])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_what_hangs_or_breaks_gets_its_verdict_and_so_do_the_others(hasty: MathAnswer) -> None:
    good = [(boxed("1/2"), "0.5", 1.0), (boxed("x"), "y", 0.0), (boxed(r"\sqrt{8}"), r"2\sqrt{2}", 1.0)]
    bad = [(boxed(answer), r"\sqrt{2}", math.nan) for answer in HANGS + BREAKS]
    cases = [*bad[:2], good[0], *bad[2:], *good[1:]]
    scores = hasty.score([rollout_of(response, gold) for response, gold, _ in cases])
    assert scores == pytest.approx([expected for *_, expected in cases], nan_ok=True)


def test_what_was_not_verified_is_wrong_by_default(hasty: MathAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts = [rollout_of(boxed(BREAKS[0]), "5"), rollout_of("5", "5"), rollout_of(boxed("7" * 5000), "5")]
    assert hasty.score(rollouts) == pytest.approx([math.nan, 1.0, math.nan], nan_ok=True)
    monkeypatch.setattr(hasty, "unverified", MathAnswer().unverified)
    assert hasty.score(rollouts) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "response",
    [
        "7" * 1_000_000,
        boxed("7" * 1_000_000),
        "\\boxed" + "{" * 100_000,
        "$" * 100_000,
        "1," * 100_000,
        "The answer is " * 50_000,
        "\ud800\x00\x1b[0m",
        boxed("\ud800"),
        boxed("__import__('os').abort()"),
        boxed(r"\frac{1}{0}"),
        boxed("1e999999999999"),
        boxed(r"\infty - \infty"),
    ],
)
def test_odd_responses_are_wrong(hasty: MathAnswer, response: str) -> None:
    value = hasty.score([rollout_of(response, r"\sqrt{2}")])[0]
    assert value == 0.0 or math.isnan(value)


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greedy.py").write_text("def work(size):\n    return len(bytearray(size or 0))\n")
    monkeypatch.syspath_prepend(tmp_path)
    pool = Workers("Test", "greedy:work", count=1, memory_mb=256)
    outcomes = pool.run([10, 10**9, -1, 20], limit=20.0)
    pool.close()
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "failed", "done"]
    assert [outcome.value for outcome in outcomes] == [10, "MemoryError", "ValueError", 20]


@pytest.mark.slow
def test_a_worker_killed_from_outside_costs_no_verdict(hasty: MathAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasty.score([rollout_of("1", "1.0"), rollout_of("2", "2.0")]) == [1.0, 1.0]
    killed: list[int] = []
    wait = workers._reply

    def kill_once(process: "subprocess.Popen[bytes]") -> Any:
        if not killed:  # it has its job by now
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)
        return wait(process)

    monkeypatch.setattr(workers, "_reply", kill_once)
    cases = [(boxed("8!!!!!!!!!"), "5", math.nan)]
    cases += [(boxed(f"{n}/7"), rf"\frac{{{2 * n}}}{{14}}", 1.0) for n in range(20)]
    scores = hasty.score([rollout_of(response, gold) for response, gold, _ in cases])
    assert scores == pytest.approx([expected for *_, expected in cases], nan_ok=True)
    assert len(killed) == 1
    assert killed[0] not in pids(hasty)
    for pid in pids(hasty):  # and while they had nothing to do
        os.kill(pid, signal.SIGKILL)
    assert hasty.score([rollout_of("6/8", "0.75")]) == [1.0]


def test_it_works_in_threads(math_answer: MathAnswer) -> None:
    results: dict[int, list[float]] = {}

    def work(n: int) -> None:
        results[n] = math_answer.score([rollout_of(f"{n}/11", rf"\frac{{{n}}}{{11}}"), rollout_of("1", str(n + 2))])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [1.0, 0.0] for n in range(8)}


@pytest.mark.slow
def test_nothing_is_left_after_close() -> None:
    reward = MathAnswer(timeout=20.0)
    reward.close()
    assert reward.score([rollout_of("1", "1.0"), rollout_of("2", "1.0")]) == [1.0, 0.0]
    started = pids(reward)
    assert len(started) == 2
    reward.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)  # not even as a zombie
    assert reward.score([rollout_of("3", "1.0")]) == [0.0]  # it may be used again
    left = pids(reward)
    del reward
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)


@pytest.mark.slow
def test_a_parent_of_many_megabytes_does_not_wear_its_workers_out() -> None:
    ballast = bytearray(700 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])  # held, not only promised
    reward = MathAnswer(timeout=20.0, workers=1, memory_mb=1024)
    assert reward.score([rollout_of("1", "1.0")]) == [1.0]
    first = pids(reward)
    assert len(first) == 1
    assert reward.score([rollout_of("2", "1.0")]) == [0.0]
    assert pids(reward) == first
    reward.close()


@pytest.mark.slow
def test_copies_have_workers_of_their_own() -> None:
    reward = MathAnswer(timeout=20.0, workers=1, unverified="nan")
    assert reward.score([rollout_of("1", "1.0")]) == [1.0]
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert (twin.timeout, twin.workers, twin.unverified) == (20.0, 1, "nan")
        assert pids(twin) == []
    twin.setup(None)
    assert soon(lambda: len(pids(twin)) == 1)  # it starts in a thread
    assert set(pids(twin)).isdisjoint(pids(reward))
    twin.close()
    assert reward.score([rollout_of("1", "2.0")]) == [0.0]
    reward.close()


def test_equal_pairs_are_verified_once(math_answer: MathAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = math_answer._workers().run

    def counting(jobs: Any, limit: float) -> Any:
        asked.extend(jobs)
        return run(jobs, limit)

    monkeypatch.setattr(math_answer._pool, "run", counting)
    rollouts = [rollout_of("17/19", "34/38"), rollout_of("17/19", "34/38"), rollout_of("18/19", "34/38")]
    assert math_answer.score(rollouts) == [1.0, 1.0, 0.0]
    assert math_answer.score(rollouts) == [1.0, 1.0, 0.0]
    assert len(asked) == 2


def test_workers_that_cannot_start_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = MathAnswer(workers=1)
    monkeypatch.setattr(reward._workers(), "_memory_mb", 20)
    with pytest.raises(
        ConfigError, match=r"MathAnswer: its worker processes cannot start \(.*raise memory_mb"
    ) as caught:
        reward.score([rollout_of("1", "1")])
    assert "\n" not in str(caught.value)
    assert pids(reward) == []


SCRIPT = r"""
import os, sys, threading, time
from wst.rewards.math.reward import MathAnswer
from wst.types import Query, Response, Rollout
assert not {"torch", "sympy", "math_verify"} & set(sys.modules)
reward = MathAnswer(timeout=60.0, workers=2)
def score(answer):
    return reward.score([Rollout(Query("1", "?", target="0.5"), None, Response(r"\boxed{%s}" % answer))])
print(score("1/2"), score("1/3"), *reward._pool.pids, flush=True)
"""
FORK = """
child = os.fork()
if not child:
    print(score("4/8"), flush=True)
    reward.close()
    os._exit(0)
os.waitpid(child, 0)
print(score("3/6"), score("3/7"), flush=True)
"""


def run_script(path: Path, more: str) -> "subprocess.Popen[str]":
    path.write_text(SCRIPT + more)
    return subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True, cwd=path.parents[1])


@pytest.mark.slow
def test_it_works_in_a_script_without_a_main_guard(tmp_path: Path) -> None:
    (tmp_path / "sympy.py").write_text("raise ImportError('a file of the working directory')")
    (tmp_path / "main").mkdir()
    process = run_script(tmp_path / "main" / "script.py", FORK)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    first, forked, after = out.splitlines()
    assert first.startswith("[1.0] [0.0] ")
    assert (forked, after) == ("[1.0]", "[1.0] [0.0]")
    assert soon(lambda: all(gone(int(pid)) for pid in first.split()[2:]))  # though it never called close()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    more = "threading.Thread(target=score, args=('9!!!!!!!!!',)).start()\ntime.sleep(0.3)\nprint('busy', flush=True)\n"
    process = run_script(tmp_path / "script.py", more)
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()[2:]]
    assert workers
    assert process.stdout.readline() == "busy\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert soon(lambda: all(map(gone, workers)))  # long before the busy one's time is over
