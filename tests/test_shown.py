"""What a run shows and writes down of its instructions, and that showing never harms it."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_module import data, fit, make
from toys import Parrot
from trainers import quiet_trainer

from wst import Instruction, InstructionSamples, Query, Response, Rollout, TeacherExport, WeakToStrong
from wst.callbacks.calls import show_progress
from wst.callbacks.samples import markdown, panel
from wst.errors import ConfigError
from wst.terminal import show
from wst.training.folders import FolderLock

HOSTILE = "\x1b]0;owned\x07\x1b[2J \u202eevil \ud83d"


def rollout(text: str) -> Rollout:
    return Rollout(Query("a", text), Instruction(text), Response(text))


@pytest.mark.parametrize("draw", [lambda rows: panel(rows, "step 1"), markdown])
def test_texts_are_shown_harmless_and_short(capsys: pytest.CaptureFixture[str], draw: Any) -> None:
    show(draw([rollout(HOSTILE), rollout("x" * 10**7)]))
    shown = capsys.readouterr().out
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\ud83d"}
    assert len(shown) < 50_000
    assert "…" in shown


@pytest.mark.parametrize("draw", [lambda rows: panel(rows, "step 1"), markdown])
def test_a_failed_answer_shows_why(capsys: pytest.CaptureFixture[str], draw: Any) -> None:
    show(draw([Rollout(Query("a", "x"), Instruction("y"), Response("", error=f"timeout {HOSTILE}"))]))
    shown = " ".join(capsys.readouterr().out.split())
    assert "[failed: timeout" in shown
    assert "\x1b" not in shown


def test_the_size_of_the_model_is_one_line(tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make(tiny_model), data(tmp_path), tmp_path, 1, enable_model_summary=True, enable_progress_bar=True)
    shown = capsys.readouterr().out
    assert re.search(r"^[\d,]+ parameters, [\d,]+ of them trained; about \d+ MB$", shown, re.MULTILINE)
    assert "FLOPs" not in shown
    assert "/-" not in shown  # of "Epoch 0/-2"


@pytest.mark.parametrize("stage", ["training", "validating", "testing"])
@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_bar_that_does_not_exist_yet_shows_nothing(bar: Any, stage: str) -> None:
    callback = bar()
    callback.progress = object()  # it exists before its tasks do
    callback._enabled = True
    stages = {"training": False, "validating": False, "testing": False} | {stage: True}
    show_progress(SimpleNamespace(progress_bar_callback=callback, **stages), 1, 2)  # type: ignore[arg-type]


def rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "instructions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


class Speaks(Parrot):
    """Answers with the separators of lines that are none in JSON Lines."""

    def respond(self, prompts: Any) -> list[Response]:
        return [Response(f"{response.text} a\u2028b\u2029c\u0085d\x0be\x1cf") for response in super().respond(prompts)]


def test_a_resumed_run_keeps_rows_with_any_characters(tiny_model: str, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "tb", version=0)
    trainer = fit(
        make(tiny_model, Speaks()), data(tmp_path), tmp_path, 2, callbacks=[InstructionSamples()], logger=logger
    )
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    folder = Path(logger.log_dir)
    before = (folder / "instructions.jsonl").read_bytes()
    with (folder / "instructions.jsonl").open("ab") as file:  # a step that is made again, and half a character
        file.write(b'{"step": 3, "stage": "train"}\n{"step": 3, "response": "\xe2\x80')
    again = quiet_trainer(
        tmp_path, max_steps=3, callbacks=[InstructionSamples()], logger=TensorBoardLogger(tmp_path, "tb", version=0)
    )
    again.fit(make(tiny_model, Speaks()), data(tmp_path), ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
    assert (folder / "instructions.jsonl").read_bytes().startswith(before)
    assert [row["step"] for row in rows(folder)] == [1] * 4 + [2] * 4 + [3] * 4


def test_a_step_without_an_update_has_the_number_of_the_step_that_is_tried_again(
    tiny_model: str, tmp_path: Path
) -> None:
    class FirstFails(Parrot):
        def respond(self, prompts: Any) -> list[Response]:
            first = not self.asked
            answers = super().respond(prompts)
            return [Response("", error="timeout") for _ in answers] if first else answers

    logger = CSVLogger(tmp_path)
    fit(make(tiny_model, FirstFails()), data(tmp_path), tmp_path, 2, callbacks=[InstructionSamples()], logger=logger)
    found = [(row["step"], row.get("skipped", False)) for row in rows(Path(logger.log_dir))]
    assert found == [(1, True)] * 4 + [(1, False)] * 4 + [(2, False)] * 4


@pytest.mark.slow
def test_a_step_has_one_number_everywhere(tiny_model: str, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, "tb", version=0, default_hp_metric=False)
    module, datamodule = make(tiny_model), data(tmp_path, val=str(tmp_path / "rows.jsonl"))
    settings = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    settings |= {"log_every_n_steps": 1, "callbacks": [InstructionSamples(terminal=False)]}
    fit(module, datamodule, tmp_path, 4, logger=logger, **settings)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    for name, steps in {"train/reward": [1, 2, 3, 4], "vitals/lr": [1, 2, 3, 4], "val/reward": [2, 4]}.items():
        assert [event.step for event in events.Scalars(name)] == steps
    assert [event.step for event in events.Tensors("instructions/text_summary")] == [2, 4]
    written = [(row["stage"], row["step"]) for row in rows(Path(logger.log_dir))]
    assert list(dict.fromkeys(written)) == [
        ("train", 1),
        ("train", 2),
        ("val", 2),
        ("train", 3),
        ("train", 4),
        ("val", 4),
    ]
    # TensorBoard sorts the groups by name and opens the first two.
    assert sorted({name.partition("/")[0] for name in events.Tags()["scalars"]}) == ["train", "val", "vitals"]


@pytest.mark.slow
def test_a_loaded_module_that_is_trained_on_counts_on(tiny_model: str, tmp_path: Path) -> None:
    """A new trainer counts from 0 again; steps are the updates that made the weights, also after a resume."""
    fit(make(tiny_model), data(tmp_path), tmp_path, 3).save_checkpoint(tmp_path / "three.ckpt")

    def loaded() -> WeakToStrong:
        fresh = make(tiny_model)
        return WeakToStrong.load_from_checkpoint(
            tmp_path / "three.ckpt", teacher=fresh.teacher, student=Parrot(), reward=fresh.reward, samples_per_query=2
        )

    def train(module: WeakToStrong, steps: int, **start: Any) -> tuple[Trainer, TensorBoardLogger]:
        logger = TensorBoardLogger(tmp_path, "tb", version=0, default_hp_metric=False)
        callbacks: list[Any] = [InstructionSamples(terminal=False), TeacherExport()]
        settings = {"val_check_interval": 1, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
        settings |= {"log_every_n_steps": 1, "callbacks": callbacks, "logger": logger, "max_steps": steps}
        trainer = quiet_trainer(tmp_path, **settings)
        trainer.fit(module, datamodule, **start)
        return trainer, logger

    datamodule = data(tmp_path, val=str(tmp_path / "rows.jsonl"))
    trainer, logger = train(loaded(), 2)
    trainer.save_checkpoint(tmp_path / "five.ckpt")
    module = loaded()
    trainer, logger = train(module, 3, ckpt_path=str(tmp_path / "five.ckpt"), weights_only=True)
    trainer.test(module, datamodule, verbose=False)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    wanted = {"train/reward": [4, 5, 6], "val/reward": [4, 5, 6], "test/trained": [6]}
    assert {name: [event.step for event in events.Scalars(name)] for name in wanted} == wanted
    assert [event.step for event in events.Tensors("instructions/text_summary")] == [4, 5, 6]
    folder = Path(logger.log_dir)
    assert list(dict.fromkeys((row["step"], row["stage"]) for row in rows(folder))) == [
        (step, stage) for step in (4, 5, 6) for stage in ("train", "val")
    ]
    about = json.loads((folder / "teacher/last/wst.json").read_text())
    assert about["steps"] == module.trained_steps == 6
    assert {"validation", "test"} <= about["figures"].keys()


@pytest.mark.slow
def test_a_text_that_is_logged_again_is_there_once(tiny_model: str, tmp_path: Path) -> None:
    def run(steps: int, **settings: Any) -> EventAccumulator:
        logger = TensorBoardLogger(tmp_path, "tb", version=0)
        every = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
        trainer = quiet_trainer(
            tmp_path, max_steps=steps, callbacks=[InstructionSamples(terminal=False)], logger=logger, **every
        )
        torch.manual_seed(0)
        trainer.fit(make(tiny_model), data(tmp_path, val=str(tmp_path / "rows.jsonl")), **settings)
        if steps == 3:
            trainer.save_checkpoint(tmp_path / "x.ckpt")
        logger.experiment.close()
        return EventAccumulator(logger.log_dir).Reload()

    (tmp_path / "rows.jsonl").touch()
    run(3)
    for _ in range(2):  # steps 4 and 5 are made twice
        events = run(5, ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
        assert [event.step for event in events.Tensors("instructions/text_summary")] == [2, 4]
        assert [event.step for event in events.Scalars("val/reward")] == [2, 4]


def csv_rows(logger: CSVLogger) -> list[str]:
    return (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()


@pytest.mark.slow
def test_a_csv_curve_survives_a_test_and_a_resume(tiny_model: str, tmp_path: Path) -> None:
    def logger() -> CSVLogger:
        return CSVLogger(tmp_path, "csv", version=0, flush_logs_every_n_steps=1)

    module, every = make(tiny_model), {"log_every_n_steps": 1}
    trainer = fit(module, data(tmp_path), tmp_path, 3, logger=logger(), **every)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    curve = csv_rows(logger())
    quiet_trainer(tmp_path, logger=logger()).test(module, data(tmp_path), verbose=False)
    kept = csv_rows(logger())
    assert [row.split(",")[curve[0].split(",").index("step")] for row in curve[1:]] == ["1", "2", "3"]
    steps = [row.split(",")[kept[0].split(",").index("step")] for row in kept[1:]]
    assert steps[:3] == ["1", "2", "3"]
    assert len(kept) == len(curve) + 1  # and the test's figures
    again = quiet_trainer(tmp_path, max_steps=4, logger=logger(), **every)
    again.fit(make(tiny_model), data(tmp_path), ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
    resumed = csv_rows(logger())
    place = resumed[0].split(",").index("step")
    assert [row.split(",")[place] for row in resumed[1:]] == ["1", "2", "3", "3", "4"]  # the fit, the test, the fit


def test_a_folder_in_which_another_run_trains_is_refused(tiny_model: str, tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "csv/version_0")
    with pytest.raises(ConfigError, match="another process is training"):
        fit(make(tiny_model), data(tmp_path), tmp_path, 1, logger=CSVLogger(tmp_path, "csv", version=0))
    lock.release()
    for _ in range(2):  # a run gives it back
        fit(make(tiny_model), data(tmp_path), tmp_path, 1, logger=CSVLogger(tmp_path, "csv", version=0))
