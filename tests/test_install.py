"""The distribution: what is in it, what a package index shows, and a first project from an empty folder."""

import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from runs import TESTS

ROOT = TESTS.parent
QUEUES = ("billing", "shipping", "returns", "account")


def test_the_readme_of_the_package_index_has_absolute_links_to_files_that_are_there() -> None:
    spec = importlib.util.spec_from_file_location("setup_of_wst", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    links = re.findall(r"\]\(([^)\s]+)\)", setup.readme())
    assert len(links) > 10
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    own = [link.removeprefix(setup.SOURCE) for link in links if link.startswith(setup.SOURCE)]
    assert [link for link in own if not (ROOT / re.sub("^/(blob|raw)/main/", "", link)).exists()] == []


def write_tickets(folder: Path) -> None:
    for split, rows in (("train", 60), ("val", 30), ("test", 40)):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["subject", "body", "queue"])
            for i in range(rows):
                queue = QUEUES[i % 4]
                lines.writerow([f"Ticket {i}", f'My "{queue}" is wrong, says {split} customer {i}', queue])


def run(program: Path, *args: str, folder: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "WST_CACHE": str(folder.parent / "cache")}
    done = subprocess.run([program, *args], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_from_the_wheel_to_a_tested_teacher(tmp_path: Path, tiny_model: str) -> None:
    source, python = tmp_path / "source", Path(sys.executable)
    for name in ("wst", "lightning_configs", "data"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run(python, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "../dist", folder=source)
    (wheel,) = (tmp_path / "dist").glob("weak_to_strong_transfer-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    wanted = [path.relative_to(source).as_posix() for path in source.rglob("*.*") if "build" not in path.parts]
    shared = [name for name in wanted if name.startswith(("lightning_configs/", "data/"))]
    code = [name for name in wanted if name.startswith("wst/") and "egg-info" not in name]
    assert {*code, *(f"wst/_share/{name}" for name in shared)} <= held
    assert len(shared) > 20

    # A virtual environment with the wheel alone; the libraries are those of the tests.
    run(python, "-m", "venv", "--without-pip", "fresh", folder=tmp_path)
    fresh = tmp_path / "fresh/bin/python"
    site = Path(run(fresh, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-m", "pip", "--python", str(fresh), "install", "-q", "--no-deps", str(wheel), folder=tmp_path)
    wst = tmp_path / "fresh/bin/wst"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run(fresh, "-c", "import wst; print(wst.__file__)", folder=empty).startswith(str(site))
    assert "wst:quickstart" in run(wst, "list", "configs", folder=empty)

    write_tickets(empty)
    files = ["--data", "train.csv", "--val", "val.csv", "--test", "test.csv", "--query", "{subject}\n{body}"]
    said = run(wst, "init", "tickets", *files, "--student", tiny_model, "--teacher", tiny_model, folder=empty)
    assert "130 rows, 4 labels" in said
    project = empty / "tickets"
    said = run(wst, "check", "--config", "config.yaml", folder=project)
    assert "test: 40 of 40 gold answers score 1.0" in said
    assert said.count("student's prompt, user:") == 2
    assert "Answer with one of: account, billing, returns, shipping." in said
    run(wst, "fit", "--config", "config.yaml", "--trainer.max_steps=2", folder=project)
    run(wst, "test", "--config", "config.yaml", "--ckpt_path=last", folder=project)
    assert json.loads((project / "runs/tickets/version_0/results.json").read_text())["n"] == 40
    assert (project / "runs/tickets/version_0/teacher/last/wst.json").is_file()
