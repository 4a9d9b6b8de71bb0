"""Rows, and which of their fields make up a query."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from string import Formatter
from typing import Any, NoReturn, cast

from wst.errors import ConfigError, DataError
from wst.types import Message, Query, Role

_ABSENT = object()
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class FieldMap:
    """Which fields of a row make up the query; all others go into `Query.extra`.

    A field is named by its name or by a dotted path, ``meta.answers.0``, whose numbers count the items of lists from 0.

    Args:
        query: Field with the text of the query, or a template of several, ``"{Body} {Question}"``. A chat (a list of
            ``{"role": ..., "content": ...}``) is taken apart: its last user turn is the query, the turns before it are
            the history.
        target: Field with the gold answer, or None if the rows have none: text, a number (51.0 is 51), a boolean
            ("true", "false"), a list of acceptable answers, or a chat that ends with the assistant's answer.
        id: Field that identifies the row, or None: then the id is "<file name>:<line>".
    """

    query: str = "text"
    target: str | None = "label"
    id: str | None = None

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ConfigError: If one of them is not the name of a field, or the template cannot be read.
        """
        for option in ("query", "target", "id"):
            name = getattr(self, option)
            if option != "query" and name is None:
                continue
            if not isinstance(name, str) or not name:
                remedy = "name one field of the rows" + ("" if option == "query" else ", or give null for none")
                raise ConfigError(f"fields.{option} is {'empty' if name == '' else f'{name!r:.100}'}; {remedy}")
        _template(self.query)

    def read(self, row: Row, need_target: bool = True) -> Query:
        """Return a row as a query.

        Args:
            row: The row.
            need_target: Whether a row without the target field is an error; otherwise its target is None.

        Raises:
            DataError: If a field is missing, empty or of the wrong type.
        """
        history: tuple[Message, ...] = ()
        if parts := _template(self.query):
            text = "".join(before + ("" if field is None else row.part(field)) for before, field in parts)
            if not text.strip():
                raise DataError(f"{row.place}: the fields of {self.query!r:.60} are all empty; fill in one of them")
        elif isinstance(row.at(self.query), list):
            history, text = _question(row, self.query)
        else:
            text = row.text(self.query, "set fields.query to another field")
        target = None
        if self.target is not None and (need_target or not _is_missing(row.at(self.target))):
            target = _answers(row, self.target)
        identity = row.id if self.id is None else row.scalar(self.id, "set fields.id to another field or null")
        used = (self.query, self.target, self.id)
        extra = {key: value for key, value in row.values.items() if key not in used}
        return Query(identity, text, target, history, extra)


@dataclass(frozen=True)
class Row:
    """A row and where it comes from.

    Attributes:
        place: File and line (of a parquet file: file and row), or data set, split and row, for messages.
        id: Identity within the data set, independent of where the files lie.
        values: The fields.
        typed: Whether numbers differ from text; in a CSV file they do not.
    """

    place: str
    id: str
    values: Mapping[str, Any]
    typed: bool = True

    def at(self, path: str) -> Any:  # noqa: ANN401
        """Return the value of a field that is named by its name or by a dotted path; `_ABSENT` if there is none."""
        if path in self.values:
            return _plain(self.values[path])
        value: Any = self.values
        for part in path.split("."):
            value = _plain(value)
            if isinstance(value, Mapping):
                value = value.get(part, _ABSENT)
            elif isinstance(value, list) and part.isascii() and part.isdecimal() and int(part[:9]) < len(value):
                value = value[int(part[:9])]
            else:
                return _ABSENT
        return _plain(value)

    def text(self, field: str, alternative: str = "remove the row") -> str:
        """Return a field that must hold text.

        Args:
            field: Name of the field.
            alternative: What else can be done than to fix the row, for messages.

        Raises:
            DataError: If it is missing, is not text, or is empty.
        """
        value = self.at(field)
        if not isinstance(value, str):
            self.refuse(field, value, "text", alternative)
        return self._filled(field, value, alternative)

    def scalar(self, field: str, alternative: str = "remove the row") -> str:
        """Return a field that must hold text or a number, as text.

        Raises:
            DataError: If it is missing, is neither, or is empty.
        """
        value = self.at(field)
        # In Python true is a number; to the author of the file it is not.
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.refuse(field, value, "text or a number", alternative)
        return self._filled(field, value, alternative) if isinstance(value, str) else str(value)

    def part(self, field: str) -> str:
        """Return a field of a template as text: text as it is, null as none.

        Raises:
            DataError: If it is missing, or is neither text nor a number.
        """
        value, alternative = self.at(field), "set fields.query to another template"
        if value is not _ABSENT and _is_missing(value):
            return ""
        return (
            self._filled(field, value, alternative)
            if isinstance(value, str)
            else self.answer(field, value, alternative)
        )

    def answer(self, field: str, value: Any, alternative: str) -> str:  # noqa: ANN401
        """Return a value that must be text, a number or a boolean, as text.

        Raises:
            DataError: If it is none of these, empty, infinite or not a number.
        """
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, int | float | Decimal):
            if not isinstance(value, int) and not math.isfinite(value):
                raise DataError(
                    f"{self.place}: field {field!r} is {value}, which is no answer; fix it, or {alternative}"
                )
            # 51.0 is how some writers spell 51. The digits are those written, not those of the float next to them.
            written = Decimal(str(value))
            return str(int(written)) if written == int(written) and abs(written) < 10**40 else str(value)
        if not isinstance(value, str):
            self.refuse(field, value, "text or a number", alternative)
        number = None if self.typed else _number(value)
        if number is not None and not math.isfinite(number) and not value.strip().isdecimal():
            return self.answer(field, number, alternative)
        if number is not None and value.rstrip("0").endswith("."):
            return str(int(Decimal(value)))
        return self._filled(field, value, alternative)

    def _filled(self, field: str, text: str, alternative: str) -> str:
        if not text.strip():
            raise DataError(f"{self.place}: field {field!r} is empty; fill it in, or {alternative}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise lone_surrogate(self.place, field) from None
        return text

    def refuse(self, field: str, value: object, wanted: str, alternative: str) -> NoReturn:
        """Raise the error of a field that does not hold what it must."""
        fault, remedy = f"is {kind(value)}, not {wanted}", "fix it"
        if value is _ABSENT:
            there = ", ".join(map(repr, self.values)) or "no fields at all"
            fault, remedy = f"is missing (there are {there:.200})", "add it"
        raise DataError(f"{self.place}: field {field!r} {fault}; {remedy}, or {alternative}")


@cache
def _template(query: str) -> tuple[tuple[str, str | None], ...]:
    """Return the parts of a template, each a text and the field after it; nothing if it is the name of a field."""
    try:
        parts = [(text, field, spec or conversion) for text, field, spec, conversion in Formatter().parse(query)]
    except ValueError as error:
        raise ConfigError(
            f"fields.query {query!r:.60} is no template ({error}); write {{field}}, and {{{{ for a brace"
        ) from error
    if any(field == "" or more for _, field, more in parts):
        raise ConfigError(f"fields.query {query!r:.60}: write the name of a field, and nothing else, between braces")
    return tuple((text, field) for text, field, _ in parts) if any(field for _, field, _ in parts) else ()


def _chat(row: Row, field: str) -> list[Message]:
    """Return the turns of a chat."""
    turns: list[Message] = []
    for number, turn in enumerate(map(_plain, row.at(field))):
        if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
            row.refuse(field, row.at(field), "text or a chat with the keys role and content", "set another field")
        place = f"{row.place}: field {field!r}, message {number}"
        if turn["role"] not in _ROLES:
            raise DataError(f"{place}: its role is {turn['role']!r:.40}; use {', '.join(_ROLES)}, or remove the row")
        if not isinstance(turn["content"], str):
            raise DataError(f"{place}: its content is {kind(turn['content'])}, not text; fix it, or remove the row")
        turns.append(Message(cast("Role", turn["role"]), turn["content"]))
    return turns


def _question(row: Row, field: str) -> tuple[tuple[Message, ...], str]:
    """Return a chat's turns before its last user turn, and that turn."""
    turns = _chat(row, field)
    asked = max((number for number, turn in enumerate(turns) if turn.role == "user"), default=None)
    if asked is None or not turns[asked].content.strip():
        fault = "has no user turn" if asked is None else "ends with an empty user turn"
        raise DataError(f"{row.place}: the chat in field {field!r} {fault}; write the question, or remove the row")
    return tuple(turns[:asked]), turns[asked].content


def _answers(row: Row, field: str) -> str | tuple[str, ...]:
    """Return the acceptable answers of a row; one alone as text."""
    alternative = "set fields.target to another field or null"
    value = row.at(field)
    if not isinstance(value, list):
        return row.answer(field, value, alternative)
    if any(isinstance(item, Mapping) for item in value):
        turns = _chat(row, field)
        if turns[-1].role != "assistant":
            raise DataError(f"{row.place}: the chat in field {field!r} does not end with an answer; {alternative}")
        return row.answer(field, turns[-1].content, alternative)
    if not value:
        raise DataError(f"{row.place}: field {field!r} is an empty list; name an acceptable answer, or {alternative}")
    answers = tuple(dict.fromkeys(row.answer(field, _plain(item), alternative) for item in value))
    return answers if len(answers) > 1 else answers[0]


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return numpy's scalars and arrays, which frames hold, as Python's numbers and lists, and pandas' NA as None."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def _is_missing(value: Any) -> bool:  # noqa: ANN401
    """Return whether there is no value; frames write NaN for none."""
    return value is _ABSENT or value is None or value in ("", []) or value != value


def _number(text: str) -> float | None:
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def lone_surrogate(place: str, field: str) -> DataError:
    """Return the error of a text that UTF-8 cannot hold."""
    return DataError(f"{place}: field {field!r} holds a lone surrogate, which is not text; write the whole character")


def kind(value: object) -> str:
    """Return what the author of a file calls a value."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "a list"}
    if value is None or isinstance(value, Mapping):
        return "null" if value is None else "an object"
    return names.get(type(value), f"a {type(value).__name__}")
