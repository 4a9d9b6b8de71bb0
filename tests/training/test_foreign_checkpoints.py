"""A checkpoint of somebody else deletes nothing and ends in one line; the settings of the config win over it."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import Lowercase, SixQueries, small_module
from trainers import quiet_trainer

from wst import Standardized, TeacherExport, WarmupLinear
from wst.errors import ModelError, WSTError
from wst.training.checkpoint import AtomicCheckpointIO


def saver(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "c", every_n_train_steps=1, save_top_k=0, save_last=True)


def run(model: str, folder: Path, steps: int, path: Path | None = None, **settings: Any) -> Any:
    module = small_module(model, reward=Standardized(Lowercase(), queries=3), **settings)
    callbacks, plugins = [saver(folder)], [AtomicCheckpointIO()]
    trainer = quiet_trainer(
        folder, max_steps=steps, callbacks=callbacks, plugins=plugins, enable_checkpointing=True, limit_val_batches=0
    )
    trainer.fit(module, SixQueries(batch_size=2), ckpt_path=path)
    return module


@pytest.fixture(scope="module")
def saved(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    run(tiny_model, folder, 2)
    return folder / "c/last.ckpt"


def changed(saved: Path, folder: Path, change: Callable[[Any], object]) -> Path:
    checkpoint = copy.deepcopy(torch.load(saved, weights_only=True))
    change(checkpoint)
    path = folder / "c/strange.ckpt"
    path.parent.mkdir()
    torch.save(checkpoint, path)
    return path


@pytest.mark.parametrize("name", ["local://{}", "{}", "{folder}/c/../victim", "file://{}"])
def test_nothing_that_it_names_is_deleted(saved: Path, tmp_path: Path, tiny_model: str, name: str) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("mine")

    def change(checkpoint: Any) -> None:
        (state,) = (s for key, s in checkpoint["callbacks"].items() if key.startswith("ModelCheckpoint"))
        del state["dirpath"]
        state["last_model_path"] = name.format(victim, folder=tmp_path)

    run(tiny_model, tmp_path, 4, changed(saved, tmp_path, change))
    assert (victim / "thesis.txt").read_text() == "mine"
    assert (tmp_path / "c/last.ckpt").is_file()


def test_only_files_are_removed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        AtomicCheckpointIO().remove_checkpoint(tmp_path / "folder")


def put(*path: Any) -> Callable[[Any], None]:
    *keys, value = path

    def change(checkpoint: Any) -> None:
        place = checkpoint
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        put("wst", "reward", [1]),
        put("wst", "reward", "mean", "x"),
        put("wst", "reward", "mean", float("nan")),
        put("wst", "reward", "spread", 0.0),
        put("wst", "reward", "spread", -1.0),
        put("wst", "reward", {"mean": 0.5}),
        put("callbacks", [1]),
        put("wst_curve", [1]),
        put("wst_curve", {"figures": {}}),
        put("wst_curve", {"step": "x", "figures": {}}),
        put("optimizer_states", [{}]),
        put("optimizer_settings", [{"lr": "x"}]),
        put("optimizer_settings", 5),
        put("lr_schedulers", 5),
        lambda checkpoint: checkpoint["state_dict"].__setitem__(0, torch.zeros(1)),
        lambda checkpoint: [
            state.update(queries=torch.tensor([1, 2]))
            for state in checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]
        ],
    ],
)
def test_what_cannot_be_read_is_one_line(
    saved: Path, tmp_path: Path, tiny_model: str, change: Callable[[Any], object]
) -> None:
    path = changed(saved, tmp_path, change)
    with pytest.raises(WSTError, match=r"checkpoint.* cannot be read") as caught:
        run(tiny_model, tmp_path, 4, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("best", ["x", float("nan"), None])
def test_a_best_figure_that_is_none(best: Any) -> None:
    with pytest.raises(ModelError, match="its best figure is"):
        TeacherExport().load_state_dict({"best": best, "best_step": 3})
    with pytest.raises(ModelError, match="its best figure is"):
        TeacherExport().load_state_dict({})


def optimizer(lr: float, **settings: Any) -> Callable[[Any], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, **settings)


@pytest.mark.parametrize("scheduled", [False, True])
def test_a_resumed_run_has_the_learning_rate_of_its_config(tiny_model: str, tmp_path: Path, scheduled: bool) -> None:
    def schedule(end_factor: float) -> Any:
        return lambda optimizer: WarmupLinear(optimizer, 2, 4, end_factor=end_factor)

    def settings(lr: float, end: float, **more: Any) -> dict[str, Any]:
        return {"optimizer": optimizer(lr, **more), "lr_scheduler": schedule(end) if scheduled else None}

    run(tiny_model, tmp_path, 3, **settings(1e-2, 1.0))
    path = tmp_path / "c/last.ckpt"
    module = run(tiny_model, tmp_path, 4, path, **settings(1e-4, 0.5, weight_decay=0.5, betas=(0.5, 0.9)))
    (group,) = module.trainer.optimizers[0].param_groups
    assert (group["weight_decay"], group["betas"]) == (0.5, (0.5, 0.9))
    # After four steps of a schedule, half of the way from 1 to 0.5.
    assert group["lr"] == pytest.approx(0.75e-4 if scheduled else 1e-4)
    whole = run(tiny_model, tmp_path / "whole", 4, **settings(1e-4, 0.5))
    assert [g["lr"] for g in whole.trainer.optimizers[0].param_groups] == pytest.approx([group["lr"]])


def test_a_schedule_of_another_kind_goes_on_from_the_new_rate(tiny_model: str, tmp_path: Path) -> None:
    def settings(lr: float) -> dict[str, Any]:
        return {
            "optimizer": optimizer(lr),
            "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.1),
        }

    run(tiny_model, tmp_path, 3, **settings(1e-2))
    module = run(tiny_model, tmp_path, 5, tmp_path / "c/last.ckpt", **settings(1e-3))
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)
