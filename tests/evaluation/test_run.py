"""A comparison: its arms, rewards, and what the user is told."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import pytest
import torch
from comparison_rows import BEFORE, Shout, reviews, tiny_teacher
from rich.console import Console
from toys import Lowercase, Parrot

from wst import Length, LocalStudent, LoRA, Prompt, Response, Reward, Rollout, Teacher, TeacherPrompt, WeightedSum
from wst.errors import ConfigError, DataError, ModelError, WSTError
from wst.evaluation import NONE, compare, rebuild
from wst.evaluation.instructors import TeacherArm
from wst.evaluation.tables import show


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


@pytest.fixture
def trained(fitted: Path) -> Path:
    return fitted / "runs/tiny/version_0"


@pytest.mark.slow
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
        "holds no TensorBoard log; .*--run null": {"run": str(tmp_path)},
    }.items():
        with pytest.raises(ConfigError, match=message):
            compare(**({"data": data, "students": {"s": student}, "reward": Lowercase()} | change))  # type: ignore[arg-type]
    assert student.asked == []


@pytest.mark.slow
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


def test_a_part_of_a_reward_may_be_called_like_a_column(tmp_path: Path) -> None:
    reward = WeightedSum({"mean": Lowercase(), "[red]": Length(limit=1, of="response")})
    found = compare(reviews(tmp_path), {"s": Parrot()}, reward, fixed=["x"], output=str(tmp_path), resamples=1000)
    with (tmp_path / "shown.txt").open("w") as file:
        show(found, Console(file=file, width=60))
        show(found, Console(file=file, width=300))
    shown = (tmp_path / "shown.txt").read_text()
    assert "reward mean" in shown
    assert shown.count("[red]") == 2


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_a_narrow_terminal_shows_fewer_columns_and_every_instructor(tmp_path: Path, width: int) -> None:
    fixed = ["alpha", "beta", "gamma", "delta", "Is this review positive or negative?"]
    reward = WeightedSum({"letters": Lowercase(), "brevity": Length(limit=1, of="response")})
    found = compare(reviews(tmp_path), {"s": Parrot()}, reward, fixed=fixed, output=str(tmp_path), resamples=1000)
    with (tmp_path / "shown.txt").open("w") as file:
        show(found, Console(file=file, width=width))
    table = (tmp_path / "shown.txt").read_text().split("p: Holm")[0].splitlines()
    assert max(map(len, table)) <= width
    for name in (*fixed[:4], NONE, "instructor", "mean"):
        assert any(name in line for line in table), name
    left_out = "in report.html:" in (tmp_path / "shown.txt").read_text()
    assert left_out == (width < 160)


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


class Noisy(Lowercase):
    """A reward that depends on its batch a little, as a model's does."""

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        noise = torch.rand(1).item() / 100
        return [value + noise for value in super().score(rollouts)]


class Deaf(Parrot):
    """Answers the query, whatever the instruction."""

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return [Response(prompt.messages[0].content.split("\n\n")[-1]) for prompt in prompts]


def test_equal_responses_are_scored_once_over_all_arms(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"fixed": ["be kind"], "student_prompt": BEFORE, "resamples": 1000}
    found = compare(reviews(tmp_path), {"s": Deaf()}, Noisy(), output=str(tmp_path / "a"), **arguments)
    cell = found.results["students"]["s"]["arms"]["be kind"]
    assert (cell["help"], cell["harm"], cell["vs_unaided"]["mean"], cell["vs_unaided"]["p"]) == (0.0, 0.0, 0.0, 1.0)
    # A reward that reads the instruction is asked for each of them.
    short = Length(1, of="instruction")
    found = compare(reviews(tmp_path), {"s": Deaf()}, short, output=str(tmp_path / "b"), **arguments)
    means = [cell["mean"] for cell in found.results["students"]["s"]["arms"].values()]
    assert means == [1.0, 0.0]


def test_names_and_answers_cannot_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\u202e"

    class Evil(Parrot):
        def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
            raise WSTError(f"no {evil}")

    students = {f"good {evil}": Parrot(), f"bad {evil}": Evil()}
    found = compare(
        reviews(tmp_path), students, Lowercase(), fixed=[evil], output=str(tmp_path / "out"), resamples=1000
    )
    show(found)
    shown = "".join(capsys.readouterr())
    assert "good" in shown
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)


# ------------------------------------------------------------------------------------------- what is trained elsewhere


@pytest.mark.slow
def test_a_checkpoint_brings_prompt_and_limits_but_no_model_and_no_code(
    tmp_path: Path, tiny_model: str, trained: Path
) -> None:
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    remembered = checkpoint["hyper_parameters"]["teacher"]["init_args"]
    remembered |= {"model": str(tmp_path / "theirs"), "trust_remote_code": True, "max_new_tokens": 3}
    checkpoint["hyper_parameters"]["teacher"]["class_path"] = "os.system"
    torch.save(checkpoint, tmp_path / "theirs.ckpt")
    arguments: dict[str, Any] = {"fixed": [], "resamples": 1000, "output": str(tmp_path / "out")}
    theirs = {"theirs": str(tmp_path / "theirs.ckpt")}
    data, students = reviews(tmp_path), {"s": Parrot()}
    with pytest.raises(ConfigError, match="trained needs teacher"):
        compare(data, students, Lowercase(), trained=theirs, **arguments)
    teacher = Teacher(tiny_model, TeacherPrompt("Other: {query}"), dtype="float32")
    found = compare(data, students, Lowercase(), teacher=teacher, trained=theirs, **arguments)
    assert not found.errors
    arm = TeacherArm("theirs", teacher, theirs["theirs"])
    arm.setup(torch.device("cpu"))
    loaded = cast(Teacher, arm._teacher)
    assert loaded.spec == teacher.spec
    assert (loaded.prompt.template, loaded.max_new_tokens, loaded.lora) == ("{query}", 3, LoRA(4, 8))


def test_an_adapter_cannot_name_another_base(tmp_path: Path, tiny_model: str, trained: Path) -> None:
    shutil.copytree(trained / "teacher/last", tmp_path / "theirs")
    path = tmp_path / "theirs/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "evil/model"}))
    arm = TeacherArm("theirs", tiny_teacher(tiny_model), str(tmp_path / "theirs"))
    with pytest.warns(UserWarning, match="it names 'evil/model' as its base"):
        arm.setup(torch.device("cpu"))
    assert cast(Teacher, arm._teacher).spec.model == tiny_model


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, tiny_model: str, trained: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    next(iter(checkpoint["state_dict"].values())).view(-1)[0] = math.nan
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    arm = TeacherArm("sick", tiny_teacher(tiny_model), str(tmp_path / "nan.ckpt"))
    with pytest.raises(ModelError, match=r"sick: weight .* is not finite"):
        arm.setup(torch.device("cpu"))
