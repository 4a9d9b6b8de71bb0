"""Rows of a public data set: from the hub, or from files of the same format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wst.data.jsonl import Row, check_file, read_rows
from wst.errors import DataError

_PATTERNS = ("{split}.jsonl", "{split}.jsonl.gz", "{split}.parquet", "{split}-*.parquet")


def file_rows(path: str | Path) -> Iterator[Row]:
    """Read a JSON Lines file (plain or gzip) or a parquet file.

    Raises:
        DataError: If it cannot be read; the message names file and row.
    """
    path = Path(path)
    check_file(path)
    # From the absolute path, so that a row's id does not depend on the current directory. Links are not resolved: the
    # hub's cache links to files whose names say nothing.
    name = "/".join(Path(os.path.abspath(path)).parts[-2:])
    if path.suffix != ".parquet":
        for line, values in read_rows(path):
            yield Row(f"{path}:{line}", f"{name}:{line}", values)
        return
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):  # an error lies at most this far behind the row it names
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", f"{name}:{number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: row {number + 1} cannot be read ({_reason(error)}); copy the file again") from error
    if not number:
        raise DataError(f"{path} holds no rows; give a file with rows")


def split_files(folder: str | Path, split: str, part: str = "") -> list[Path]:
    """Find the files of a split in a folder, as the hub's repositories arrange them.

    Args:
        folder: The folder; files in subfolders are found too.
        split: "train" or "test".
        part: The subfolder to search instead. If it does not exist, the folder itself may be that part: then its own
            files are found, but none in its subfolders, which may be other parts.

    Raises:
        DataError: If there are none.
    """
    place = Path(folder, part)
    for pattern in (pattern.format(split=split) for pattern in _PATTERNS):
        found = sorted(place.rglob(pattern) if place.is_dir() else Path(folder).glob(pattern))
        if found:
            return found
    names = " or ".join(pattern.format(split=split) for pattern in _PATTERNS)
    raise DataError(f"{place} holds no file of the split {split!r}; put {names} there")


def hub_rows(repo: str, split: str, *, needs: str, **options: Any) -> Iterator[Row]:  # noqa: ANN401
    """Read a split of a data set on the hub, through the cache of ``datasets``.

    Args:
        repo: Id of the data set.
        split: The split.
        needs: The remedy if the hub cannot be reached: which file to put where.
        options: Further arguments of ``datasets.load_dataset``, such as ``name``, ``data_dir`` and ``revision``.

    Raises:
        DataError: If the data set cannot be loaded.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows: Any = datasets.load_dataset(repo, split=split, **options)
    except Exception as error:  # the hub's client, its cache and the readers each raise their own
        raise DataError(f"{repo} cannot be loaded from the hub ({_reason(error)}); {needs}") from error
    part = "/".join(str(value) for key, value in options.items() if key in ("name", "data_dir"))
    name = f"{repo}/{part}" if part else repo
    for number, values in enumerate(rows):
        yield Row(f"{name} ({split}): row {number}", f"{name}:{split}:{number}", values)


def _reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def as_list(files: str | Sequence[str] | None) -> list[str]:
    """Return one name, several or none as a list."""
    return [] if files is None else [files] if isinstance(files, str) else list(files)
