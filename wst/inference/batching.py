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
    """Writes for all requests that wait, ``batch_size`` at a time, in one worker thread.

    It never raises and never waits longer than the deadline: a teacher that fails or hangs gives no instruction. Once a
    batch has been running for several deadlines, the teacher counts as hung, and no further request waits for it.

    Args:
        write: Writes an instruction for each query; called from one thread at a time.
        batch_size: Queries in one call.
        deadline: Seconds that a request waits at most.
    """

    _HUNG = 3  #: deadlines after which a running batch counts as hung

    def __init__(self, write: Write, batch_size: int, deadline: float) -> None:
        self.write = write
        self.batch_size = batch_size
        self.deadline = deadline
        self.batches = 0  #: calls of ``write`` so far
        self._waiting: deque[tuple[Query, asyncio.Future[Instruction]]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._began: float | None = None  #: when the batch under way began

    @property
    def hung(self) -> bool:
        """Whether the batch under way has taken several deadlines."""
        began = self._began  # read once: another thread may ask
        return began is not None and time.monotonic() - began > self._HUNG * self.deadline

    async def ask(self, query: Query) -> Outcome:
        """Return the instruction for a query, or why there is none."""
        start = time.monotonic()
        if self.hung:
            return Outcome("timeout", None, 0.0)
        future: asyncio.Future[Instruction] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
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
            self._began = time.monotonic()
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
                self._began = None


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
