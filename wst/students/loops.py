"""Event loops in threads of their own, for what must outlive one call."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_T = TypeVar("_T")
_LOCK = threading.Lock()
_LOOPS: dict[int, asyncio.AbstractEventLoop] = {}  # by process: a fork has no threads


def start_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a loop that runs in a daemon thread until it is stopped.

    Args:
        name: Of the thread.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name=name, daemon=True).start()
    return loop


def stop_loop(loop: asyncio.AbstractEventLoop, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Cancel everything in a loop of `start_loop`, close what belongs to it, and stop it.

    Args:
        loop: The loop.
        close: Called in the loop, once nothing else is left there.
    """

    async def end() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await close()

    asyncio.run_coroutine_threadsafe(end(), loop).result(timeout=30)
    loop.call_soon_threadsafe(loop.stop)


def run_async(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run a user's coroutine to its end and return its result, also where a loop runs already, as in a notebook.

    All of a process run in the same loop: an HTTP client or a semaphore belongs to the loop that it was first used in.
    """
    with _LOCK:
        if os.getpid() not in _LOOPS:
            _LOOPS[os.getpid()] = start_loop("wst-functions")
        loop = _LOOPS[os.getpid()]
    if asyncio._get_running_loop() is loop:  # called by a function that runs there: waiting would be for ever
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, coroutine).result()
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()
