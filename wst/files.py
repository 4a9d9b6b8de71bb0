"""Atomic file and folder writes, and the cache folder."""

from __future__ import annotations

import ctypes
import difflib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from wst._moved import MOVED_CLASSES, lazy_attributes
from wst.errors import ConfigError

SHIPPED = "wst:"  #: what the name of a file that comes with the package begins with
_AT_FDCWD = -100  #: linux/fcntl.h: relative names begin at the current folder
_EXCHANGE = 2  #: RENAME_EXCHANGE of linux/fs.h, RENAME_SWAP of macOS's sys/stdio.h


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which then takes the file's place: nobody, nor a crash, ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_scratch(path)
    scratch = _scratch(path)
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_whole(path: Path, text: str) -> None:
    """Write a text file whole. Half surrogates, which UTF-8 does not have, are written as JSON escapes them."""
    with replaced(path) as scratch:
        scratch.write_text(text, encoding="utf-8", errors="backslashreplace")


def expanded(path: str | Path) -> Path:
    """Return a path with ``~`` and ``~user`` replaced.

    Raises:
        ConfigError: If there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"path {str(path)!r}: there is no such user; give the whole path") from None


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder's content with ``fill``, then replace the old folder by it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    restore_folder(path)
    scratch = _scratch(path)
    scratch.mkdir()
    try:
        fill(scratch)
        for file in scratch.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        if not path.exists():
            scratch.rename(path)
        elif not _exchange(scratch, path):
            old = _old(path)
            path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically, so that a kill leaves both; return False where the system cannot do so."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(libc, "renameat2"):  # Linux
        return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
    if hasattr(libc, "renamex_np"):  # macOS
        return bool(libc.renamex_np(*names, _EXCHANGE) == 0)
    return False


def restore_folder(path: Path) -> None:
    """Restore what a killed `write_folder` had moved away, and remove what it had half-written."""
    if not path.exists() and _old(path).exists():
        _old(path).rename(path)
    clear_scratch(path)


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}-old")


def _scratch(path: Path) -> Path:
    # Not a file of `tempfile`, which only its owner may read: files of a run follow the umask.
    return path.with_name(f".{path.name}-{os.getpid()}")


def clear_scratch(path: Path) -> None:
    """Remove what a killed process left half-written. A file has one writer, so none of it is in use."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a JSON Lines file in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:  # which is how JSON escapes surrogates
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, so that not even a power cut brings an old name back."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_fault(path: str | Path, error: BaseException) -> str:
    """Return one line that says why a file cannot be written, and what to do."""
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
    """Set the permissions of a new folder's files according to the umask; safetensors makes them private."""
    probe = folder / ".umask"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def shipped_files() -> dict[str, Path]:
    """Return the files that come with the package by name: configs as ``overlays/endpoint``, data as ``data/...``."""
    package = Path(__file__).parent
    # A wheel holds them inside the package, a clone beside it.
    root = package / "_share" if (package / "_share").is_dir() else package.parent
    configs = root / "lightning_configs"
    named = {path.relative_to(configs).with_suffix("").as_posix(): path for path in sorted(configs.rglob("*.yaml"))}
    data = {path.relative_to(root).as_posix(): path for path in sorted((root / "data").rglob("*.jsonl"))}
    return named | data


def shipped(name: str) -> Path:
    """Return the file that a name means, such as ``wst:quickstart`` or ``wst:data/reviews/train.jsonl``.

    Raises:
        ConfigError: If the package has no such file.
    """
    wanted, files = name.removeprefix(SHIPPED).removesuffix(".yaml"), shipped_files()
    if wanted not in files:
        near = difflib.get_close_matches(wanted, files, 1)
        hint = f"did you mean {SHIPPED}{near[0]}?" if near else "`wst list` shows what there is"
        raise ConfigError(f"{name!r} does not come with wst; {hint}")
    return files[wanted]


def cache_dir() -> Path:
    """Return the folder for converted models and answers: ``$WST_CACHE``, else ``wst`` in the user's cache folder.

    Raises:
        ConfigError: If neither the variable is set nor a home folder known.
    """
    if folder := os.environ.get("WST_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wst"
    except RuntimeError:
        raise ConfigError(
            "no home folder is known for the cache of models and answers; set WST_CACHE to a folder"
        ) from None


__getattr__ = lazy_attributes(__name__, MOVED_CLASSES[__name__])
