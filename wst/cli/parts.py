"""What a config names and torch is not needed for, built before torch is imported: its mistakes show in a second.

Whatever is not surely wrong is left to the parser, which builds everything again.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from wst.cli.early import Settings, did_you_mean
from wst.cli.signatures import signature_of
from wst.errors import ConfigError, WrongType, WSTError
from wst.files import SHIPPED, shipped

#: Options with which the settings are not all in sight, or nothing is run.
WAITING = ("--ckpt_path", "--trust_checkpoint", "--print_config", "--help", "--model.help", "--data.help")
_PLACES = ("model", "data", "model.teacher", "model.student", "model.reward", "model.baseline")
_REWARDS = ("wst.LabelMatch", "wst.ExactMatch", "wst.LastNumber", "wst.Length")
_DATA = "wst.QueryDataModule"
_SMALL = 5 * 10**7  #: bytes; a JSON file is read whole


def check_parts(settings: Settings) -> None:
    """Check files, models' names, prompts, rewards, and the endpoint with its key.

    Raises:
        WSTError: If something is surely wrong.
    """
    for place in _PLACES:
        _check_own_class(place, settings.classes.get(place, ""))
    classes = settings.classes
    for place in ("model.teacher.prompt", "model.student_prompt"):
        name = "TeacherPrompt" if place.endswith("r.prompt") else "StudentPrompt"
        if place not in classes and (given := settings.below(place)):
            _certain(partial(_make, f"wst.{name}", given))
    if classes.get("model.reward") in _REWARDS:
        _certain(partial(_make, classes["model.reward"], settings.below("model.reward")))
    for place in ("model.teacher", "model.student"):
        model = settings.values.get(f"{place}.model")
        if classes.get(place) in ("wst.Teacher", "wst.LocalStudent") and isinstance(model, str):
            _certain(partial(import_module("wst.modeling.spec").locate, model))
    if classes.get("data") == _DATA:
        _certain(partial(_check_data, settings.below("data")))
    if classes.get("model.student") == "wst.EndpointStudent":
        _certain(partial(_check_endpoint, settings.below("model.student")))


def _certain(check: Callable[[], object]) -> None:
    """Let only errors that the user can mend through: others may be of values that the parser reads otherwise."""
    try:
        check()
    except WrongType:  # YAML takes 1e-4 for a text; the parser knows better
        return
    except WSTError:
        raise
    except Exception:  # of any class's constructor
        return


def _make(class_path: str, given: Mapping[str, Any]) -> Any:  # noqa: ANN401 - an object of the class
    """Build an object of a class with those of the settings that it takes."""
    signature = signature_of(class_path)
    names = signature.defaults if signature is not None else {}
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)(**{key: value for key, value in given.items() if key in names})


def _check_data(given: dict[str, Any]) -> None:
    """Check that the files are there, that their first rows have the fields, and that they belong together."""
    from wst.data.sources import as_list, check_origin, file_rows, find_files

    field_map = _make("wst.FieldMap", given.get("fields", {}))
    for split in ("train", "val", "test", "predict"):
        if split == "val":  # after train's rows, before the fields of others, which may be of other data
            check_origin({each: as_list(given.get(each), each) for each in ("train", "val", "test")})
        if given.get(split) and not given.get("hub"):
            for file in find_files(given[split], split):
                path = shipped(file) if file.startswith(SHIPPED) else Path(file)
                if path.is_file() and path.stat().st_size < _SMALL:  # a pipe can be read once
                    field_map.read(next(file_rows(file, given.get("records"))), split != "predict")


def _check_endpoint(given: dict[str, Any]) -> None:
    """Check key, address and model; the run takes over what that has cost."""
    from wst.students import Budget, EndpointStudent, Prices
    from wst.students.probe import ASKED

    for name, cls in (("prices", Prices), ("budget", Budget)):
        if isinstance(given.get(name), dict):
            given[name] = cls(**given[name])
    student: EndpointStudent = _make("wst.EndpointStudent", given | {"cache": False})
    student.check()
    ASKED[student.base_url, student.source] = student.accounts


def _check_own_class(place: str, path: str) -> None:
    """Check that a class or function in a file of the current folder is there, without running the file.

    Raises:
        ConfigError: If there is no such file, it is not Python, or it surely has no such name.
    """
    module, _, name = path.rpartition(".")
    if not re.fullmatch(r"[a-z_]\w*", module):  # a package's classes are looked up by its own rules
        return
    spec = None
    with suppress(ImportError, ValueError):
        spec = find_spec(module)
    if spec is None:
        near = did_you_mean(module, (file.stem for file in Path().glob("*.py")), otherwise=f"write it into {module}.py")
        raise ConfigError(f"{place}: {path!r}: there is no {module}.py in the current folder; {near}")
    file = Path(spec.origin or "")
    if spec.submodule_search_locations or file.suffix != ".py" or file.parent != Path.cwd():
        return
    try:
        tree = ast.parse(file.read_text("utf-8"))
    except SyntaxError as error:
        raise ConfigError(f"{place}: {file.name}:{error.lineno}: {error.msg}; correct it") from error
    except (OSError, ValueError):
        return
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)}
    there = f"it has {', '.join(sorted(names))}" if names else "write it there"
    # Names may be bound in many more ways; in those, the name stands somewhere else in the file.
    if name not in names and not re.search(rf"\b{re.escape(name)}\b|import \*|__getattr__", file.read_text("utf-8")):
        raise ConfigError(f"{place}: {file.name} has no {name!r}; {did_you_mean(name, names, otherwise=there)}")
