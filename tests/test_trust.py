"""Checkpoints from strangers at the command line: nothing that they name is called, imported or sent to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import write_config, wst

RUN = Path("runs/tiny/version_0")
EVIL_MODULE = "open('executed', 'w').write('x')\n"


@pytest.fixture
def stolen(fitted: Path, tmp_path: Path, tiny_model: str) -> tuple[Path, dict[str, Any]]:
    """A folder of its own with the run's config, and the run's checkpoint in memory."""
    write_config(tmp_path, tiny_model)
    (tmp_path / "evil.py").write_text(EVIL_MODULE)
    return tmp_path, torch.load(fitted / RUN / "checkpoints/last.ckpt", weights_only=True)


def save(folder: Path, checkpoint: dict[str, Any], **settings: Any) -> str:
    checkpoint["hyper_parameters"] |= settings
    torch.save(checkpoint, folder / "theirs.ckpt")
    return str(folder / "theirs.ckpt")


def evil_student(url: str) -> dict[str, Any]:
    arguments = {"model": "m", "base_url": url, "api_key_env": "SECRET"}
    return {"class_path": "wst.EndpointStudent", "init_args": arguments}


@pytest.mark.slow
def test_no_key_is_sent_to_an_address_in_a_checkpoint(stolen: tuple[Path, dict[str, Any]]) -> None:
    folder, checkpoint = stolen
    theirs = save(folder, checkpoint, student=evil_student("http://127.0.0.1:9/v1"))
    command = ["test", "--config", "config.yaml", "--ckpt_path", theirs]
    done = wst(command, folder, environment={"SECRET": "sk-1"})
    assert done.code == 0, done.err  # the config's own student answers
    saved = (folder / RUN / "config_test.yaml").read_text()
    assert "EndpointStudent" not in saved


@pytest.mark.slow
def test_settings_that_are_not_taken_are_named(stolen: tuple[Path, dict[str, Any]]) -> None:
    folder, checkpoint = stolen
    student = {"class_path": "wst.LocalStudent", "init_args": {"model": "theirs", "trust_remote_code": True}}
    theirs = save(folder, checkpoint, student=student, baseline={"class_path": "wst.MovingAverage"})
    done = wst(["validate", "--config", "config.yaml", "--ckpt_path", theirs, "--trainer.logger=false"], folder)
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if line.startswith("wst: the checkpoint was made with other")]
    assert "student.trust_remote_code=true" in line
    assert 'baseline.class_path="wst.MovingAverage"' in line
    assert "theirs" not in line  # the config names a model
    assert "--trust_checkpoint true" in line


def test_a_checkpoint_alone_names_what_it_would_set(stolen: tuple[Path, dict[str, Any]]) -> None:
    folder, checkpoint = stolen
    theirs = save(folder, checkpoint, student=evil_student("http://127.0.0.1:9/v1"))
    data = ["--data=wst.QueryDataModule", "--data.init_args.test=rows.jsonl", "--trainer.logger=false"]
    done = wst(["test", "--ckpt_path", theirs, *data], folder)
    assert done.code == 2
    assert 'student.base_url="http://127.0.0.1:9/v1"' in done.err
    assert "--trust_checkpoint true" in done.err
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_what_is_confirmed_is_taken_and_shown(stolen: tuple[Path, dict[str, Any]]) -> None:
    folder, checkpoint = stolen
    theirs = save(folder, checkpoint, samples_per_query=2)
    data = ["--data=wst.QueryDataModule", "--data.init_args.test=rows.jsonl", "--data.init_args.fields.id=id"]
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.init_args.save_dir=alone"]
    confirmed = ["--trust_checkpoint", "true"]
    done = wst(["test", "--ckpt_path", theirs, *data, *logger, *confirmed], folder)
    assert done.code == 0, done.err
    assert 'wst: taken from the checkpoint (--trust_checkpoint true): class_path="wst.WeakToStrong"' in done.err
    saved = next((folder / "alone").rglob("config_test.yaml")).read_text()
    assert "max_new_tokens: 5" in saved  # the student's, as the run had it
    assert "trust_checkpoint" not in saved


HOSTILE: dict[str, dict[str, Any]] = {
    "model class": {"_class_path": "evil.Model"},
    "reward class": {"reward": {"class_path": "evil.Reward", "init_args": {}}},
    "baseline class": {"baseline": {"class_path": "evil.Baseline"}},
    "optimizer": {"optimizer": {"class_path": "evil.run"}},
    "prompt class": {"student_prompt": {"class_path": "evil.Prompt", "init_args": {"query": "{query}"}}},
    "instantiator": {"_instantiator": "evil.run"},
    "prompt of a wrong type": {"student_prompt": {"placement": "evil", "query": "{query}"}},
    "huge number": {"samples_per_query": 10**30},
    "other kind": {"samples_per_query": {"class_path": "evil.Number"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_a_class_in_a_checkpoint_is_not_imported(stolen: tuple[Path, dict[str, Any]], case: str) -> None:
    folder, checkpoint = stolen
    theirs = save(folder, checkpoint, **HOSTILE[case])
    done = wst(["validate", "--config", "config.yaml", "--ckpt_path", theirs, "--trainer.logger=false"], folder)
    assert not (folder / "executed").exists()
    assert "Traceback" not in done.err
    assert done.code in (0, 2)
    if done.code:
        assert len([line for line in done.err.splitlines() if line.startswith("wst: error:")]) == 1


@pytest.mark.slow
def test_code_of_a_model_in_a_checkpoint_does_not_run(stolen: tuple[Path, dict[str, Any]]) -> None:
    folder, checkpoint = stolen
    model = folder / "theirs"
    model.mkdir()
    (model / "config.json").write_text(
        json.dumps({"model_type": "theirs", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}})
    )
    (model / "code.py").write_text(f"open({str(folder / 'executed')!r}, 'w').write('x')\n")
    arguments = {"model": str(model), "trust_remote_code": True}
    student = {"class_path": "wst.LocalStudent", "init_args": arguments}
    teacher = {"class_path": "wst.Teacher", "init_args": arguments}
    theirs = save(folder, checkpoint, student=student, teacher=teacher)
    for stage in ("test", "validate"):
        done = wst([stage, "--config", "config.yaml", "--ckpt_path", theirs, "--trainer.logger=false"], folder)
        assert done.code == 0, done.err
        assert "teacher.trust_remote_code=true" in done.err
        assert not (folder / "executed").exists()


@pytest.mark.slow
def test_harmless_settings_fill_what_the_user_does_not_say(stolen: tuple[Path, dict[str, Any]]) -> None:
    folder, checkpoint = stolen
    checkpoint["hyper_parameters"]["teacher"]["init_args"] |= {"max_new_tokens": 3, "temperature": 0.5}
    theirs = save(folder, checkpoint, samples_per_query=2)
    done = wst(["validate", "--config", "config.yaml", "--ckpt_path", theirs], folder)
    assert done.code == 0, done.err
    saved = next(folder.rglob("config_validate.yaml")).read_text()
    assert "temperature: 0.5" in saved
    assert "samples_per_query: 3" in saved  # the config's
    assert "max_new_tokens: 6" in saved  # the config's
    assert "other settings" not in done.err


def test_trust_must_be_true_or_false(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    done = wst(["test", "--config", "config.yaml", "--trust_checkpoint", "maybe"], tmp_path)
    assert done.code == 2
    assert "trust_checkpoint must be true or false, got 'maybe'" in done.err


@pytest.mark.slow
def test_a_test_without_a_logger_leaves_the_users_rows_alone(fitted: Path, tmp_path: Path) -> None:
    for name in ("config.yaml", "rows.jsonl"):
        (tmp_path / name).write_bytes((fitted / name).read_bytes())
    before = (tmp_path / "rows.jsonl").read_bytes()
    checkpoint = str(fitted / "runs/tiny/version_0/checkpoints/last.ckpt")
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", checkpoint, "--trainer.logger=false"], tmp_path)
    assert done.code == 0, done.err
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    assert (tmp_path / "test/rows.jsonl").is_file()
