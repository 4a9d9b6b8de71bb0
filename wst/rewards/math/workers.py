"""Processes for work that may hang, crash or exhaust the memory: what takes too long is killed.

A worker is a fresh interpreter (``python -m wst.rewards.math.workers``) that is told by name which function to call;
jobs and results travel as lines of JSON. Nothing is forked, so threads, CUDA and Lightning in the parent do not matter,
and nothing of the parent's main script is imported. A worker ends by itself when its parent does: between two jobs it
reads the end of its pipe, and during a job an alarm that the kernel delivers ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from wst.errors import ConfigError

#: Seconds that a worker may take to import what it needs.
START_LIMIT = 120.0
_ATTEMPTS = 2  # a worker that somebody else killed says nothing about its job


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        status: "done"; "failed": the function raised; "timeout": killed by its time limit; "died": the worker
            ended, twice.
        value: What the function returned ("done"), or why there is none.
    """

    status: Literal["done", "failed", "timeout", "died"]
    value: Any = None


class Workers:
    """A fixed number of worker processes that all call one function; not safe for several threads at a time.

    Args:
        owner: Whose workers they are, for errors.
        target: The function as "package.module:name". It takes and returns what JSON can hold.
        count: How many to run at once. They are started when there is work for them.
        memory_mb: The address space of each, in MiB; without effect where the platform has no such limit.
    """

    def __init__(self, owner: str, target: str, count: int, memory_mb: int) -> None:
        self._owner = owner
        self._target = target
        self._count = count
        self._memory_mb = memory_mb
        self._workers: list[_Worker] = []
        self.parent = os.getpid()
        # Also at the interpreter's exit. It must not hold `self`, which would keep it alive.
        self._finalizer = weakref.finalize(self, _end, self._workers, self.parent)

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers there are."""
        return [worker.process.pid for worker in self._workers]

    def start(self, count: int | None = None) -> None:
        """Start the workers that are missing, up to ``count`` (all by default), without waiting for them."""
        for worker in [worker for worker in self._workers if worker.job is None and worker.process.poll() is not None]:
            self._drop(worker)
        while len(self._workers) < min(self._count, self._count if count is None else count):
            self._workers.append(_Worker(self._target, self._memory_mb))

    def run(self, jobs: Sequence[Any], limit: float) -> list[Outcome]:
        """Do all jobs, and wait for them.

        Args:
            jobs: What the function is called with, each at most 60,000 bytes as JSON.
            limit: Seconds that one call may take.

        Returns:
            One outcome a job, in order.

        Raises:
            ConfigError: If the workers cannot start.
        """
        outcomes: list[Outcome | None] = [None] * len(jobs)
        waiting = deque((index, 1) for index in range(len(jobs)))
        failures = 0
        try:
            while waiting or any(worker.job is not None for worker in self._workers):
                self.start(len(waiting) + sum(worker.job is not None for worker in self._workers))
                for worker in self._workers:
                    if waiting and worker.ready and worker.job is None:
                        worker.give(waiting.popleft(), jobs, limit)
                for worker in self._wait():
                    reply = worker.receive()
                    if reply is not None and not worker.ready and "ready" in reply:
                        worker.ready = True
                        failures = 0
                        continue
                    if not worker.ready:
                        self._drop(worker)
                        failures += 1
                        if failures > _ATTEMPTS:
                            reason = (reply or {}).get("failed", "it ended or took too long before it was ready")
                            raise ConfigError(
                                f"{self._owner}: its worker processes cannot start ({reason}); see that math-verify "
                                f"is installed, or raise memory_mb (now {self._memory_mb})"
                            )
                        continue
                    job, worker.job = worker.job, None
                    if reply is None:
                        late = worker.process.poll() is None or worker.process.returncode == -_ALARM
                        self._drop(worker)
                        if job is None:
                            continue
                        if not late and job[1] < _ATTEMPTS:
                            waiting.append((job[0], job[1] + 1))
                        else:
                            outcomes[job[0]] = Outcome("timeout" if late else "died")
                    elif job is not None:
                        done = "done" in reply
                        outcomes[job[0]] = (
                            Outcome("done", reply["done"]) if done else Outcome("failed", reply["failed"])
                        )
                        if "bye" in reply:
                            self._drop(worker)
        except BaseException:
            for worker in [worker for worker in self._workers if worker.job is not None]:
                self._drop(worker)  # its answer would be taken for the next job's
            raise
        return [outcome or Outcome("died") for outcome in outcomes]

    def close(self) -> None:
        """End all workers; `run` starts new ones."""
        while self._workers:
            self._drop(self._workers[-1])

    def _wait(self) -> list[_Worker]:
        """Wait for the workers that have something to tell, or whose time is over."""
        active = [worker for worker in self._workers if worker.job is not None or not worker.ready]
        if not active:
            return []
        with selectors.DefaultSelector() as selector:
            for worker in active:
                selector.register(worker.replies, selectors.EVENT_READ, worker)
            nearest = min(worker.deadline for worker in active)
            heard = [key.data for key, _ in selector.select(max(0.0, nearest - time.monotonic()))]
        now = time.monotonic()
        for worker in active:
            worker.silent = worker not in heard
        return [worker for worker in active if not worker.silent or worker.deadline <= now]

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()


class _Worker:
    def __init__(self, target: str, memory_mb: int) -> None:
        self.process = subprocess.Popen(
            # -P: a module of the working directory must not take the place of an installed one.
            [sys.executable, "-P", "-m", "wst.rewards.math.workers", target, str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        if self.process.stdin is None or self.process.stdout is None:
            raise AssertionError("both were asked for")
        self.jobs = self.process.stdin
        self.replies = self.process.stdout
        self.ready = False
        self.job: tuple[int, int] | None = None  # its index, and how many times it was tried
        self.deadline = time.monotonic() + START_LIMIT
        self.silent = False

    def give(self, job: tuple[int, int], jobs: Sequence[Any], limit: float) -> None:
        self.job = job
        self.deadline = time.monotonic() + limit
        # The pipe holds all of it, so this cannot block; a worker that has ended shows when its reply is read.
        with contextlib.suppress(BrokenPipeError):
            self.jobs.write(json.dumps([limit, jobs[job[0]]]).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Read the reply; None: there is none, since its time is over or its process has ended."""
        if self.silent:
            return None
        line = os.read(self.replies.fileno(), 65536)  # replies are short enough to be written at once
        if line.endswith(b"\n"):
            return dict(json.loads(line))
        self.process.wait()
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.jobs, self.replies):
            with contextlib.suppress(OSError):
                pipe.close()


def _end(workers: list[_Worker], parent: int) -> None:
    if os.getpid() == parent:  # a forked copy of the parent must leave the parent's workers alone
        while workers:
            workers.pop().end()


_ALARM = getattr(signal, "SIGALRM", 0)


def _main(target: str, memory_mb: int) -> None:
    """Serve jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    jobs = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # what a library prints must not get between the replies

    def reply(**content: Any) -> None:  # noqa: ANN401
        os.write(replies, json.dumps(content).encode() + b"\n")

    try:
        _limit(memory_mb)
        sys.set_int_max_str_digits(0)  # long numbers are numbers too; time and memory are limited anyway
        module, _, name = target.partition(":")
        function = getattr(import_module(module), name)
        function(None)  # loads what it needs
    except BaseException as error:
        reply(failed=f"{type(error).__name__}: {error}"[:300].replace("\n", " "))
        return
    reply(ready=True)
    for line in jobs:
        limit, job = json.loads(line)
        if _ALARM:  # its default action ends the process, whatever it is doing: the parent may be gone
            signal.setitimer(signal.ITIMER_REAL, 1.5 * limit + 0.5)
        try:
            result: dict[str, Any] = {"done": function(job)}
        except Exception as error:
            result = {"failed": type(error).__name__}
        if _ALARM:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if result.get("failed") == "MemoryError" or _used_mb() > memory_mb / 2:
            reply(**result, bye=True)  # start afresh, or the next job would lack memory
            return
        reply(**result)


def _limit(memory_mb: int) -> None:
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))


def _used_mb() -> float:
    """The most memory that this process has held so far."""
    # Linux hands a new program its parent's peak in getrusage, which may be gigabytes.
    with contextlib.suppress(OSError, AttributeError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        peak = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        if peak is not None:
            return int(peak[1]) / 1024
    try:
        import resource
    except ImportError:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
