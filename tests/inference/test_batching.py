"""Batches of concurrent requests, in several threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from wst import Instruction, Query
from wst.inference.batching import Batcher


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The batcher's clock, which stands still; a batch begins when all requests of the moment are there."""
    time = [0.0]
    monkeypatch.setattr("wst.inference.batching.time", SimpleNamespace(monotonic=lambda: time[0]))

    async def when_all_are_here(work: Callable[[], Sequence[Instruction]]) -> Sequence[Instruction]:
        for _ in range(20):
            await asyncio.sleep(0)
        return work()

    monkeypatch.setattr("wst.inference.batching._in_thread", when_all_are_here)
    return time


def test_workers_write_at_the_same_time() -> None:
    together = threading.Barrier(4)

    def write(queries: Sequence[Query]) -> list[Instruction]:
        together.wait(60)  # raises unless four threads are here
        return [Instruction(f"for {query.text}") for query in queries]

    async def ask() -> list[str]:
        batcher = Batcher(write, batch_size=1, deadline=120, workers=4)
        outcomes = await asyncio.gather(*(batcher.ask(Query("q", str(i))) for i in range(8)))
        return [outcome.instruction.text if outcome.instruction else outcome.status for outcome in outcomes]

    assert asyncio.run(ask()) == [f"for {i}" for i in range(8)]


def test_more_load_than_the_teacher_takes_leaves_some_unaided_and_not_all(now: list[float]) -> None:
    def write(queries: Sequence[Query]) -> list[Instruction]:
        now[0] += 50 * len(queries)
        return [Instruction("z")] * len(queries)

    async def scene() -> int:
        batcher = Batcher(write, batch_size=32, deadline=1000)

        async def client() -> int:
            outcomes = [await batcher.ask(Query("q", "x")) for _ in range(20)]
            return sum(outcome.status == "instructed" and outcome.seconds <= 1000 for outcome in outcomes)

        return sum(await asyncio.gather(*(client() for _ in range(30))))  # each batch of 30 would take 1500

    in_time = asyncio.run(scene())
    assert in_time > 0.8 * now[0] / 50  # of what it could write


def test_a_teacher_is_hung_when_all_workers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("wst.inference.batching.time", SimpleNamespace(monotonic=lambda: now[0]))
    go = threading.Event()
    stuck = threading.Semaphore(0)

    def write(queries: Sequence[Query]) -> list[Instruction]:
        if queries[0].text == "hang":
            stuck.release()
            go.wait(60)
        return [Instruction("z")]

    async def scene() -> list[bool | str]:
        batcher = Batcher(write, batch_size=1, deadline=1000, workers=2)
        found: list[bool | str] = []
        hanging = []
        for _ in range(2):
            hanging.append(asyncio.create_task(batcher.ask(Query("q", "hang"))))
            await asyncio.to_thread(stuck.acquire)
            now[0] += 4000
            found += [batcher.hung, (await batcher.ask(Query("q", "fine"))).status]
        go.set()
        await asyncio.gather(*hanging)
        return [*found, batcher.hung]

    assert asyncio.run(scene()) == [False, "instructed", True, "timeout", False]


def test_batches_grow_again_after_a_slow_one(now: list[float]) -> None:
    slow, sizes = [True], list[int]()

    def write(queries: Sequence[Query]) -> list[Instruction]:
        sizes.append(len(queries))
        now[0] += 32_000 if slow[0] else 150  # as long for one as for many
        return [Instruction("z")] * len(queries)

    async def scene() -> None:
        batcher = Batcher(write, batch_size=32, deadline=2000)
        for _ in range(3):
            await asyncio.gather(*(batcher.ask(Query("q", "x")) for _ in range(12)))
            slow[0] = False

    asyncio.run(scene())
    assert max(sizes[-2:]) > 8
