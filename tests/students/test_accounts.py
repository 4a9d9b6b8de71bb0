"""The ledger of calls, used by several processes."""

import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path

from runs import forking_context

from wst.students.accounts import LEDGER, Accounts


def _book(folder: Path, ready: Barrier) -> None:
    for run in range(8):
        ready.wait(timeout=60)
        accounts = Accounts("a student")
        accounts.open(folder / str(run), "fit")
        call = accounts.begin(0.0)
        assert call is not None
        accounts.end(call, "answered", 0.1)


def test_processes_may_open_a_new_ledger_at_the_same_moment(tmp_path: Path) -> None:
    context = forking_context()
    ready = context.Barrier(4)
    processes = [context.Process(target=_book, args=(tmp_path, ready)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 4
    ledger = sqlite3.connect(tmp_path / "7" / LEDGER)
    assert ledger.execute("SELECT calls FROM spent").fetchall() == [(4,)]
