"""What happens to memory that was freed."""

from __future__ import annotations

import ctypes
import gc
import os
import platform

import torch

#: mallopt's numbers (glibc's malloc.h), and what they are set to: never give anything back, and ask for a lot at once.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_SETTINGS = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**30))
#: The same by environment variables; whoever sets one of them is left alone.
_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def release_memory() -> None:
    """Collect garbage and return unused GPU blocks to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed_blocks() -> bool:
    """Make glibc keep the memory that the main thread frees, whatever the block's size, until the process ends.

    It gives large ones back to the system at once and has them faulted in again, page by page, with each pass of a
    model on a CPU. Kept, the process stays as large as it was at its largest.

    Returns:
        Whether it does now: not where there is a GPU, nor with another C library, nor where the user has settings of
        their own.
    """
    if torch.cuda.device_count():  # is_available might start CUDA, after which no process can be forked
        return False
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OWN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([bool(mallopt(option, value)) for option, value in _SETTINGS])
