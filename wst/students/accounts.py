"""What a student that is paid by the call has cost, and the budget that it must keep to."""

from __future__ import annotations

import math
import sqlite3
import statistics
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wst.errors import ConfigError, StudentStopped
from wst.settings import check_arguments
from wst.students.sqlite import Database, Layout

LEDGER = "calls.sqlite"

_LAYOUT = Layout(
    "ledger",
    """
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, student TEXT NOT NULL, stage TEXT NOT NULL, sent REAL NOT NULL, bound REAL NOT NULL,
    outcome TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, cost REAL, seconds REAL
);
CREATE TABLE spent (student TEXT PRIMARY KEY, calls INTEGER NOT NULL, cost REAL NOT NULL);
""",
    elsewhere="begin a run in another log folder",
    rescue="the budget counts from it: repair it, or move it away to count from zero, then resume",
    synchronous="NORMAL",
    mode=0o666,  # less the umask
)


@dataclass(frozen=True)
class Prices:
    """Price of a million tokens, in the currency of the budget.

    Args:
        prompt: Price of a million tokens read.
        completion: Price of a million tokens written.

    Raises:
        ConfigError: If a price is negative or infinite.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        """Check the prices."""
        check_arguments(Prices, vars(self))
        for name in ("prompt", "completion"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"prices.{name} must be a number of at least 0, got {getattr(self, name)}")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the cost of a call."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


@dataclass(frozen=True)
class Budget:
    """Limit on a run with its resumes and tests: on everything that is done in the same log folder.

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
        check_arguments(Budget, vars(self))
        for name in ("calls", "cost"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ConfigError(f"budget.{name} must be above 0, or null for no limit, got {limit}")


@dataclass(frozen=True)
class Call:
    """A call that was booked: its number, and the ledger that it stands in."""

    number: int
    ledger: Database


class Accounts:
    """The ledger: it books every call before it is sent, and again when it has ended.

    The ledger is a SQLite file in the run's log folder, so that a budget holds over resumes and over several
    processes. A call whose end was never booked, because the process was killed, stays booked at the most that it can
    have cost.

    Args:
        student: Label of the student in the ledger.
        prices: Prices of tokens; None: only calls and tokens are booked.
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
        self._ledger = Database(None, _LAYOUT)
        self._counts: Counter[str] = Counter()
        self._cost = 0.0
        self._seconds: list[float] = []

    def open(self, folder: Path, stage: str) -> None:
        """Move the ledger to a folder, and book further calls under a stage's name.

        Calls that were made before any ledger was opened are booked there too, and count to its budget.

        Raises:
            CacheError: If the file cannot be used.
        """
        with self._lock:
            before, self._ledger = self._ledger, Database((folder / LEDGER).absolute(), _LAYOUT)
            self._stage = stage
            with self._ledger.transaction() as ledger:
                if before.path is None:
                    _copy(before, ledger, self.student)
            before.close()

    def close(self) -> None:
        """Close the ledger's file."""
        self._ledger.close()

    def bound(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Return the most that a call can cost."""
        return 0.0 if self.prices is None else self.prices.cost(prompt_tokens, completion_tokens)

    def begin(self, bound: float) -> Call | None:
        """Book a call that is about to be sent.

        Args:
            bound: The most that it can cost.

        Returns:
            The call; None if the budget may not hold it, but calls are in flight that may turn out
            cheaper: ask again when one of them has ended.

        Raises:
            StudentStopped: If the budget does not hold it.
            CacheError: If the ledger cannot be written.
        """
        with self._lock:
            with self._ledger.transaction() as ledger:
                number = self._book(ledger, bound)
            if number is None:
                return None
            self.in_flight += 1
            self._counts["calls"] += 1
            return Call(number, self._ledger)

    def _book(self, ledger: sqlite3.Connection, bound: float) -> int | None:
        limits = {"student": self.student, "bound": bound, "calls": self.budget.calls, "cost": self.budget.cost}
        ledger.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", (self.student,))
        booked = ledger.execute(
            "UPDATE spent SET calls = calls + 1, cost = cost + :bound WHERE student = :student "
            "AND (:calls IS NULL OR calls < :calls) AND (:cost IS NULL OR cost + :bound <= :cost)",
            limits,
        ).rowcount
        if not booked:
            calls, cost = ledger.execute("SELECT calls, cost FROM spent WHERE student = ?", (self.student,)).fetchone()
            if self.budget.calls is not None and calls >= self.budget.calls:
                what = f"budget.calls: {calls} of {self.budget.calls} calls are made"
            elif self.in_flight:
                return None
            else:
                of = f"{cost:.6g} of {self.budget.cost:.6g} is spent"
                what = f"budget.cost: {of}, and the next call may cost {bound:.6g}"
            raise StudentStopped(f"student {self.student}: {what}; raise it and resume to go on")
        return ledger.execute(
            "INSERT INTO calls (student, stage, sent, bound) VALUES (?, ?, ?, ?)",
            (self.student, self._stage, time.time(), bound),
        ).lastrowid

    def end(
        self, call: Call, outcome: str, seconds: float, tokens: tuple[int, int] = (0, 0), cost: float | None = None
    ) -> None:
        """Book the outcome of a call.

        Args:
            call: What `begin` has returned; its outcome goes into the ledger that it was booked in.
            outcome: "answered", or what went wrong, in a few words.
            seconds: How long it took.
            tokens: Tokens read and written, as far as known.
            cost: Its cost; None: computed from the tokens.

        Raises:
            CacheError: If the ledger cannot be written.
        """
        cost = self.bound(*tokens) if cost is None else cost
        with self._lock:
            self.in_flight -= 1  # whatever the ledger says: others wait for it
            with call.ledger.transaction() as ledger:
                ledger.execute(
                    "UPDATE spent SET cost = cost + ? - (SELECT bound FROM calls WHERE id = ?) WHERE student = ?",
                    (cost, call.number, self.student),
                )
                ledger.execute(
                    "UPDATE calls SET outcome = ?, prompt_tokens = ?, completion_tokens = ?, cost = ?, seconds = ? "
                    "WHERE id = ?",
                    (outcome, *tokens, cost, seconds, call.number),
                )
            self._counts["prompt_tokens"] += tokens[0]
            self._counts["completion_tokens"] += tokens[1]
            self._cost += cost
            if outcome == "answered":
                self._seconds.append(seconds)

    def take_over(self, other: Accounts) -> None:
        """Book the calls that other accounts have booked.

        Raises:
            CacheError: If the ledger cannot be written.
            StudentStopped: If the budget does not hold them.
        """
        with other._ledger.use() as ledger:
            statement = "SELECT outcome, seconds, prompt_tokens, completion_tokens, cost, bound FROM calls"
            rows = ledger.execute(statement).fetchall()
        for outcome, seconds, read, written, cost, bound in rows:
            if call := self.begin(bound):
                self.end(call, outcome, seconds, (read, written), cost)

    def ever_answered(self) -> bool:
        """Return whether the ledger has an answered call, of this process or another."""
        with self._ledger.use() as ledger:
            statement = "SELECT 1 FROM calls WHERE student = ? AND outcome = 'answered' LIMIT 1"
            return ledger.execute(statement, (self.student,)).fetchone() is not None

    def count(self, name: str, number: int = 1) -> None:
        """Count what is not a call: "cache_hits", "retries", "failed", "refused", "empty", "cut"."""
        with self._lock:
            self._counts[name] += number

    def take(self) -> dict[str, float]:
        """Return this process's figures since the last call of this method, by name, and reset them."""
        with self._lock:
            figures: dict[str, float] = dict(self._counts)
            if self.prices is not None:
                figures["cost"] = self._cost
            figures |= _latency(self._seconds)
            self._counts, self._cost, self._seconds = Counter(), 0.0, []
        return figures

    def run(self) -> dict[str, dict[str, Any]]:
        """Return the ledger's sums by stage: calls, answered, tokens, cost, and percentiles of seconds a call."""
        with self._ledger.use() as ledger:
            sums = ledger.execute(
                "SELECT stage, COUNT(*), COUNT(CASE outcome WHEN 'answered' THEN 1 END), "
                "COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0), SUM(COALESCE(cost, bound)) "
                "FROM calls WHERE student = ? GROUP BY stage",
                (self.student,),
            ).fetchall()
            seconds = ledger.execute(
                "SELECT stage, seconds FROM calls WHERE student = ? AND outcome = 'answered'", (self.student,)
            ).fetchall()
        names = ("calls", "answered", "prompt_tokens", "completion_tokens", "cost")
        return {
            stage: dict(zip(names, figures, strict=True))
            | ({"cost": None} if self.prices is None else {})
            | _latency([took for of, took in seconds if of == stage])
            for stage, *figures in sums
        }


class _Student(Protocol):
    @property
    def accounts(self) -> Accounts | None: ...


def open_ledgers(students: Mapping[str, _Student], folder: Path, stage: str) -> dict[str, Accounts]:
    """Open the ledgers of the students that keep accounts.

    Args:
        students: By name. All but "student" are booked under their name, so that they share no budget with it.
        folder: As in `Accounts.open`.
        stage: As in `Accounts.open`.

    Raises:
        CacheError: If the file cannot be used.
    """
    found = {name: student.accounts for name, student in students.items() if student.accounts is not None}
    for name, accounts in found.items():
        if name != "student" and not accounts.student.startswith(f"{name} "):
            accounts.student = f"{name} {accounts.student}"
        accounts.open(folder, stage)
    return found


def _copy(before: Database, ledger: sqlite3.Connection, student: str) -> None:
    """Book a ledger's calls in another one, whatever its budget says: they were made."""
    columns = "stage, sent, bound, outcome, prompt_tokens, completion_tokens, cost, seconds"
    with before.use() as old:
        rows = old.execute(f"SELECT {columns} FROM calls").fetchall()
    if rows:
        ledger.executemany(
            f"INSERT INTO calls (student, {columns}) VALUES (?{', ?' * 8})", [(student, *r) for r in rows]
        )
        ledger.execute("INSERT OR IGNORE INTO spent VALUES (?, 0, 0)", (student,))
        ledger.execute(
            "UPDATE spent SET calls = calls + ?, cost = cost + ? WHERE student = ?",
            (len(rows), sum(bound if cost is None else cost for _, _, bound, _, _, _, cost, _ in rows), student),
        )


def _latency(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return dict.fromkeys(("seconds_p50", "seconds_p95"), seconds[0]) if seconds else {}
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"seconds_p50": cuts[9], "seconds_p95": cuts[18]}
