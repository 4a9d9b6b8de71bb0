"""Weak-to-Strong Transfer: train a small teacher to write the instructions a frozen student needs."""

import ast
from importlib import resources

from wst._moved import install, lazy_attributes

__version__ = "0.1.0"

install()

# `__init__.pyi` lists the public names. Each is imported on first access, so that `import wst` does not load torch.
_HOMES = {
    alias.name: str(statement.module)
    for statement in ast.parse(resources.files(__name__).joinpath("__init__.pyi").read_text("utf-8")).body
    if isinstance(statement, ast.ImportFrom)
    for alias in statement.names
}
__all__ = ["__version__", *_HOMES]
__getattr__ = lazy_attributes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
