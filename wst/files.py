"""Writing files whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from wst.rollout import Rollout


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
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


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a folder's content, then put it in the old one's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        fill(scratch)
        scratch.chmod(0o755)
        old = path.with_name(f".{path.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        scratch.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


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
    """Folder that the run's own files go to: the logger's, or the trainer's root folder."""
    return Path(trainer.log_dir or trainer.default_root_dir)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint next to its place and moves it there, so that a kill leaves the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write the checkpoint whole or not at all."""
        target = Path(path)
        scratch = target.with_name(f".{target.name}-{os.getpid()}")
        try:
            super().save_checkpoint(checkpoint, scratch, storage_options)
            with scratch.open("rb") as file:
                os.fsync(file.fileno())
            scratch.replace(target)
        finally:
            scratch.unlink(missing_ok=True)
