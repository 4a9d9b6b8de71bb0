"""Show that what runs trained on, validated on and tested on has no query in common.

    python benchmarks/results/disjoint.py runs/hh_rlhf_preference_small/version_0 runs/hh_rlhf_small/version_0

Each run's ``config.yaml`` says what it read; ``--limit_test 700`` takes more test queries, where a comparison did.
Queries are equal if all of their turns are, apart from case and white space. The exit code is 1 if a query serves two
purposes, in one run or in two. Runs that train the same class of model, two seeds for instance, may share training or
validation queries; any runs may share test queries.
"""

from __future__ import annotations

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from wst.data.datamodule import QueryDataModule
from wst.types import Query


def queries(run: Path, limit_test: int | None) -> dict[tuple[str, str], set[str]]:
    """Return the texts of each split that the run named in its config, by purpose: what was trained, and the split."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(QueryDataModule, "data")
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    if limit_test is not None:
        settings["data"].setdefault("init_args", {})["limit_test"] = limit_test
    data: QueryDataModule = parser.instantiate(parser.parse_object(Namespace(data=settings["data"]))).data
    trained = settings["model"]["class_path"]
    purposes = {"train": (trained, "train"), "val": (trained, "val"), "test": ("any", "test")}
    return {purpose: {text(query) for query in data.queries(split)} for split, purpose in purposes.items()}


def text(query: Query) -> str:
    """Return a query and the turns before it, in lower case and with single spaces."""
    return " ".join(" ".join([*(turn.content for turn in query.history), query.text]).lower().split())


def main(arguments: list[str]) -> int:
    """Print sizes and what is in common; return the exit code."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", help="log folders")
    options.add_argument("--limit_test", type=int, help="test queries of each run (as its config says)")
    given = options.parse_args(arguments)
    found: list[tuple[str, tuple[str, str], set[str]]] = []
    for run in given.runs:
        for purpose, texts in queries(Path(run), given.limit_test).items():
            found.append((f"{run} {purpose[1]}", purpose, texts))
            print(f"{found[-1][0]}: {len(texts)} different queries")
    code = 0
    for (one, purpose, texts), (other, against, others) in combinations(found, 2):
        common = texts & others
        if common and purpose != against:
            print(f"{one} and {other}: {len(common)} in common")
            code = 1
    print("some queries serve two purposes" if code else "no query serves two purposes")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
