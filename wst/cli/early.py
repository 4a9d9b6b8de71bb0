"""Checks of the command line before torch is imported: configs that are not there, options that no class has.

A check that is not sure of a mistake says nothing: the parser sees every option again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from wst.cli.signatures import signature_of
from wst.errors import ConfigError

#: Top-level options of the commands that run a config, other than those with options of their own.
TOP = (
    "trust_checkpoint",
    "help",
    "config",
    "print_config",
    "seed_everything",
    "ckpt_path",
    "weights_only",
    "verbose",
    "return_predictions",
)
_LARGEST, _DEEPEST, _MOST_ALIASES = 10**7, 50, 20  #: of a config: bytes, levels, YAML aliases
_TRAINER = "lightning.pytorch.trainer.trainer.Trainer"


def check_configs(args: list[str]) -> None:
    """Check that every config named is a file.

    Raises:
        ConfigError: If one is not.
    """
    for key, value in _options(args):
        if key == "config" and _is_path(value):
            if not Path(value).is_file():
                raise ConfigError(f"config: no such file: {value!r}")
            read_config(Path(value))


def check_options(args: list[str]) -> None:
    """Check the names of the options against the signatures of the package's classes.

    Raises:
        ConfigError: If the class that an option belongs to surely has no such argument.
    """
    classes = {"trainer": _TRAINER}
    options = list(_options(args))
    for key, value in options:
        if key == "config":
            if _is_path(value):
                _collect_classes(_read(Path(value)), "", Path(value).parent, classes)
            else:
                _collect_classes(_load(value or ""), "", Path(), classes)
        elif value is not None:
            _collect_classes({key: value}, "", Path(), classes)
    for key, _ in options:
        _check_key(key, classes)


def _options(args: list[str]) -> Iterator[tuple[str, str | None]]:
    """Yield each option's dotted name, and its value if one can be told."""
    for i, arg in enumerate(args):
        if arg.startswith("--") and arg != "--":
            name, equals, value = arg[2:].partition("=")
            following = args[i + 1] if i + 1 < len(args) and not args[i + 1].startswith("--") else None
            yield name, value if equals else following
        elif arg == "-c" and i + 1 < len(args):
            yield "config", args[i + 1]


def _is_path(config: str | None) -> TypeGuard[str]:
    return bool(config) and not {":", "{", "\n"} & set(str(config))  # a config may also be given as YAML text


def read_config(path: Path) -> str:
    """Return the text of a config, which is UTF-8 wherever it is read.

    Raises:
        ConfigError: If it cannot be read, is not UTF-8 or too large, or is nested too deeply for any parser.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"config {str(path)!r} is larger than {_LARGEST // 10**6} MB; give a config of a run")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {str(path)!r} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    _check_structure(text, path)
    return text


def _check_structure(text: str, path: Path) -> None:
    """Check depth and aliases on the YAML event stream, which builds no objects and does not recurse."""
    import yaml

    depth = aliases = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            aliases += isinstance(event, yaml.AliasEvent)
            if depth > _DEEPEST:
                raise ConfigError(f"config {str(path)!r} is nested more than {_DEEPEST} levels deep; flatten it")
            if aliases > _MOST_ALIASES:
                raise ConfigError(f"config {str(path)!r} has more than {_MOST_ALIASES} YAML aliases; write values out")
    except yaml.YAMLError as error:
        said = " ".join(str(error).replace('"<unicode string>", ', "").split())
        raise ConfigError(f"config {str(path)!r} is not YAML: {said:.300}") from error
    except RecursionError as error:
        raise ConfigError(f"config {str(path)!r} is nested too deeply; flatten it") from error


def _read(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    return _load(read_config(path))


def _load(text: str) -> Any:  # noqa: ANN401
    import yaml  # not for `wst --help`

    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, RecursionError):
        return None  # the parser will say what is wrong with it


def _collect_classes(value: Any, place: str, folder: Path, classes: dict[str, str]) -> None:  # noqa: ANN401 - YAML
    """Note the class path at each place; a later config's wins. Places leave out ``init_args``."""
    if isinstance(value, str):
        file = folder / value
        if value.endswith((".yaml", ".yml")) and file.is_file():
            _collect_classes(_read(file), place, file.parent, classes)
        elif place != "trainer":
            classes[place] = value
    elif isinstance(value, dict):
        for key, inner in value.items():
            parts = [place, *str(key).split(".")]
            name = ".".join(part for part in parts if part and part not in ("init_args", "class_path"))
            _collect_classes(inner, name, folder, classes)


def _check_key(key: str, classes: dict[str, str]) -> None:
    parts = [part for part in key.split(".") if part not in ("init_args", "class_path")]
    if parts[0] not in ("trainer", "model", "data"):
        names, owner, wrong = [*TOP, "trainer", "model", "data"], "the command", parts[0]
        if wrong not in names:
            _refuse(key, wrong, names, owner)
        return
    for depth in range(1, len(parts)):
        owner = classes.get(".".join(parts[:depth]), "")
        signature = signature_of(owner)
        wrong = parts[depth].rstrip("+")
        if signature is None or wrong in ("help", "dict_kwargs"):
            return
        if wrong not in signature.defaults:
            _refuse(key, wrong, list(signature.defaults), owner.rpartition(".")[2])


def _refuse(key: str, wrong: str, names: list[str], owner: str) -> None:
    near = difflib.get_close_matches(wrong, names, 1)
    hint = f"did you mean {near[0]}?" if near else "see `wst fit --help` for the options"
    raise ConfigError(f"option --{key}: {owner} has no option {wrong!r}; {hint}")
