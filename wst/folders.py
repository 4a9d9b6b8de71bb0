"""Folders of the user's machine that the project keeps things in."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Folder for converted models and answers: ``$WST_CACHE``, else ``wst`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WST_CACHE") or Path(base) / "wst")
