"""The ledger of calls, used by several processes."""

import sqlite3
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from runs import forking_context

from wst.errors import ConfigError, StudentStopped
from wst.students.accounts import LEDGER, Accounts, Budget, Prices


def _book(folder: Path, ready: Barrier) -> None:
    for run in range(8):
        ready.wait(timeout=60)
        accounts = Accounts("a student")
        accounts.open(folder / str(run), "fit")
        call = accounts.begin(0.0)
        assert call is not None
        accounts.end(call, "answered", 0.1)


@pytest.mark.slow
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


def test_calls_made_before_a_ledger_is_opened_count_to_its_budget(tmp_path: Path) -> None:
    accounts = Accounts("a student", Prices(1e6, 1e6), Budget(calls=3))
    for _ in range(2):
        call = accounts.begin(5.0)
        assert call is not None
        accounts.end(call, "answered", 0.1, (1, 2))
    late = accounts.begin(5.0)
    assert late is not None
    accounts.open(tmp_path, "fit")
    accounts.end(late, "answered", 0.1, (1, 2))  # into the ledger that it was booked in
    assert accounts.run()["python"]["calls"] == 3
    assert accounts.run()["python"]["cost"] == 3.0 + 3.0 + 5.0  # of the last one, the most that it can have cost
    with pytest.raises(StudentStopped, match="3 of 3 calls are made"):
        accounts.begin(5.0)


def test_an_outcome_goes_where_the_call_was_booked(tmp_path: Path) -> None:
    accounts = Accounts("a student", Prices(1e6, 1e6))
    accounts.open(tmp_path / "one", "fit")
    call = accounts.begin(5.0)
    assert call is not None
    accounts.open(tmp_path / "two", "test")
    other = accounts.begin(7.0)
    accounts.end(call, "answered", 0.1, (1, 2))
    assert accounts.run()["test"] | {"seconds_p50": 0} == {
        **dict.fromkeys(("answered", "prompt_tokens", "completion_tokens", "seconds_p50"), 0),
        **{"calls": 1, "cost": 7.0},
    }
    accounts.open(tmp_path / "one", "fit")
    assert accounts.run()["fit"]["cost"] == 3.0
    assert other is not None


def test_a_price_is_a_number() -> None:
    with pytest.raises(ConfigError, match=r"prices\.prompt must be a number of at least 0, got inf"):
        Prices(float("inf"), 0)
