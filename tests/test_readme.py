"""The README's snippets, run as a user would: from files of their own, outside the package."""

import json
import re
from pathlib import Path

import pytest
from runs import TESTS, write_config, wst

README = (TESTS.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_names_the_two_commands() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_each_snippet_is_short() -> None:
    assert {name for name, _ in SNIPPETS} == {"my_student.py", "my_reward.py", "my_data.py"}
    for name, code in SNIPPETS:
        assert len([line for line in code.splitlines() if line.strip()]) <= 15, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--model.init_args.student=my_student.Shouting"],
        ["--model.init_args.reward=my_reward.Brief", "--model.init_args.reward.init_args.limit=5"],
        ["--data=my_data.Sums", "--data.init_args.batch_size=4"],
    ],
    ids=["student", "reward", "data"],
)
def test_a_snippet_runs(options: list[str], tmp_path: Path, tiny_model: str) -> None:
    for name, code in SNIPPETS:
        (tmp_path / name).write_text(code)
    config = write_config(tmp_path, tiny_model)
    if any("my_data" in option for option in options):
        text = config.read_text()
        config.write_text(text[: text.index("data:")] + text[text.index("model:") :])
    done = wst(["fit", "--config", "config.yaml", "--trainer.max_steps=2", *options], tmp_path)
    assert done.code == 0, done.err
    rows = (tmp_path / "runs/tiny/version_0/instructions.jsonl").read_text().splitlines()
    assert json.loads(rows[0])["step"] == 1
