"""Load on `wst serve`: is anything lost or mixed up, what does the teacher cost, and does memory stay flat?

    python benchmarks/serving.py --requests 500 --concurrency 64 --upstream_seconds 0.5
    python benchmarks/serving.py --requests 500 --teacher FOLDER     # with a real teacher; its deadline is 60 s here
    python benchmarks/serving.py --requests 500 --teacher hung       # each request is answered, unaided

Teacher, gateway and student run in this process, on the loopback; each request carries a mark that must come back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from inference_servers import serving

from wst import Instruction, Query, StudentPrompt
from wst.inference import Instructor
from wst.inference.server import Gateway, Limits


def student(seconds: float) -> Starlette:
    """Return a server that repeats the last message after some seconds."""

    async def chat(request: Request) -> Response:
        text = (await request.json())["messages"][-1]["content"]
        await asyncio.sleep(seconds)
        return JSONResponse({"choices": [{"message": {"role": "assistant", "content": text}}]})

    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])


def quick(queries: Sequence[Query]) -> list[Instruction]:
    """Write an instruction that names the query, after 10 ms."""
    time.sleep(0.01)
    return [Instruction(f"For {query.text}.") for query in queries]


def hung(queries: Sequence[Query]) -> list[Instruction]:
    """Never write."""
    time.sleep(86_400)
    return []


def raising(queries: Sequence[Query]) -> list[Instruction]:
    """Fail."""
    raise RuntimeError("killed")


def memory() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def load(url: str, requests: int, concurrency: int) -> tuple[list[float], Counter[str], int]:
    """Send the requests; return their seconds, the counts of their statuses, and how many came back wrong."""
    seconds: list[float] = []
    statuses: Counter[str] = Counter()
    wrong = 0
    places = iter(range(requests))
    limits = httpx2.Limits(max_connections=concurrency)
    async with httpx2.AsyncClient(timeout=120, trust_env=False, limits=limits) as client:

        async def worker() -> None:
            nonlocal wrong
            for place in places:
                body = {"messages": [{"role": "user", "content": f"mark-{place}-end"}]}
                start = time.perf_counter()
                answer = await client.post(f"{url}/chat/completions", json=body)
                seconds.append(time.perf_counter() - start)
                statuses[answer.headers.get("x-wst-status", str(answer.status_code))] += 1
                text = answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else ""
                wrong += not text.startswith(f"mark-{place}-end")

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return seconds, statuses, wrong


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--upstream_seconds", type=float, default=0.5)
    parser.add_argument("--teacher", default="quick", help="quick, hung, raising, or an exported folder")
    options = parser.parse_args()
    known: dict[str, Any] = {"quick": quick, "hung": hung, "raising": raising}
    write, prompt, deadline = known.get(options.teacher), StudentPrompt("after"), 2.0
    if write is None:
        instructor = Instructor.from_pretrained(options.teacher).load()
        write, deadline = instructor.write, 60.0
    figures: dict[str, Any] = {}
    with serving(student(options.upstream_seconds)) as direct:
        gateway = Gateway(write, prompt, direct, limits=Limits(deadline=deadline, requests=1000))
        with serving(gateway.app()) as url:
            for name, base in (("direct", direct), ("gateway", url)):
                before, start = memory(), time.perf_counter()
                seconds, statuses, wrong = asyncio.run(load(base, options.requests, options.concurrency))
                p50, p99 = np.percentile(seconds, [50, 99])
                figures[name] = {
                    "answered": len(seconds),
                    "wrong": wrong,
                    "statuses": dict(statuses),
                    "p50_s": round(float(p50), 3),
                    "p99_s": round(float(p99), 3),
                    "total_s": round(time.perf_counter() - start, 1),
                    "memory_mb": [round(before), round(memory())],
                }
    print(json.dumps(figures, indent=2))
    print(f"batches of the teacher's: {gateway.batcher.batches}")


if __name__ == "__main__":
    main()
