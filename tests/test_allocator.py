"""Tests of what becomes of freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")

#: Frees 400 MB and says what of that the process still holds, in megabytes.
HELD = """
import torch
from wst.allocator import keep_freed_blocks
kept = keep_freed_blocks()
block = torch.ones(10**8)
small = torch.ones(10)
del block
resident = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
print(kept, int(resident.split()[1]) // 1000)
"""


def held(**settings: str) -> tuple[bool, int]:
    names = ("MALLOC_", "GLIBC_TUNABLES")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(names)}
    done = subprocess.run(
        [sys.executable, "-c", HELD], env=environment | settings, capture_output=True, text=True, check=True
    )
    kept, resident = done.stdout.split()
    return kept == "True", int(resident)


def test_freed_blocks_are_kept_unless_the_user_has_said_something_else() -> None:
    kept, more = held()
    left_alone, less = held(MALLOC_TRIM_THRESHOLD_="131072")
    assert kept
    assert not left_alone
    assert more - less > 350
