"""Telling objects apart by their settings, so that results of one are not taken for those of another."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from typing import Any

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# Matters of speed, which change no answer, and counts.
_PASSING = {
    "accounts",
    "backoff",
    "batch_size",
    "cache",
    "concurrency",
    "on_progress",
    "retries",
    "shortened",
    "timeout",
}


def identity_of(thing: Any) -> Any:  # noqa: ANN401 - what JSON knows
    """Give an object's class and settings as JSON knows them.

    An object that has a method ``identity`` speaks for itself; of others `public_settings` count. Give a class whose
    settings are of other kinds the method.
    """
    if isinstance(thing, bool | int | float | str | None):
        return thing
    if isinstance(thing, dict):
        return {str(key): identity_of(value) for key, value in sorted(thing.items(), key=lambda item: str(item[0]))}
    if isinstance(thing, set | frozenset):
        return sorted(map(str, thing))
    if isinstance(thing, list | tuple):
        return [identity_of(value) for value in thing]
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if callable(getattr(thing, "identity", None)):
        return [name, identity_of(thing.identity())]
    if is_dataclass(thing):
        return [name, {field.name: identity_of(getattr(thing, field.name)) for field in fields(thing)}]
    return [name, identity_of(public_settings(thing))]


def public_settings(thing: Any) -> dict[str, Any]:  # noqa: ANN401 - any object
    """Give an object's public attributes that hold plain values, dataclasses, or objects that speak for themselves.

    Where every argument of its constructor is kept under the same name, these are its settings, and other attributes,
    which may be counts and logs, are left out.
    """
    held = {key: value for key, value in getattr(thing, "__dict__", {}).items() if not key.startswith("_")}
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind in _NAMED} - {"self"}
    if named <= set(held):
        held = {key: value for key, value in held.items() if key in named}
    return {
        key: value for key, value in held.items() if key not in _PASSING and not _nothing(value) and _telling(value)
    }


def _nothing(value: object) -> bool:
    """Whether it says nothing: an empty list may be a log that has only begun."""
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def _telling(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_telling, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_telling, value))
    plain = isinstance(value, bool | int | float | str | None)
    return plain or (is_dataclass(value) and not isinstance(value, type)) or callable(getattr(value, "identity", None))
