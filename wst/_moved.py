"""Imports on demand, and the former names of modules and classes, which configs and checkpoints may hold."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module, resources
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "wst.baselines": "wst.training.baselines",
    "wst.comparison": "wst.evaluation",
    "wst.metrics": "wst.evaluation.metrics",
    "wst.models": "wst.modeling.loading",
    "wst.objective": "wst.training.objective",
    "wst.rollout": "wst.types",
    "wst.schedule": "wst.training.schedules",
}
#: Classes that left a module that still exists, with their new modules.
MOVED_CLASSES = {"wst.files": {"AtomicCheckpointIO": "wst.training.checkpoint"}}


class _Finder(MetaPathFinder, Loader):
    """Import a moved module under its old name; both names give the same module object."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(MOVED[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module has run under its new name."""


def install() -> None:
    """Install the finder of moved modules."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())


def listed(package: str) -> dict[str, str]:
    """Return the names that a package's ``__init__.pyi`` lists, each with the module that it comes from."""
    statements = ast.parse(resources.files(package).joinpath("__init__.pyi").read_text("utf-8")).body
    imports = [statement for statement in statements if isinstance(statement, ast.ImportFrom)]
    return {alias.name: str(statement.module) for statement in imports for alias in statement.names}


def lazy_attributes(module: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that imports names on first access.

    Args:
        module: Name of the module.
        homes: The module that defines each name.
    """

    def find(name: str) -> Any:  # noqa: ANN401 - any object
        if sys.platform == "win32":
            raise ImportError("wst runs on Linux and macOS; on Windows use WSL")
        if name in homes:
            return getattr(import_module(homes[name]), name)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return find
