"""``wst list``: what a config can name, each with a line from its own source. Imports no torch."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

from wst.cli.early import did_you_mean
from wst.cli.signatures import public_classes
from wst.errors import ConfigError
from wst.files import SHIPPED, shipped_files

#: The base class of each kind, and where a config names one.
KINDS = {
    "configs": ("", "--config NAME"),
    "rewards": ("Reward", "--model.init_args.reward NAME"),
    "students": ("Student", "--model.init_args.student NAME"),
    "data": ("QueryDataModule", "--data NAME"),
    "baselines": ("Baseline", "--model.init_args.baseline NAME"),
    "callbacks": ("Callback", "--trainer.callbacks+=NAME"),
}


def run(args: list[str]) -> int:
    """Print the kinds that are asked for, or all.

    Raises:
        ConfigError: If there is no such kind.
    """
    if {"-h", "--help"} & set(args):
        print(f"usage: wst list [KIND ...]\n\nList what a config can name. Kinds: {', '.join(KINDS)}.")
        return 0
    for kind in args:
        if kind not in KINDS:
            raise ConfigError(f"list: no kind {kind!r}; {did_you_mean(kind, KINDS, otherwise=', '.join(KINDS))}")
    for kind in args or KINDS:
        print(f"{kind} ({KINDS[kind][1]})")
        for name, told in _entries(kind):
            print(f"  {name:<28} {textwrap.shorten(told, 87, placeholder='…')}")
        print()
    print("`wst help NAME` shows the options of a class. Your own are named by file and name, as in my_reward.Brief.")
    return 0


def names_of(kind: str) -> list[str]:
    """Return the names of a kind, as a config has them."""
    return [name for name, _ in _entries(kind)]


def _entries(kind: str) -> Iterator[tuple[str, str]]:
    """Yield name and line of each of a kind."""
    base, _ = KINDS[kind]
    if not base:
        for name, path in shipped_files().items():
            if path.suffix == ".yaml" and not name.startswith("parts/"):
                yield SHIPPED + name, _comment(path)
        return
    for name, found in public_classes().items():
        if not found.is_abstract and (name == base or found.is_a(base)):
            yield f"wst.{name}", found.summary


def _comment(path: Path) -> str:
    """Return the first sentence of the comment that a file begins with."""
    lines = takewhile(re.compile("# (?! )").match, path.read_text(encoding="utf-8").splitlines())
    words = (line.removeprefix("# ") for line in lines)
    return " ".join(words).partition(". ")[0].rstrip(".:")
