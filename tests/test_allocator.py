"""Tests of what becomes of freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from wst.__main__ import main
from wst.modeling.allocator import keep_freed_blocks

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")

#: Frees 400 MB and says how many megabytes the process still holds in all.
HELD = """
import torch
from wst.modeling.allocator import keep_freed_blocks
kept = keep_freed_blocks()
block = torch.ones(10**8)
small = torch.ones(10)
del block
resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(kept, int(resident.split()[1]) // 1000)
"""


def test_the_command_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("wst.modeling.allocator.keep_freed_blocks", lambda: asked.append("kept"))
    monkeypatch.setattr("wst.cli.lightning.run", lambda arguments: asked.append(arguments[0]) or 0)
    monkeypatch.setattr(sys, "argv", ["wst", "fit"])
    assert main() == 0
    assert asked == ["kept", "fit"]


def test_nothing_is_changed_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("an option of malloc was set"))
    assert not keep_freed_blocks()


def held(**settings: str) -> tuple[bool, int]:
    names = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", HELD], env=environment | settings, capture_output=True, text=True, check=True
    )
    kept, resident = done.stdout.split()
    return kept == "True", int(resident)


@pytest.mark.slow
def test_freed_blocks_are_kept_unless_the_user_has_said_something_else() -> None:
    kept, more = held()
    left_alone, less = held(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept
    assert not left_alone
    assert more - less > 350
