"""``wst cache``: what is in the answer cache, whether it is sound, and how to make it smaller."""

from __future__ import annotations

import argparse
import math
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wst.errors import ConfigError, WSTError, debugging
from wst.students.cache import (
    connect,
    decode,
    default_path,
    drop,
    explained,
    file_lock,
    is_damage,
    least_used,
    prepare,
    recount,
    transaction,
)

_EPILOG = """\
examples:
  wst cache show
  wst cache verify
  wst cache prune --older-than 30 --dry-run
  wst cache prune --student "SmolLM2-135M-Instruct" --max-megabytes 500

The cache is answers.sqlite in $WST_CACHE, else in the folder wst of the user's cache folder. Runs that use it may go
on meanwhile. What is pruned is asked again when it is needed.
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(f"{message}; see `{self.prog} --help`")


def run(args: list[str]) -> int:
    """Run ``wst cache`` and give its exit code: 0, 1 if `verify` finds something wrong, 2 after a user's mistake."""
    try:
        options = _parser().parse_args(args)
        path = default_path(options.path)
        if not path.exists():
            print(f"no answer cache at {path}")
            return 0
        if options.command == "verify":
            return _verify(path)
        try:
            return _prune(path, options) if options.command == "prune" else _show(path)
        except (sqlite3.DatabaseError, OSError) as error:
            raise explained(path, error) from error
    except WSTError as error:
        if debugging():
            raise
        print(f"wst: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="wst cache",
        description="Show, verify and prune the students' answers that are kept on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{show,verify,prune}")
    texts = {
        "show": "say where the cache is, how large, and whose answers it holds",
        "verify": "check the file and every answer in it; exit code 1 if anything is wrong",
        "prune": "remove answers, those unused for longest first, and give the space back",
    }
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for command in made.values():
        command.add_argument("--path", metavar="FILE", help="the cache's file, where it is not the usual one")
    prune = made["prune"]
    prune.description = f"{texts['prune']}. Several options narrow the choice: what goes must fit all of them."
    prune.add_argument("--student", metavar="LABEL", help="remove answers of this student only (as `show` names it)")
    prune.add_argument("--older-than", metavar="DAYS", type=_number, help="remove what was not used for so many days")
    prune.add_argument(
        "--max-megabytes", metavar="N", type=_number, help="remove no more than it takes to leave N megabytes"
    )
    prune.add_argument("--all", action="store_true", help="remove every answer")
    prune.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    return parser


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number, at least 0, got {text!r}")
    return value


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with file_lock(path):
        db = connect(path)
    with closing(db):
        prepare(db, path)
        yield db


def _show(path: Path) -> int:
    query = (
        "SELECT student, COUNT(*), SUM(size), MIN(created), MAX(used) FROM answers GROUP BY student ORDER BY 3 DESC, 1"
    )
    with _opened(path) as db:
        rows = db.execute(query).fetchall()
        on_disk = _on_disk(path)
    print(f"{path}: {_count(sum(row[1] for row in rows))}, {_megabytes(on_disk)} on disk")
    if rows:
        table = Table()
        table.add_column("student", overflow="fold")
        for name in ("answers", "MB", "oldest", "last used"):
            table.add_column(name, justify="right", no_wrap=True)
        for student, count, size, created, used in rows:
            table.add_row(Text(student), f"{count:,}", f"{size / 1e6:,.2f}", _date(created)[:10], _date(used))
        # A pipe has no width: labels stay whole there.
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _verify(path: Path) -> int:
    checked = damaged = 0
    wrong: list[str] = []
    try:
        with _opened(path) as db:
            wrong += [str(line) for (line,) in db.execute("PRAGMA integrity_check(10)") if line != "ok"]
            for key, blob, check in db.execute("SELECT key, response, checksum FROM answers"):
                checked += 1
                damaged += decode(key, blob, check) is None
            total, counted = db.execute(
                "SELECT total.bytes, (SELECT COALESCE(SUM(size), 0) FROM answers) FROM total"
            ).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise explained(path, error) from error
        wrong.append(str(error))
        total = counted = 0
    except OSError as error:
        raise explained(path, error) from error
    print(f"{path}: {_count(checked)} checked, {damaged:,} damaged; file structure: {'damaged' if wrong else 'sound'}")
    for line in wrong:
        print(f"  {' '.join(line.split())}")
    if wrong:
        print(
            "The next run that meets the damage sets the file aside and begins a new one. To rescue answers first, "
            f"stop all runs and try: sqlite3 '{path}' .recover | sqlite3 rescued.sqlite"
        )
    elif damaged:
        print("A damaged answer counts as missing: a run that needs it removes it and asks the student again.")
    if not wrong and total != counted:
        print(
            f"The size on record is {total:,} bytes, the answers take {counted:,}; `wst cache prune` mends the record."
        )
    return int(bool(wrong or damaged or total != counted))


def _prune(path: Path, options: argparse.Namespace) -> int:
    chosen = [name for name in ("student", "older_than", "max_megabytes") if getattr(options, name) is not None]
    if options.all and chosen:
        raise ConfigError(f"--all removes every answer; leave it out, or --{chosen[0].replace('_', '-')}")
    if not options.all and not chosen:
        raise ConfigError(
            "say what to prune: --student, --older-than, --max-megabytes or --all; see `wst cache prune --help`"
        )
    limit = -1.0 if options.max_megabytes is None else options.max_megabytes * 1e6
    before = None if options.older_than is None else time.time() - options.older_than * 86400
    with _opened(path) as db:
        at_first = _on_disk(path)
        # The transaction is one even where nothing goes: what is counted is what would be removed.
        with transaction(db):
            recount(db)
            going = least_used(db, limit, limit, student=options.student, before=before)
            if not options.dry_run:
                drop(db, going)
            left = db.execute("SELECT COUNT(*) FROM answers").fetchone()[0] - options.dry_run * len(going)
            students = sorted(name for (name,) in db.execute("SELECT DISTINCT student FROM answers"))
        size = _megabytes(sum(size for _, size in going))
        verb = "would remove" if options.dry_run else "removed"
        print(f"{path}: {verb} {_count(len(going))} ({size}); {_count(left)} left")
        if options.student is not None and not going and options.student not in students:
            print(f"no answers of student {options.student!r}; there are: {', '.join(students) or 'none at all'}")
        if options.dry_run:
            return 0
        try:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise
            # The answers are gone all the same, and new ones fill the space.
            print(f"the space was not given back: {error}; prune again when there is room and no run is at work")
            return 0
        print(f"on disk: {_megabytes(at_first)} before, {_megabytes(_on_disk(path))} now")
    return 0


def _on_disk(path: Path) -> int:
    total = 0
    for suffix in ("", "-wal", "-journal"):  # not -shm: that is memory, which goes when the file is closed
        try:
            total += os.stat(f"{path}{suffix}").st_size
        except FileNotFoundError:
            continue
    return total


def _count(number: int) -> str:
    return f"{number:,} answer{'' if number == 1 else 's'}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"


def _date(seconds: object) -> str:
    try:
        return datetime.fromtimestamp(float(str(seconds))).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a damaged row
        return "?"
