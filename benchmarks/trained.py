"""A small trained teacher for the measurements of serving: two steps of the quickstart in float32, then its test.

Float32, because in bfloat16 a batch of another size may round differently; two steps, because what is asked is whether
the teacher writes the same elsewhere, not whether it writes well.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

ROOT = Path(__file__).parents[1]
ROWS = 100  #: test reviews
WST = [sys.executable, "-m", "wst"]  #: this repository's command, in the environment `here`


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        teacher: Its artefact.
        options: Options of the run, for `wst test` with another student.
        rows: The test's rows of the trained arm, in the order of the file.
    """

    teacher: Path
    options: list[str]
    rows: list[dict[str, Any]]


def trained(folder: Path) -> Trained:
    """Train and test once; a folder with a finished run is only read."""
    logger = ["--trainer.logger.init_args.save_dir", str(folder)]
    options = ["--config", "lightning_configs/quickstart.yaml", *logger]
    options += ["--model.init_args.teacher.init_args.dtype", "float32"]
    options += ["--data.init_args.limit_val", "8", "--data.init_args.limit_test", str(ROWS)]
    run = folder / "quickstart/version_0"
    if not (run / "teacher/last/wst.json").is_file():
        wst("fit", *options, "--trainer.max_steps", "2", "--trainer.val_check_interval", "2")
    if not (run / "rows.jsonl").is_file():
        wst("test", *options, "--ckpt_path", "last")
    return Trained(run / "teacher/last", options, trained_rows(run / "rows.jsonl"))


def trained_rows(path: Path) -> list[dict[str, Any]]:
    """Return the trained arm's rows of a ``rows.jsonl``."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["arm"] == "trained teacher"]


def here(**more: str) -> dict[str, str]:
    """Return the environment in which `WST` runs."""
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}", **more}


def wst(*arguments: str, **environment: str) -> None:
    """Run this repository's ``wst``."""
    subprocess.run([*WST, *arguments], cwd=ROOT, env=here(**environment), check=True)


@contextmanager
def serve(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """Run `wst serve` on a free port; yield its base URL and its process's id once it is up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], cwd=folder, env=environment)
    try:
        while not _up(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                raise SystemExit(f"wst serve ended with {process.returncode}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", process.pid
    finally:
        process.terminate()
        process.wait(60)


def _up(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False
