"""Where the earlier runs of a config are: ``--ckpt_path last`` and ``best``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from wst.errors import ConfigError
from wst.training.folders import run_number


class Run(NamedTuple):
    """An earlier run.

    Attributes:
        checkpoint: The checkpoint asked for.
        logger: Class path and arguments of the logger that goes on in the run's folder; None without a logger.
    """

    checkpoint: Path
    logger: dict[str, Any] | None


def find_run(trainer: Mapping[str, Any], name: str) -> Run:
    """Return the newest run of a trainer's logger that has a checkpoint.

    Args:
        trainer: The config's settings of the trainer.
        name: Of the checkpoint: "last" or "best".

    Raises:
        ConfigError: If there is none, or the logger does not say where its runs are.
    """
    root = str(trainer.get("default_root_dir") or ".")
    logger = trainer.get("logger")
    if isinstance(logger, list):
        logger = logger[0] if logger else False
    if logger is None or logger is True:  # Lightning's own choice
        arguments = {"save_dir": root, "name": "lightning_logs"}
        logger = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": arguments}
    folder = _folder_of_checkpoints(trainer)
    if not logger:
        given = folder or (Path(root) / "checkpoints" if run_number(Path(root)) is not None else None)
        return Run(_newest([given] if given else _numbered(Path(root), "*", name), name, f"{root}/version_*"), None)
    kind = logger["class_path"].rpartition(".")[2]
    init: dict[str, Any] = dict(logger.get("init_args") or {})
    if folder is not None:
        return Run(_newest([folder], name), logger)
    if kind in ("TensorBoardLogger", "CSVLogger"):
        runs, option = Path(init.get("save_dir") or root) / str(init.get("name", "lightning_logs") or ""), "version"
    elif kind == "WandbLogger":
        project = Path(init.get("save_dir") or init.get("dir") or root) / str(init.get("project") or "lightning_logs")
        runs, option = project, "id" if init.get("version") is None else "version"
    elif kind == "MLFlowLogger":
        address = str(init.get("tracking_uri") or f"file:{init.get('save_dir') or './mlruns'}")
        # A server's runs have their checkpoints in the trainer's folder. The first level is the experiment's number.
        runs, option = Path(address.removeprefix("file:") if address.startswith("file:") else root), "run_id"
    else:
        raise ConfigError(f"ckpt_path {name}: the runs of a {kind} cannot be told apart; give the checkpoint's file")
    fixed = init.get(option)
    chosen = f"version_{fixed}" if isinstance(fixed, int) else str(fixed or "*")
    experiments = [runs]
    if kind == "MLFlowLogger":
        experiments = [path for path in runs.glob("*") if _is_experiment(path, init.get("experiment_name"))]
    found = [path / "checkpoints" for experiment in experiments for path in experiment.glob(chosen)]
    if option == "version" and fixed is None:
        found = _numbered(runs, chosen, name)
    checkpoint = _newest(found, name, f"{runs}{'/*' * (kind == 'MLFlowLogger')}/{chosen}/checkpoints")
    own = checkpoint.parent.parent.name
    number = run_number(checkpoint.parent.parent)
    init[option] = own if number is None else number
    return Run(checkpoint, {**logger, "init_args": init})


def _is_experiment(folder: Path, name: str | None) -> bool:
    """Return whether a folder, called by a number, may be that of MLflow's experiment; a database keeps its name."""
    meta = folder / "meta.yaml"
    if not meta.is_file():
        return folder.name.isdecimal()
    return bool(yaml.safe_load(meta.read_text(encoding="utf-8")).get("name") == (name or "lightning_logs"))


def _numbered(runs: Path, pattern: str, name: str) -> list[Path]:
    """Return the folder of checkpoints of the last numbered run that has the one; a copy of a run has no number."""
    found = [(number, path) for path in runs.glob(pattern) if (number := run_number(path)) is not None]
    return [path / "checkpoints" for _, path in sorted(found) if (path / "checkpoints" / f"{name}.ckpt").is_file()][-1:]


def _newest(folders: list[Path], name: str, searched: str | None = None) -> Path:
    files = [file for folder in folders if (file := folder / f"{name}.ckpt").is_file()]
    if not files:
        raise ConfigError(
            f"ckpt_path {name}: no {name}.ckpt in {searched or folders[0]}; run `wst fit` without --ckpt_path first, "
            "or give a checkpoint file"
        )
    return max(files, key=lambda file: file.stat().st_mtime)


def _folder_of_checkpoints(trainer: Mapping[str, Any]) -> Path | None:
    """Return the folder that the config gives to a ModelCheckpoint, if it gives one."""
    callbacks = trainer.get("callbacks")
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, Mapping) and str(callback.get("class_path", "")).endswith(".ModelCheckpoint"):
            folder = (callback.get("init_args") or {}).get("dirpath")
            if folder is not None:
                return Path(folder)
    return None
