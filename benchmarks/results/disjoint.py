"""Show that what runs trained on, validated on and tested on has no query in common.

    python benchmarks/results/disjoint.py runs/hh_rlhf_preference_small/version_0 runs/hh_rlhf_small/version_0

Each run's ``config.yaml`` says what it read. Queries are equal if all of their turns are, apart from case and white
space. The exit code is 1 if a query serves two purposes, in one run or in two. Runs that train the same class of model,
two seeds for instance, may share training or validation queries; any runs may share test queries.
"""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from wst.data.datamodule import QueryDataModule
from wst.types import Query


def queries(run: Path) -> dict[tuple[str, str], set[str]]:
    """Return the texts of each split that the run named in its config, by purpose: what was trained, and the split."""
    parser = ArgumentParser()
    parser.add_subclass_arguments(QueryDataModule, "data")
    settings: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    data: QueryDataModule = parser.instantiate(parser.parse_object(Namespace(data=settings["data"]))).data
    trained = settings["model"]["class_path"]
    purposes = {"train": (trained, "train"), "val": (trained, "val"), "test": ("any", "test")}
    return {purpose: {text(query) for query in data.queries(split)} for split, purpose in purposes.items()}


def text(query: Query) -> str:
    """Return a query and the turns before it, in lower case and with single spaces."""
    return " ".join(" ".join([*(turn.content for turn in query.history), query.text]).lower().split())


def main(runs: list[str]) -> int:
    """Print sizes and what is in common; return the exit code."""
    found: list[tuple[str, tuple[str, str], set[str]]] = []
    for run in runs:
        for purpose, texts in queries(Path(run)).items():
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
