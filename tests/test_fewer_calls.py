"""All measures for fewer calls at once: killed, resumed and spread over processes, a run is the same."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Outcome, write_config, wst
from safetensors.torch import load_file

RUN = Path("runs/tiny/version_0")
EXPORT = Path("teacher/last/adapter_model.safetensors")
FIT = ["fit", "--config", "config.yaml"]
MEASURES: dict[str, Any] = {
    "trainer.max_steps": 8,
    "trainer.val_check_interval": 4,
    "model.init_args.teacher.init_args.prompt": {"template": "{experience}\n{query}"},
    "model.init_args.baseline": {"class_path": "wst.QueryTracker"},
    "model.init_args.replay": {"class_path": "wst.Replay", "init_args": {"updates": 2}},
    "model.init_args.screen": {"class_path": "wst.Screen", "init_args": {"candidates": 3, "temperature": 0.05}},
    "model.init_args.warm_start": {
        "class_path": "wst.WarmStart",
        "init_args": {"sentences": ["ab", "XY"], "queries": 6, "samples": 2},
    },
    "model.init_args.resample": 2,
    "model.init_args.entropy_coef": 0.01,
    "model.init_args.entropy_steps": 6,
    "data.init_args.curriculum": {"class_path": "wst.Curriculum", "init_args": {"patience": 1, "rest": 2}},
}


def configure(folder: Path, model: str, **changes: Any) -> None:
    write_config(folder, model, **(MEASURES | changes))


def adapter(folder: Path, run: Path = RUN) -> dict[str, torch.Tensor]:
    return load_file(folder / run / EXPORT)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    configure(folder, tiny_model)
    done = wst(FIT, folder)
    assert done.code == 0, done.err
    assert "warm start: 24 answers for 6 queries" in done.out
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "hook", "saved"),
    [(0, "on_train_batch_start", 0), (3, "on_save_checkpoint", 2), (5, "on_before_optimizer_step", 5)],
)
def test_killed_and_resumed(tmp_path: Path, tiny_model: str, unbroken: Path, steps: int, hook: str, saved: int) -> None:
    configure(tmp_path, tiny_model)
    kill = [f"--trainer.callbacks.{key}" for key in (f"init_args.step={steps}", f"init_args.hook={hook}")]
    killed = wst([*FIT, "--trainer.callbacks+=toys.KillAt", *kill], tmp_path)
    assert killed.code == -signal.SIGKILL, killed.err
    done = wst([*FIT, "--ckpt_path", "last"] if saved else FIT, tmp_path)
    assert done.code == 0, done.err
    assert ("warm start:" in done.out) == (not saved)
    one, two = adapter(unbroken), adapter(tmp_path, RUN if saved else Path("runs/tiny/version_1"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_exported_prompt_holds_experience(unbroken: Path) -> None:
    settings = json.loads((unbroken / RUN / EXPORT).with_name("wst.json").read_text())
    template = settings["teacher"]["prompt"]["template"]
    assert template.startswith("Instructions that worked well for other requests:\n- ")
    assert template.endswith("\n{query}")


@pytest.mark.slow
def test_two_and_four_processes_train_what_one_trains(tmp_path: Path, tiny_model: str) -> None:
    adapters, written = {}, {}
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        folder.mkdir()
        several = {"trainer.strategy": "ddp", "trainer.devices": processes} if processes > 1 else {}
        configure(
            folder,
            tiny_model,
            **{
                "model.init_args.teacher.class_path": "toys.SeededTeacher",
                "model.init_args.student": {"class_path": "toys.Parrot"},
                "data.init_args.batch_size": 4 // processes,
            },
            **several,
        )
        done: Outcome = wst(FIT, folder, processes=processes)
        assert done.code == 0, done.err
        adapters[processes] = adapter(folder)
        rows = (folder / RUN / "instructions.jsonl").read_text().splitlines()
        written[processes] = [(row["id"], row["instruction"]) for row in map(json.loads, rows)]
    for processes in (2, 4):
        assert written[processes] == written[1]
        for name, value in adapters[processes].items():
            torch.testing.assert_close(value, adapters[1][name], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_run_that_has_ended_learning_ends_and_says_so(tmp_path: Path, tiny_model: str) -> None:
    """A reward that nobody can raise: after the first validation, two more show no gain."""
    student, reward = {"class_path": "toys.Parrot"}, {"class_path": "toys.Even"}
    write_config(tmp_path, tiny_model, **{"model.init_args.student": student, "model.init_args.reward": reward})
    stop = ["--trainer.callbacks+=wst.EarlyStop", "--trainer.callbacks.init_args.patience=2"]
    longer = ["--trainer.max_steps=40", "--model.init_args.optimizer.init_args.lr=0.0"]
    done = wst([*FIT, *longer, *stop], tmp_path)
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "early stop: 2 validations in a row show no gain over that of step 2; of the last one it is +0.000" in said
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    # Resumed as it is, it has ended; with more patience it goes on.
    again = wst([*FIT, *longer, *stop, "--ckpt_path", "last"], tmp_path)
    assert again.code == 0, again.err
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    more = wst([*FIT, *longer, *stop[:1], f"{stop[1][:-1]}3", "--ckpt_path", "last"], tmp_path)
    assert more.code == 0, more.err
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 8
