"""Configs and runs of the real command line with tiny models; each run is forked from a process that has all loaded."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).parent


def write_config(folder: Path, model: str, **changes: Any) -> Path:
    """Write data and a config that trains the tiny model for a few steps; ``changes`` are dotted keys."""
    rows = [{"id": f"q{i}", "text": f"query number {i}", "label": "yes"} for i in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "seed_everything": 7,
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 6,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(folder / "runs"), "name": "tiny"},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
                },
                {"class_path": "wst.InstructionSamples"},
                {"class_path": "wst.TeacherExport"},
            ],
        },
        "model": {
            "class_path": "wst.WeakToStrong",
            "init_args": {
                "teacher": {
                    "class_path": "wst.Teacher",
                    "init_args": {
                        "model": model,
                        "prompt": {"template": "{query}"},
                        "dtype": "float32",
                        "max_new_tokens": 6,
                        "lora": {"r": 4, "alpha": 8},
                    },
                },
                "student": {
                    "class_path": "wst.LocalStudent",
                    "init_args": {"model": model, "dtype": "float32", "max_new_tokens": 5, "temperature": 1.0},
                },
                "reward": {"class_path": "toys.Lowercase"},
                "samples_per_query": 3,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "wst.QueryDataModule",
            "init_args": {
                "train": str(folder / "rows.jsonl"),
                "val": str(folder / "rows.jsonl"),
                "test": str(folder / "rows.jsonl"),
                "fields": {"id": "id"},
                "batch_size": 4,
                "eval_batch_size": 6,
                "limit_val": 4,
            },
        },
    }
    set_keys(config, changes)
    target = folder / "config.yaml"
    target.write_text(yaml.safe_dump(config))
    return target


def set_keys(config: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set dotted keys of a config."""
    for key, value in changes.items():
        *path, last = key.split(".")
        place = config
        for name in path:
            place = place[name]
        place[last] = value


@dataclass
class Outcome:
    """What a run left: exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def _child(args: list[str], folder: str, out: str, err: str, environment: dict[str, str]) -> None:
    assert "preload" in sys.modules  # a preload that fails is skipped in silence
    os.chdir(folder)
    for stream, path in ((sys.stdout, out), (sys.stderr, err)):
        stream.flush()
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    sys.argv = ["wst", *args]
    os.environ["WST_CACHE"] = str(Path(folder) / "cache")  # what other tests asked is not known here
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    from wst.__main__ import main

    code = 1
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    if "WST_TEST_CPU" in os.environ:
        with open(os.environ["WST_TEST_CPU"], "a") as file:
            file.write(f"{time.process_time():.2f}\n")
    os._exit(code)


def forking_context() -> multiprocessing.context.ForkServerContext:
    """Return the context of all forks in the tests; whoever is first starts the one server with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    with pytest.MonkeyPatch.context() as patch:  # the server keeps the path that it starts with
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]))
        forkserver.ensure_running()
    return context


def start(
    args: list[str],
    folder: Path,
    environment: dict[str, str] | None = None,
    name: str = "run",
) -> BaseProcess:
    """Start the command line, with the folder as current directory."""
    context = forking_context()
    files = str(folder / f"{name}.out"), str(folder / f"{name}.err")
    process = context.Process(target=_child, args=(args, str(folder), *files, environment or {}))
    process.start()
    return process


def start_several(args: list[str], folder: Path, processes: int) -> list[BaseProcess]:
    """Start the command line in processes that train together, as ``torchrun`` does; process 0 has the run's files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        place |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        environment = {key: str(value) for key, value in place.items()}
        started.append(start(args, folder, environment, "run" if rank == 0 else f"run-{rank}"))
    return started


def ended(processes: list[BaseProcess], folder: Path, timeout: float = 240) -> Outcome:
    """Wait for all of them to end, and return the outcome of rank 0.

    Raises:
        AssertionError: If one does not end.
    """
    until = time.monotonic() + timeout
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    out, err = folder / "run.out", folder / "run.err"
    if any(process.exitcode is None for process in processes):
        for process in processes:
            process.kill()
        raise AssertionError(f"it did not end: {err.read_text()}")
    code = processes[0].exitcode
    assert code is not None
    return Outcome(code, out.read_text(), err.read_text())


def wst(
    args: list[str],
    folder: Path,
    timeout: float = 240,
    environment: dict[str, str] | None = None,
    processes: int = 1,
) -> Outcome:
    """Run the command line to its end, with the folder as current directory."""
    started = start_several(args, folder, processes) if processes > 1 else [start(args, folder, environment)]
    return ended(started, folder, timeout)
