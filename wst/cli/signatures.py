"""Constructor signatures read from source, without importing the modules (and torch) that hold the classes."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from wst._moved import MOVED, listed
from wst.errors import ConfigError

PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Signature:
    """The arguments of a constructor.

    Attributes:
        defaults: Source text of each argument's default by name, None for a required argument.
        described: What the docstring's section ``Args`` says of them.
        types: Source text of their types.
    """

    defaults: dict[str, str | None]
    described: dict[str, str]
    types: dict[str, str]


class Found(NamedTuple):
    """A class in the source.

    Attributes:
        module: Name of the module that defines it.
        node: Its definition.
    """

    module: str
    node: ast.ClassDef

    @property
    def bases(self) -> list[Found]:
        """The base classes whose source can be found."""
        return [base for node in self.node.bases if (base := find_class(self.module, ast.unparse(node)))]

    @property
    def summary(self) -> str:
        """The first sentence of the docstring, without markup."""
        first = re.sub(r"\s+", " ", (ast.get_docstring(self.node) or "").partition("\n\n")[0])
        return re.split(r"(?<=[.;])(?<!et al\.) ", first)[0].rstrip(".:;").replace("`", "")

    def is_a(self, name: str) -> bool:
        """Return whether the class, or one that it is derived from, has a name."""
        return self.node.name == name or any(base.is_a(name) for base in self.bases)

    @property
    def is_abstract(self) -> bool:
        """Whether a method of its own is abstract."""
        return "@abstractmethod" in ast.unparse(self.node)


@cache
def signature_of(class_path: str, anywhere: bool = False) -> Signature | None:
    """Return the signature of one of the package's classes, or of Lightning's.

    Args:
        class_path: As in a config: ``wst.Teacher``, ``wst.students.local.LocalStudent``.
        anywhere: Whether to look into other packages, too.

    Returns:
        None if the class is not found in the source, or may take arguments that its source does not list.
    """
    module, _, name = class_path.rpartition(".")
    if not anywhere and module.partition(".")[0] not in ("wst", "lightning"):
        return None
    found = find_class(MOVED.get(module, module), name)
    return None if found is None else _signature(found)


def _signature(found: Found) -> Signature | None:
    documented = ast.get_docstring(found.node) or ""
    init = next((n for n in found.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return _fields(found.node, documented) if is_dataclass(found.node) else None
    if init.args.vararg or init.args.kwarg:
        return None
    positional = init.args.args[1:]
    required = len(positional) - len(init.args.defaults)
    pairs = [*zip(positional, [*[None] * required, *init.args.defaults], strict=True)]
    pairs += zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)
    return Signature(
        {argument.arg: None if default is None else ast.unparse(default) for argument, default in pairs},
        _described(documented) | _described(ast.get_docstring(init) or ""),
        {argument.arg: ast.unparse(argument.annotation) for argument, _ in pairs if argument.annotation},
    )


@cache
def find_class(module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> Found | None:
    """Return the class that a module calls by a name; None if its source cannot be found.

    Args:
        module: The module.
        name: The name there.
        seen: Where it was looked for before: two modules may import it from each other.
    """
    path = _source(module)
    if path is None or (module, name) in seen:
        return None
    package = module if path.name.startswith("__init__.") else module.rpartition(".")[0]
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return Found(module, node)
        if isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            source = ".".join(filter(None, [above, node.module]))
            for alias in node.names:
                if (alias.asname or alias.name) == name and source != module:
                    return find_class(source, alias.name, seen | {(module, name)})
    return None


@cache
def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path.name} is no Python ({error}); correct it") from error


def public_classes() -> dict[str, Found]:
    """Return the package's public classes by name; their modules are not imported."""
    found = {name: find_class("wst", name) for name in public_names()}
    return {name: each for name, each in found.items() if each is not None}


def public_names() -> list[str]:
    """Return the names that ``wst/__init__.pyi`` lists."""
    return list(listed("wst"))


def _source(module: str) -> Path | None:
    """Return the file of a module; finding a top-level package does not import it."""
    top, *rest = module.split(".")
    if top == "wst":
        folder = PACKAGE
    else:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
            return None
        folder = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin).with_suffix("")
    place = folder.joinpath(*rest)
    candidates = (place / "__init__.pyi", place / "__init__.py", place.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def is_dataclass(node: ast.ClassDef) -> bool:
    """Return whether a class is a dataclass without base classes."""
    return not node.bases and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _fields(node: ast.ClassDef, documented: str) -> Signature:
    fields = {n.target.id: n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    return Signature(
        {name: _default(field.value) for name, field in fields.items()},
        _described(documented),
        {name: ast.unparse(field.annotation) for name, field in fields.items()},
    )


def _default(value: ast.expr | None) -> str | None:
    """Return a field's default; ``field(...)`` may have none."""
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field"):
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        value = given.get("default", given.get("default_factory"))
    return None if value is None else ast.unparse(value)


def _described(docstring: str) -> dict[str, str]:
    """Read the section ``Args`` of a Google-style docstring."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)*)", inspect.cleandoc(docstring), flags=re.MULTILINE)
    entries = re.findall(r"^ {4}(\w+)[^:\n]*:\s(.*(?:\n {5,}.*)*)", section[1] if section else "", flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", text).replace("``", "`") for name, text in entries}
