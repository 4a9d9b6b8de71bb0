"""Helpers of the tests of the answer cache: filled files, queries past the cache, scripts in other processes."""

import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from wst.students.cache import AnswerCache
from wst.types import Response


def filled(path: Path, number: int = 300, text: str = "x" * 300) -> dict[str, Response]:
    """Write some answers and close the file."""
    answers = {f"k{i:04}": Response(f"{i} {text}", i) for i in range(number)}
    cache = AnswerCache(str(path))
    cache.put(answers, "s")
    cache.close()
    assert not path.with_name(f"{path.name}-wal").exists()
    return answers


def query(path: Path, statement: str, *values: Any) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        with db:
            return db.execute(statement, values).fetchall()
    finally:
        db.close()


def total_is_right(path: Path) -> bool:
    return query(path, "SELECT (SELECT bytes FROM total) = (SELECT COALESCE(SUM(size), 0) FROM answers)") == [(1,)]


def script(code: str, *args: object) -> subprocess.Popen[str]:
    head = "import os, signal, sys, time\nfrom wst.types import Response\nfrom wst.students.cache import AnswerCache\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 100) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out
