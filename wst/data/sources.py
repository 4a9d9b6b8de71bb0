"""Rows of a data set: from files, from the hub, or from objects in memory."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wst.data.fields import Row, kind
from wst.data.jsonl import check_file, printable, read_csv, read_json, read_rows, records_in
from wst.errors import ConfigError, DataError, first_line
from wst.files import SHIPPED, shipped
from wst.terminal import escaped

_PATTERNS = ("{split}.jsonl", "{split}.jsonl.gz", "{split}.parquet", "{split}-*.parquet")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_FORMATS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
#: Floats of fewer than 64 bits, by the names that pandas, polars, arrow and datasets have for them.
_NARROW = {"float32": "float32", "float": "float32", "float16": "float16", "halffloat": "float16"}
_OTHER_FORMATS = (".xlsx", ".xls", ".ods", ".xml", ".yaml", ".yml", ".arrow", ".feather", ".zip", ".zst", ".xz", ".bz2")


def find_files(files: str | Sequence[str] | None, option: str) -> list[str]:
    """Return the files that paths and glob patterns name, those of a pattern in alphabetical order.

    Args:
        files: Paths or patterns, relative to the current directory, or ``wst:data/...`` for what comes with wst.
        option: The option that named them, for messages.

    Raises:
        DataError: If one does not exist, or is of a format that cannot be read.
        ConfigError: If none of that name comes with wst.
    """
    found: list[str] = []
    for name in as_list(files, option):
        if name.startswith(SHIPPED):
            shipped(name)
            found.append(name)
            continue
        plain = os.path.exists(name) or not glob.has_magic(name)
        matches = [name] if plain else sorted(glob.glob(name, recursive=True))
        if not matches:
            raise DataError(f"{option}: no file matches {printable(name)}; check the pattern")
        for match in matches:
            check_file(match, option=option)
            if _format(match) in _OTHER_FORMATS:
                raise DataError(
                    f"{option}: {printable(match)} cannot be read; convert it to .csv, .tsv, .json, .jsonl or .parquet"
                )
        found += matches
    return found


def check_origin(files: Mapping[Any, Sequence[str]]) -> None:
    """Check that the package's example data and a user's own are not mixed: a config's ``val`` may have been forgotten.

    Args:
        files: Names of files by split, as the user gives them.

    Raises:
        ConfigError: If ``val`` or ``test`` come with the package and ``train`` does not, or the reverse.
    """
    train = files.get("train") or []
    for split in ("val", "test"):
        other = files.get(split) or []
        if {name.startswith(SHIPPED) for name in train} & {name.startswith(SHIPPED) for name in other}:
            continue
        if train and other and other[0].startswith(SHIPPED):
            raise ConfigError(
                f"{split} is still {other[0]}, which is not of train's data; set {split} to a file, or {split}: null "
                f"and {split}_share"
            )
        if train and other:
            raise ConfigError(
                f"train is still {train[0]}, which is not of {split}'s data; set train to a file, or to null if "
                "nothing is trained"
            )


def file_rows(path: str | Path, records: str | None = None, name: str | None = None) -> Iterator[Row]:
    """Read a file whose name ends in .csv, .tsv, .json or .parquet, or else JSON Lines; each may be gzipped.

    Args:
        path: The file.
        records: Dotted path of the records in the object of a .json file.
        name: What the ids of the rows begin with; default: the last two parts of the absolute path.

    Raises:
        DataError: If it cannot be read; the message names file and row.
    """
    if str(path).startswith(SHIPPED):
        path = shipped(str(path))
    check_file(path)
    # From the absolute path, so that a row's id does not depend on the current directory. Links are not resolved: the
    # hub's cache links to files whose names say nothing.
    name = name or "/".join(Path(os.path.abspath(path)).parts[-2:])
    place = printable(path)
    match _format(path):
        case ".parquet":
            for number, values in enumerate(_parquet(path), start=1):
                yield Row(f"{place}: row {number}", f"{name}:{number}", values)
        case ".json":
            for number, record in read_json(path, records):
                yield Row(f"{place}: row {number}", f"{name}:{number}", record)
        case ".csv" | ".tsv" as ending:
            for line, cells in read_csv(path, _DELIMITERS[ending]):
                yield Row(f"{place}:{line}", f"{name}:{line}", cells, typed=False)
        case _:
            for line, row in read_rows(path):
                yield Row(f"{place}:{line}", f"{name}:{line}", row)


def is_data_file(name: str | Path) -> bool:
    """Return whether a file's name says that it can be read."""
    return _format(name) in _FORMATS


def _format(path: str | Path) -> str:
    """Return the ending of a file's name that tells its format."""
    return Path(str(path).lower().removesuffix(".gz")).suffix


def _parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        source = (
            pyarrow.BufferReader(gzip.decompress(Path(path).read_bytes()))
            if str(path).lower().endswith(".gz")
            else path
        )
        with parquet.ParquetFile(source) as file:
            kinds = {field.name: str(field.type) for field in file.schema_arrow}
            for batch in file.iter_batches(batch_size=1000):  # an error lies at most this far behind the row it names
                for values in _as_written(batch.to_pylist(), kinds):
                    number += 1
                    yield values
    except (pyarrow.ArrowException, OSError, EOFError, OverflowError, UnicodeDecodeError, zlib.error) as error:
        fault = f"row {number + 1} cannot be read ({escaped(first_line(error))})"
        raise DataError(f"{printable(path)}: {fault}; copy the file again") from error
    if not number:
        raise DataError(f"{printable(path)} holds no rows; give a file with rows")


def records_of(data: Any, option: str) -> Iterator[Any]:  # noqa: ANN401
    """Iterate over the records of an object in memory.

    Args:
        data: Records (dicts or queries), a dict of columns or of records, a frame of pandas or polars, or a
            ``datasets.Dataset``, whose class labels are given by name.
        option: What an error calls it.

    Raises:
        ConfigError: If it is none of these.
    """
    if hasattr(data, "iter_rows"):  # polars
        return _as_written(data.iter_rows(named=True), {name: str(kind) for name, kind in data.schema.items()})
    if hasattr(data, "iloc") and hasattr(
        data, "columns"
    ):  # pandas, in parts: as dicts a frame takes many times the memory
        parts = (data.iloc[start : start + 1000] for start in range(0, len(data), 1000))
        kinds = {name: str(kind) for name, kind in data.dtypes.items()}
        return _as_written((record for part in parts for record in part.to_dict("records")), kinds)
    if features := getattr(data, "features", None):
        rows = ({key: _named(features.get(key), value) for key, value in row.items()} for row in data)
        return _as_written(rows, {key: str(getattr(feature, "dtype", "")) for key, feature in features.items()})
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Mapping):
        return iter(data)
    try:
        return records_in(data)
    except ValueError:
        raise ConfigError(
            f"{option} must be a list of dicts, a frame, or a datasets.Dataset, got {kind(data)}; of a dict of data "
            "sets give each by itself"
        ) from None


def _as_written(rows: Iterable[dict[Any, Any]], kinds: Mapping[Any, str]) -> Iterator[dict[Any, Any]]:
    """Yield the rows with the shortest digits in narrow columns: 0.1 in 32 bits is 0.10000000149011612 in 64."""
    narrow = {name: np.dtype(_NARROW[kind.lower()]).type for name, kind in kinds.items() if kind.lower() in _NARROW}
    if not narrow:
        yield from rows
        return
    for row in rows:
        yield row | {key: float(str(narrow[key](row[key]))) for key in narrow if isinstance(row.get(key), float)}


def _named(feature: Any, value: Any) -> Any:  # noqa: ANN401 - as `datasets` has them
    """Return a value of a ``datasets.Dataset`` with the names of its class labels, also in lists."""
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    if isinstance(value, list) and inner is not None:
        return [_named(inner, one) for one in value]
    labelled = type(feature).__name__ == "ClassLabel" and isinstance(value, int) and value >= 0
    return feature.int2str(value) if labelled else value


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
        repo: Id of the data set, or a local folder with its files.
        split: The split.
        needs: The remedy if the hub cannot be reached: which file to put where.
        options: Further arguments of ``datasets.load_dataset``, such as ``name``, ``data_dir`` and ``revision``.

    Raises:
        DataError: If the data set cannot be loaded.
    """
    import datasets

    datasets.disable_progress_bars()
    folder = {"data_dir": options.pop("name")} if Path(repo, str(options.get("name"))).is_dir() else {}
    try:
        rows: Any = datasets.load_dataset(repo, split=split, **options, **folder)
    except Exception as error:  # the hub's client, its cache and the readers each raise their own
        raise DataError(f"{repo} cannot be loaded from the hub ({escaped(first_line(error))}); {needs}") from error
    part = "/".join(str(value) for key, value in (options | folder).items() if key in ("name", "data_dir"))
    name = f"{repo}/{part}" if part else repo
    records, number = records_of(rows, name), 0
    try:
        for values in records:
            yield Row(f"{name} ({split}): row {number}", f"{name}:{split}:{number}", values)
            number += 1
    except Exception as error:  # whatever decodes a column, such as an image
        fault = f"row {number} cannot be read ({escaped(first_line(error))})"
        raise DataError(f"{name} ({split}): {fault}; name another revision, or give a file") from error


def as_list(files: str | Sequence[str] | None, option: str = "files") -> list[str]:
    """Return one path, several or none as a list.

    Args:
        files: The paths.
        option: The option that named them, for the message.

    Raises:
        ConfigError: If one is no path.
    """
    names = [] if files is None else [files] if isinstance(files, str | Path) else files
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | Path) for name in names):
        raise ConfigError(
            f"{option} must be a path or a list of paths, got {kind(files)}; give objects in memory to "
            "QueryDataModule.from_records"
        )
    return [str(name) for name in names]
