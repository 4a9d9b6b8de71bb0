"""Every config in lightning_configs/ runs through the real command line, with its models replaced by tiny ones."""

import json
import os
from pathlib import Path

import pytest
import yaml
from endpoints import FakeServer
from runs import TESTS, wst

ROOT = TESTS.parent
CONFIGS = sorted((ROOT / "lightning_configs").glob("*.yaml"))
OVERLAYS = sorted((ROOT / "lightning_configs" / "overlays").glob("*.yaml"))
COMPARISONS = sorted((ROOT / "lightning_configs" / "compare").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert (ROOT / "lightning_configs" / "quickstart.yaml") in CONFIGS


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_and_a_test(config: Path, tmp_path: Path, tiny_model: str) -> None:
    # the configs name their data relative to the project's folder
    os.symlink(ROOT / "data", tmp_path / "data")
    tiny = [
        f"--model.init_args.teacher.init_args.model={tiny_model}",
        f"--model.init_args.student.init_args.model={tiny_model}",
        "--model.init_args.teacher.init_args.max_new_tokens=4",
        "--model.init_args.student.init_args.max_new_tokens=4",
        "--data.init_args.limit_val=4",
        "--data.init_args.limit_test=6",
        "--trainer.accelerator=cpu",
    ]
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    done = wst(["fit", "--config", str(config), *tiny, *short], tmp_path)
    assert done.code == 0, done.err
    done = wst(["test", "--config", str(config), *tiny, "--ckpt_path", "last"], tmp_path)
    assert done.code == 0, done.err
    (results,) = tmp_path.rglob("results.json")
    assert json.loads(results.read_text())["n"] == 6
    (saved,) = results.parent.glob("config.yaml")
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["teacher"]["init_args"]["model"] == tiny_model


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_on_the_quickstart(overlay: Path, tmp_path: Path, tiny_model: str) -> None:
    os.symlink(ROOT / "data", tmp_path / "data")
    configs = ["--config", str(ROOT / "lightning_configs" / "quickstart.yaml"), "--config", str(overlay)]
    with FakeServer(key="sk-test") as server:
        options = [
            f"--model.init_args.teacher.init_args.model={tiny_model}",
            "--model.init_args.teacher.init_args.max_new_tokens=4",
            f"--model.init_args.student.init_args.base_url={server.url}",
            "--data.init_args.limit_val=4",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=2",
        ]
        done = wst(["fit", *configs, *options], tmp_path, environment={"OPENAI_API_KEY": "sk-test"})
        assert done.code == 0, done.err
        asked = [request.body for request in server.requests]
    assert {body["model"] for body in asked} == {"gpt-4o-mini"}
    assert next((tmp_path / "runs" / "endpoint").rglob("adapter_model.safetensors"))


@pytest.mark.parametrize("config", COMPARISONS, ids=lambda path: path.stem)
def test_a_comparison(config: Path, tmp_path: Path, tiny_model: str) -> None:
    os.symlink(ROOT / "data", tmp_path / "data")
    wanted = yaml.safe_load(config.read_text())
    tiny = {"class_path": "wst.LocalStudent", "init_args": {"model": tiny_model, "max_new_tokens": 4}}
    teacher = {"class_path": "wst.Teacher", "init_args": {"model": tiny_model, "max_new_tokens": 4}}
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text(
        yaml.safe_dump(
            {
                "students": dict.fromkeys(wanted["students"], tiny),
                "asked": dict.fromkeys(wanted["asked"], tiny),
                "teacher": teacher,
                "trained": {},
                "run": None,
                "limit": 4,
                "resamples": 1000,
            }
        )
    )
    done = wst(["compare", "--config", str(config), "--config", str(overlay)], tmp_path)
    assert done.code == 0, done.err
    (results,) = tmp_path.rglob("results.json")
    assert set(json.loads(results.read_text())["students"]) == set(wanted["students"])
