"""Killed at any step and started again, a run ends as one that was never stopped: bit for bit."""

from pathlib import Path

import pytest
import torch
from runs import kill_when, write_config, wst
from safetensors.torch import load_file

LAST = Path("runs/tiny/version_0/checkpoints/last.ckpt")
EXPORT = Path("runs/tiny/version_0/teacher/last/adapter_model.safetensors")
RESUME = ["fit", "--config", "config.yaml", "--ckpt_path", "last"]


def saved_step(folder: Path) -> int:
    """Step of the last checkpoint, 0 if there is none yet."""
    try:
        return int(torch.load(folder / LAST, weights_only=True)["global_step"])
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, torch.Tensor]:
    """Adapter of a run of 6 steps (2.4 epochs of 10 queries by 4) that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_config(folder, tiny_model)
    done = wst(["fit", "--config", "config.yaml"], folder)
    assert done.code == 0, done.err
    return load_file(folder / EXPORT)


@pytest.mark.parametrize("step", range(1, 6))
def test_killed_and_resumed(tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor], step: int) -> None:
    write_config(tmp_path, tiny_model)
    assert kill_when(["fit", "--config", "config.yaml"], tmp_path, lambda: saved_step(tmp_path) >= step)
    assert 1 <= saved_step(tmp_path) < 6
    done = wst(RESUME, tmp_path)
    assert done.code == 0, done.err
    assert saved_step(tmp_path) == 6
    resumed = load_file(tmp_path / EXPORT)
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(value, unbroken[name]) for name, value in resumed.items())
    assert not list((tmp_path / LAST).parent.glob("*-v*.ckpt"))  # one file, always the same


def test_another_seed_gives_another_run(tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor]) -> None:
    """Without this the comparison above might compare constants."""
    write_config(tmp_path, tiny_model, seed_everything=8)
    assert wst(["fit", "--config", "config.yaml"], tmp_path).code == 0
    other = load_file(tmp_path / EXPORT)
    assert any(not torch.equal(value, unbroken[name]) for name, value in other.items())
