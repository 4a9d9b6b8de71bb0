"""Writing files whole or not at all."""

from __future__ import annotations

import glob
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from wst.errors import ModelError, StorageError
from wst.rollout import Rollout


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_scratch(path)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}-", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
    sync_folder(path.parent)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a folder's content, then put it in the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(path)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        fill(scratch)
        for file in scratch.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        scratch.chmod(0o755)
        old = _old(path)
        if path.exists():
            path.rename(old)
        scratch.rename(path)
        sync_folder(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def restore_folder(path: Path) -> None:
    """Put back what `write_folder` had moved out of the way when it was killed, and remove what it had half-written."""
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)
    _clear_scratch(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}-old")


def _clear_scratch(path: Path) -> None:
    """Remove what a killed process left half-written. A file has one writer, so that none of it is in use."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSON Lines file in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a row of a JSON Lines file."""
    query, instruction, response = rollout.query, rollout.instruction, rollout.response
    row: dict[str, Any] = {
        "id": query.id,
        "query": query.text,
        "target": query.target,
        "instruction": instruction.text if instruction is not None else None,
        "response": response.text,
        "truncated": response.truncated,
    }
    return row if response.error is None else row | {"error": response.error}


def log_folder(trainer: Trainer) -> Path:
    """Folder that the run's own files go to: the first logger's, or the trainer's root folder.

    It is process 0 that writes there; another one may number its runs differently, and has to ask it.
    """
    # The trainer's own `log_dir` waits for all processes, which are not all here.
    for logger in trainer.loggers[:1]:
        folder = logger.log_dir if isinstance(logger, TensorBoardLogger | CSVLogger) else logger.save_dir
        if folder is not None:
            return Path(folder)
    return Path(trainer.default_root_dir)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its place and moves it there, so that a kill leaves the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write the checkpoint whole or not at all.

        Raises:
            StorageError: If it cannot be written; an older one of that name is as it was.
        """
        target = Path(path)
        scratch = target.with_name(f".{target.name}-{os.getpid()}")
        _clear_scratch(target)
        try:
            super().save_checkpoint(checkpoint, scratch, storage_options)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(target)
            sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            # torch's writer makes a RuntimeError, with C++ frames in its text, of what the system says.
            if isinstance(error, OSError) or "PytorchStreamWriter" in str(error) or "inline_container" in str(error):
                raise StorageError(storage_fault(target, error)) from error
            raise
        finally:
            scratch.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: ANN401
        """Load a checkpoint, whoever asks, without running code that it may hold.

        Raises:
            ModelError: If it holds more than weights and plain values, or is no checkpoint.
        """
        del weights_only
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise ModelError(
                f"checkpoint {str(path)!r} does not load with weights_only; give one that `wst fit` wrote"
            ) from error


def sync_folder(folder: Path) -> None:
    """Have what was renamed in a folder on disk, so that not even a power cut brings the old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_fault(path: str | Path, error: BaseException) -> str:
    """Say in one line why a file cannot be written, and what to do."""
    reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "the write failed"
    try:
        free = shutil.disk_usage(next(parent for parent in Path(path).absolute().parents if parent.is_dir())).free
        room = f", {free // 1024**2} MB are free there"
    except OSError:
        room = ""
    return (
        f"{path} cannot be written ({reason}{room}); what was written before is whole. Make room, or see to the "
        "folder, then go on with --ckpt_path last"
    )
