"""What a student that is paid by the call has cost, and the budget that it must keep to."""

from __future__ import annotations

import os
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from wst.errors import CacheError, ConfigError, StudentStopped

LEDGER = "calls.sqlite"
_BUSY_SECONDS = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, stage TEXT NOT NULL, sent REAL NOT NULL, bound REAL NOT NULL,
    outcome TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL, seconds REAL
);
CREATE TABLE IF NOT EXISTS spent (student TEXT PRIMARY KEY, calls INTEGER NOT NULL, cost REAL NOT NULL);
"""


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in whatever currency the budget is in.

    Args:
        prompt: Price of a million tokens read.
        completion: Price of a million tokens written.

    Raises:
        ConfigError: If a price is negative.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        """Check the prices."""
        for name in ("prompt", "completion"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"prices.{name} must be at least 0, got {getattr(self, name)}")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Cost of so many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True)
class Budget:
    """What may be spent on a run, its resumes and its tests: all that is done in the same log folder.

    Args:
        calls: The largest number of requests, retries included; None: no limit.
        cost: The largest cost, in the currency of the prices; None: no limit.

    Raises:
        ConfigError: If a limit is not above 0.
    """

    calls: int | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        """Check the limits."""
        for name in ("calls", "cost"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ConfigError(f"budget.{name} must be above 0, or null for no limit, got {limit}")


class Accounts:
    """Books every call before it is sent and again when it has ended.

    The ledger is a SQLite file in the run's log folder, so that a budget holds over resumes and over several
    processes. A call that was sent and whose end nobody saw, because the process was killed, stays booked at the most
    that it can have cost.

    Args:
        student: Label of the student in the ledger.
        prices: What tokens cost; None: nothing is booked but calls and tokens.
        budget: Limits; None: none.

    Raises:
        ConfigError: If the budget limits the cost and there are no prices.
    """

    def __init__(self, student: str, prices: Prices | None = None, budget: Budget | None = None) -> None:
        self.student = student
        self.prices = prices
        self.budget = budget or Budget()
        if self.budget.cost is not None and prices is None:
            raise ConfigError("budget.cost is given without prices; give prices.prompt and prices.completion")
        self.in_flight = 0  #: calls sent by this process that have not ended
        self._lock = threading.RLock()
        self._stage = "python"
        self._path: str = ":memory:"
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        self._counts: Counter[str] = Counter()
        self._cost = 0.0
        self._seconds: list[float] = []

    def open(self, folder: Path, stage: str) -> None:
        """Keep the ledger in a folder from now on, and book under a stage's name.

        Raises:
            CacheError: If the file cannot be used.
        """
        with self._lock:
            self.close()
            folder.mkdir(parents=True, exist_ok=True)
            self._path, self._stage = str(folder / LEDGER), stage
            self._database()

    def close(self) -> None:
        """Close the ledger's file."""
        with self._lock:
            if self._path == ":memory:" and self._pid == os.getpid():
                return  # it would be forgotten
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None

    def bound(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most that a call can cost."""
        return 0.0 if self.prices is None else self.prices.cost(prompt_tokens, completion_tokens)

    def begin(self, bound: float) -> int | None:
        """Book a call that is about to be sent.

        Args:
            bound: The most that it can cost.

        Returns:
            The call's number in the ledger, or None if the budget might not hold it, but calls are in flight that
            may turn out cheaper: ask again when one of them has ended.

        Raises:
            StudentStopped: If the budget does not hold it.
        """
        limits = {"student": self.student, "bound": bound, "calls": self.budget.calls, "cost": self.budget.cost}
        with self._lock:
            with self._transaction() as ledger:
                number = self._book(ledger, limits)
            if number is not None:
                self.in_flight += 1
                self._counts["calls"] += 1
            return number

    def _book(self, ledger: sqlite3.Connection, limits: dict[str, Any]) -> int | None:
        bound: float = limits["bound"]
        ledger.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", (self.student,))
        booked = ledger.execute(
            "UPDATE spent SET calls = calls + 1, cost = cost + :bound WHERE student = :student "
            "AND (:calls IS NULL OR calls < :calls) AND (:cost IS NULL OR cost + :bound <= :cost)",
            limits,
        ).rowcount
        if not booked:
            calls, cost = ledger.execute("SELECT calls, cost FROM spent WHERE student = ?", (self.student,)).fetchone()
            spent_calls = self.budget.calls is not None and calls >= self.budget.calls
            if self.in_flight and not spent_calls:
                return None
            what = f"budget.calls: {calls} of {self.budget.calls} calls are made"
            if not spent_calls:
                of = f"{cost:.6g} of {self.budget.cost:.6g} is spent"
                what = f"budget.cost: {of}, and the next call may cost {bound:.6g}"
            raise StudentStopped(f"student {self.student}: {what}; raise it and resume to go on")
        row = ledger.execute(
            "INSERT INTO calls (student, stage, sent, bound) VALUES (?, ?, ?, ?)",
            (self.student, self._stage, time.time(), bound),
        )
        return row.lastrowid

    def end(
        self, call: int, outcome: str, seconds: float, tokens: tuple[int, int] = (0, 0), cost: float | None = None
    ) -> None:
        """Book what became of a call.

        Args:
            call: Its number.
            outcome: "answered", or what went wrong, in a few words.
            seconds: How long it took.
            tokens: Tokens read and written, as far as known.
            cost: What it cost; None: what the tokens cost.
        """
        cost = self.bound(*tokens) if cost is None else cost
        with self._lock:
            self.in_flight -= 1  # whatever the ledger says: others wait for it
            with self._transaction() as ledger:
                ledger.execute(
                    "UPDATE spent SET cost = cost + ? - (SELECT bound FROM calls WHERE id = ?) WHERE student = ?",
                    (cost, call, self.student),
                )
                ledger.execute(
                    "UPDATE calls SET outcome = ?, prompt_tokens = ?, completion_tokens = ?, cost = ?, seconds = ? "
                    "WHERE id = ?",
                    (outcome, *tokens, cost, seconds, call),
                )
            self._counts["prompt_tokens"] += tokens[0]
            self._counts["completion_tokens"] += tokens[1]
            self._cost += cost
            if outcome == "answered":
                self._seconds.append(seconds)

    def count(self, name: str, number: int = 1) -> None:
        """Count something that is no call: "cache_hits", "retries", "failed", "refused", "empty", "cut"."""
        with self._lock:
            self._counts[name] += number

    def take(self) -> dict[str, float]:
        """Give this process's figures since the last time, by name, and begin anew."""
        with self._lock:
            figures: dict[str, float] = dict(self._counts)
            if self.prices is not None:
                figures["cost"] = self._cost
            figures |= _latency(self._seconds)
            self._counts, self._cost, self._seconds = Counter(), 0.0, []
        return figures

    def run(self) -> dict[str, dict[str, Any]]:
        """Give the ledger's sums by stage: calls, answered, tokens, cost, and seconds a call."""
        with self._lock:
            rows = self._database().execute(
                "SELECT stage, COUNT(*), COUNT(CASE outcome WHEN 'answered' THEN 1 END), SUM(prompt_tokens), "
                "SUM(completion_tokens), SUM(COALESCE(cost, bound)) FROM calls WHERE student = ? GROUP BY stage",
                (self.student,),
            )
            sums = {
                stage: {
                    "calls": calls,
                    "answered": answered,
                    "prompt_tokens": prompt or 0,
                    "completion_tokens": completion or 0,
                    "cost": None if self.prices is None else cost,
                }
                for stage, calls, answered, prompt, completion, cost in rows.fetchall()
            }
            for stage, figures in sums.items():
                seconds = self._database().execute(
                    "SELECT seconds FROM calls WHERE student = ? AND stage = ? AND outcome = 'answered'",
                    (self.student, stage),
                )
                figures |= _latency([row[0] for row in seconds.fetchall()])
        return sums

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database() as ledger:
                yield ledger
        except sqlite3.Error as error:
            raise CacheError(
                f"ledger {self._path}: cannot be written ({error}); see to the disk, then resume"
            ) from error

    def _database(self) -> sqlite3.Connection:
        if self._connection is None or self._pid != os.getpid():  # a connection must not cross a fork
            try:
                with self._alone():
                    connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
                    connection.execute("PRAGMA journal_mode = WAL")
                    # A killed process loses nothing that is committed; only the machine's own end would.
                    connection.execute("PRAGMA synchronous = NORMAL")
                    connection.executescript(_SCHEMA)
            except (sqlite3.Error, OSError) as error:
                raise CacheError(
                    f"ledger {self._path}: cannot be used ({error}); mend or move the file (the budget counts from it)"
                ) from error
            self._connection, self._pid = connection, os.getpid()
        return self._connection

    def _alone(self) -> AbstractContextManager[object]:
        """Open the ledger one process at a time: SQLite does not wait for one that changes the journal's mode."""
        in_memory = self._path == ":memory:"
        return nullcontext() if in_memory else FileLock(f"{self._path}.lock", timeout=_BUSY_SECONDS)


def _latency(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return dict.fromkeys(("seconds_p50", "seconds_p95"), seconds[0]) if seconds else {}
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"seconds_p50": cuts[9], "seconds_p95": cuts[18]}
