"""The reward for mathematics: its verdicts on a table and on public data, and that nothing breaks it."""

import copy
import json
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from rewards.math_table import BOXED, READ

from wst.errors import ConfigError, DataError
from wst.rewards.math.compare import same_answer
from wst.rewards.math.extract import after_hashes, boxed_answer, final_answer, gold_answer, last_boxed
from wst.rewards.math.reward import MathAnswer
from wst.rewards.math.workers import Workers
from wst.types import Instruction, Query, Response, Rollout

ROOT = Path(__file__).parents[2]
TIMEOUT = 0.5
HANGS = ["9!!!!!!!!!", "10^{10^{10}}"]
BREAKS = [r"\sqrt{" * 300 + "2" + "}" * 300, "(" * 900 + "1" + ")" * 900]


def rollout_of(response: str, target: str | None, instruction: str | None = None, name: str = "row-7") -> Rollout:
    told = None if instruction is None else Instruction(instruction)
    return Rollout(Query(name, "?", target=target), told, Response(response))


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def soon(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def pids(reward: MathAnswer) -> list[int]:
    return [] if reward._pool is None else reward._pool.pids


@pytest.fixture(scope="module")
def reward() -> Iterator[MathAnswer]:
    reward = MathAnswer(timeout=20.0)  # a busy machine must not decide what is equal
    yield reward
    reward.close()


@pytest.fixture(scope="module")
def hasty() -> Iterator[MathAnswer]:
    reward = MathAnswer(timeout=TIMEOUT, unverified="nan")
    yield reward
    reward.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"\fbox{ 5 }", "5"),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{1} \fbox{2}", "2"),
        (r"\boxed{\frac{1}{2}} and }", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{1} \boxed{}", "1"),
        (r"$\boxed 5$.", "5"),
        (r"\[\boxed 5\]", "5"),
        (r"\boxed 5.", "5"),
        (r"\boxed", None),
        (r"\boxedness{5}", None),
        ("5", None),
        (r"\boxed{" * 100_000, None),
        (r"\boxed{" * 100_000 + "7" + "}" * 100_000, "7"),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\n#### 7", "7"), ("#### 1\n#### 2\nb", "2"), ("####\n 7\n8", "7"), ("####", None), ("# 7", None)],
)
def test_after_hashes(text: str, expected: str | None) -> None:
    assert after_hashes(text) == expected


def test_a_box_beats_hashes() -> None:
    assert gold_answer("\\boxed{1}\n#### 2") == "1"
    assert gold_answer("#### 2") == "2"
    assert gold_answer("2") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"$x = \boxed{3}$ and $y = \boxed{4}$", "x = 3, y = 4"),
        (r"\boxed{3}. \boxed{3}", "3"),
        (r"\boxed{3}, no, \boxed{4}", "4"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"it is \boxed{\frac{1}{2}", r"\frac{1}{2}"),
        ("5", None),
    ],
)
def test_boxed_answer(text: str, expected: str | None) -> None:
    assert boxed_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("#### 7 eggs", ("7 eggs", True)),
        ("#### Evelyn", ("Evelyn", True)),
        ("#### Step 1\nso 7", ("#### Step 1\nso 7", False)),
        ("#### 1. Add\nso 7", ("#### 1. Add\nso 7", False)),
        ("<answer>\n7\n</answer>", ("7", False)),
        ("7", ("7", False)),
    ],
)
def test_final_answer(text: str, expected: tuple[str, bool]) -> None:
    assert final_answer(text) == expected


@pytest.fixture(scope="module")
def verdicts(reward: MathAnswer) -> dict[tuple[str, str], float]:
    pairs = [(boxed(answer), gold) for answer, gold, _ in BOXED] + [(response, gold) for response, gold, _ in READ]
    return dict(zip(pairs, reward.score([rollout_of(*pair) for pair in pairs]), strict=True))


@pytest.mark.parametrize(("answer", "gold", "equal"), BOXED)
def test_answers_are_compared_by_value(
    verdicts: dict[tuple[str, str], float], answer: str, gold: str, equal: bool
) -> None:
    assert verdicts[boxed(answer), gold] == float(equal)


@pytest.mark.parametrize(("response", "target", "equal"), READ)
def test_where_the_answer_stands(
    verdicts: dict[tuple[str, str], float], response: str, target: str, equal: bool
) -> None:
    assert verdicts[response, target] == float(equal)


def test_equality_can_be_asked_for_alone() -> None:
    assert same_answer("x = 1/2", "0.5")
    assert not same_answer("x = 1/3", "0.5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, r"MathAnswer: timeout must be a finite number of seconds above 0, got 0"),
        ({"timeout": math.inf}, r"timeout must be a finite number"),
        ({"timeout": math.nan}, r"timeout must be a finite number"),
        ({"memory_mb": 255}, r"memory_mb must be at least 256, .*, got 255"),
        ({"workers": 0}, r"workers must be at least 1, got 0"),
        ({"unverified": "0"}, r"unverified must be one of 'wrong', 'nan', got '0'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MathAnswer(**options)


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
        (boxed(HANGS[0]), r"it cannot be verified within 2.5 s; correct the target, or raise timeout or memory_mb"),
    ],
)
def test_a_gold_answer_that_is_no_use_is_the_users_to_mend(hasty: MathAnswer, target: str | None, message: str) -> None:
    with pytest.raises(DataError, match=rf"^query 'row-7': .*{message}") as caught:
        hasty.score([rollout_of("1", "1"), rollout_of("5", target)])
    assert "\n" not in str(caught.value)


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


def test_only_the_tail_of_a_response_is_read(reward: MathAnswer) -> None:
    near, far = "word " * 3_000, "word " * 10_000
    responses = [boxed("7") + near, boxed("7") + far, f"{far}so $x = 7$.", boxed("7") + far + boxed("8")]
    assert reward.score([rollout_of(response, "7") for response in responses]) == [1.0, 0.0, 1.0, 0.0]


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "greedy.py").write_text("def work(size):\n    return len(bytearray(size or 0))\n")
    monkeypatch.syspath_prepend(tmp_path)
    workers = Workers("Test", "greedy:work", count=1, memory_mb=256)
    outcomes = workers.run([10, 10**9, -1, 20], limit=20.0)
    workers.close()
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "failed", "done"]
    assert [outcome.value for outcome in outcomes] == [10, "MemoryError", "ValueError", 20]


def test_a_worker_killed_from_outside_costs_no_verdict(hasty: MathAnswer) -> None:
    assert hasty.score([rollout_of("1", "1.0"), rollout_of("2", "2.0")]) == [1.0, 1.0]
    before = pids(hasty)[:1]
    killer = threading.Timer(0.2, lambda: [os.kill(pid, signal.SIGKILL) for pid in before])
    cases = [(boxed("8!!!!!!!!!"), "5", math.nan)]
    cases += [(boxed(f"{n}/7"), rf"\frac{{{2 * n}}}{{14}}", 1.0) for n in range(20)]
    killer.start()
    scores = hasty.score([rollout_of(response, gold) for response, gold, _ in cases])
    assert scores == pytest.approx([expected for *_, expected in cases], nan_ok=True)
    killer.join()
    patience = time.monotonic() + 10  # a killed process is there until its parent has heard of it
    while not all(map(gone, before)):
        assert time.monotonic() < patience
        hasty.score([rollout_of("1/2", "0.5")])
    for pid in pids(hasty):  # and while they had nothing to do
        os.kill(pid, signal.SIGKILL)
    assert hasty.score([rollout_of("6/8", "0.75")]) == [1.0]


def test_it_works_in_threads(reward: MathAnswer) -> None:
    results: dict[int, list[float]] = {}

    def work(n: int) -> None:
        results[n] = reward.score([rollout_of(f"{n}/11", rf"\frac{{{n}}}{{11}}"), rollout_of("1", str(n + 2))])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [1.0, 0.0] for n in range(8)}


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


def test_copies_have_workers_of_their_own() -> None:
    reward = MathAnswer(timeout=20.0, workers=1, unverified="nan")
    assert reward.score([rollout_of("1", "1.0")]) == [1.0]
    for twin in (copy.deepcopy(reward), pickle.loads(pickle.dumps(reward))):
        assert (twin.timeout, twin.workers, twin.unverified) == (20.0, 1, "nan")
        assert pids(twin) == []
    twin.setup(None)
    assert soon(lambda: len(pids(twin)) == 1)
    assert set(pids(twin)).isdisjoint(pids(reward))
    twin.close()
    assert reward.score([rollout_of("1", "2.0")]) == [0.0]
    reward.close()


def test_equal_pairs_are_verified_once(reward: MathAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    run = reward._workers().run

    def counting(jobs: Any, limit: float) -> Any:
        asked.extend(jobs)
        return run(jobs, limit)

    monkeypatch.setattr(reward._pool, "run", counting)
    rollouts = [rollout_of("17/19", "34/38"), rollout_of("17/19", "34/38"), rollout_of("18/19", "34/38")]
    assert reward.score(rollouts) == [1.0, 1.0, 0.0]
    assert reward.score(rollouts) == [1.0, 1.0, 0.0]
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


@pytest.mark.parametrize(
    ("instruction", "target", "leaks"),
    [
        ("Add 3 and 4, which is 7.", "#### 7", 1.0),
        ("Add 3 and 4.", "#### 7", 0.0),
        ("Do it in 7 steps.", "#### 7", 0.0),
        ("It is 7.0, I think.", "7", 1.0),
        ("It costs $1,200.", r"\$1,\!200", 1.0),
        ("Halve it.", r"\frac{1}{2}", 0.0),
        ("It is 0.5 of all.", r"\frac{1}{2}", 1.0),
        ("It is 1/2 of all.", r"\frac{1}{2}", 1.0),
        (r"It is $\frac{2}{4}$.", r"\frac{1}{2}", 1.0),
        ("Step 1, then step 2.", r"\frac{1}{2}", 0.0),
        (r"Say \boxed{90^\circ}.", r"90^\circ", 1.0),
        (r"Note that $x^2 + 1$ has no root.", "x^2+1", 1.0),
        ("Note that x^2 has one.", "x^2+1", 0.0),
        ("Ask who is Evelyn.", r"\text{Evelyn}", 1.0),
        ("Ask who is fastest.", r"\text{Evelyn}", 0.0),
        ("Evelynne is it.", r"\text{Evelyn}", 0.0),
        ("Choose (C).", r"\text{(C)}", 1.0),
        ("Choose among (A), (B) and (C).", r"\text{(C)}", 0.0),
        ("Use the point (3, \\frac{\\pi}{2}).", r"\left( 3, \frac{\pi}{2} \right)", 1.0),
        ("1e999999999999999999 and " + "7" * 100_000, "7", 0.0),
    ],
)
def test_an_instruction_that_holds_the_answer_leaks(instruction: str, target: str, leaks: float) -> None:
    assert MathAnswer().leaks([rollout_of("", target, instruction)]) == [leaks]


def gsm8k() -> list[tuple[str, str]]:
    """Worked solutions with their answers."""
    rows = read("gsm8k/test.jsonl")
    return [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows]


def math500() -> list[tuple[str, str]]:
    return [(row["solution"], row["answer"]) for row in read("math/math500_test.jsonl")]


def read(name: str) -> list[dict[str, Any]]:
    path = ROOT.parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return [json.loads(line) for line in path.read_text().splitlines()]


def made() -> list[tuple[str, str]]:
    """Rows of our own, in the style of both."""
    golds = [
        r"\frac{1}{2}",
        "(1,2)",
        "x^2+1",
        r"\text{Evelyn}",
        r"11,\! 111",
        "6 - 5i",
        r"\text{(C)}",
        "x=5",
        "5",
        "2516_8",
    ]
    boxes = [(rf"First \boxed{{0}} seems right, but it is $\boxed{{{gold}}}$.", gold) for gold in golds]
    return boxes + [(f"{n} * {n} = <<{n}*{n}={n * n}>>{n * n}\n#### {n * n:,}", f"{n * n:,}") for n in range(30, 50)]


def check_rows(reward: MathAnswer, rows: list[tuple[str, str]], name: str) -> float:
    """See that each gold answer gets 1.0, and one that is another row's 0.0 unless they are the same.

    Gives the verifications a minute, which mean something on a machine that does nothing else.
    """
    reward.score([rollout_of("1", "1")])  # started
    reward._verdicts.clear()
    start = time.monotonic()
    from_solution = reward.score([rollout_of(solution, answer, name=solution) for solution, answer in rows])
    from_answer = reward.score([rollout_of(answer, answer, name=solution) for solution, answer in rows])
    others = [answer for _, answer in rows[1:] + rows[:1]]
    shifted = reward.score([rollout_of(answer, other) for (_, answer), other in zip(rows, others, strict=True)])
    verified, seconds = len(reward._verdicts), time.monotonic() - start
    coincide = [(a, other) for (_, a), other, value in zip(rows, others, shifted, strict=True) if value]
    print(
        f"{name}: gold {sum(from_solution):.0f} and {sum(from_answer):.0f} of {len(rows)}, shifted {sum(shifted):.0f} "
        f"of {len(rows)}; {verified} verified in {seconds:.1f} s, {60 * verified / seconds:,.0f} a minute"
    )
    assert from_solution == from_answer == [1.0] * len(rows)
    assert all(bare(a) == bare(other) for a, other in coincide), coincide
    assert not any(bare(a) == bare(b) for (_, a), b, value in zip(rows, others, shifted, strict=True) if not value)
    return 60 * verified / seconds


def bare(answer: str) -> str | Decimal:
    """An answer in a form that is the same for those of the data that are equal in value: by another way than ours."""
    answer = re.sub(r"^[xy]\s*=|\\text|\\[!$]|\^\\circ|[\s{}]|\\left|\\right", "", answer).replace("dfrac", "frac")
    number = re.fullmatch(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+", answer)
    return Decimal(answer.replace(",", "")) if number and not re.search(r",\d{1,2}\b", answer) else answer


def test_golds_of_rows_made_here(reward: MathAnswer) -> None:
    check_rows(reward, made(), "made")


@pytest.mark.parametrize(("rows", "every"), [(gsm8k, 4), (math500, 5)])
def test_golds_of_public_data(reward: MathAnswer, rows: Callable[[], list[tuple[str, str]]], every: int) -> None:
    check_rows(reward, rows()[::every], rows.__name__)


@pytest.mark.long
@pytest.mark.parametrize(("rows", "count"), [(gsm8k, 1319), (math500, 500)])
def test_golds_of_all_public_data(rows: Callable[[], list[tuple[str, str]]], count: int) -> None:
    reward = MathAnswer()
    assert len(rows()) == count
    assert check_rows(reward, rows(), rows.__name__) > 2000
    reward.close()


@pytest.mark.long
def test_verdicts_on_other_rows_golds_are_those_of_math_verify(reward: MathAnswer) -> None:
    from math_verify import parse, verify

    answers = [answer for _, answer in math500()]
    parsed = [parse(f"${answer}$", parsing_timeout=None) for answer in answers]
    ours = reward.score([rollout_of(answers[i], answers[i - 1]) for i in range(len(answers))])
    theirs = [verify(parsed[i - 1], parsed[i], timeout_seconds=None) for i in range(len(answers))]
    assert ours == [float(value) for value in theirs]
