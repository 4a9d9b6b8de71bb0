"""JSON Lines, plain or gzip, read so that every error names file and line."""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast, overload

import numpy as np

from wst.errors import ConfigError, DataError
from wst.types import Query

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_DEPTH = 100
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_ONE_OBJECT = 'put one JSON object on each line, such as {"text": "..."}'


@dataclass(frozen=True)
class FieldMap:
    """Which fields of a row make up the query; all others go into `Query.extra`.

    Args:
        query: Field with the text of the query.
        target: Field with the gold answer, or None if the rows have none.
        id: Field that identifies the row, or None: then the id is "<file name>:<line>".
    """

    query: str = "text"
    target: str | None = "label"
    id: str | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ConfigError: If one of them is not the name of a field.
        """
        for option in ("query", "target", "id"):
            name = getattr(self, option)
            if option != "query" and name is None:
                continue
            if not isinstance(name, str) or not name:
                remedy = "name one field of the rows" + ("" if option == "query" else ", or give null for none")
                raise ConfigError(f"fields.{option} is {'empty' if name == '' else f'{name!r:.100}'}; {remedy}")


@dataclass(frozen=True)
class Row:
    """A row and where it comes from.

    Attributes:
        place: File and line (of a parquet file: file and row), or data set, split and row, for messages.
        id: Identity within the data set, independent of where the files lie.
        values: The fields.
    """

    place: str
    id: str
    values: dict[str, Any]

    def text(self, field: str, alternative: str = "remove the row") -> str:
        """Return a field that must hold text.

        Args:
            field: Name of the field.
            alternative: What else can be done than to fix the row, for messages.

        Raises:
            DataError: If it is missing, is not text, or is empty.
        """
        value = self.values.get(field)
        if not isinstance(value, str):
            self._refuse(field, "text", alternative)
        if not value.strip():
            raise DataError(f"{self.place}: field {field!r} is empty; write the text, or remove the row")
        return value

    def scalar(self, field: str, alternative: str = "remove the row") -> str:
        """Return a field that must hold text or a number, as text.

        Raises:
            DataError: If it is missing, is neither, or is empty.
        """
        value = self.values.get(field)
        # In Python true is a number; to the author of the file it is not.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self._refuse(field, "text or a number", alternative)
        if isinstance(value, str) and not value.strip():
            raise DataError(f"{self.place}: field {field!r} is empty; fill it in, or {alternative}")
        return str(value)

    def _refuse(self, field: str, wanted: str, alternative: str) -> NoReturn:
        fault, remedy = f"is {_kind(self.values.get(field))}, not {wanted}", "fix it"
        if field not in self.values:
            there = ", ".join(map(repr, self.values)) or "no fields at all"
            fault, remedy = f"is missing (there are {there:.200})", "add it"
        raise DataError(f"{self.place}: field {field!r} {fault}; {remedy}, or {alternative}")


def check_file(path: str | Path, option: str = "") -> None:
    """Check that a file exists, without reading it.

    Args:
        path: The file; a relative path is relative to the current directory.
        option: The option that named it, for the message.

    Raises:
        DataError: If the path does not exist or is a folder.
    """
    prefix = f"{option}: " if option else ""
    if Path(path).is_dir():
        raise DataError(f"{prefix}{_printable(path)} is a folder; name a file in it")
    if not Path(path).exists():
        raise DataError(
            f"{prefix}{_printable(path)} does not exist; check the path (current directory: {_printable(Path.cwd())})"
        )


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a file; blank lines and a byte order mark are skipped.

    Gzip is recognized by the first bytes of the file, not by its name.

    Args:
        path: The file; a relative path is relative to the current directory.

    Yields:
        The 1-based line number and the row.

    Raises:
        DataError: If the file cannot be read, a line is not UTF-8 or not a JSON object, or there are no rows.
    """
    for line, content in _lines(path):
        yield line, _parse(path, line, content)


def _lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of each line that is not blank."""
    check_file(path)
    rows = line = 0
    try:
        with open(path, "rb") as file:
            # Peeking, unlike seeking back, works for pipes too.
            compressed = file.peek(2)[:2] == _GZIP_MAGIC
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if compressed else file
            # Iterating over bytes splits at "\n" alone; str.splitlines would also split at U+2028 within a text.
            for line, content in enumerate(stream, start=1):
                if line == 1:
                    content = content.removeprefix(_BYTE_ORDER_MARK)
                if content.strip():
                    rows += 1
                    yield line, content
    except EOFError as error:
        raise DataError(
            f"{_printable(path)}:{line + 1}: the gzip file is truncated here; copy or compress it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{_printable(path)}:{line + 1}: the gzip file is damaged ({error}); compress it again"
        ) from error
    except OSError as error:
        raise DataError(
            f"{_printable(path)}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error
    if not rows:
        raise DataError(f"{_printable(path)} is empty; {_ONE_OBJECT}")


class QueryFile(Sequence[Query]):
    """The rows of a file as queries, in the order of the file.

    Every row is checked when the file is read. Rows stay in memory as lines of JSON and are parsed again at each
    access: as objects they would take four times the memory.

    Args:
        path: The file; a relative path is relative to the current directory.
        fields: Which fields make up the query.
        need_target: Whether a row without the target field is an error; otherwise its target is None.

    Raises:
        DataError: If the file cannot be read (see `read_rows`), a row lacks a field or has the wrong type in it,
            or two rows have the same id.
    """

    def __init__(self, path: str | Path, fields: FieldMap, need_target: bool = True) -> None:
        self.path = path
        self.fields = fields
        self.need_target = need_target
        check_file(path)
        # The size at once: growing step by step would leave its former places in the heap.
        self._content = bytearray(os.path.getsize(path))
        end = 0
        self._starts = array("Q", [0])
        self._numbers = array("I")  # line numbers: blank lines are left out
        hashes = array("q")  # of ids: a set of a million strings would take 100 MB
        for line, content in _lines(path):
            hashes.append(hash(self._query(line, content).id))
            self._content[end : end + len(content)] = content
            end += len(content)
            self._starts.append(end)
            self._numbers.append(line)
        self._rows: Sequence[int] = range(len(self._numbers))
        numbers = np.frombuffer(hashes, np.int64)
        numbers.sort()
        if (numbers[1:] == numbers[:-1]).any():
            self._check_ids()

    def _check_ids(self) -> None:
        first: dict[str, int] = {}
        for query, line in zip(self, self._numbers, strict=True):
            if query.id in first:
                raise DataError(
                    f"{_at(self.path, line)}: id {query.id!r} was already given on line {first[query.id]}; make ids "
                    "unique"
                )
            first[query.id] = line

    def select(self, indices: Sequence[int]) -> QueryFile:
        """Return the queries at the given indices, without copying their rows."""
        selected = copy.copy(self)
        selected._rows = array("Q", [self._rows[index] for index in indices])
        return selected

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Query: ...

    @overload
    def __getitem__(self, index: slice) -> list[Query]: ...

    def __getitem__(self, index: int | slice) -> Query | list[Query]:
        """Parse one query, or several."""
        if isinstance(index, slice):
            return [self._parsed(row) for row in self._rows[index]]
        return self._parsed(self._rows[index])

    def _parsed(self, row: int) -> Query:
        return self._query(self._numbers[row], bytes(self._content[self._starts[row] : self._starts[row + 1]]))

    def _query(self, line: int, content: bytes) -> Query:
        fields = self.fields
        row = Row(_at(self.path, line), f"{os.path.basename(self.path)}:{line}", _parse(self.path, line, content))
        text = row.text(fields.query, "set fields.query to another field")
        target = None
        if fields.target is not None and (self.need_target or row.values.get(fields.target) not in (None, "")):
            target = row.scalar(fields.target, "set fields.target to another field or null")
            value = row.values[fields.target]
            if isinstance(value, float) and value.is_integer():
                target = str(int(value))  # 51.0 is how some writers of JSON spell 51
        identity = row.id
        if fields.id is not None:
            identity = row.scalar(fields.id, "set fields.id to another field or null")
        extra = {key: value for key, value in row.values.items() if key not in (fields.query, fields.target, fields.id)}
        return Query(identity, text, target, extra=extra)


def _parse(path: str | Path, line: int, content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8").rstrip("\r\n")
        if text.count("[") + text.count("{") > _MAX_DEPTH:
            _check_depth(text)
        row = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_at(path, line)}: {_invalid(error)}") from error
    if not isinstance(row, dict):
        raise DataError(f"{_at(path, line)}: the row is {_kind(row)}, not an object; {_ONE_OBJECT}")
    # Only an escape can write a lone surrogate: UTF-8 has none.
    for field, value in row.items() if "\\u" in text else ():
        try:
            json.dumps([field, value], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{_at(path, line)}: field {field!r} holds a lone surrogate, which is not text; write the whole "
                "character"
            ) from error
    return row


def _invalid(error: Exception) -> str:
    """Return what is wrong with a line, and the remedy."""
    match error:
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
        case json.JSONDecodeError():
            return f"invalid JSON at column {error.colno} ({error.msg}); {_ONE_OBJECT}"
        case RecursionError():
            return f"invalid JSON (nested too deeply); {_ONE_OBJECT}"
    return f"invalid JSON ({error}); write null or leave it out"


def _check_depth(text: str) -> None:
    """Refuse what `json` can read but not write back from within a deeper call stack."""
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > _MAX_DEPTH:
            raise RecursionError


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits:.50} is too large for a number")
    return value


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse_constant)


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    return "null" if value is None else names.get(type(value), "an object")


def _at(path: str | Path, line: int) -> str:
    return f"{_printable(path)}:{line}"


def _printable(path: str | Path) -> str:
    """Return the path as it may appear in a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))
