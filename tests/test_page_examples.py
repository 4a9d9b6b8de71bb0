"""Examples of the pages whose figures must fit each other, and whose commands must run."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import TESTS, wst

from wst import EarlyStop, QueryDataModule
from wst.errors import DataError
from wst.files import shipped
from wst.inference.gate import check_rows

DOCS = TESTS.parent / "docs"
QUICKSTART: dict[str, Any] = yaml.safe_load(shipped("wst:quickstart").read_text(encoding="utf-8"))


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_example_of_the_gate_has_enough_queries() -> None:
    (options,) = re.findall(r"^wst gate ((?:.*\\\n)*.*)$", page("serving.md"), flags=re.MULTILINE)
    harm = float(options.rpartition("--harm ")[2])
    arguments = yaml.safe_load(shipped("wst:parts/reviews").read_text(encoding="utf-8"))["init_args"]
    limit = None if "--data.init_args.limit_val=null" in options else arguments["limit_val"]
    check_rows(len(QueryDataModule(val=arguments["val"], limit_val=limit).queries("val")), harm, delta=0.1)
    with pytest.raises(
        DataError, match=r"32 validation queries; .* at least 45, .*limit_val, val or val_share\), or a larger"
    ):
        check_rows(32, harm, delta=0.1)


def test_the_example_of_early_stop_can_stop_the_run() -> None:
    (options,) = re.findall(r"^wst fit (.*EarlyStop)$", page("efficiency.md"), flags=re.MULTILINE)
    (interval,) = re.findall(r"--trainer.val_check_interval (\d+)", options)
    assert QUICKSTART["trainer.max_steps"] // int(interval) > EarlyStop().patience + 1


@pytest.mark.slow
def test_the_comparison_without_a_trained_teacher_runs(tmp_path: Path, tiny_model: str) -> None:
    (text,) = re.findall(r"```yaml\n# sentences.yaml.*?\n(.*?)```", page("compare.md"), flags=re.DOTALL)
    (tmp_path / "sentences.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "tickets.csv").write_text("body,queue\nNo parcel yet,delivery\nCharged twice,billing\n")
    tiny = f"--students.SmolLM2.init_args.model={tiny_model}"
    done = wst(["compare", "--config", "sentences.yaml", tiny, "--resamples=1000"], tmp_path)
    assert done.code == 0, done.err
    assert "SmolLM2: mean reward on 2 queries" in done.out
    assert (tmp_path / "runs/sentences/report.html").is_file()
