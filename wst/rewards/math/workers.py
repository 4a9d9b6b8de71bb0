"""Worker processes for jobs that may hang, crash or exhaust the memory.

A worker is a fresh interpreter (``python -m wst.rewards.math.workers``) that imports one function by name and calls it
once for each line of JSON on its standard input. It is not forked and does not import the parent's main script, so
threads, CUDA and a missing ``if __name__ == "__main__"`` in the parent do no harm. (`multiprocessing` with spawn or
forkserver imports that script again, and so do libraries built on it, such as pebble.) The kernel enforces the limits
inside the worker, so no call in C can outlast them, and kills the worker when its parent is killed (on Linux; elsewhere
a busy worker ends when the time of its job is up). Needs a POSIX system.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from wst.errors import ConfigError

#: Seconds that a worker may take to import the function.
START_LIMIT = 120.0
_ATTEMPTS = 2  # the death of a worker that another process killed says nothing about its job
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a job.

    Attributes:
        status: "done"; "failed": the function raised; "timeout": killed at its time limit; "died": the worker ended
            during the job, twice.
        value: The return value ("done"), or the name of the exception ("failed").
    """

    status: Literal["done", "failed", "timeout", "died"]
    value: Any = None


class Workers:
    """A fixed number of worker processes that all call one function.

    Each process belongs to one thread of a pool, which waits for its replies. That thread lives as long as this object,
    because Linux kills a process that asked for it as soon as the thread that started the process ends.

    Args:
        owner: Name of the object that needs the workers, for error messages.
        target: The function as "package.module:name". It is called with None once, to load what it needs, then with
            one job at a time. Arguments and results must be JSON.
        count: Number of workers.
        memory_mb: Address space of each worker in MiB.
    """

    def __init__(self, owner: str, target: str, count: int, memory_mb: int) -> None:
        self._owner = owner
        self._target = target
        self._count = count
        self._memory_mb = memory_mb
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=owner)
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._parent = os.getpid()
        # Runs at the interpreter's exit too. It must not hold `self`, which would keep it alive.
        self._finalizer = weakref.finalize(self, _kill, self._processes, self._parent)

    @property
    def usable(self) -> bool:
        """False after `close`, and in a forked copy of the parent, which must not share the pipes."""
        return self._finalizer.alive and self._parent == os.getpid()

    @property
    def pids(self) -> list[int]:
        """The ids of the running processes."""
        return [process.pid for process in self._processes]

    def start(self) -> None:
        """Start the workers without waiting for them."""
        for _ in range(self._count):
            self._threads.submit(self._process)

    def run(self, jobs: Sequence[Any], limit: float) -> list[Outcome]:
        """Run all jobs and wait for them.

        Args:
            jobs: Arguments of the function, one each.
            limit: Seconds of CPU time that one call may take; it may take five times as long by the clock.

        Returns:
            One outcome for each job, in order.

        Raises:
            ConfigError: If the workers cannot start.
        """
        try:
            return list(self._threads.map(lambda job: self._run_one(job, limit), jobs))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill all workers. This object cannot be used again."""
        self._finalizer()
        self._threads.shutdown(cancel_futures=True)
        _kill(self._processes, self._parent)  # one that a thread was starting meanwhile

    def _run_one(self, job: Any, limit: float) -> Outcome:  # noqa: ANN401
        for _ in range(_ATTEMPTS):
            process = self._process()
            with contextlib.suppress(BrokenPipeError):
                _stdin(process).write(json.dumps([limit, job]).encode() + b"\n")
            reply = _reply(process)
            if reply is None or "bye" in reply:
                self._drop(process)
            if reply is not None:
                return Outcome("done", reply["done"]) if "done" in reply else Outcome("failed", reply["failed"])
            if process.returncode in (-signal.SIGPROF, -signal.SIGALRM):
                return Outcome("timeout")
            if not self._finalizer.alive:
                break
        return Outcome("died")

    def _process(self) -> subprocess.Popen[bytes]:
        """Return the running process of this thread; start it if there is none."""
        process: subprocess.Popen[bytes] | None = getattr(self._own, "process", None)
        if process is not None and process.poll() is None:
            return process
        if process is not None:
            self._drop(process)
        reason = "it ended, or took too long, before it was ready"
        for _ in range((_ATTEMPTS + 1) * self._finalizer.alive):
            process = subprocess.Popen(
                # -P: a module in the working directory must not replace an installed one.
                [sys.executable, "-P", "-m", __name__, self._target, str(self._memory_mb), str(self._parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
            self._processes.append(process)
            reply = _reply(process)
            if reply is not None and "ready" in reply:
                self._own.process = process
                return process
            reason = (reply or {}).get("failed", reason)
            self._drop(process)
        raise ConfigError(
            f"{self._owner}: its worker processes cannot start ({reason}); check that math-verify is installed, or "
            f"raise memory_mb (now {self._memory_mb})"
        )

    def _drop(self, process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ValueError):
            self._processes.remove(process)
        _kill([process], self._parent)


def _stdin(process: subprocess.Popen[bytes]) -> Any:  # noqa: ANN401
    return process.stdin


def _reply(process: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """Read one reply; return None if the process has ended."""
    if process.stdout is None:
        raise AssertionError("stdout is a pipe")
    line = process.stdout.readline()
    if line.endswith(b"\n"):
        return dict(json.loads(line))
    process.wait()
    return None


def _kill(processes: list[subprocess.Popen[bytes]], parent: int) -> None:
    while processes and os.getpid() == parent:  # a forked copy of the parent must leave the parent's workers alone
        process = processes.pop()
        process.kill()
        process.wait()
        _stdin(process).close()


def _main(target: str, memory_mb: int, parent: int) -> None:
    """Serve jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills its workers
    signal.setitimer(signal.ITIMER_REAL, START_LIMIT)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    jobs = os.fdopen(os.dup(0), "rb")
    replies = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # output of a library must not mix with the replies

    def reply(**content: Any) -> None:  # noqa: ANN401
        os.write(replies, json.dumps(content).encode() + b"\n")

    try:
        with contextlib.suppress(ValueError, OSError):  # macOS refuses some limits
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        sys.set_int_max_str_digits(0)  # time and memory are limited already
        module, _, name = target.partition(":")
        function = getattr(import_module(module), name)
        function(None)
    except BaseException as error:
        reply(failed=f"{type(error).__name__}: {error}"[:300].replace("\n", " "))
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    reply(ready=True)
    for line in jobs:
        limit, job = json.loads(line)
        with _limited(limit):
            try:
                result: dict[str, Any] = {"done": function(job)}
            except Exception as error:
                result = {"failed": type(error).__name__}
        if result.get("failed") == "MemoryError" or _peak_mb() > memory_mb / 2:
            reply(**result, bye=True)  # otherwise the next job would lack memory
            return
        reply(**result)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End this process if the block takes longer; the default action of these signals interrupts any call."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 5 * seconds + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _peak_mb() -> float:
    """Return the largest resident memory of this process so far, in MiB."""
    # On Linux, ru_maxrss begins with the peak of the process that started this one.
    with contextlib.suppress(OSError):
        peak = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(errors="replace"), re.MULTILINE)
        if peak is not None:
            return int(peak[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
