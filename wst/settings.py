"""Checks of options that many constructors share, and identities that tell objects apart by their settings."""

from __future__ import annotations

import builtins
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from functools import cache
from numbers import Integral, Real
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wst.errors import ConfigError, WrongType

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# Options that change the speed and not the answers, and counters.
_IGNORED = {
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

# Modules that classes have moved from. Identities keep the first name, because answers are cached under it.
_FIRST_MODULES = {
    "wst.evaluation.comparison": "wst.comparison.run",
    "wst.rewards.math.reward": "wst.rewards.math",
    "wst.rewards.numbers": "wst.rewards.text",
    "wst.training.baselines": "wst.baselines",
    "wst.training.schedules": "wst.schedule",
    "wst.types": "wst.rollout",
}


def identity_of(thing: Any) -> Any:  # noqa: ANN401 - any object, and what JSON can hold
    """Return the class and settings of an object as values that JSON can hold.

    An object with a method ``identity`` describes its own settings; of any other object the class alone counts.
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
        return _class_name(thing)
    name = _class_name(type(thing))
    if callable(getattr(thing, "identity", None)):
        return [name, identity_of(thing.identity())]
    if isinstance(thing, PurePath | Enum | Decimal | re.Pattern):
        return [name, str(thing.pattern if isinstance(thing, re.Pattern) else thing)]
    if is_dataclass(thing):
        return [name, {field.name: identity_of(getattr(thing, field.name)) for field in fields(thing)}]
    return name


def _class_name(kind: type) -> str:
    return f"{_FIRST_MODULES.get(kind.__module__, kind.__module__)}.{kind.__qualname__}"


def public_settings(thing: Any) -> dict[str, Any]:  # noqa: ANN401 - any object
    """Return the public attributes of an object that are settings.

    If the object keeps every argument of its constructor under the argument's name, these are its settings, and all
    other attributes, which may be counters and logs, are left out. Of an object of another library the class alone
    counts: a student whose answers depend on more must say so in its ``identity``.
    """
    held = {key: value for key, value in getattr(thing, "__dict__", {}).items() if not key.startswith("_")}
    parameters = inspect.signature(type(thing).__init__).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind in _NAMED} - {"self"}
    if named <= set(held):
        held = {key: value for key, value in held.items() if key in named}
    return {key: value for key, value in held.items() if key not in _IGNORED and not _is_unset(value)}


def _is_unset(value: object) -> bool:
    """Return whether a value is None or an empty container, which may be a log that has only begun."""
    return value is None or (isinstance(value, list | tuple | dict | set) and not value)


def check_counts(owner: str, least: int = 1, /, **options: int | None) -> None:
    """Check that each option is a whole number of at least ``least``, or None.

    Raises:
        ConfigError: If one is not.
    """
    for option, value in options.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if value is not None and not (whole and value >= least):
            kind = "" if whole else "a whole number, "
            raise ConfigError(f"{owner}: {option} must be {kind}at least {least}, got {value!r:.40}")


#: Types of plain values: what Python has to be an instance of, and how an error calls it.
_PLAIN: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: ((str, PurePath), "text"),
    NoneType: (NoneType, "None"),
}


def check_arguments(owner: type | Callable[..., Any], given: Mapping[str, object]) -> None:
    """Check arguments of a constructor or a function against its annotations. Call it first, with ``locals()``.

    Plain values, choices, lists and dicts are checked, and objects of the package's classes. Where a function may
    stand for a student or a reward, the class that takes it checks it.

    Args:
        owner: The function, or the class whose constructor it is, not one that inherits it.
        given: Arguments by name; of a dataclass, its fields. Other names are left out.

    Raises:
        WrongType: If one is of another type.
    """
    for option, hint in _hints(owner).items():
        if option in given and not _fits(given[option], hint):
            got = " ".join(f"{given[option]!r:.60}".split())
            made = [f"wst.{each.__name__}(...)" for each in (hint, *get_args(hint)) if _is_ours(each)]
            remedy = f"; give {made[0]}" if made else ""
            raise WrongType(f"{owner.__name__}: {option} must be {_in_words(hint)}, got {got}{remedy}")


@cache
def _hints(owner: type | Callable[..., Any]) -> dict[str, Any]:
    inside = isinstance(owner, type) and not is_dataclass(owner)
    thing: Any = owner.__init__ if inside else owner  # type: ignore[misc]
    return get_type_hints(thing, localns=_Names(vars(inspect.getmodule(owner))))


class _Names(dict[str, Any]):
    """Names of a module; those that it imports for type checkers alone stand for anything."""

    def __missing__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(builtins, name, Any)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - any annotation
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if hint in _PLAIN:
        return isinstance(value, _PLAIN[hint][0]) and (hint is bool or not isinstance(value, bool))
    if origin in (list, tuple, Sequence):
        alike = len(inner) == 1 or inner[-1] is Ellipsis
        return isinstance(value, list | tuple) and (not alike or all(_fits(each, inner[0]) for each in value))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping)
    return not _is_ours(hint) or isinstance(value, hint)


def _is_ours(hint: Any) -> bool:  # noqa: ANN401
    """Return whether it is a class of the package for which no function may stand."""
    own = isinstance(hint, type) and hint.__module__.startswith("wst.")
    return own and hint.__name__ not in ("Student", "Reward")


def _in_words(hint: Any) -> str:  # noqa: ANN401
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_in_words(each) for each in inner if each is not NoneType)
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if hint in _PLAIN:
        return _PLAIN[hint][1]
    if origin in (list, tuple, Sequence):
        return f"a list, each of it {_in_words(inner[0])}"
    if origin in (dict, Mapping):
        return "a dict"
    return f"a {getattr(hint, '__name__', hint)}"
