"""Where `--ckpt_path last` looks for the runs of each logger."""

import os
from pathlib import Path
from typing import Any

import pytest

from wst.cli.runs import find_run
from wst.errors import ConfigError

LOGGERS = "lightning.pytorch.loggers."


def put(*folders: Path, name: str = "last") -> None:
    for age, folder in enumerate(reversed(folders)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.ckpt").touch()
        os.utime(folder / f"{name}.ckpt", (1e9 - age, 1e9 - age))


def trainer(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"logger": {"class_path": LOGGERS + kind, "init_args": arguments}}


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger"])
def test_numbered_runs_go_by_their_number(tmp_path: Path, kind: str) -> None:
    runs = [tmp_path / "name" / f"version_{n}" / "checkpoints" for n in (10, 9)]
    put(*runs, tmp_path / "name" / "version_copy" / "checkpoints")
    (tmp_path / "name" / "version_11").mkdir()  # killed before its first checkpoint
    found = find_run(trainer(kind, save_dir=str(tmp_path), name="name", version=None), "last")
    assert found.checkpoint == runs[0] / "last.ckpt"
    assert found.logger == {
        "class_path": LOGGERS + kind,
        "init_args": {"save_dir": str(tmp_path), "name": "name", "version": 10},
    }
    fixed = find_run(trainer(kind, save_dir=str(tmp_path), name="name", version=9), "last")
    assert fixed.checkpoint == runs[1] / "last.ckpt"


def test_runs_of_wandb_go_on_under_their_id(tmp_path: Path) -> None:
    put(tmp_path / "project" / "abc" / "checkpoints", tmp_path / "project" / "xyz" / "checkpoints")
    settings = trainer("WandbLogger", save_dir=str(tmp_path), project="project", id=None, version=None)
    found = find_run(settings, "last")
    assert found.checkpoint == tmp_path / "project" / "xyz" / "checkpoints" / "last.ckpt"
    assert found.logger is not None
    assert found.logger["init_args"]["id"] == "xyz"


def test_runs_of_mlflow_go_on_under_their_id(tmp_path: Path) -> None:
    put(tmp_path / "1" / "abc" / "checkpoints", tmp_path / "2" / "xyz" / "checkpoints")
    for address in ({"save_dir": str(tmp_path)}, {"tracking_uri": f"file:{tmp_path}"}):
        found = find_run(trainer("MLFlowLogger", run_id=None, **address), "last")
        assert found.checkpoint == tmp_path / "2" / "xyz" / "checkpoints" / "last.ckpt"
        assert found.logger is not None
        assert found.logger["init_args"]["run_id"] == "xyz"
    (tmp_path / "2" / "meta.yaml").write_text("name: of another experiment\n")
    found = find_run(trainer("MLFlowLogger", save_dir=str(tmp_path), experiment_name="mine"), "last")
    assert found.checkpoint == tmp_path / "1" / "abc" / "checkpoints" / "last.ckpt"


def test_without_a_logger_the_run_is_in_the_trainers_folder(tmp_path: Path) -> None:
    for run in ("version_0", "version_2", "version_1", "mine"):
        put(tmp_path / run / "checkpoints", name="best")
    found = find_run({"logger": False, "default_root_dir": str(tmp_path)}, "best")
    assert found == (tmp_path / "version_2" / "checkpoints" / "best.ckpt", None)
    found = find_run({"logger": False, "default_root_dir": str(tmp_path / "version_1")}, "best")
    assert found == (tmp_path / "version_1" / "checkpoints" / "best.ckpt", None)


@pytest.mark.parametrize("logger", [None, True])
def test_lightnings_own_logger(tmp_path: Path, logger: bool | None) -> None:
    put(tmp_path / "lightning_logs" / "version_3" / "checkpoints")
    found = find_run({"logger": logger, "default_root_dir": str(tmp_path)}, "last")
    assert found.logger is not None
    assert found.logger["init_args"]["version"] == 3


def test_the_folder_of_a_model_checkpoint_counts(tmp_path: Path) -> None:
    put(tmp_path / "mine")
    callback = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"dirpath": tmp_path / "mine"},
    }
    settings = trainer("CSVLogger", save_dir=str(tmp_path)) | {"callbacks": [callback]}
    assert find_run(settings, "last").checkpoint == tmp_path / "mine" / "last.ckpt"


@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger", "WandbLogger", "MLFlowLogger", "CometLogger"])
def test_nothing_found_is_an_error(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match=r"ckpt_path last: .*give (a|the) checkpoint"):
        find_run(trainer(kind, save_dir=str(tmp_path)), "last")
