"""Races of static sentences."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import write_config, wst

from wst import Prompt, Query, Response, Reward, Rollout, Student
from wst.cli.distil import run as distil
from wst.cli.distil import verdict
from wst.environment import Environment
from wst.errors import ConfigError, DataError, StudentStopped, WSTError
from wst.evaluation import Comparison
from wst.inference.distil import Race, Standing, race

QUERIES = [Query(f"q{i}", f"number {i}") for i in range(50)]


class Counting(Student):
    """Repeats the instruction and counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Prompt] = []

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += prompts
        return [Response(prompt.messages[0].content) for prompt in prompts]


class Said(Reward):
    """Reads the reward off the answer."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(rollout.response.text.split()[-1]) for rollout in rollouts]


@pytest.mark.parametrize(("count", "budget"), [(1, 5), (2, 9), (7, 100), (16, 64), (33, 400)])
def test_the_best_wins_within_the_budget(count: int, budget: int) -> None:
    student = Counting()
    sentences = [f"sentence {i / count}" for i in range(count)]
    finished = race(sentences, QUERIES, Environment(student, Said()), budget)
    assert finished.winner == sentences[-1]
    assert finished.calls == len(student.asked) <= budget
    assert finished.calls > budget / 2
    assert {standing.sentence for standing in finished.standings} == set(sentences)
    tried = [standing.tried for standing in finished.standings]
    assert tried == sorted(tried, reverse=True)  # the better a sentence, the more is spent on it
    assert sum(tried) == finished.calls


def test_unaided_answers_are_in_the_budget() -> None:
    student, reward = Counting(), Said()
    reward.needs_unaided = True
    finished = race(["a 1", "b 0", "c 0"], QUERIES, Environment(student, reward), 50)
    assert len(student.asked) == finished.calls <= 50
    assert sum(prompt.messages[0].content.startswith("number") for prompt in student.asked) > 0


def test_sentences_meet_the_same_queries() -> None:
    student = Counting()
    race(["a 1", "b 0"], QUERIES, Environment(student, Said()), 20)
    texts = [[p.messages[1].content for p in student.asked if p.messages[0].content == s] for s in ("a 1", "b 0")]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 10


def test_a_sentence_that_cannot_be_scored_is_last() -> None:
    finished = race(["a nan", "b 0", "c -5"], QUERIES, Environment(Counting(), Said()), 30)
    assert [standing.sentence for standing in finished.standings][:2] == ["b 0", "c -5"]
    assert math.isnan(finished.standings[-1].reward)


def test_a_race_that_nothing_can_be_scored_in_has_no_winner() -> None:
    student = Counting()
    with pytest.raises(StudentStopped, match="no answer of round 1 could be scored"):
        race(["a nan", "b nan", "c nan"], QUERIES, Environment(student, Said()), 30)
    assert len(student.asked) == 15


def test_what_cannot_be_raced_is_said() -> None:
    environment = Environment(Counting(), Said())
    with pytest.raises(ConfigError, match="at least 24"):
        race([f"{i}" for i in range(8)], QUERIES, environment, 20)
    with pytest.raises(ConfigError, match="none of them blank"):
        race(["a", " "], QUERIES, environment, 20)
    with pytest.raises(DataError, match="no training queries"):
        race(["a"], [], environment, 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["--limit", "0"], "distil: limit must be at least 1"),
        (["--data.init_args.test", "null"], "there are no test queries"),
        (["--output", "afile"], "afile: cannot be used"),
        (["--sentences", "names.txt"], "'no instruction' is the name of an arm"),
        (["--sentences", "none.txt", "--samples", "0"], "there is nothing to race"),
    ],
)
def test_what_cannot_be_compared_is_said_before_the_race(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"afile": "", "names.txt": "Think.\nno instruction\n", "none.txt": "\n"}.items():
        (tmp_path / name).write_text(text)
    teacher = fitted / "runs/tiny/version_0/teacher/best"
    with pytest.raises(WSTError, match=says):
        distil([str(teacher), "--config", str(fitted / "config.yaml"), "--budget", "60", "--device", "cpu", *changes])
    assert not list(tmp_path.glob("*/race.jsonl"))


def test_without_rows_there_is_no_verdict(tmp_path: Path) -> None:
    rows = [{"arm": "Think.", "id": "1", "reward": 1.0}]
    finished = Race([Standing("Think.", 1.0, 4)], 8)
    assert "no verdict: the teacher or the sentence could not be tried" in verdict(
        Comparison({}, rows, tmp_path), finished
    )


@pytest.mark.slow
def test_a_teacher_with_experience_is_compared(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model, **{"model.init_args.teacher.init_args.prompt.template": "{experience} {query}"})
    assert wst(["fit", "--config", "config.yaml"], tmp_path).code == 0
    options = ["--config", "config.yaml", "--samples", "2", "--budget", "60", "--limit", "4", "--device", "cpu"]
    done = wst(["distil", "runs/tiny/version_0/teacher/last", *options, "--output", "out"], tmp_path)
    assert done.code == 0, done.err
    assert "4 test queries" in (tmp_path / "out/verdict.txt").read_text()


@pytest.mark.slow
def test_the_command_says_whether_a_sentence_does_as_well(fitted: Path, tmp_path: Path) -> None:
    teacher = fitted / "runs/tiny/version_0/teacher/best"
    (tmp_path / "own.txt").write_text("Say NaN.\nBe brief.\nThink.\n")
    options = ["--config", str(fitted / "config.yaml"), "--budget", "60", "--samples", "4", "--limit", "6"]
    options += ["--sentences", "own.txt"]
    done = wst(["distil", str(teacher), *options, "--output", "out", "--device", "cpu"], tmp_path)
    assert done.code == 0, done.err
    said = (tmp_path / "out/verdict.txt").read_text().strip()
    assert said.splitlines()[0] in done.out
    assert re.match(r"[4-7] sentences raced for \d+ student calls; the winner: '", said)
    assert int(said.split("raced for ")[1].split()[0]) <= 60
    assert "race: round 1 of " in done.out
    winner = (tmp_path / "out/sentence.txt").read_text().removesuffix("\n")
    standings = [json.loads(line) for line in (tmp_path / "out/race.jsonl").read_text().splitlines()]
    assert standings[0]["sentence"] == winner
    assert "Say NaN." in {standing["sentence"] for standing in standings}
    assert f"{len(standings)} sentences raced" in said
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().split("\n")[:-1]]
    assert {row["arm"] for row in rows} == {"no instruction", winner, "untrained teacher", "trained teacher"}
    found = {arm: [row["reward"] for row in rows if row["arm"] == arm] for arm in (winner, "trained teacher")}
    assert len(found[winner]) == len(found["trained teacher"]) == 6
    mean = sum(a - b for a, b in zip(found["trained teacher"], found[winner], strict=True)) / 6
    assert f"{mean:+.3f} (" in said
    wrong = wst(["distil", str(teacher), *options, "--samples", "-1"], tmp_path)
    assert wrong.code == 2, wrong.err
    assert "samples must be" in wrong.err
