"""Weak-to-Strong Transfer: train a small teacher to write the instructions a frozen student needs."""

import ast
from importlib import import_module, resources
from typing import Any

from wst import _moved

__version__ = "0.1.0"

_moved.install()

# `__init__.pyi` lists the public names. Each is imported on first access, so that `import wst` does not load torch.
_HOMES = {
    alias.name: str(statement.module)
    for statement in ast.parse(resources.files(__name__).joinpath("__init__.pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any public object
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
