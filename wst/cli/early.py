"""Checks of the command line before torch is imported: configs that are not there, options that no class has.

A check that is not sure of a mistake says nothing: the parser sees every option again.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from wst._moved import MOVED, MOVED_CLASSES
from wst.cli.signatures import find_class, is_dataclass, public_names, signature_of
from wst.errors import ConfigError
from wst.files import SHIPPED, shipped, shipped_files

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
TRAINER = "lightning.pytorch.trainer.trainer.Trainer"


def check_configs(args: list[str]) -> None:
    """Check that every config named is a file.

    Raises:
        ConfigError: If one is not.
    """
    for key, value in _options(args):
        if key == "config" and _is_path(value):
            read_config(_config_file(value))


def _config_file(name: str, folder: Path = Path()) -> Path:
    """Return the file of a config.

    Raises:
        ConfigError: If there is none.
    """
    path = shipped(name) if name.startswith(SHIPPED) else folder / name
    if not path.is_file():
        stems = {key.rpartition("/")[2]: key for key in sorted(shipped_files(), key=lambda key: -key.count("/"))}
        near = difflib.get_close_matches(Path(name).stem, stems, 1, 0.8)
        hint = f"; did you mean {SHIPPED}{stems[near[0]]}?" if near else ""
        raise ConfigError(f"config: no such file: {name!r}{hint}")
    return path


@dataclass
class Settings:
    """What the command line and its configs say, as far as can be told without the parser.

    Attributes:
        classes: The class path at each place. Places are dotted names without ``init_args`` and ``class_path``.
        values: The value at each place.
        keys: All places that the last config names.
        files: The configs that are being read, each named by the one before.
    """

    classes: dict[str, str] = field(default_factory=lambda: {"trainer": TRAINER})
    values: dict[str, Any] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def put(self, place: str, value: Any) -> None:  # noqa: ANN401 - what YAML holds
        """Note a value, which replaces what stood there."""
        # Another data module has settings of its own; the settings of other classes stay, as far as they fit.
        if self.values.get(place) != value if place == "data" else not isinstance(value, str):
            self.values = {key: old for key, old in self.values.items() if not key.startswith(f"{place}.")}
        self.values[place] = value

    def below(self, place: str) -> dict[str, Any]:
        """Return the settings below a place, nested."""
        tree: dict[str, Any] = {}
        for key, value in self.values.items():
            *path, last = key.removeprefix(f"{place}.").split(".")
            if key.startswith(f"{place}."):
                node = tree
                for part in path:
                    node = node.setdefault(part, {}) if isinstance(node.get(part, {}), dict) else {}
                node[last] = value
        return tree


def check_options(args: list[str], own: Iterable[str] = ()) -> Settings:
    """Check the names of classes and options, here and in the configs, against the source of the classes.

    Args:
        args: The command line after the command.
        own: Options that the command has besides those of `fit`.

    Returns:
        What is set.

    Raises:
        ConfigError: If a class of the package surely does not exist, or the class that an option belongs to surely has
            no such argument, or an argument surely is no number.
    """
    settings = Settings()
    options = list(_options(args))
    for key, value in options:
        settings.keys = []
        if key == "config":
            file = _config_file(value) if _is_path(value) else None
            settings.files = [] if file is None else [file.resolve()]
            _collect(_load(value or "") if file is None else _read(file), "", file or Path(), settings)
            for name in settings.keys:
                _check_key(name, settings, f"config{'' if file is None else f' {str(file)!r}'}: {name}")
        elif value is not None:
            loaded = _load(value)
            _collect({key: value if isinstance(loaded, str) else loaded}, "", Path(), settings)
    for key, _ in options:
        _check_key(key, settings, f"option --{key}", own)
    return settings


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
    # A config may also be given as YAML text.
    return bool(config) and not {":", "{", "\n"} & set(str(config).removeprefix(SHIPPED))


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

    aliases = 0
    around: list[str | None] = []  # anchors of the collections that are open
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            aliases += isinstance(event, yaml.AliasEvent)
            if isinstance(event, yaml.CollectionStartEvent):
                around.append(event.anchor)
            elif isinstance(event, yaml.CollectionEndEvent):
                around.pop()
            elif isinstance(event, yaml.AliasEvent) and event.anchor in around:
                raise ConfigError(f"config {str(path)!r}: *{event.anchor} stands inside itself; write values out")
            if len(around) > _DEEPEST:
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


def _collect(value: Any, place: str, file: Path, settings: Settings) -> None:  # noqa: ANN401 - YAML
    """Note what stands at a place of a config; what a later one says wins."""
    if place == "config" and not isinstance(value, str | dict | None):
        raise ConfigError(
            f"{file.name}: config must name one file, got {value!r:.60}; name further ones with --config, or let the "
            "files name each other"
        )
    if isinstance(value, str) and (part := _part(value, place, file.parent)) is not None:
        if part.resolve() in settings.files:
            raise ConfigError(f"config {str(part)!r} includes itself; take it out of {file.name}")
        settings.files.append(part.resolve())
        _collect(_read(part), "" if place == "config" else place, part, settings)
        settings.files.pop()
    elif isinstance(value, str) and place != "trainer":
        settings.classes[place] = value
        settings.put(place, value)
        _check_class(value, place)
    elif isinstance(value, dict):
        for key, inner in value.items():
            parts = [place, *str(key).split(".")]
            name = ".".join(part for part in parts if part and part not in ("init_args", "class_path"))
            if name:
                settings.keys.append(name)
            _collect(inner, name, file, settings)
    else:
        settings.put(place, value)
        for inner in value if isinstance(value, list) else ():  # callbacks, loggers: no key can name them
            _collect(inner, f"{place}.*", file, Settings())


def _part(value: str, place: str, folder: Path) -> Path | None:
    """Return the file that a value of a config names, if it names one."""
    if place == "config":
        return _config_file(value, folder)
    if value.startswith(SHIPPED):
        known = shipped_files().get(value.removeprefix(SHIPPED).removesuffix(".yaml"))
        return known if known is not None and known.suffix == ".yaml" else None
    return folder / value if value.endswith((".yaml", ".yml")) and (folder / value).is_file() else None


def _check_class(class_path: str, place: str) -> None:
    """Check that a class of the package exists; what does not look like one is left alone."""
    if not re.fullmatch(r"wst(\.\w+)*\.[A-Z]\w*", class_path):
        return
    module, _, name = class_path.rpartition(".")
    if name not in MOVED_CLASSES.get(module, {}) and find_class(MOVED.get(module, module), name) is None:
        raise ConfigError(
            f"{place.rstrip('.*')}: there is no class {class_path}; {did_you_mean(name, public_names(), 'wst.')}"
        )


def _check_key(key: str, settings: Settings, where: str, own: Iterable[str] = ()) -> None:
    parts = [part for part in key.split(".") if part not in ("init_args", "class_path")]
    if parts[0] not in ("trainer", "model", "data"):
        if parts[0] not in (*TOP, *own):
            _refuse(where, parts[0], (*TOP, *own, "trainer", "model", "data"), "the command")
        return
    fields = ""  # the dataclass that a place takes without naming it
    for depth in range(1, len(parts)):
        owner = settings.classes.get(".".join(parts[:depth]), fields)
        signature = signature_of(owner)
        wrong = parts[depth].rstrip("+")
        if signature is None or wrong in ("help", "dict_kwargs"):
            return
        if wrong not in signature.defaults:
            _refuse(where, wrong, list(signature.defaults), owner.rpartition(".")[2])
        named = signature.types.get(wrong, "").removesuffix(" | None")
        if named in ("int", "float") and not _may_be_number(given := settings.values.get(".".join(parts))):
            raise ConfigError(f"{where}: expected a number ({named}), got {given!r:.60}")
        found = find_class("wst", named) if named.isidentifier() else None
        fields = f"wst.{named}" if found is not None and is_dataclass(found.node) else ""


def _may_be_number(value: Any) -> bool:  # noqa: ANN401 - what YAML holds
    try:
        return not isinstance(value, str) or float(value) is not None  # YAML takes 1e-4 for a text
    except ValueError:
        return False


def did_you_mean(wrong: str, names: Iterable[str], prefix: str = "", otherwise: str = "") -> str:
    """Return the remedy for a misspelt name: the nearest name, or else where to look.

    >>> did_you_mean("LabelMach", ["LabelMatch", "Length"], "wst.")
    'did you mean wst.LabelMatch?'
    """
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wrong.lower(), folded, 1)
    return f"did you mean {prefix}{folded[near[0]]}?" if near else otherwise or "`wst list` shows what there is"


def _refuse(where: str, wrong: str, names: Sequence[str], owner: str) -> None:
    hint = did_you_mean(wrong, names, otherwise="see `wst fit --help` for the options")
    raise ConfigError(f"{where}: {owner} has no option {wrong!r}; {hint}")
