"""A large file takes little more memory than a small one: ``pytest -m long -s tests/test_large_data.py``."""

import json
import time
from pathlib import Path

import pytest
from runs import write_config, wst


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
        began = time.perf_counter()
        done = wst(["fit", "--config", "config.yaml", *watch], folder)
        seconds = time.perf_counter() - began
        assert done.code == 0, done.err
        memory = json.loads((folder / "watch.jsonl").read_text())["memory"] / 1e6
        found[rows] = memory
        print(f"{rows} rows: {seconds:.1f} s to the end of the first step, {memory:.0f} MB resident", flush=True)
    assert found[1_000_000] - found[10] < 200
