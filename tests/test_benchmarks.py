"""What the benchmarks replace in the package is there: replacing a name that has moved would measure nothing."""

import ast
from importlib import import_module
from pathlib import Path

import pytest
from runs import TESTS

FILES = [path for path in sorted((TESTS.parent / "benchmarks").glob("*.py")) if "patch.object" in path.read_text()]


def replaced(path: Path) -> list[tuple[str, str]]:
    """Return module and name of each pair in a benchmark, such as ``patch.object(generation, "NAME", ...)``."""
    tree = ast.parse(path.read_text())
    modules = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wst")
        for alias in node.names
    }
    pairs = [node.args[:2] for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1]
    pairs += [node.elts for node in ast.walk(tree) if isinstance(node, ast.Tuple) and len(node.elts) == 2]
    return [
        (modules[place.id], name.value)
        for place, name in pairs
        if isinstance(place, ast.Name) and place.id in modules and isinstance(name, ast.Constant)
    ]


@pytest.mark.parametrize("path", [*FILES, TESTS.parent / "benchmarks/arms.py"], ids=lambda path: path.stem)
def test_what_is_replaced_is_there(path: Path) -> None:
    found = replaced(path)
    assert found
    for module, name in found:
        assert hasattr(import_module(module), name), f"{module} has no {name}"
