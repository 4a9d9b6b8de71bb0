"""Batches of concurrent requests for one teacher, with a deadline for each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
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
        fault: What the teacher raised, where the status is "error".
    """

    status: str
    instruction: Instruction | None
    seconds: float
    fault: str | None = None


class Batcher:
    """Writes for all requests that wait, ``batch_size`` at a time, in one thread or several.

    It never raises and never waits longer than the deadline: a teacher that fails or hangs gives no instruction. Once
    each thread has been at its batch for several deadlines, the teacher counts as hung, and no request waits for it.

    Args:
        write: Writes an instruction for each query; called from as many threads at a time as there are workers.
        batch_size: Queries in one call.
        deadline: Seconds that a request waits at most.
        workers: Calls at a time.
    """

    _HUNG = 3  #: deadlines after which a running batch counts as hung

    def __init__(self, write: Write, batch_size: int, deadline: float, workers: int = 1) -> None:
        self.write = write
        self.batch_size = batch_size
        self.deadline = deadline
        self.workers = workers
        self.batches = 0  #: calls of ``write`` so far
        self._waiting: deque[tuple[Query, asyncio.Future[Instruction]]] = deque()
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
        self._waiting.append((query, future))
        self._working = [worker for worker in self._working if not worker.done()]
        if len(self._working) < self.workers:
            self._working.append(asyncio.create_task(self._work()))
        try:
            written = await asyncio.wait_for(future, self.deadline)
        except TimeoutError:
            return Outcome("timeout", None, time.monotonic() - start)
        except Exception as error:
            return Outcome("error", None, time.monotonic() - start, f"{type(error).__name__}: {error!s:.200}")
        seconds = time.monotonic() - start
        return Outcome("instructed", written, seconds) if written.text.strip() else Outcome("empty", None, seconds)

    async def _work(self) -> None:
        while self._waiting:
            batch: list[tuple[Query, asyncio.Future[Instruction]]] = []
            while self._waiting and len(batch) < self.batch_size:
                query, future = self._waiting.popleft()
                if not future.done():  # a request that timed out, or whose client left, is not written for
                    batch.append((query, future))
            if not batch:
                return
            self.batches += 1
            mine = self.batches
            self._began[mine] = time.monotonic()
            try:
                written = await _in_thread(partial(self.write, [query for query, _ in batch]))
                for (_, future), instruction in zip(batch, written, strict=True):
                    if not future.done():
                        future.set_result(instruction)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            finally:
                del self._began[mine]


async def _in_thread(work: Callable[[], Sequence[Instruction]]) -> Sequence[Instruction]:
    """Run work in a daemon thread: one that hangs must not keep the process from ending, as an executor's would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Sequence[Instruction]] = loop.create_future()

    def settle(result: Sequence[Instruction] | None, error: Exception | None) -> None:
        if not future.done():
            future.set_result(result or []) if error is None else future.set_exception(error)

    def run() -> None:
        result: Sequence[Instruction] | None = None
        error: Exception | None = None
        try:
            result = work()
        except Exception as caught:
            error = caught
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="teacher", daemon=True).start()
    return await future
