"""``wst cache``: show what is in the answer cache, verify it, and prune it."""

from __future__ import annotations

import argparse
import math
import os
import sqlite3
import sys
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from wst.cli.errors import Parser, guarded
from wst.errors import CacheError, ConfigError
from wst.students.cache import AnswerCache, decode, drop, least_used, recount, total_size
from wst.students.sqlite import is_damage
from wst.terminal import printable

_EPILOG = """\
examples:
  wst cache show
  wst cache verify
  wst cache prune --older-than 30 --dry-run
  wst cache prune --student "SmolLM2-135M-Instruct" --max-megabytes 500

The cache is answers.sqlite in $WST_CACHE, else in the folder wst of the user's cache folder. Runs that use it may go
on meanwhile. What is pruned is asked again when it is needed.
"""


def run(args: list[str]) -> int:
    """Run ``wst cache`` and return its exit code: 0, 1 if `verify` finds something wrong, 2 after a user error."""

    def command() -> int:
        options = _parser().parse_args(args)
        cache = AnswerCache(options.path)
        try:
            if not cache.path.exists():
                print(f"no answer cache at {cache.path}")
                return 0
            with closing(cache):
                if options.command == "verify":
                    return _verify(cache)
                return _prune(cache, options) if options.command == "prune" else _show(cache)
        except OSError as error:  # such as a folder that this user may not look into
            raise CacheError(str(error)) from error

    return guarded(command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="wst cache",
        description="Show, verify and prune the students' answers that are stored on this machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{show,verify,prune}")
    texts = {
        "show": "say where the cache is, how large, and whose answers it holds",
        "verify": "check the file and every answer in it; exit code 1 if anything is wrong",
        "prune": "remove answers, least recently used first, and give the space back",
    }
    made = {name: commands.add_parser(name, help=text, description=text) for name, text in texts.items()}
    for command in made.values():
        command.add_argument("--path", metavar="FILE", help="the cache's file, where it is not the usual one")
    prune = made["prune"]
    prune.description = f"{texts['prune']}. Options combine: an answer is removed only if it fits all of them."
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


def _show(cache: AnswerCache) -> int:
    query = (
        "SELECT student, COUNT(*), SUM(size), MIN(created), MAX(used) FROM answers GROUP BY student ORDER BY 3 DESC, 1"
    )
    with cache.database.use() as db:
        rows = db.execute(query).fetchall()
        on_disk = _on_disk(cache.path)
    print(f"{cache.path}: {_count(sum(row[1] for row in rows))}, {_megabytes(on_disk)} on disk")
    if rows:
        table = Table()
        table.add_column("student", overflow="fold")
        for name in ("answers", "MB", "oldest", "last used"):
            table.add_column(name, justify="right", no_wrap=True)
        for student, count, size, created, used in rows:
            table.add_row(
                Text(printable(str(student))), f"{count:,}", f"{size / 1e6:,.2f}", _date(created)[:10], _date(used)
            )
        # A pipe has no width: labels stay whole there.
        Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def _verify(cache: AnswerCache) -> int:
    checked = damaged = total = counted = 0
    wrong: list[str] = []
    try:
        with cache.database.use() as db:
            wrong += [str(line) for (line,) in db.execute("PRAGMA integrity_check(10)") if line != "ok"]
            for key, blob, check in db.execute("SELECT key, response, checksum FROM answers"):
                checked += 1
                damaged += decode(key, blob, check) is None
            total, (counted,) = total_size(db), db.execute("SELECT COALESCE(SUM(size), 0) FROM answers").fetchone()
    except CacheError as error:
        if not is_damage(error.__cause__):
            raise
        wrong.append(str(error.__cause__))
    state = "damaged" if wrong else "sound"
    print(f"{cache.path}: {_count(checked)} checked, {damaged:,} damaged; file structure: {state}")
    for line in wrong:
        print(f"  {' '.join(line.split())}")
    if wrong:
        print(
            f"To rescue its answers, stop all runs and try: sqlite3 '{cache.path}' .recover | sqlite3 rescued.sqlite\n"
            "Then move the file away, and rescued.sqlite, if it is sound, into its place."
        )
    elif damaged:
        print("A damaged answer counts as missing: a run that needs it removes it and asks the student again.")
    if not wrong and total != counted:
        print(
            f"The size on record is {total:,} bytes, the answers take {counted:,}; `wst cache prune` corrects the "
            "record."
        )
    return int(bool(wrong or damaged or total != counted))


def _prune(cache: AnswerCache, options: argparse.Namespace) -> int:
    chosen = [name for name in ("student", "older_than", "max_megabytes") if getattr(options, name) is not None]
    if options.all and chosen:
        raise ConfigError(f"--all removes every answer; leave it out, or --{chosen[0].replace('_', '-')}")
    if not options.all and not chosen:
        raise ConfigError(
            "say what to prune: --student, --older-than, --max-megabytes or --all; see `wst cache prune --help`"
        )
    limit = -1.0 if options.max_megabytes is None else options.max_megabytes * 1e6
    before = None if options.older_than is None else time.time() - options.older_than * 86400
    at_first = _on_disk(cache.path)
    # The transaction is one even where nothing is removed: what is counted is what would go.
    with cache.database.transaction() as db:
        recount(db)
        going = least_used(db, limit, limit, student=options.student, before=before)
        if not options.dry_run:
            drop(db, going)
        left = db.execute("SELECT COUNT(*) FROM answers").fetchone()[0] - options.dry_run * len(going)
        students = sorted(str(name) for (name,) in db.execute("SELECT DISTINCT student FROM answers"))
    size = _megabytes(sum(size for _, size in going))
    verb = "would remove" if options.dry_run else "removed"
    print(f"{cache.path}: {verb} {_count(len(going))} ({size}); {_count(left)} left")
    if options.student is not None and not going and options.student not in students:
        there = printable(", ".join(students)) or "none at all"
        print(f"no answers of student {options.student!r}; there are: {there}")
    if options.dry_run:
        return 0
    with cache.database.use() as db:
        try:
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            if is_damage(error):
                raise
            # The answers are removed all the same, and new ones fill the space.
            print(f"the space was not given back: {error}; prune again when there is room and no run is at work")
            return 0
    print(f"on disk: {_megabytes(at_first)} before, {_megabytes(_on_disk(cache.path))} now")
    return 0


def _on_disk(path: Path) -> int:
    files = (Path(f"{path}{suffix}") for suffix in ("", "-wal", "-journal"))  # -shm is memory, not disk
    return sum(os.stat(file).st_size for file in files if file.exists())


def _count(number: int) -> str:
    return f"{number:,} answer{'' if number == 1 else 's'}"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f} MB"


def _date(seconds: object) -> str:
    try:
        return datetime.fromtimestamp(float(str(seconds))).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a damaged row
        return "?"
