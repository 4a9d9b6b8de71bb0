"""CONTRIBUTING.md: its snippets run, its rooms exist, and imports keep to their order."""

import ast
import graphlib
import importlib
import json
import re
from pathlib import Path

import pytest
from runs import TESTS, write_config, wst

from wst.errors import ConfigError
from wst.rewards import FunctionReward
from wst.types import Query, Response, Rollout

TEXT = (TESTS.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", TEXT, flags=re.DOTALL))
ROOMS = re.findall(r"^\| `(wst/[\w./]+)`", TEXT, flags=re.MULTILINE)


def test_each_snippet_is_short() -> None:
    assert set(SNIPPETS) == {"my_student", "my_reward", "my_baseline", "my_data", "my_command"}
    for name, code in SNIPPETS.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 15, name


def test_the_rooms_exist() -> None:
    assert len(ROOMS) > 10
    assert [room for room in ROOMS if not (TESTS.parent / room).exists()] == []


def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each of its modules imports, at any time."""
    files = {path.relative_to(TESTS.parent): path for path in (TESTS.parent / "wst").rglob("*.py")}
    names = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): path for file, path in files.items()}
    found: dict[str, set[str]] = {}
    for name, path in names.items():
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= {full if full in names else str(node.module) for full in whole}
        found[name] = imported & names.keys() - {"wst"}
    return found


def test_there_is_no_circle_of_imports() -> None:
    assert len(list(graphlib.TopologicalSorter(imports()).static_order())) > 100


def test_no_room_imports_one_below_it_in_the_list() -> None:
    rooms = ["_moved", *(re.sub(r"wst/|/$|\.py", "", room) for room in ROOMS), "__main__"]
    place = {room: i for i, room in enumerate(rooms)}
    graph = {user: used for user, used in imports().items() if user != "wst"}
    upward = [
        (user, name)
        for user, used in graph.items()
        for name in used
        if place[name.split(".")[1]] > place[user.split(".")[1]]
    ]
    assert upward == []


@pytest.mark.slow
def test_a_run_is_made_of_the_snippets(tmp_path: Path, tiny_model: str) -> None:
    for name, code in SNIPPETS.items():
        (tmp_path / f"{name}.py").write_text(code)
    config = write_config(tmp_path, tiny_model)
    text = config.read_text()
    config.write_text(text[: text.index("data:")] + text[text.index("model:") :])
    (command,) = re.findall(r"wst fit --config \S+ (.*?)```", TEXT, flags=re.DOTALL)
    options = command.replace("\\\n", " ").split()
    done = wst(["fit", "--config", "config.yaml", "--trainer.max_steps=2", *options], tmp_path)
    assert done.code == 0, done.err
    rows = (tmp_path / "runs/tiny/version_0/instructions.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert first["response"] == first["query"]


@pytest.fixture
def snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, code in SNIPPETS.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_function_is_a_reward(snippets: Path) -> None:
    reward = FunctionReward(importlib.import_module("my_reward").short)
    rollouts = [Rollout(Query("1", "?"), None, Response("x" * length)) for length in (79, 80)]
    assert reward.score(rollouts) == [1.0, 0.0]


def test_the_command_runs(snippets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = importlib.import_module("my_command").run
    (snippets / "rows.jsonl").write_text("{}\n\n{}\n")
    assert run([str(snippets / "rows.jsonl")]) == 0
    assert capsys.readouterr().out == "2\n"
    with pytest.raises(ConfigError, match="count: give one"):
        run([])
