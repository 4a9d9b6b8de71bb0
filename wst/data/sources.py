"""Rows of a public data set: from the hub, or from files of the same format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wst.data.jsonl import check_file, read_rows
from wst.errors import DataError

_PATTERNS = ("{split}.jsonl", "{split}.jsonl.gz", "{split}.parquet", "{split}-*.parquet")


@dataclass(frozen=True)
class Row:
    """A row, and where it stands.

    Attributes:
        place: File and line (of a parquet file: file and row), or data set, split and row, for messages.
        id: Identity within the data set, the same wherever the files lie.
        values: The fields.
    """

    place: str
    id: str
    values: dict[str, Any]

    def text(self, field: str) -> str:
        """Give a field that must hold text.

        Raises:
            DataError: If it is not there, is not text, or is empty.
        """
        value = self.values.get(field)
        if isinstance(value, str) and value.strip():
            return value
        if field not in self.values:
            there = ", ".join(map(repr, self.values)) or "no fields at all"
            raise DataError(f"{self.place}: there is no field {field!r}, the row has {there:.200}; add it to the row")
        fault = "is empty" if isinstance(value, str) else f"holds {type(value).__name__}, not text"
        raise DataError(f"{self.place}: field {field!r} {fault}; write the text, or take the row out")


def file_rows(path: str | Path) -> Iterator[Row]:
    """Read a JSON Lines file (plain or gzip) or a parquet file.

    Raises:
        DataError: If it cannot be read; the message names file and row.
    """
    path = Path(path)
    check_file(path)
    # Of the absolute path, so that a row's id does not depend on the current directory; links are left as they are,
    # because the hub's cache links to files without telling names.
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
            for batch in file.iter_batches(batch_size=1000):  # so many rows at most before the one that is named
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", f"{name}:{number}", values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{path}: row {number + 1} cannot be read ({reason:.200}); copy the file again") from error
    if not number:
        raise DataError(f"{path} holds no rows; give a file with rows")


def split_files(folder: str | Path, split: str, part: str = "") -> list[Path]:
    """Find the files of a split in a folder, as the hub's repositories have them.

    Args:
        folder: The folder; files in folders below it are found too.
        split: "train" or "test".
        part: The folder below it to look into instead. Where there is none of that name, the folder may be that part
            itself: then its own files are found, but none in folders below it, which may be other parts.

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
        repo: The data set's id.
        split: The split.
        needs: The remedy where the hub cannot be reached: which file to put where.
        options: Further arguments of ``datasets.load_dataset``, such as ``name``, ``data_dir`` and ``revision``.

    Raises:
        DataError: If it cannot be had.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        rows: Any = datasets.load_dataset(repo, split=split, **options)
    except Exception as error:  # the hub's client, its cache and the readers each have their own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{repo} cannot be had from the hub ({reason:.200}); {needs}") from error
    part = "/".join(str(value) for key, value in options.items() if key in ("name", "data_dir"))
    name = f"{repo}/{part}" if part else repo
    for number, values in enumerate(rows):
        yield Row(f"{name} ({split}): row {number}", f"{name}:{split}:{number}", values)


def listed(files: str | Sequence[str] | None) -> list[str]:
    """Give one name, several or none as a list."""
    return [] if files is None else [files] if isinstance(files, str) else list(files)
