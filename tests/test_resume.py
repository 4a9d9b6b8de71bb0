"""Killed at any step and started again, a run ends as one that was never stopped: bit for bit."""

import signal
from pathlib import Path

import pytest
import torch
from runs import write_config, wst
from safetensors.torch import load_file

RUN = Path("runs/tiny/version_0")
LAST = Path("checkpoints/last.ckpt")
EXPORT = Path("teacher/last/adapter_model.safetensors")
RESUME = ["fit", "--config", "config.yaml", "--ckpt_path", "last"]


def saved_step(folder: Path, run: Path = RUN) -> int:
    """Step of the last checkpoint, 0 if there is none yet."""
    try:
        return int(torch.load(folder / run / LAST, weights_only=True)["global_step"])
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, torch.Tensor]:
    """Adapter of a run of 6 steps (2.4 epochs of 10 queries by 4) that nobody stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    write_config(folder, tiny_model)
    done = wst(["fit", "--config", "config.yaml"], folder)
    assert done.code == 0, done.err
    return load_file(folder / RUN / EXPORT)


# (steps made, hook it is killed in, steps saved by then). An epoch ends after step 3, validation runs after 2, 4 and 6.
MOMENTS = [
    *((step, "on_train_batch_start", step) for step in range(6)),
    (2, "on_before_optimizer_step", 2),
    (3, "on_train_batch_end", 2),  # the update is made, the checkpoint is not
    (3, "on_save_checkpoint", 2),
    (4, "on_validation_start", 4),
]


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "hook", "saved"), MOMENTS, ids=[f"{hook}-{steps}" for steps, hook, _ in MOMENTS])
def test_killed_and_resumed(
    tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor], steps: int, hook: str, saved: int
) -> None:
    write_config(tmp_path, tiny_model)
    kill = [f"--trainer.callbacks.{key}" for key in (f"init_args.step={steps}", f"init_args.hook={hook}")]
    killed = wst(["fit", "--config", "config.yaml", "--trainer.callbacks+=toys.KillAt", *kill], tmp_path)
    assert killed.code == -signal.SIGKILL, killed.err
    assert saved_step(tmp_path) == saved
    done = wst(RESUME if saved else RESUME[:3], tmp_path)
    assert done.code == 0, done.err
    run = tmp_path / ("runs/tiny/version_0" if saved else "runs/tiny/version_1")  # nothing saved: a new run
    assert saved_step(tmp_path, run) == 6
    resumed = load_file(run / EXPORT)
    assert resumed.keys() == unbroken.keys()
    assert all(torch.equal(value, unbroken[name]) for name, value in resumed.items())
    assert not list((run / LAST).parent.glob("*-v*.ckpt"))  # one file, always the same


@pytest.mark.slow
def test_another_seed_gives_another_run(tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor]) -> None:
    """Without this the comparison above might compare constants."""
    write_config(tmp_path, tiny_model, seed_everything=8)
    assert wst(["fit", "--config", "config.yaml"], tmp_path).code == 0
    other = load_file(tmp_path / RUN / EXPORT)
    assert any(not torch.equal(value, unbroken[name]) for name, value in other.items())
