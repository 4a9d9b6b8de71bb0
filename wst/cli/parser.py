"""What jsonargparse gets wrong, mended in one place; each function has a test, and says what it reaches into.

Tested with jsonargparse 4.53.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, _signatures, _typehints, _util, set_dumper
from jsonargparse._loaders_dumpers import dump_yaml_kwargs, get_yaml_default_loader
from jsonargparse._paths import Path as ConfigPath
from lightning import LightningDataModule

from wst.cli.early import read_config
from wst.files import SHIPPED, shipped_files

_parse_value = _util.parse_value_or_config


def mend() -> None:
    """Mend null, text that looks like a number, configs, other data modules and untyped arguments, for every parser."""
    setattr(_typehints, "parse_value_or_config", _parse_nested)  # noqa: B010 - no public name of the module
    setattr(_typehints, "discard_init_args_on_class_path_change", _discard)  # noqa: B010
    setattr(ConfigPath, "__init__", _locate)  # noqa: B010
    setattr(ConfigPath, "read_text", _read_text)  # noqa: B010
    setattr(_signatures.SignatureArguments, "_add_signature_parameter", _add)  # noqa: B010
    set_dumper("yaml", _dump)


def _parse_nested(value: Any, enable_path: bool = True, simple_types: bool = False) -> Any:  # noqa: ANN401
    """Pass the value of a nested option on as JSON.

    jsonargparse loads it, then formats it with ``str`` for the parser of the inner class, which makes null of any depth
    the text "None".
    """
    loaded, path = _parse_value(value, enable_path=enable_path, simple_types=simple_types)
    if isinstance(value, _util.NestedArg) and path is None and isinstance(loaded.val, dict | list | None):
        loaded = loaded._replace(val=json.dumps(loaded.val))
    return loaded, path


_read_other = ConfigPath.read_text


def _read_text(path: ConfigPath) -> str:
    """Read a config as UTF-8; jsonargparse uses the locale's encoding."""
    file = Path(os.fspath(path))
    return read_config(file) if file.is_file() else _read_other(path)


_init = ConfigPath.__init__


def _locate(path: ConfigPath, name: Any, *settings: Any, **named: Any) -> None:  # noqa: ANN401
    """Find the configs that come with the package: ``wst:quickstart``, ``wst:overlays/endpoint``."""
    if isinstance(name, str) and name.startswith(SHIPPED):
        name = str(shipped_files().get(name.removeprefix(SHIPPED).removesuffix(".yaml"), name))
    _init(path, name, *settings, **named)


_discard_unknown = _typehints.discard_init_args_on_class_path_change


def _discard(parser: Any, before: Any, now: Any) -> None:  # noqa: ANN401 - what jsonargparse hands over
    """Let a data module of another class begin with its own defaults: the old one's files and fields are not its."""
    old, new = (each.get("class_path") if isinstance(each, Namespace) else None for each in (before, now))
    if old and new and old != new and "init_args" in before:
        cls = _util.import_object(new)
        if cls is not _util.import_object(old) and isinstance(cls, type) and issubclass(cls, LightningDataModule):
            for key in list(before.init_args.__dict__):
                before.init_args.pop(key)
    _discard_unknown(parser, before, now)


_add_parameter = _signatures.SignatureArguments._add_signature_parameter


def _add(parser: Any, container: Any, key: Any, parameter: Any, *settings: Any, **named: Any) -> None:  # noqa: ANN401
    """Require an argument that has neither a type nor a default; jsonargparse would set it to None."""
    if parameter.annotation is inspect.Parameter.empty and parameter.default is inspect.Parameter.empty:
        parameter = dataclasses.replace(parameter, annotation=Any)
    _add_parameter(parser, container, key, parameter, *settings, **named)


class _Dumper(yaml.SafeDumper):
    """Quotes text that jsonargparse's loader would read as a number, such as the revision 7435e1."""


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    tag = get_yaml_default_loader()("").resolve(yaml.ScalarNode, text, (True, False))
    style = None if tag == "tag:yaml.org,2002:str" else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent)


def _dump(data: Any) -> str:  # noqa: ANN401 - any plain value
    settings: dict[str, Any] = dump_yaml_kwargs
    return str(yaml.dump(data, Dumper=_Dumper, **settings))
