"""Batches of concurrent requests for one teacher, with a deadline for each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from wst.types import Instruction, Query

Write = Callable[[Sequence[Query]], Sequence[Instruction]]


@dataclass(frozen=True)
class Outcome:
    """What came of asking the teacher.

    Attributes:
        status: "instructed", "empty" (the teacher wrote nothing), "timeout" or "error".
        instruction: The instruction; None unless the status is "instructed".
        seconds: Seconds from the request to the outcome.
    """

    status: str
    instruction: Instruction | None
    seconds: float


@dataclass(frozen=True)
class _Waiting:
    """A request that waits, and until when."""

    query: Query
    future: asyncio.Future[Instruction]
    due: float


class Batcher:
    """Writes for all requests that wait, ``batch_size`` at a time, in one thread or several.

    It never raises and never waits longer than the deadline: a teacher that fails or hangs gives no instruction. Once
    each thread has been at its batch for several deadlines, the teacher counts as hung, and no request waits for it.
    Once a batch was late, batches are kept so small that they should be ready in time: under more load than the
    teacher can take, some requests go unaided rather than all.

    Args:
        write: Writes an instruction for each query; called from as many threads at a time as there are workers.
        batch_size: Queries in one call.
        deadline: Seconds that a request waits at most.
        workers: Calls at a time.
    """

    _HUNG = 3  #: deadlines after which a running batch counts as hung
    _SHARE = 0.8  #: of the time that is left, which a batch is meant to take

    def __init__(self, write: Write, batch_size: int, deadline: float, workers: int = 1) -> None:
        self.write = write
        self.batch_size = batch_size
        self.deadline = deadline
        self.workers = workers
        self.batches = 0  #: calls of ``write`` so far
        self._waiting: list[_Waiting] = []  # the oldest first
        self._pace: float | None = None  #: seconds a query in recent batches; None: none was late yet
        self._measured = 0  #: size of the batch that the pace is from
        self._working: list[asyncio.Task[None]] = []
        self._began: dict[int, float] = {}  #: when each batch under way began

    @property
    def hung(self) -> bool:
        """Whether all workers are at batches that have taken several deadlines."""
        began = list(self._began.values())  # read once: another thread may ask
        return len(began) == self.workers and time.monotonic() - max(began) > self._HUNG * self.deadline

    async def ask(self, query: Query) -> Outcome:
        """Return the instruction for a query, or why there is none."""
        start = time.monotonic()
        if self.hung:
            return Outcome("timeout", None, 0.0)
        future: asyncio.Future[Instruction] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(query, future, start + self.deadline))
        self._working = [worker for worker in self._working if not worker.done()]
        if len(self._working) < self.workers:
            self._working.append(asyncio.create_task(self._work()))
        try:
            written = await asyncio.wait_for(future, self.deadline)
        except TimeoutError:
            return Outcome("timeout", None, time.monotonic() - start)
        except Exception:  # whatever the teacher raised
            return Outcome("error", None, time.monotonic() - start)
        seconds = time.monotonic() - start
        return Outcome("instructed", written, seconds) if written.text.strip() else Outcome("empty", None, seconds)

    async def _work(self) -> None:
        while batch := self._next():
            self.batches += 1
            mine = self.batches
            self._began[mine] = time.monotonic()
            try:
                written = await _in_thread(partial(self.write, [one.query for one in batch]))
                self._measure(batch, time.monotonic() - self._began[mine])
                for one, instruction in zip(batch, written, strict=True):
                    if not one.future.done():
                        one.future.set_result(instruction)
            except Exception as error:
                for one in batch:
                    if not one.future.done():
                        one.future.set_exception(error)
            finally:
                del self._began[mine]

    def _next(self) -> list[_Waiting]:
        """Take the largest batch that should be ready in time for all of it; if there is none, the newest request."""
        now = time.monotonic()
        for one in self._waiting:
            if one.due <= now and not one.future.done():
                one.future.set_exception(TimeoutError())
        # A request that timed out, or whose client left, is not written for.
        waiting = self._waiting = [one for one in self._waiting if not one.future.done()]

        def fitting(start: int) -> int:
            most = min(self.batch_size, len(waiting) - start)
            return min(most, int(self._SHARE * (waiting[start].due - now) / self._pace)) if self._pace else most

        # Not always the oldest: with hardly any time left they would make every batch small, or late.
        start = max(range(len(waiting)), key=fitting, default=0)
        size = fitting(start) if waiting else 0
        if waiting and not size:  # one all the same: the teacher may have become faster
            start, size = len(waiting) - 1, 1
        self._waiting = waiting[:start] + waiting[start + size :]
        return waiting[start : start + size]

    def _measure(self, batch: list[_Waiting], seconds: float) -> None:
        """Note the pace of a batch that was late, then of those at least as large: small ones cost more a query.

        One that is smaller and all the same cheaper a query says that the pace is out of date.
        """
        pace, late = seconds / len(batch), time.monotonic() > batch[0].due
        if late or (self._pace is not None and (len(batch) >= self._measured or pace < self._pace)):
            self._pace, self._measured = pace, len(batch)


async def _in_thread(work: Callable[[], Sequence[Instruction]]) -> Sequence[Instruction]:
    """Run work in a daemon thread: one that hangs must not keep the process from ending, as an executor's would."""
    future: Future[Sequence[Instruction]] = Future()
    future.set_running_or_notify_cancel()  # from here on the thread alone settles it

    def run() -> None:
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="teacher", daemon=True).start()
    return await asyncio.wrap_future(future)
