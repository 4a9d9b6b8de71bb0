"""`wst serve` as a process of its own: time to the first byte, clients that leave or idle, and memory.

    python benchmarks/connections.py --teacher FOLDER --requests 5000

The student is a fake that repeats the last message at once, in this process; the teacher is real.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from inference_servers import Upstream, serving
from trained import ROOT, WST, here, serve


def asked(text: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - further fields
    """Return a request."""
    return {"model": "s", "messages": [{"role": "user", "content": text}], **more}


def teacher_seconds(root: str) -> float:
    """Return the seconds that requests have waited for instructions so far."""
    text = httpx2.get(f"{root}/metrics", trust_env=False).text
    found = re.search(r"^wst_teacher_seconds_sum (\S+)$", text, flags=re.MULTILINE)
    return float(found[1]) if found else 0.0


def first_byte(url: str) -> float:
    """Return the seconds until the first byte of a streamed answer's body."""
    with httpx2.Client(trust_env=False, timeout=120) as client:
        client.get(f"{url}/models")  # the connection is there already, as an application's is
        start = time.perf_counter()
        with client.stream("POST", f"{url}/chat/completions", json=asked("a b", stream=True)) as answer:
            next(answer.iter_raw())
            return time.perf_counter() - start


def first_bytes(url: str, direct: str, times: int) -> dict[str, Any]:
    """Return milliseconds to the first byte: upstream alone, and what the server adds to it beyond the instruction."""
    root, alone, beyond = url.removesuffix("/v1"), [], []
    for _ in range(times):
        alone.append(first_byte(direct))
        before = teacher_seconds(root)
        through = first_byte(url)
        beyond.append(through - (teacher_seconds(root) - before))

    def ranked(seconds: list[float]) -> dict[str, float]:
        shares = statistics.quantiles(seconds, n=100)
        return {f"p{rank}": round(1e3 * shares[rank - 1], 1) for rank in (50, 90)}

    return {
        "streams": times,
        "upstream alone ms": ranked(alone),
        "upstream and what is added ms": ranked(beyond),
        "added ms": ranked([whole - own for whole, own in zip(beyond, alone, strict=True)]),
    }


def leaving(url: str, upstream: Upstream, times: int) -> list[float]:
    """Return the milliseconds from a client's leaving to upstream's noticing, each time."""
    found = []
    for _ in range(times):
        upstream.left.clear()
        before = len(upstream.asked)
        parts = urlsplit(url)
        body = json.dumps(asked("slow")).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as client:
            client.sendall(head + body)
            while len(upstream.asked) == before:  # it waits for the student now
                time.sleep(0.01)
        start = time.perf_counter()
        upstream.left.wait(30)
        found.append(round(1e3 * (time.perf_counter() - start), 1))
    return found


async def idle(url: str, connections: int) -> dict[str, Any]:
    """Return the seconds of requests while so many other connections do nothing."""
    parts = urlsplit(url)
    open_ = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(connections)]
    try:
        _, seconds, wrong = await load(url, 20, 4)
        return {
            "connections": len(open_),
            "requests": len(seconds),
            "wrong": wrong,
            "longest s": round(max(seconds), 2),
        }
    finally:
        for _, writer in open_:
            writer.close()


async def load(url: str, requests: int, concurrency: int, first: int = 0) -> tuple[Counter[str], list[float], int]:
    """Send marked requests; return the counts of statuses, the seconds, and how many came back wrong."""
    statuses: Counter[str] = Counter()
    seconds: list[float] = []
    wrong = 0
    places = iter(range(first, first + requests))
    async with httpx2.AsyncClient(timeout=600, trust_env=False) as client:

        async def worker() -> None:
            nonlocal wrong
            for place in places:
                mark, start = f"mark-{place}-end", time.perf_counter()
                answer = await client.post(f"{url}/chat/completions", json=asked(mark))
                seconds.append(time.perf_counter() - start)
                statuses[answer.headers.get("x-wst-status", str(answer.status_code))] += 1
                wrong += mark not in (answer.json()["choices"][0]["message"]["content"] if answer.is_success else "")

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return statuses, seconds, wrong


def memory(process: int) -> int:
    """Return the resident memory of a process in MB."""
    return round(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096 / 1e6)


def lasting(url: str, process: int, requests: int, upstream: Upstream) -> dict[str, Any]:
    """Return what came of many requests, and the server's memory after each tenth of them."""
    statuses: Counter[str] = Counter()
    seconds: list[float] = []
    wrong, held = 0, [memory(process)]
    for first in range(0, requests, requests // 10):
        told, took, mixed = asyncio.run(load(url, requests // 10, 64, first))
        statuses, seconds, wrong = statuses + told, seconds + took, wrong + mixed
        held.append(memory(process))
        upstream.asked.clear()
        upstream.headers.clear()
    return {
        "statuses": dict(statuses),
        "wrong": wrong,
        "p50 s": round(statistics.median(seconds), 2),
        "memory mb": held,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="an exported folder")
    parser.add_argument("--base", default="", help="where its base lies, if not where it says")
    parser.add_argument("--requests", type=int, default=5000, help="0: leave them out")
    options = parser.parse_args()
    upstream = Upstream()
    with serving(upstream.app()) as direct:
        command = [*WST, "serve", options.teacher, "--upstream", direct, "--deadline", "600"]
        command += ["--base", options.base] if options.base else []
        with serve(command, ROOT, here()) as (url, process):
            print("first byte", json.dumps(first_bytes(url, direct, 30)), flush=True)
            print("leaving, ms", json.dumps(leaving(url, upstream, 10)), flush=True)
            print("idle", json.dumps(asyncio.run(idle(url, 1000))), flush=True)
            if options.requests:
                print("lasting", json.dumps(lasting(url, process, options.requests, upstream)), flush=True)
        upstream.go.set()


if __name__ == "__main__":
    main()
