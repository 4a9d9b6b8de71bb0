"""A large file takes little more memory than a small one: ``pytest -m long -s tests/test_large_data.py``."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TESTS, write_config


@pytest.mark.long
def test_a_million_rows_take_less_than_200_mb_more_than_ten(tmp_path: Path, tiny_model: str) -> None:
    found: dict[int, float] = {}
    for rows in (10, 1_000_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        write_config(folder, tiny_model, **{"trainer.max_steps": 1, "data.init_args.val": None})
        with open(folder / "rows.jsonl", "w") as file:
            for i in range(rows):
                text = f"Review {i}: " + "the film was rather long, and its end did not convince. " * 2
                file.write(json.dumps({"id": f"q{i}", "text": text[:100], "label": "yes"}) + "\n")
        watch = ["--trainer.callbacks+=toys.Watch", f"--trainer.callbacks.init_args.path={folder / 'watch.jsonl'}"]
        # A new process: a forked one shares pages with its parent, which blurs the figure.
        paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "wst", "fit", "--config", str(folder / "config.yaml"), *watch]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found[rows] = json.loads((folder / "watch.jsonl").read_text())["memory"] / 1e6
        print(f"{rows} rows: {found[rows]:.0f} MB resident after the first step", flush=True)
    assert found[1_000_000] - found[10] < 200
