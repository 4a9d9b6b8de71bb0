"""Two real servers of OpenAI's protocol, in processes that end with this one even if it is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

#: Runs before a server in its process: ends it with the process that started it, whose pipe is its standard input.
_WATCH = """
import os, sys, threading

def watch():
    os.read(0, 1)
    os.killpg(os.getpgid(0), 9)

threading.Thread(target=watch, daemon=True).start()
"""

_TRANSFORMERS = """
from transformers.cli.transformers import app

app(sys.argv[1:])
"""

_LLAMA = """
import threading, xllamacpp

path, slots, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path = path
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = slots
params.n_ctx = slots * context
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print("LISTENING", server.listening_address, flush=True)
threading.Event().wait()
"""


@contextlib.contextmanager
def _process(
    code: str, arguments: list[str], address: str, timeout: float, threads: int = 1, health: str = "/health"
) -> Iterator[str]:
    """Run Python code that serves, and return its root URL once it answers.

    Args:
        code: The program.
        arguments: Its arguments.
        address: Regular expression that finds the root URL in what it writes.
        timeout: Seconds it may take until then.
        threads: Of its arithmetic.
        health: Path that answers once it is up.
    """
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
    }
    with tempfile.NamedTemporaryFile("w+b", suffix=".log") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _WATCH + code, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )

        def written() -> str:
            with open(log.name, encoding="utf-8", errors="replace") as file:
                return file.read()

        try:
            deadline = time.monotonic() + timeout
            while True:
                found = re.search(address, written())
                if found and _answers(found[1] + health):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    state = f"ended with {process.returncode}" if process.returncode is not None else "does not answer"
                    end = "\n".join(written().splitlines()[-30:])
                    raise RuntimeError(f"the server {state} after {arguments}; the end of its log:\n{end}")
                time.sleep(0.05)
            yield found[1]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            if process.stdin is not None:
                process.stdin.close()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def transformers_server(
    model_folder: str | os.PathLike[str], continuous_batching: bool = False, threads: int = 1, timeout: float = 120
) -> Iterator[tuple[str, str]]:
    """Serve a folder of ``save_pretrained`` in float32 on the CPU with ``transformers serve``.

    Args:
        model_folder: The folder.
        continuous_batching: Whether requests are answered together; otherwise one after the other.
        threads: Of the arithmetic; see `llama_server`.
        timeout: Seconds it may take to start.

    Yields:
        ``base_url``, and the model's name, which it insists on.
    """
    name = os.fspath(model_folder)
    options = ["--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--dtype", "float32"]
    options += ["--continuous-batching"] if continuous_batching else []
    running = r"Uvicorn running on (http://[\d.]+:\d+)"
    with _process(_TRANSFORMERS, ["serve", name, *options], running, timeout, threads) as root:
        yield f"{root}/v1", name


@contextlib.contextmanager
def llama_server(
    gguf_path: str | os.PathLike[str],
    slots: int = 4,
    context: int = 2048,
    threads: int = 1,
    timeout: float = 120,
) -> Iterator[tuple[str, str]]:
    """Serve a GGUF file on the CPU with llama.cpp's server.

    Args:
        gguf_path: The file.
        slots: Requests answered at once; the others wait.
        context: Tokens that prompt and answer of each may have together.
        threads: Of the arithmetic. They wait for each other spinning: with as many as there are cores on a machine
            that does something else too, it becomes more than ten times slower.
        timeout: Seconds it may take to start.

    Yields:
        ``base_url``, and the model's name, which it does not look at.
    """
    arguments = [os.fspath(gguf_path), str(slots), str(context), str(threads)]
    # The server's log runs in between what we print, but names no other address.
    with _process(_LLAMA, arguments, r"(http://127\.0\.0\.1:\d+)\s", timeout, threads) as root:
        yield f"{root}/v1", os.path.basename(arguments[0]).removesuffix(".gguf")


_LITELLM = """
from litellm import run_server

run_server()
"""


@contextlib.contextmanager
def litellm_proxy(config: str | os.PathLike[str], timeout: float = 240) -> Iterator[str]:
    """Start a LiteLLM proxy, whose config may name files beside it, and give its root URL.

    Args:
        config: Its config.
        timeout: Seconds it may take to start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--config", os.fspath(config), "--host", "127.0.0.1", "--port", str(port)]
    running = r"Uvicorn running on (http://127\.0\.0\.1:\d+)"
    with _process(_LITELLM, options, running, timeout, health="/health/liveliness") as root:
        yield root
