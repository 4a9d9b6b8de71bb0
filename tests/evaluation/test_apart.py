"""Students are told apart and measured apart, and what an earlier comparison has left is shown or refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparison_rows import made_rows, reviews
from runs import write_config, wst
from toys import Lowercase, Parrot, SixQueries, small_module
from trainers import quiet_trainer

from wst import Prompt, Query, Response, Reward, Rollout, Standardized, Student, TeacherPrompt
from wst.callbacks.report import PredictionWriter
from wst.errors import ConfigError, DataError
from wst.evaluation import NONE, compare, rebuild
from wst.evaluation.figures import SCHEMA, figures
from wst.evaluation.journal import Journal


class Says(Student):
    """Says one word, which nothing public tells."""

    deterministic = True

    def __init__(self, word: str) -> None:
        self._word = word
        self.asked = 0

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.asked += len(prompts)
        return [Response(self._word) for _ in prompts]


class Long(Reward):
    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        return [float(len(r.response.text) * int(r.query.text[-1])) for r in rollouts]


def means(found: Any, arm: str = NONE) -> dict[str, float]:
    return {name: entry["arms"][arm]["mean"] for name, entry in found.results["students"].items()}


def test_students_that_look_alike_are_two(tmp_path: Path) -> None:
    students = {"yes": Says("a"), "no": Says("B"), "function": lambda _: "a", "other": lambda _: "B"}
    found = compare(reviews(tmp_path), students, Lowercase(), fixed=[], output=str(tmp_path / "out"), resamples=1000)  # type: ignore[arg-type]
    assert means(found) == {"yes": 1.0, "no": 0.0, "function": 1.0, "other": 0.0}


def test_instructors_that_look_alike_are_two(tmp_path: Path, tiny_model: str) -> None:
    from wst import Teacher

    teacher = Teacher(tiny_model, TeacherPrompt("{query}"), dtype="float32", max_new_tokens=2)
    asked: Any = {"one": lambda _: "A", "two": lambda _: "B"}
    found = compare(
        reviews(tmp_path), {"s": Parrot()}, Lowercase(), teacher, asked=asked, output=str(tmp_path / "out"), limit=2
    )
    assert {(row["arm"], row["instruction"]) for row in found.rows if row["kind"] == "asked"} == {
        ("one", "A"),
        ("two", "B"),
    }


def test_what_is_of_an_earlier_run_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, mean in (("a", 1.0), ("B", 1.0)):  # the student was changed where nobody can see it
        found = compare(
            reviews(tmp_path), {"s": Says(word)}, Lowercase(), fixed=[], output=str(tmp_path / "out"), resamples=1000
        )
        assert means(found) == {"s": mean}
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("20 instructions and answers are of an earlier run, from ") == 1
    assert "journal.jsonl; remove it for new ones" in said


def test_each_student_is_measured_by_its_own_answers(tmp_path: Path) -> None:
    students = {"short": Says("a"), "long": Says("a" * 500)}
    reward = Standardized(Long(), queries=10)
    found = compare(reviews(tmp_path), students, reward, fixed=[], output=str(tmp_path / "out"), resamples=1000)
    assert means(found) == pytest.approx({"short": 0.0, "long": 0.0}, abs=1e-9)

    class Kept(Long):
        calibration_size = 10

        def calibrate(self, unaided: Sequence[Rollout]) -> None:
            self.calibration_size = 0

    with pytest.raises(ConfigError, match="Kept cannot be calibrated again for another student"):
        compare(reviews(tmp_path), students, Kept(), output=str(tmp_path / "kept"), resamples=1000)


def test_a_student_that_cannot_be_had_is_known_before_anybody_is_asked(tmp_path: Path) -> None:
    class Absent(Says):
        def check(self) -> None:
            raise ConfigError("no key")

    first = Says("a")
    with pytest.raises(ConfigError, match="no key"):
        compare(reviews(tmp_path), {"a": first, "b": Absent("b")}, Lowercase(), output=str(tmp_path / "out"))
    assert first.asked == 0


@pytest.mark.parametrize("entry", [{"error": None}, {"error": None, "response": "x"}, {"error": None, "text": 5}, 5])
def test_an_entry_that_is_none_is_made_again(tmp_path: Path, entry: Any) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps({"0" * 64: entry}) + "\n")
    made = {"text": "new", "truncated": False, "error": None}
    assert Journal(tmp_path / "journal.jsonl").fill(["0" * 64], lambda _: [made]) == [made]


@pytest.mark.parametrize(
    "inputs",
    [
        {"arms": {"one": {"writing": {"calls": "many", "cost": 1.0}}}},
        {"students": {"s": {"accounts": {NONE: {"calls": 1, "cost": "c"}}}}},
        {"curve": "abc"},
        {"curve": {"train": [[1, float("inf")]]}},
        [],
    ],
)
def test_inputs_that_are_no_numbers_are_damaged(tmp_path: Path, inputs: Any) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made_rows()))
    (tmp_path / "results.json").write_text(json.dumps({"schema": SCHEMA, "inputs": inputs}))
    with pytest.raises(DataError, match=r"results\.json: its inputs are damaged"):
        rebuild(str(tmp_path / "rows.jsonl"), resamples=1000)
    (tmp_path / "results.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"not a results\.json"):
        rebuild(str(tmp_path / "rows.jsonl"), resamples=1000)


def test_a_row_that_is_there_twice_is_named(tmp_path: Path) -> None:
    rows = made_rows()
    text = "".join(json.dumps(row) + "\n" for row in [*rows, rows[0]])
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=rf"line {len(rows) + 1}: a second row of student"):
        rebuild(str(tmp_path / "rows.jsonl"), resamples=1000)


def test_the_best_fixed_sentence_can_be_compared() -> None:
    def rows(arm: str, kind: str, rewards: dict[int, float]) -> list[dict[str, Any]]:
        known = {"student": "s", "arm": arm, "kind": kind, "instruction": None, "query": "q", "response": "r"}
        return [known | {"id": str(i), "reward": rewards.get(i)} for i in range(20)]

    every = rows(NONE, "none", dict.fromkeys(range(10), 0.5))
    every += rows("A", "fixed", dict.fromkeys(range(10, 20), 0.01)) + rows("B", "fixed", dict.fromkeys(range(20), 0.45))
    assert figures(every, {}, 1000)["students"]["s"]["best_fixed"] == "B"


@pytest.mark.parametrize("size", [1e31, -1e200])
def test_a_reward_beyond_measure_is_refused(tmp_path: Path, size: float) -> None:
    def huge(rollouts: Sequence[Rollout]) -> list[float]:
        return [size] * len(rollouts)

    found = compare(reviews(tmp_path), {"s": Parrot()}, huge, fixed=[], output=str(tmp_path / "out"))
    assert "not beyond 1e+30" in next(iter(found.errors.values()))


def test_rows_are_written_before_any_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OverflowError("too large")

    monkeypatch.setattr("wst.evaluation.report.figures", fails)
    with pytest.raises(OverflowError):
        compare(reviews(tmp_path), {"s": Parrot()}, Lowercase(), fixed=[], output=str(tmp_path / "out"))
    assert len((tmp_path / "out/rows.jsonl").read_text().splitlines()) == 10


@pytest.mark.slow
def test_from_is_no_setting_of_a_config(tmp_path: Path) -> None:
    write_config(tmp_path, "no model is needed")
    data = {"class_path": "wst.QueryDataModule", "init_args": {"test": "rows.jsonl"}}
    config = {"from": "nowhere.jsonl", "data": data, "reward": "toys.Lowercase", "students": {"s": "toys.Parrot"}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    done = wst(["compare", "--config", "c.yaml"], tmp_path)
    assert done.code == 2
    assert "--from is given on the command line, not in a config" in done.err
    (tmp_path / "c.yaml").write_text(json.dumps(config | {"from": None}))
    assert wst(["compare", "--config", "c.yaml"], tmp_path).code == 0


# ---------------------------------------------------------------- predictions


def test_predictions_stay_until_there_are_new_ones(tmp_path: Path, tiny_model: str) -> None:
    class Dead(Parrot):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            raise RuntimeError("dead")

    class Predicted(SixQueries):
        def load(self, split: Any) -> list[Query]:
            return super().load("test" if split == "predict" else split)

    def predict(student: Student) -> None:
        trainer = quiet_trainer(tmp_path, callbacks=[PredictionWriter(str(path))])
        trainer.predict(small_module(tiny_model, student), Predicted(batch_size=2))

    path = tmp_path / "predictions.jsonl"
    path.write_text("earlier\n")
    with pytest.raises(RuntimeError, match="dead"):
        predict(Dead())
    assert path.read_text() == "earlier\n"
    with pytest.warns(UserWarning, match="predict: the teacher is untrained"):
        predict(Parrot())
    assert len(path.read_text().splitlines()) == 6
