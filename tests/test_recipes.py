"""The configs and code of docs/task.md and docs/recipes.md, as a user would lay them over the quickstart."""

import importlib
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from runs import TESTS, wst

import wst as package
from wst.cli.check import load_run
from wst.types import Query, Response, Rollout

ROOT = TESTS.parent
BASE = str(ROOT / "lightning_configs" / "quickstart.yaml")
TEXT = "".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("task.md", "recipes.md"))
CONFIGS = dict(re.findall(r"```yaml\n# (\w+\.yaml)(.*?)```", TEXT, flags=re.DOTALL))
CODE = dict(re.findall(r"```python\n# (my_\w+)\.py\n(.*?)```", TEXT, flags=re.DOTALL))
TICKETS = {"billing": "charged twice", "delivery": "parcel late", "returns": "send it back", "technical": "no start"}
ORDER = {"item": "kettle", "count": 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the pages' files, rows of the form that they name, and the quickstart's data."""
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text("#" + text)
    for name, text in CODE.items():
        (tmp_path / f"{name}.py").write_text(text)
    for split in ("train", "val", "test"):
        rows = [f"{text},{queue}\n" for queue, text in TICKETS.items()] * 2
        (tmp_path / f"{split}.csv").write_text("text,queue\n" + "".join(rows))
        row = json.dumps({"text": "Two kettles, please.", "order": ORDER})
        (tmp_path / f"orders_{split}.jsonl").write_text(f"{row}\n" * 4)
    (tmp_path / "tickets.csv").write_text((tmp_path / "train.csv").read_text())
    os.symlink(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_pages_have_them() -> None:
    names = {"tickets.yaml", "one_file.yaml", "judge.yaml", "brief_labels.yaml", "extraction.yaml", "agent.yaml"}
    assert set(CONFIGS) == names
    assert set(CODE) == {"my_fields", "my_agent"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_makes_a_run(name: str, folder: Path) -> None:
    module, data = load_run("fit", ["--config", BASE, "--config", name])
    wanted = yaml.safe_load((folder / name).read_text()).get("model", {}).get("init_args", {})
    for part in ("student", "reward"):
        if "class_path" in wanted.get(part, {}):
            kind = getattr(package, wanted[part]["class_path"].removeprefix("wst."))
            assert type(getattr(module, part)) is kind
    assert module.leak_penalty == wanted.get("leak_penalty", 1)
    assert all(data.queries(split) for split in ("train", "val", "test"))
    assert name != "one_file.yaml" or [len(data.queries(split)) for split in ("train", "val", "test")] == [4, 2, 2]


def test_the_extraction_reward_gives_partial_credit(folder: Path) -> None:
    answers = ['So: {"item": "kettle", "count": 2}', '{"item": "kettle"}', '{"item": ', "{" * 9000, "none", "[{}]"]
    query = Query("q", "Two kettles, please.", extra={"order": ORDER})
    reward = package.FunctionReward(importlib.import_module("my_fields").right_fields)
    assert reward.score([Rollout(query, None, Response(answer)) for answer in answers]) == [1, 0.5, 0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["tickets", "extraction", "agent"])
def test_a_recipe_trains(recipe: str, folder: Path, tiny_model: str) -> None:
    options = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.val_check_interval=1"]
    options += ["--data.init_args.limit_val=2", f"--model.init_args.teacher.init_args.model={tiny_model}"]
    if recipe != "agent":
        options += [f"--model.init_args.student.init_args.model={tiny_model}"]
    done = wst(["fit", "--config", BASE, "--config", f"{recipe}.yaml", *options], folder)
    assert done.code == 0, done.err
    assert next(folder.rglob("instructions.jsonl")).read_text()
