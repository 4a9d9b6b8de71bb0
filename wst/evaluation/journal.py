"""What a comparison has done so far, so that an interrupted one goes on instead of asking again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def key_of(*parts: Any) -> str:  # noqa: ANN401 - what JSON knows
    """Give a checksum of what determines a result."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def as_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - what JSON knows
    """Write JSON with letters as they are, or escaped if there is half a letter among them, which UTF-8 has not."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, indent=indent)
    return text


class Journal:
    """Results by key; those of a batch are one line, appended and synced when the batch is done.

    A line that a crash has torn is left out: its batch is done again, whole, so that a resumed run forms the same
    batches as one that was never stopped. Of several results with the same key the last counts.

    Args:
        path: The JSON Lines file; made when the first batch is done.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._done: dict[str, dict[str, Any]] = {}
        self._torn = False
        if path.is_file():
            *lines, rest = path.read_bytes().split(b"\n")
            self._torn = bool(rest)
            for line in lines:
                try:
                    self._done |= json.loads(line)
                except (ValueError, TypeError):
                    continue

    def get(self, key: str) -> dict[str, Any] | None:
        """Give a result, or None."""
        return self._done.get(key)

    def put(self, batch: Mapping[str, dict[str, Any]]) -> None:
        """Keep the results of a batch."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn + as_json(dict(batch)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._torn = False
        self._done |= batch
