"""Whole-file writes, and the folders of the user's machine that the project keeps things in."""

from __future__ import annotations

import glob
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_scratch(path)
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
    clear_scratch(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}-old")


def clear_scratch(path: Path) -> None:
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


def follow_umask(folder: Path) -> None:
    """Give a new folder's files the permissions that the umask asks for; safetensors makes them private."""
    probe = folder / ".umask"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def cache_dir() -> Path:
    """Folder for converted models and answers: ``$WST_CACHE``, else ``wst`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WST_CACHE") or Path(base) / "wst")


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever is asked for
    if name == "AtomicCheckpointIO":  # the class path that configs of earlier versions name
        from wst.training.checkpoint import AtomicCheckpointIO

        return AtomicCheckpointIO
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
