"""How long fifteen common mistakes take until their error is shown, each in a process of its own.

    python benchmarks/mistakes.py [--tree CLONE] [--limit 120]

CLONE is another version's clone. A time is from the start of the process to its end; beside it stand the CPU seconds,
which say the same on a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REWARD = "class Right:\n    pass\n"
MODEL, DATA = "--model.init_args", "--data.init_args"
TEACHER, STUDENT = f"{MODEL}.teacher.init_args", f"{MODEL}.student.init_args"


class OneModel(BaseHTTPRequestHandler):
    """A server that has one model, and refuses every other one."""

    def do_GET(self) -> None:
        """Answer with the list of models."""
        self._send(200, {"data": [{"id": "small-model"}]})

    def do_POST(self) -> None:
        """Refuse the model."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self._send(404, {"error": {"message": "there is no such model"}})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def mistakes(config: str, port: int) -> dict[str, list[str]]:
    """Return the arguments of ``wst`` for each mistake.

    Args:
        config: Path of the quickstart's config.
        port: Of the server that has another model than the one asked for.
    """
    fit = ["fit", "--config", config]
    endpoint = [*fit, f"{MODEL}.student", "wst.EndpointStudent", f"{STUDENT}.model", "smal-model"]
    local = [*endpoint, f"{STUDENT}.api_key_env=null", f"{STUDENT}.base_url"]
    return {
        "misspelt command": ["fti", "--config", config],
        "config that is not there": ["fit", "--config", "quikstart.yaml"],
        "misspelt option on the command line": [*fit, f"{MODEL}.samples_per_qery", "4"],
        "misspelt option in a config": [*fit, "--config", "option.yaml"],
        "misspelt class": [*fit, f"{MODEL}.reward", "wst.LabelMach"],
        "text for a number": [*fit, f"{MODEL}.samples_per_query", "four"],
        "file of a reward that is not there": [*fit, f"{MODEL}.reward", "my_rewards.Right"],
        "class that is not in its file": [*fit, f"{MODEL}.reward", "my_reward.Rigth"],
        "data file that is not there": [*fit, f"{DATA}.train", "tickets.jsonl"],
        "field that the rows do not have": [*fit, f"{DATA}.fields.query", "body"],
        "template without a place": [*fit, f"{TEACHER}.prompt.template", "Write an instruction."],
        "model folder that is not there": [*fit, f"{TEACHER}.model", "./models/teacher"],
        "key that is not set": [*endpoint, f"{STUDENT}.api_key_env", "NO_KEY"],
        "port at which nobody listens": [*local, "http://127.0.0.1:9/v1"],
        "model that the server does not have": [*local, f"http://127.0.0.1:{port}/v1"],
    }


def measure(args: list[str], folder: Path, tree: Path, limit: float) -> tuple[float, float, str]:
    """Return wall and CPU seconds of a command, and the last line of its standard error."""
    environment = os.environ | {"PYTHONPATH": str(tree), "WST_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    before, start = os.times(), time.perf_counter()
    command = [sys.executable, "-m", "wst", *args]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=limit)
        said = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"code {done.returncode}"
    except subprocess.TimeoutExpired:
        said = f"no error after {limit:g} s"
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu, said


def main() -> None:
    """Print a row for each mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--limit", type=float, default=120)
    options = parser.parse_args()
    tree = options.tree.resolve()
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print("| mistake | s | CPU s | error |\n|---|---:|---:|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").symlink_to(tree / "data")
        (folder / "my_reward.py").write_text(REWARD)
        (folder / "option.yaml").write_text("model: {init_args: {samples_per_qery: 4}}\n")
        config = str(tree / "lightning_configs" / "quickstart.yaml")
        for mistake, args in mistakes(config, server.server_port).items():
            wall, cpu, said = measure(args, folder, tree, options.limit)
            print(f"| {mistake} | {wall:.1f} | {cpu:.1f} | {said.replace('|', '/')[:160]} |", flush=True)


if __name__ == "__main__":
    main()
