"""JSON, JSON Lines and CSV, plain or gzip, read so that every error names file and line."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from wst.data.fields import Row, kind, lone_surrogate
from wst.errors import DataError

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_DEPTH = 100
#: A string, or what is left of one that does not end, else a bracket. It cannot fail, so it takes linear time.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_ONE_OBJECT = 'put one JSON object on each line, such as {"text": "..."}'
_RECORDS = "name the dotted path of its list of records in data.init_args.records"


def check_file(path: str | Path, option: str = "") -> None:
    """Check that a file exists, without reading it.

    Args:
        path: The file; a relative path is relative to the current directory.
        option: The option that named it, for the message.

    Raises:
        DataError: If the path does not exist or is a folder.
    """
    prefix = f"{option}: " if option else ""
    if os.path.isdir(path):  # unlike pathlib's, False for a name that is too long
        raise DataError(f"{prefix}{printable(path)} is a folder; name a file in it")
    if not os.path.exists(path):
        raise DataError(
            f"{prefix}{printable(path)} does not exist; check the path (current directory: {printable(Path.cwd())})"
        )


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Read the lines of a file, without a byte order mark.

    Gzip is recognized by the first bytes of the file, not by its name.

    Args:
        path: The file; a relative path is relative to the current directory.

    Yields:
        The 1-based number and the content of each line.

    Raises:
        DataError: If the file cannot be read, or holds nothing but white space.
    """
    check_file(path)
    line, filled = 0, False
    try:
        with open(path, "rb") as file:
            # Peeking, unlike seeking back, works for pipes too.
            compressed = file.peek(2)[:2] == _GZIP_MAGIC
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if compressed else file
            # Iterating over bytes splits at "\n" alone; str.splitlines would also split at U+2028 within a text.
            for line, content in enumerate(stream, start=1):
                if line == 1:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                filled = filled or bool(content.strip())
                yield line, content
    except EOFError as error:
        raise DataError(f"{_at(path, line + 1)}: the gzip file is truncated here; copy or compress it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{_at(path, line + 1)}: the gzip file is damaged ({error}); compress it again") from error
    except OSError as error:
        raise DataError(
            f"{printable(path)}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    if not filled:
        raise DataError(f"{printable(path)} is empty; give a file with rows")


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a JSON Lines file; blank lines are skipped.

    Args:
        path: The file.

    Yields:
        The 1-based line number and the row.

    Raises:
        DataError: If the file cannot be read (`read_lines`), or a line is not UTF-8 or not a JSON object.
    """
    for line, content in read_lines(path):
        if content.strip():
            yield line, _parse(path, line, content)


def read_csv(path: str | Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows of a file of separated values, whose first row names the fields; every value is text.

    pandas would drop the last cells of too long a row, and fill up a short one.

    Args:
        path: The file.
        delimiter: What stands between two cells.

    Yields:
        The 1-based number of the line on which the row begins, and the row.

    Raises:
        DataError: If the file cannot be read (`read_lines`), is not UTF-8, or a row is longer or shorter than the
            header.
    """
    csv.field_size_limit(2**31 - 1)  # by default 128 KiB a cell
    texts = (_decoded(path, line, content) for line, content in read_lines(path))
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    header: list[str] = []
    start, filled = 1, False
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not header:
                header = cells
                if len(set(header)) < len(header):
                    raise DataError(f"{_at(path, line)}: the header names a field twice; rename one of them")
            elif cells and len(cells) != len(header):
                raise DataError(
                    f"{_at(path, line)}: the row has {len(cells)} cells, the header {len(header)}; quote cells that "
                    "hold the delimiter, or fix the row"
                )
            elif cells:
                filled = True
                yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{_at(path, start)}: invalid CSV ({error}); fix the quotes of this row") from error
    if not filled:
        raise DataError(f"{printable(path)} holds no rows; give a file with rows below its header")


def read_json(path: str | Path, records: str | None) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Read the records of a JSON file, which is held in memory; JSON Lines are read as such.

    Args:
        path: The file.
        records: Dotted path of the records in the file's object; None: the file itself is the list of records, or an
            object of them by name, or of equally long columns.

    Yields:
        The 1-based number of the record, and the record.

    Raises:
        DataError: If the file cannot be read (`read_lines`), is not JSON, or holds no records there.
    """
    text = "".join(_decoded(path, line, content) for line, content in read_lines(path))
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and records is None:
            yield from read_rows(path)
            return
        raise DataError(f"{_at(path, error.lineno)}: {_invalid(error, 'fix the file')}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{printable(path)}: {_invalid(error, 'fix the file')}") from error
    if records is not None:
        whole, found = found, Row("", "", found).at(records) if isinstance(found, dict) else None
        if not isinstance(found, list | dict):
            there = f" (there are {', '.join(map(repr, whole))})" if isinstance(whole, dict) else ""
            raise DataError(f"{printable(path)}: there are no records at {records!r}{there:.200}; {_RECORDS}")
    try:
        rows = records_in(found)
    except ValueError as error:
        there = f"; there are {', '.join(map(repr, found))}"[:200] if isinstance(found, dict) else ""
        raise DataError(f"{printable(path)}: {error}{there}; {_RECORDS}") from None
    number = 0
    for number, row in enumerate(rows, start=1):
        place = f"{printable(path)}: row {number}"
        if not isinstance(row, dict):
            raise DataError(f"{place} is {kind(row)}, not an object; fix it, or remove the row")
        for field, value in row.items():
            _check_value(place, field, value)
        yield number, row
    if not number:
        raise DataError(f"{printable(path)} holds no rows; give a file with rows")


def records_in(value: Any) -> Iterator[Any]:  # noqa: ANN401
    """Iterate over the records of a list, of an object that names them, or of an object of equally long columns.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(value, list):
        return iter(value)
    if isinstance(value, Mapping) and value and all(isinstance(row, Mapping) for row in value.values()):
        return iter(value.values())
    columns = list(value.values()) if isinstance(value, Mapping) else []
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return (dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True))
    raise ValueError(f"it is {kind(value)}, not a list of records")


def _decoded(path: str | Path, line: int, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{_at(path, line)}: {_invalid(error)}") from error


def _parse(path: str | Path, line: int, content: bytes) -> dict[str, Any]:
    text = _decoded(path, line, content).rstrip("\r\n")
    try:
        if text.count("[") + text.count("{") > _MAX_DEPTH:
            _check_depth(text)
        row = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_at(path, line)}: {_invalid(error)}") from error
    if not isinstance(row, dict):
        raise DataError(f"{_at(path, line)}: the row is {kind(row)}, not an object; {_ONE_OBJECT}")
    # Only an escape can write a lone surrogate: UTF-8 has none.
    for field, value in row.items() if "\\u" in text else ():
        _check_value(_at(path, line), field, value)
    return row


def _check_value(place: str, field: str, value: object) -> None:
    """Refuse what cannot be written back as JSON."""
    try:
        text = json.dumps([field, value], ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        _check_depth(text)
    except UnicodeEncodeError:
        raise lone_surrogate(place, field) from None
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else "holds a number that is not finite"
        raise DataError(f"{place}: field {field!r} {reason}; write null or leave it out") from None


def _invalid(error: Exception, remedy: str = _ONE_OBJECT) -> str:
    """Return what is wrong with a line, and the remedy."""
    match error:
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
        case json.JSONDecodeError():
            return f"invalid JSON at column {error.colno} ({error.msg}); {remedy}"
        case RecursionError():
            return f"invalid JSON (nested too deeply); {remedy}"
    return f"invalid JSON ({error}); write null or leave it out"


def _check_depth(text: str) -> None:
    """Refuse what `json` can read but not write back from within a deeper call stack."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        if depth > _MAX_DEPTH:
            raise RecursionError


def refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and infinity, for `json`."""
    raise ValueError(f"{name} is not a JSON value")


def finite(digits: str) -> float:
    """Read a number for `json`, but not 1e400, which it takes for infinity."""
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.50} is too large for a number")
    return value


_DECODER = json.JSONDecoder(parse_float=finite, parse_constant=refuse_constant)


def _at(path: str | Path, line: int) -> str:
    return f"{printable(path)}:{line}"


def printable(path: str | Path) -> str:
    """Return the path as it may appear in a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))
