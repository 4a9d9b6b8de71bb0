"""What the settings inside a checkpoint may fill in: only values that can do no harm.

A checkpoint may come from a stranger. Addresses, names of keys, class paths, file paths, the permission to run code,
and everything of student and reward are therefore never taken from it, unless the user confirms it. Settings are plain
dicts here, as ``weights_only`` loads them; nothing is imported or built.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wst.errors import ConfigError

_LONGEST_TEXT = 100_000  #: characters
_MOST_VALUES, _DEEPEST = 2_000, 20


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1_000_000


def _is_temperature(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


def _is_text_or_none(value: object) -> bool:
    return value is None or _is_text(value)


def _are_examples(value: object) -> bool:
    """Whether it is a list of pairs of texts."""
    return (
        isinstance(value, list)
        and len(value) <= 100
        and all(isinstance(p, list) and len(p) == 2 and all(map(_is_text, p)) for p in value)
    )


def _are_layers(value: object) -> bool:
    """Whether it is a list of names. PEFT takes another text for a regular expression, which need not end."""
    return value == "all-linear" or (isinstance(value, list) and len(value) <= 1_000 and all(map(_is_text, value)))


#: The settings of `wst.WeakToStrong` that may be taken, each with the check of its value.
HARMLESS: dict[str, Callable[[object], bool]] = {
    "samples_per_query": _is_count,
    "student_prompt": lambda value: value is None,
    "student_prompt.placement": _is_text,
    "student_prompt.query": _is_text,
    "student_prompt.separator": _is_text,
    "student_prompt.system": _is_text_or_none,
    "teacher.lora": lambda value: value is None,  # full fine-tuning
    "teacher.lora.alpha": _is_count,
    "teacher.lora.r": _is_count,
    "teacher.lora.target_modules": _are_layers,
    "teacher.max_new_tokens": _is_count,
    "teacher.max_prompt_tokens": _is_count,
    "teacher.prompt": lambda value: value is None,
    "teacher.prompt.examples": _are_examples,
    "teacher.prompt.system": _is_text_or_none,
    "teacher.prompt.template": _is_text,
    "teacher.temperature": _is_temperature,
}


def settings_in(checkpoint: object) -> dict[str, Any]:
    """Return the model's settings in a loaded checkpoint, flat.

    Returns:
        Values by dotted name; the model's own class under ``class_path``, levels called ``init_args`` left out. Empty
        if the checkpoint holds no class path, as one that was made from Python.

    Raises:
        ConfigError: If they are not settings that a run could have saved.
    """
    saved = checkpoint.get("hyper_parameters") if isinstance(checkpoint, Mapping) else None
    if not isinstance(checkpoint, Mapping) or not isinstance(saved, Mapping | None):
        raise ConfigError("the checkpoint's settings are not a mapping; give a checkpoint that `wst fit` wrote")
    if saved is None or "_class_path" not in saved:
        return {}
    own = {key: value for key, value in saved.items() if key not in ("_class_path", "_instantiator")}
    return flat({"class_path": saved["_class_path"], "init_args": own})


def flat(settings: Mapping[Any, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name, without the levels called ``init_args``.

    >>> flat({"teacher": {"class_path": "wst.Teacher", "init_args": {"lora": {"r": 4}}}})
    {'teacher.class_path': 'wst.Teacher', 'teacher.lora.r': 4}

    Raises:
        ConfigError: If they are nested too deeply, too many, or not plain values.
    """
    try:
        plain = json.loads(json.dumps(settings, default=repr))  # tuples become lists, objects their text
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the settings are not plain values ({type(error).__name__}); give those of a run") from error
    values: dict[str, Any] = {}
    for name, value in _leaves(plain, ()):
        values[name] = value
        if len(values) > _MOST_VALUES:
            raise ConfigError(f"the settings have more than {_MOST_VALUES} values; give those of a run")
    return values


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any plain value
    if not isinstance(value, dict) or not value:
        yield ".".join(path), value
        return
    if len(path) > _DEEPEST:
        raise ConfigError(f"the settings are nested more than {_DEEPEST} levels deep; give those of a run")
    for key, inner in value.items():
        # A dot in a key must not reach into another part, nor a control character the terminal.
        part = f"{key!r}" if "." in key or not key.isprintable() else key
        if key == "init_args" and inner == {}:
            continue
        yield from _leaves(inner, path if key == "init_args" else (*path, part))


def harmless(settings: Mapping[str, Any], said: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings that may be taken from a checkpoint without asking.

    Args:
        settings: Flat settings of the checkpoint, as `settings_in` returns them.
        said: Flat settings that the user gives. They win: nothing is taken at, above or below their places, and nothing
            of a part for which the user names another class.
    """
    return {
        name: value
        for name, value in settings.items()
        if name in HARMLESS and HARMLESS[name](value) and not _is_settled(name, settings, said or {})
    }


def withheld(settings: Mapping[str, Any], said: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint would have set otherwise, but may not: what the user neither said nor has anyway.

    Args:
        settings: Flat settings of the checkpoint.
        said: Flat settings that the user gives.
        result: Flat settings that count, with all defaults.
    """
    missing = object()
    return {
        name: value
        for name, value in settings.items()
        if result.get(name, missing) != value and not _is_settled(name, settings, said)
    }


def _is_settled(name: str, settings: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    parts = name.split(".")
    above = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    if any(place in said for place in above) or any(place.startswith(f"{name}.") for place in said):
        return True
    classes = ["class_path", *(f"{place}.class_path" for place in above[:-1])]
    return any(place in said and said[place] != settings.get(place) for place in classes)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings as nested dicts.

    >>> nested({"teacher.lora.r": 4, "samples_per_query": 2})
    {'teacher': {'lora': {'r': 4}}, 'samples_per_query': 2}

    Raises:
        ConfigError: If a value stands where others lie below, as below an ``init_args`` that is no mapping.
    """
    whole: dict[str, Any] = {}
    for name, value in values.items():
        *path, last = name.split(".")
        place: Any = whole
        for part in path:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or isinstance(place.get(last), dict):
            raise ConfigError(f"the settings have a value at or above {name!r:.100}, and more below it; mend them")
        place[last] = value
    return whole


def listed(values: Mapping[str, Any], limit: int = 400) -> str:
    """Return settings as one printable line, those that matter most for trust first.

    >>> listed({"teacher.temperature": 2.0, "student.class_path": "x.Y"})
    'student.class_path="x.Y", teacher.temperature=2.0'
    """
    telling = ("class_path", "base_url", "api_key_env", "trust_remote_code", "model", "adapter")
    names = sorted(values, key=lambda name: (name.rpartition(".")[2] not in telling, name))
    shown = [f"{name}={json.dumps(values[name])[:100]}" for name in names]
    text = ", ".join(shown)
    return text if len(text) <= limit else f"{text[:limit]}... ({len(names)} settings)"
