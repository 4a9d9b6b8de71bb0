"""Settings: checks that many constructors share, and identities that tell objects apart by their settings."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any

from wst.errors import ConfigError

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

    An object that has a method ``identity`` speaks for itself; of others the class alone counts.
    """
    if isinstance(thing, bool | int | float | str | None):
        return thing
    if isinstance(thing, dict):
        return {str(key): identity_of(value) for key, value in sorted(thing.items(), key=lambda item: str(item[0]))}
    if isinstance(thing, set | frozenset):
        return sorted(map(str, thing))
    if isinstance(thing, list | tuple):
        return [identity_of(value) for value in thing]
    if isinstance(thing, type):
        return f"{thing.__module__}.{thing.__qualname__}"
    name = f"{type(thing).__module__}.{type(thing).__qualname__}"
    if callable(getattr(thing, "identity", None)):
        return [name, identity_of(thing.identity())]
    if isinstance(thing, PurePath | Enum | Decimal | re.Pattern):
        return [name, str(thing.pattern if isinstance(thing, re.Pattern) else thing)]
    if is_dataclass(thing):
        return [name, {field.name: identity_of(getattr(thing, field.name)) for field in fields(thing)}]
    return name


def public_settings(thing: Any) -> dict[str, Any]:  # noqa: ANN401 - any object
    """Give an object's public attributes, as far as they are settings.

    Where every argument of its constructor is kept under the same name, these are its settings, and other attributes,
    which may be counts and logs, are left out. Of an object of another library the class alone counts: a student whose
    answers depend on more has to say so in its ``identity``.
    """
    held = {key: value for key, value in getattr(thing, "__dict__", {}).items() if not key.startswith("_")}
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind in _NAMED} - {"self"}
    if named <= set(held):
        held = {key: value for key, value in held.items() if key in named}
    return {key: value for key, value in held.items() if key not in _PASSING and not _nothing(value)}


def _nothing(value: object) -> bool:
    """Whether it says nothing: an empty list may be a log that has only begun."""
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def check_choice(option: str, got: str, choices: tuple[str, ...]) -> None:
    """Check that an option has one of its values.

    Raises:
        ConfigError: If not.
    """
    if got not in choices:
        raise ConfigError(f"{option} must be one of {', '.join(map(repr, choices))}, got {got!r}")


def check_counts(owner: str, **options: int | None) -> None:
    """Check that each option is at least 1, or None.

    Raises:
        ConfigError: If one is not.
    """
    for option, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(f"{owner}: {option} must be at least 1, got {value}")
