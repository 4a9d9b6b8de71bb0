"""JSON Lines, plain or gzip, read so that every fault is named by file and line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from wst.errors import ConfigError, DataError
from wst.rollout import Query

_GZIP_MAGIC = b"\x1f\x8b"
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
    check_file(path)
    rows, line = 0, 0
    try:
        with open(path, "rb") as file:
            # Peeking, unlike seeking back, works for pipes too.
            packed = file.peek(2)[:2] == _GZIP_MAGIC
            stream = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if packed else file
            # Lines of bytes end at "\n" alone; str.splitlines would also cut at U+2028 and the like within a text.
            for line, raw in enumerate(stream, start=1):
                content = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
                if content.strip():
                    rows += 1
                    yield line, _parse(path, line, content)
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


def read_queries(path: str | Path, fields: FieldMap, need_target: bool = True) -> list[Query]:
    """Read a file of rows as queries.

    Args:
        path: The file; if relative, then to the current directory.
        fields: Which fields make up the query.
        need_target: Whether a row without the target field is an error; if not, its target is None.

    Returns:
        One query a row, in the file's order.

    Raises:
        DataError: If the file cannot be read (see `read_rows`), a row lacks a field or holds the wrong type in it,
            or two rows have the same id.
    """
    queries: list[Query] = []
    lines: dict[str, int] = {}
    for line, row in read_rows(path):
        place = f"{_name(path)}:{line}"
        text = row.get(fields.query)
        if not isinstance(text, str):
            _refuse(place, row, "query", fields.query, "text")
        if not text.strip():
            raise DataError(f"{place}: field {fields.query!r} is empty; write the query or drop the row")
        target = None
        if fields.target is not None and (need_target or row.get(fields.target) is not None):
            target = _scalar(place, row, "target", fields.target)
        identity = f"{Path(path).name}:{line}" if fields.id is None else _scalar(place, row, "id", fields.id)
        if identity in lines:
            raise DataError(f"{place}: id {identity!r} was already given on line {lines[identity]}; make ids unique")
        lines[identity] = line
        extra = {key: value for key, value in row.items() if key not in (fields.query, fields.target, fields.id)}
        queries.append(Query(identity, text, target, extra=extra))
    return queries


def _scalar(place: str, row: dict[str, Any], option: str, field: str) -> str:
    """Give a field as text: a number becomes its digits."""
    value = row.get(field)
    # To Python true is a number, to the writer of the file it is not.
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        _refuse(place, row, option, field, "text or a number")
    if value == "" and option == "id":
        raise DataError(f"{place}: field {field!r} is empty; give the row an id, or set fields.id to null")
    return str(value)


def _refuse(place: str, row: dict[str, Any], option: str, field: str, wanted: str) -> NoReturn:
    remedy = f"or set fields.{option} " + ("to another field" if option == "query" else "to another field or null")
    if field not in row:
        raise DataError(f"{place}: no field {field!r}, only {_listed(row)}; add it, {remedy}")
    if row[field] is None:
        raise DataError(f"{place}: field {field!r} is null; fill it in or drop the row, {remedy}")
    raise DataError(f"{place}: field {field!r} is {_kind(row[field])}, not {wanted}; mend the row, {remedy}")


def _parse(path: str | Path, line: int, content: bytes) -> dict[str, Any]:
    place = f"{_name(path)}:{line}"
    try:
        text = content.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8") from error
    try:
        row = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: invalid JSON at column {error.colno} ({error.msg}); {_ONE_OBJECT}") from error
    except RecursionError as error:
        raise DataError(f"{place}: invalid JSON (nested too deeply); {_ONE_OBJECT}") from error
    except ValueError as error:
        column = next((match.start(1) + 1 for match in _NOT_A_NUMBER.finditer(text) if match[1]), 1)
        raise DataError(f"{place}: invalid JSON at column {column} ({error}); write null or leave it out") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: the row is {_kind(row)}, not an object; {_ONE_OBJECT}")
    # Only an escape can bring half a pair in: UTF-8 has none.
    for field, value in row.items() if "\\u" in text else ():
        try:
            json.dumps([field, value], ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: field {field!r} holds half a surrogate pair, which is not text; write the whole character"
            ) from error
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


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


def _name(path: str | Path) -> str:
    """Give the path as it may stand in a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))
