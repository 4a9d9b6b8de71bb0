"""Killed at any moment, a run of one process or of two goes on as if it had not been.

The long form: ``pytest -m long -s tests/test_crashes.py``.
"""

import signal
from pathlib import Path

import pytest
import torch
from crashes import FIT, RESUME, RUN, configure, crash, faults
from endpoints import FakeServer, last_user_text
from runs import wst
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("unbroken")
    configure(folder, tiny_model, 1)
    assert wst(FIT, folder).code == 0
    return load_file(folder / RUN / "teacher/last/adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 30])  # in the middle, and where no step is left
@pytest.mark.parametrize("hook", ["on_validation_start", "on_validation_batch_end", "on_validation_end"])
def test_killed_in_a_validation(
    tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor], step: int, hook: str
) -> None:
    """The validation is made again: no figure of it is missing, and none is of a part of it."""
    configure(tmp_path, tiny_model, 1)
    kill = [f"--trainer.callbacks.{key}" for key in (f"init_args.step={step}", f"init_args.hook={hook}")]
    assert wst([*FIT, "--trainer.callbacks+=toys.KillAt", *kill], tmp_path).code == -signal.SIGKILL
    done = wst(RESUME, tmp_path)
    assert done.code == 0, done.err
    assert faults(tmp_path, unbroken) == []


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 30])
def test_asked_to_leave_in_a_validation(
    tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor], step: int
) -> None:
    configure(tmp_path, tiny_model, 1)
    settings = {"step": step, "number": int(signal.SIGTERM), "hook": "on_validation_batch_start"}
    ask = [f"--trainer.callbacks.init_args.{key}={value}" for key, value in settings.items()]
    smaller = ["--data.init_args.eval_batch_size=1"]  # four batches
    assert wst([*FIT, *smaller, "--trainer.callbacks+=toys.SignalAt", *ask], tmp_path).code == 128 + signal.SIGTERM
    done = wst([*RESUME, *smaller], tmp_path)
    assert done.code == 0, done.err
    assert faults(tmp_path, unbroken) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "kills"),
    [
        (1, 6),
        (2, 3),
        pytest.param(1, 100, marks=pytest.mark.long),
        pytest.param(2, 100, marks=pytest.mark.long),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, tiny_model: str, processes: int, kills: int) -> None:
    assert crash(tmp_path, tiny_model, kills, processes, seed=kills + processes) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 2), pytest.param(1, 100, marks=pytest.mark.long), pytest.param(2, 40, marks=pytest.mark.long)],
)
def test_killed_with_an_endpoint_and_a_progress_bar(
    tmp_path: Path, tiny_model: str, processes: int, kills: int
) -> None:
    with FakeServer(answer=last_user_text) as server:
        found = crash(tmp_path, tiny_model, kills, processes, seed=kills + processes, url=server.url)
    assert found == []
