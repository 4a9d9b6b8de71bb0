"""With each logger, and with none, every run has a folder of its own; resume and test find it."""

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import write_config, wst

pytestmark = pytest.mark.slow
LOGGERS: dict[str, tuple[dict[str, Any] | bool, str | None]] = {
    "csv": (
        {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": "logs", "name": "tiny", "flush_logs_every_n_steps": 1},
        },
        "version",
    ),
    "wandb": (
        {
            "class_path": "lightning.pytorch.loggers.WandbLogger",
            "init_args": {"save_dir": "logs", "project": "tiny", "offline": True},
        },
        "id",
    ),
    "mlflow": (
        {
            "class_path": "lightning.pytorch.loggers.MLFlowLogger",
            "init_args": {"experiment_name": "tiny", "tracking_uri": "file:logs"},
        },
        "run_id",
    ),
    "none": (False, None),
}
FILES = ("teacher/last/wst.json", "teacher/best/wst.json", "checkpoints/last.ckpt", "instructions.jsonl", "config.yaml")


def runs(folder: Path) -> list[Path]:
    """Return the folders of the runs, the oldest first."""
    found = [path.parent.parent for path in folder.rglob("checkpoints/last.ckpt")]
    return sorted(found, key=lambda run: (run / "config.yaml").stat().st_mtime)


def hashes(run: Path) -> dict[str, str]:
    files = [path for path in run.rglob("*") if path.is_file() and "events" not in path.name]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", LOGGERS)
def test_two_seeds_with_each_logger(tiny_model: str, tmp_path: Path, name: str) -> None:
    logger, option = LOGGERS[name]
    if name in ("wandb", "mlflow") and find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    write_config(tmp_path, tiny_model, **{"trainer.logger": logger, "trainer.max_steps": 2})
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}

    def run(*arguments: str) -> None:
        done = wst([arguments[0], "--config", "config.yaml", *arguments[1:]], tmp_path, environment=environment)
        assert done.code == 0, done.err

    def steps(folder: Path) -> int:
        return int(torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"])

    run("fit", "--seed_everything=1")
    (first,) = runs(tmp_path)
    before = hashes(first)
    run("fit", "--seed_everything=2")
    assert hashes(first) == before  # the second run wrote nothing there
    _, second = runs(tmp_path)
    for folder, seed in ((first, 1), (second, 2)):
        assert [file for file in FILES if not (folder / file).is_file()] == []
        assert json.loads((folder / "teacher/last/wst.json").read_text())["seed"] == seed
    run("test", "--ckpt_path=last")  # the newest run's
    results = second / "test" if name == "none" else second
    assert json.loads((results / "results.json").read_text())["n"] == 10
    assert hashes(first) == before
    of_second = hashes(second)
    if option is None:
        chosen = [f"--trainer.default_root_dir={first}"]
    else:
        own = first.name.removeprefix("version_") if option == "version" else first.name
        chosen = [f"--trainer.logger.init_args.{option}={own}"]
    run("fit", "--ckpt_path=last", "--trainer.max_steps=3", *chosen)
    assert (steps(first), steps(second)) == (3, 2)
    assert hashes(second) == of_second
    assert len(runs(tmp_path)) == 2
    if name == "csv":
        header, *rows = (line.split(",") for line in (second / "metrics.csv").read_text().splitlines())
        of_test = [row[header.index("test/trained")] != "" for row in rows]
        assert [row[header.index("step")] for row in rows] == ["1", "2", "2", "2"]
        assert of_test == [False, False, False, True]
        assert [float(row[header.index("vitals/lr")]) for row in rows[:2]] == pytest.approx([0.01] * 2)
    if name == "mlflow":
        table = json.loads(next(tmp_path.rglob(f"{second.name}/artifacts/instructions.json")).read_text())
        assert table["columns"] == ["step", "query", "instruction", "response"]
        assert {row[0] for row in table["data"]} == {2}
    if name == "wandb":
        assert list(tmp_path.rglob("*instructions*.table.json"))


def test_last_without_a_run_is_an_error(tiny_model: str, tmp_path: Path) -> None:
    write_config(tmp_path, tiny_model, **{"trainer.logger": False})
    done = wst(["fit", "--config", "config.yaml", "--ckpt_path", "last"], tmp_path)
    assert done.code == 2
    assert "ckpt_path last: no last.ckpt in" in done.err


def test_a_run_does_not_begin_in_the_folder_of_another(tiny_model: str, tmp_path: Path, fitted: Path) -> None:
    before = hashes(fitted / "runs/tiny/version_0/teacher")
    done = wst(["fit", "--config", "config.yaml", "--trainer.logger.init_args.version=0"], fitted)
    assert done.code == 2
    assert "version_0 holds another run; resume it with ckpt_path" in done.err
    assert hashes(fitted / "runs/tiny/version_0/teacher") == before
