"""JSON Lines, plain or gzip, read so that every fault is named by file and line."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from wst.data.queries import Queries
from wst.errors import ConfigError, DataError
from wst.types import Query

_GZIP_MAGIC = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ONE_OBJECT = 'put one JSON object on each line, such as {"text": "..."}'
# Strings are matched first, so that the words within them are passed over.
_NOT_A_NUMBER = re.compile(r'"(?:[^"\\]|\\.)*"|(NaN|-?Infinity)')


@dataclass(frozen=True)
class FieldMap:
    """Which fields of a row make up the query; all others go into `Query.extra`.

    Args:
        query: Field with the words of the query.
        target: Field with the gold answer, or None where the rows have none.
        id: Field that names the row, or None: then it is "<file name>:<line>".
    """

    query: str = "text"
    target: str | None = "label"
    id: str | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ConfigError: If one of them is empty.
        """
        for option in ("query", "target", "id"):
            if getattr(self, option) == "":
                remedy = "name a field of the rows" + ("" if option == "query" else ", or give null for none")
                raise ConfigError(f"fields.{option} is empty; {remedy}")


def check_file(path: str | Path, option: str = "") -> None:
    """Check that there is a file to read, without reading it.

    Args:
        path: The file; if relative, then to the current directory.
        option: The option that named it, for the message.

    Raises:
        DataError: If nothing is there, or a folder.
    """
    prefix = f"{option}: " if option else ""
    if Path(path).is_dir():
        raise DataError(f"{prefix}{_name(path)} is a folder; name a file in it")
    if not Path(path).exists():
        raise DataError(
            f"{prefix}{_name(path)} does not exist; check the path (current directory: {_name(Path.cwd())})"
        )


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a file; blank lines and a byte order mark are skipped.

    Whether it is gzip is told from its first bytes, not from its name.

    Args:
        path: The file; if relative, then to the current directory.

    Yields:
        The 1-based line number, and the row.

    Raises:
        DataError: If the file cannot be read, a line is not UTF-8 or not a JSON object, or there are no rows.
    """
    for line, _, content in _lines(path):
        yield line, _parse(path, line, content)


def _lines(path: str | Path) -> Iterator[tuple[int, int, bytes]]:
    """Give number, first byte and content of each line that is not blank."""
    check_file(path)
    rows, line, start = 0, 0, 0
    try:
        with open(path, "rb") as file:
            # Peeking, unlike seeking back, works for pipes too.
            packed = file.peek(2)[:2] == _GZIP_MAGIC
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if packed else file
            # Lines of bytes end at "\n" alone; str.splitlines would also cut at U+2028 and the like within a text.
            for line, raw in enumerate(stream, start=1):
                content = raw.removeprefix(_BYTE_ORDER_MARK) if line == 1 else raw
                if content.strip():
                    rows += 1
                    yield line, start + len(raw) - len(content), content
                start += len(raw)
    except EOFError as error:
        raise DataError(f"{_name(path)}:{line + 1}: the gzip file is cut off here; copy or pack it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{_name(path)}:{line + 1}: the gzip file is damaged ({error}); pack it again") from error
    except OSError as error:
        raise DataError(
            f"{_name(path)}: cannot be read ({error.strerror or error}); check the file and its rights"
        ) from error
    if not rows:
        raise DataError(f"{_name(path)} is empty; {_ONE_OBJECT}")


class QueryFile(Queries):
    """The rows of a file as queries, in the file's order.

    Every row is checked at once. Kept in memory is where each of them stands, and its id; a query is read again when it
    is asked for. What is packed, or comes from a pipe, is kept unpacked in a temporary file.

    Args:
        path: The file; if relative, then to the current directory.
        fields: Which fields make up the query.
        need_target: Whether a row without the target field is an error; if not, its target is None.

    Raises:
        DataError: If the file cannot be read (see `read_rows`), a row lacks a field or holds the wrong type in it,
            or two rows have the same id. Later, if the file has been written to in the meantime.
    """

    def __init__(self, path: str | Path, fields: FieldMap, need_target: bool = True) -> None:
        self.path = path
        self.fields = fields
        self.need_target = need_target
        self._numbers, self._starts, self._sizes = array("Q"), array("Q"), array("Q")
        self._ids = _Texts()
        unpacked = None if _can_be_read_again(path) else tempfile.TemporaryFile()  # noqa: SIM115
        self._file = unpacked or open(path, "rb")  # noqa: SIM115 - open as long as there are queries to be read
        weakref.finalize(self, self._file.close)
        self._state = self._changes()
        known: dict[int, int] = {}
        for line, start, content in _lines(path):
            identity = self._query(line, content).id
            if unpacked is not None:
                start = unpacked.tell()
                unpacked.write(content)
            if fields.id is not None:
                self._check_unique(known, line, identity)
                self._ids.append(identity)
            self._numbers.append(line)
            self._starts.append(start)
            self._sizes.append(len(content))
        if unpacked is not None:
            unpacked.flush()
            self._state = self._changes()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy, or another process, read the file anew."""
        return QueryFile, (self.path, self.fields, self.need_target)

    def __len__(self) -> int:
        """Give the number of queries."""
        return len(self._numbers)

    def read(self, place: int) -> Query:
        """Read the query at a place.

        Raises:
            DataError: If the file has been written to since its rows were checked.
        """
        line = self._numbers[place]
        if self._changes() != self._state:
            raise DataError(
                f"{_name(self.path)} was written to while the run reads from it; leave it alone, and start again"
            )
        content = os.pread(self._file.fileno(), self._sizes[place], self._starts[place])
        return self._query(line, content)

    def id(self, place: int) -> str:
        """Give the id of the query at a place."""
        return self._own_id(self._numbers[place]) if self.fields.id is None else self._ids[place]

    def _own_id(self, line: int) -> str:
        return f"{os.path.basename(self.path)}:{line}"

    def _changes(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _check_unique(self, known: dict[int, int], line: int, identity: str) -> None:
        """Compare with the ids before it; of these ``known`` has the place by hash, which takes less than the ids."""
        first = known.setdefault(hash(identity), len(self._ids))
        if first == len(self._ids):
            return
        twin = next((i for i in range(first, len(self._ids)) if self._ids[i] == identity), None)
        if twin is not None:
            raise DataError(
                f"{_at(self.path, line)}: id {identity!r} was already given on line {self._numbers[twin]}; "
                "make ids unique"
            )

    def _query(self, line: int, content: bytes) -> Query:
        fields, row = self.fields, _parse(self.path, line, content)
        text = row.get(fields.query)
        if not isinstance(text, str):
            _refuse(_at(self.path, line), row, "query", fields.query, "text")
        if not text.strip():
            raise DataError(f"{_at(self.path, line)}: field {fields.query!r} is empty; write the query or drop the row")
        target = None
        if fields.target is not None and (self.need_target or row.get(fields.target) is not None):
            target = self._scalar(line, row, "target", fields.target)
        identity = self._own_id(line) if fields.id is None else self._scalar(line, row, "id", fields.id)
        extra = {key: value for key, value in row.items() if key not in (fields.query, fields.target, fields.id)}
        return Query(identity, text, target, extra=extra)

    def _scalar(self, line: int, row: dict[str, Any], option: str, field: str) -> str:
        """Give a field as text: a number becomes its digits."""
        value = row.get(field)
        # To Python true is a number, to the writer of the file it is not.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            _refuse(_at(self.path, line), row, option, field, "text or a number")
        if value == "" and option == "id":
            raise DataError(
                f"{_at(self.path, line)}: field {field!r} is empty; give the row an id, or set fields.id to null"
            )
        return str(value)


class _Texts:
    """A list of short texts that takes their bytes and eight more for each, rather than a hundred."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: int) -> str:
        place = range(len(self))[place]
        return self._bytes[self._ends[place - 1] if place else 0 : self._ends[place]].decode("utf-8")

    def append(self, text: str) -> None:
        self._bytes += text.encode("utf-8")
        self._ends.append(len(self._bytes))


def _can_be_read_again(path: str | Path) -> bool:
    """Whether rows can be read where they stand: from a file, not a pipe, and one that is not packed."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            return file.read(2) != _GZIP_MAGIC
    except OSError:
        return False  # whoever reads the lines says why


def _refuse(place: str, row: dict[str, Any], option: str, field: str, wanted: str) -> NoReturn:
    remedy = f"or set fields.{option} " + ("to another field" if option == "query" else "to another field or null")
    if field not in row:
        raise DataError(f"{place}: no field {field!r}, only {_listed(row)}; add it, {remedy}")
    if row[field] is None:
        raise DataError(f"{place}: field {field!r} is null; fill it in or drop the row, {remedy}")
    raise DataError(f"{place}: field {field!r} is {_kind(row[field])}, not {wanted}; mend the row, {remedy}")


def _parse(path: str | Path, line: int, content: bytes) -> dict[str, Any]:
    text = ""
    try:
        text = content.decode("utf-8").rstrip("\r\n")
        row = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{_at(path, line)}: {_invalid(text, error)}") from error
    if not isinstance(row, dict):
        raise DataError(f"{_at(path, line)}: the row is {_kind(row)}, not an object; {_ONE_OBJECT}")
    # Only an escape can bring half a pair in: UTF-8 has none.
    for field, value in row.items() if "\\u" in text else ():
        try:
            json.dumps([field, value], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{_at(path, line)}: field {field!r} holds half a surrogate pair, which is not text; write the whole "
                "character"
            ) from error
    return row


def _invalid(text: str, error: Exception) -> str:
    """Say what is wrong with a line, and what to do."""
    match error:
        case UnicodeDecodeError():
            return f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8"
        case json.JSONDecodeError():
            return f"invalid JSON at column {error.colno} ({error.msg}); {_ONE_OBJECT}"
        case RecursionError():
            return f"invalid JSON (nested too deeply); {_ONE_OBJECT}"
    column = next((match.start(1) + 1 for match in _NOT_A_NUMBER.finditer(text) if match[1]), 1)
    return f"invalid JSON at column {column} ({error}); write null or leave it out"


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "an object"


def _listed(names: Iterable[str]) -> str:
    """Give the names on one line of bearable length."""
    listed = ", ".join(map(repr, names)) or "no fields at all"
    return listed if len(listed) <= 200 else listed[:200] + "..."


def _at(path: str | Path, line: int) -> str:
    return f"{_name(path)}:{line}"


def _name(path: str | Path) -> str:
    """Give the path as it may stand in a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))
