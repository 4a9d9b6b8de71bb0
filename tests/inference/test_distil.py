"""Races of static sentences."""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from runs import wst

from wst import Prompt, Query, Response, Reward, Rollout, Student
from wst.environment import Environment
from wst.errors import ConfigError, DataError
from wst.inference.distil import race

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


def test_what_cannot_be_raced_is_said() -> None:
    environment = Environment(Counting(), Said())
    with pytest.raises(ConfigError, match="at least 24"):
        race([f"{i}" for i in range(8)], QUERIES, environment, 20)
    with pytest.raises(ConfigError, match="none of them blank"):
        race(["a", " "], QUERIES, environment, 20)
    with pytest.raises(DataError, match="no training queries"):
        race(["a"], [], environment, 20)


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
