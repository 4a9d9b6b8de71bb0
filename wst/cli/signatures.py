"""Constructor signatures read from source, without importing the modules (and torch) that hold the classes."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from wst._moved import MOVED

PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor.

    Attributes:
        defaults: Source text of each argument's default by name, None for a required argument.
        described: What the docstring's section ``Args`` says of them.
    """

    defaults: dict[str, str | None]
    described: dict[str, str]


@cache
def signature_of(class_path: str) -> Signature | None:
    """Return the signature of one of the package's classes, or of Lightning's trainer.

    Args:
        class_path: As in a config: ``wst.Teacher``, ``wst.students.local.LocalStudent``.

    Returns:
        None if the class is not found in the source, or may take arguments that its source does not list.
    """
    module, _, name = class_path.rpartition(".")
    node = _class_in(MOVED.get(module, module), name)
    if node is None:
        return None
    documented = ast.get_docstring(node) or ""
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return Signature(_fields(node), _described(documented)) if _is_dataclass(node) else None
    if init.args.vararg or init.args.kwarg:
        return None
    positional = init.args.args[1:]
    required = len(positional) - len(init.args.defaults)
    pairs = [*zip(positional, [*[None] * required, *init.args.defaults], strict=True)]
    pairs += zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    defaults = {argument.arg: None if default is None else ast.unparse(default) for argument, default in pairs}
    return Signature(defaults, _described(documented) | _described(ast.get_docstring(init) or ""))


def _class_in(module: str, name: str) -> ast.ClassDef | None:
    path = _source(module)
    if path is None:
        return None
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class_in(node.module, alias.name)
    return None


def _source(module: str) -> Path | None:
    """Return the file of a module of wst or Lightning; finding a top-level package does not import it."""
    top, *rest = module.split(".")
    if top == "wst":
        folder = PACKAGE
    elif top == "lightning" and (spec := find_spec(top)) is not None and spec.origin is not None:
        folder = Path(spec.origin).parent
    else:
        return None
    place = folder.joinpath(*rest)
    candidates = (place / "__init__.pyi", place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return not node.bases and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _fields(node: ast.ClassDef) -> dict[str, str | None]:
    return {
        field.target.id: None if field.value is None else ast.unparse(field.value)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _described(docstring: str) -> dict[str, str]:
    """Read the section ``Args`` of a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.cleandoc(docstring), flags=re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+)[^:\n]*:\s(.*(?:\n {5,}.*)*)", section[1] if section else "", flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`") for name, text in entries}
