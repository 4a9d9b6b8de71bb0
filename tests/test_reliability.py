"""Each line of docs/reliability.md: what a run does when it cannot go on as it was."""

import ast
import json
import os
import re
import signal
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Outcome, write_config, wst
from safetensors.torch import load_file
from toys import PoisonedTeacher

from wst.errors import ModelError
from wst.training.checkpoint import AtomicCheckpointIO

RUN = Path("runs/tiny/version_0")
LAST = RUN / "checkpoints/last.ckpt"
EXPORT = RUN / "teacher/last/adapter_model.safetensors"
FIT = ["fit", "--config", "config.yaml"]
RESUME = [*FIT, "--ckpt_path", "last"]


def saved_step(folder: Path) -> int:
    return int(torch.load(folder / LAST, weights_only=True)["global_step"])


def with_callback(name: str, **settings: Any) -> list[str]:
    given = [f"--trainer.callbacks.init_args.{key}={value}" for key, value in settings.items()]
    return [f"--trainer.callbacks+=toys.{name}", *given]


def assert_one_line(done: Outcome, code: int) -> str:
    """Check that the run ended with one clear line, and return it."""
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith(("wst: error", "wst: ended"))]
    assert len(lines) == 1, done.err
    assert done.code == code, done.err
    return lines[0]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("unbroken")
    write_config(folder, tiny_model)
    assert wst(FIT, folder).code == 0
    return load_file(folder / EXPORT)


def assert_goes_on(folder: Path, unbroken: dict[str, torch.Tensor]) -> None:
    done = wst(RESUME, folder)
    assert done.code == 0, done.err
    resumed = load_file(folder / EXPORT)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


# --- signals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "hook", "saved"),
    [
        (signal.SIGINT, "on_train_batch_end", 3),
        (signal.SIGTERM, "on_train_batch_end", 3),
        (signal.SIGTERM, "on_before_optimizer_step", 4),  # the step that has begun is finished
        (signal.SIGINT, "on_validation_batch_start", 4),  # and a validation is left after its batch
    ],
)
def test_a_signal_ends_the_run_after_the_step(
    tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor], number: int, hook: str, saved: int
) -> None:
    write_config(tmp_path, tiny_model, **{"data.init_args.eval_batch_size": 2})
    step = 4 if "validation" in hook else 3
    done = wst([*FIT, *with_callback("SignalAt", step=step, number=int(number), hook=hook)], tmp_path)
    line = assert_one_line(done, 128 + number)
    assert line == f"wst: ended by {number.name} after step {saved}, saved as last.ckpt; go on with --ckpt_path last"
    assert f"{number.name}: the step is finished, then the run ends; once more ends it now" in done.err
    assert saved_step(tmp_path) == saved
    assert_goes_on(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_now(tmp_path: Path, tiny_model: str, number: int) -> None:
    write_config(tmp_path, tiny_model)
    done = wst([*FIT, *with_callback("SignalAt", step=3, number=int(number), times=2)], tmp_path)
    assert done.code == -number
    assert f"{signal.Signals(number).name}: the step is finished" in done.err  # the first one did not end it
    assert saved_step(tmp_path) == 2  # what was saved before is whole; the callback comes before the checkpoint's


@pytest.mark.slow
def test_a_test_is_left_between_two_batches(fitted: Path) -> None:
    kill = with_callback("SignalAt", step=0, number=int(signal.SIGTERM), hook="on_test_batch_start")
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last", *kill], fitted)
    assert assert_one_line(done, 128 + signal.SIGTERM) == "wst: ended by SIGTERM"


@pytest.mark.slow
def test_slurm_requeues_after_the_step(
    tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's signal comes in the middle of a step; what Lightning saves then must not miss its queries."""
    called = tmp_path / "scontrol.called"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/scontrol"
    script.write_text(f"#!/bin/sh\necho $@ > {called}\n")
    script.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "night",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "localhost",
    }
    write_config(tmp_path, tiny_model, **{"trainer.default_root_dir": str(tmp_path / "root"), "trainer.max_steps": 4})
    ask = with_callback("SignalAt", step=2, number=int(signal.SIGUSR1), hook="on_before_optimizer_step")
    done = wst([*FIT, *ask], tmp_path, environment=environment)
    assert done.code == 0, done.err
    assert called.read_text().split() == ["requeue", "7"]
    (saved,) = (tmp_path / "root").glob("hpc_ckpt_*.ckpt")
    assert torch.load(saved, weights_only=True)["global_step"] == 3
    # Started again, as SLURM does it: the same command. Lightning finds the checkpoint.
    (tmp_path / "runs").rename(tmp_path / "before")
    write_config(tmp_path, tiny_model, **{"trainer.default_root_dir": str(tmp_path / "root")})
    done = wst(FIT, tmp_path, environment=environment)
    assert done.code == 0, done.err
    resumed = load_file(tmp_path / EXPORT)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)


# --- what cannot be written


@pytest.mark.slow
def test_a_log_folder_that_is_gone_is_made_anew(tmp_path: Path, tiny_model: str) -> None:
    write_config(tmp_path, tiny_model)
    done = wst([*FIT, *with_callback("RemoveLogs")], tmp_path)
    assert done.code == 0, done.err
    assert f"log folder {tmp_path / RUN} is gone, with what was in it; it is made anew" in done.err
    assert saved_step(tmp_path) == 6
    assert [json.loads(line)["step"] for line in (tmp_path / RUN / "instructions.jsonl").open()][-1] == 6
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / RUN))
    events.Reload()
    assert [event.step for event in events.Scalars("train/reward")] == [3, 4, 5, 6]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["checkpoints", "logs", "cache"])
def test_a_full_disk_ends_the_run_with_one_line(tmp_path: Path, tiny_model: str, small_disk: Path, what: str) -> None:
    write_config(tmp_path, tiny_model)
    options: list[str] = []
    environment = {}
    if what == "cache":
        environment["WST_CACHE"] = str(small_disk)
        options += [f"--model.init_args.student.init_args.{set}" for set in ("cache=true", "temperature=0")]
    else:
        options += [f"--trainer.logger.init_args.save_dir={small_disk / 'runs'}"]
    done = wst([*FIT, *options], tmp_path, environment=environment)
    assert done.code == 0, done.err
    run = (small_disk if what != "cache" else tmp_path) / ("runs/tiny/version_0" if what != "cache" else RUN)
    before = (run / "checkpoints/last.ckpt").read_bytes()
    adapter = (run / "teacher/last/adapter_model.safetensors").read_bytes()
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    left = {"checkpoints": 100_000, "logs": 0, "cache": 0}[what]
    (small_disk / "ballast").write_bytes(b"x" * max(0, free - left))
    more = ["--trainer.max_steps=12", *(["--seed_everything=8"] if what == "cache" else [])]
    done = wst([*RESUME, *options, *more], tmp_path, environment=environment)
    line = assert_one_line(done, 2)
    assert re.search("No space left on device|cannot be written|is full", line), line
    if what != "cache":
        assert (run / "checkpoints/last.ckpt").read_bytes() == before
        assert (run / "teacher/last/adapter_model.safetensors").read_bytes() == adapter
    assert not list((run / "checkpoints").glob(".*"))
    (small_disk / "ballast").unlink()
    done = wst([*RESUME, *options, *more], tmp_path, environment=environment)
    assert done.code == 0, done.err
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


# --- numbers and memory


@pytest.mark.slow
def test_a_step_whose_loss_is_no_number_makes_no_update(tmp_path: Path, tiny_model: str) -> None:
    poison = with_callback("Poisoned", steps=[2])
    for folder, name in ((tmp_path / "poisoned", "toys.PoisonedTeacher"), (tmp_path / "sound", "wst.Teacher")):
        folder.mkdir()
        write_config(folder, tiny_model, **{"model.init_args.teacher.class_path": name, "trainer.max_steps": 3})
        done = wst([*FIT, *(poison if folder.name == "poisoned" else [])], folder)
        assert done.code == 0, done.err
        if folder.name == "sound":
            continue
        warned = re.search(
            r"step 3: loss or gradient is not a number, because of instruction '(.*?)'( and|;)", done.err
        )
        assert warned is not None, done.err
        assert PoisonedTeacher.hits(ast.literal_eval(f"'{warned[1]}'"))
        assert saved_step(folder) == 3  # three updates, in four steps
    before, after = (load_file(tmp_path / name / EXPORT) for name in ("poisoned", "sound"))
    assert all(bool(value.isfinite().all()) for value in before.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_several_such_steps_in_a_row_end_the_run(tmp_path: Path, tiny_model: str) -> None:
    teacher = {"model.init_args.teacher.class_path": "toys.PoisonedTeacher", "model.init_args.max_skips": 2}
    write_config(tmp_path, tiny_model, **teacher)
    done = wst([*FIT, *with_callback("Poisoned", steps=[1, 2, 3])], tmp_path)
    line = assert_one_line(done, 2)
    assert "loss or gradient is not a number" in line
    assert "in step 2 in a row; lower the learning rate, then resume" in line
    assert all(bool(v.isfinite().all()) for v in torch.load(tmp_path / LAST, weights_only=True)["state_dict"].values())


@pytest.mark.slow
def test_out_of_gpu_memory_names_what_to_lower(
    tmp_path: Path, tiny_model: str, unbroken: dict[str, torch.Tensor]
) -> None:
    write_config(tmp_path, tiny_model)
    done = wst([*FIT, "--model.init_args.student=toys.OutOfMemory", "--trainer.val_check_interval=5"], tmp_path)
    line = assert_one_line(done, 2)
    assert "out of GPU memory in phase respond: lower student.init_args.batch_size, or its max_new_tokens" in line
    assert saved_step(tmp_path) == 2


# --- resuming with something else


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("model.init_args.teacher.init_args.prompt.template", "Now {query}", "prompt"),
        ("model.init_args.teacher.init_args.temperature", 0.5, "temperature 1.0, now it is 0.5"),
        ("model.init_args.teacher.init_args.max_new_tokens", 5, "max_new_tokens 6, now it is 5"),
        ("data.init_args.limit_train", 9, "made with 10 training queries, now there are 9"),
        ("data.init_args.batch_size", 5, "batch_size 4, now it is 5"),
    ],
)
def test_a_run_goes_on_with_other_settings_only_if_told_to(
    tmp_path: Path, tiny_model: str, option: str, value: object, said: str
) -> None:
    write_config(tmp_path, tiny_model, **{"trainer.max_steps": 2})
    assert wst(FIT, tmp_path).code == 0
    before = (tmp_path / LAST).read_bytes()
    more = ["--trainer.max_steps=4", f"--{option}={value}"]
    line = assert_one_line(wst([*RESUME, *more], tmp_path), 2)
    room = option.split(".")[0]
    assert re.search(said, line), line
    assert f"{room}.init_args.resume_changed to true" in line
    assert (tmp_path / LAST).read_bytes() == before
    done = wst([*RESUME, *more, f"--{room}.init_args.resume_changed=true"], tmp_path)
    assert done.code == 0, done.err
    assert re.search(f"{said}.*resuming anyway", done.err.replace("\n", " ")), done.err
    assert saved_step(tmp_path) == 4


@pytest.mark.slow
@pytest.mark.parametrize(("option", "value"), [("r", 8), ("alpha", 16), ("target_modules", "[q_proj]")])
def test_another_lora_is_named(tmp_path: Path, tiny_model: str, option: str, value: object) -> None:
    write_config(tmp_path, tiny_model, **{"trainer.max_steps": 2})
    assert wst(FIT, tmp_path).code == 0
    other = f"--model.init_args.teacher.init_args.lora.{option}={value}"
    line = assert_one_line(wst([*RESUME, "--trainer.max_steps=4", other], tmp_path), 2)
    assert "the teacher's lora" in line
    done = wst([*RESUME, "--trainer.max_steps=4", other, "--model.init_args.resume_changed=true"], tmp_path)
    if option == "alpha":  # the weights fit
        assert done.code == 0, done.err
    else:
        assert "the checkpoint is of another teacher" in assert_one_line(done, 2)


# --- checkpoints from strangers


class Evil:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch owned",)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path, tiny_model: str, stage: str) -> None:
    write_config(tmp_path, tiny_model)
    torch.save({"state_dict": {}, "hyper_parameters": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    line = assert_one_line(wst([stage, "--config", "config.yaml", "--ckpt_path", "evil.ckpt"], tmp_path), 2)
    assert "does not load with weights_only" in line
    assert not (tmp_path / "owned").exists()
    with pytest.raises(ModelError, match="does not load with weights_only"):
        AtomicCheckpointIO().load_checkpoint(str(tmp_path / "evil.ckpt"), weights_only=False)
    assert not Path("owned").exists()


# --- a long run


@pytest.mark.parametrize("steps", [pytest.param(2000, marks=pytest.mark.long)])
def test_a_long_run_neither_grows_nor_slows_down(tmp_path: Path, tiny_model: str, steps: int) -> None:
    write_config(
        tmp_path,
        tiny_model,
        **{
            "trainer.max_steps": steps,
            "trainer.val_check_interval": 100,
            # Of one length, so that later steps are not shorter because the teacher has learnt to be brief.
            "model.init_args.reward": {"class_path": "toys.Even"},
            "model.init_args.student": {"class_path": "toys.Forgetful"},
        },
    )
    watch = with_callback("Watch", path=str(tmp_path / "watch.jsonl"))
    done = wst([*FIT, *watch], tmp_path, timeout=3000)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").open()]
    early, late = rows[150:250], rows[-100:]
    for name in ("memory", "files", "seconds"):
        before, after = (statistics.median(row[name] for row in part) for part in (early, late))
        print(f"{name}: {before} at step 200, {after} at step {steps}")
        assert after <= 1.05 * before, name
