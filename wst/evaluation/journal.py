"""The journal of a comparison: what is done so far, so that an interrupted comparison continues where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from wst.errors import StorageError

Entry = dict[str, Any]  #: An instruction or a response as JSON values; ``error`` says why there is none, or is None.


def key_of(*parts: Any) -> str:  # noqa: ANN401 - JSON values
    """Return a checksum of everything that determines an entry."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def as_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - JSON values
    """Return JSON with non-ASCII letters as they are; whoever writes it escapes lone surrogates, which UTF-8 lacks."""
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the system says about a file into one line.

    Raises:
        StorageError: If the file, or its folder, cannot be used.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be used ({error.strerror or error}); make room, or see to the folder, then run it again"
        ) from error


def _is_made(entry: object) -> bool:
    """Return whether an entry is an instruction or an answer, and not a failed one."""
    if not isinstance(entry, dict) or entry.get("error", "") is not None or type(entry.get("truncated")) is not bool:
        return False
    if "text" in entry:
        return isinstance(entry["text"], str | None)
    return isinstance(entry.get("response"), str) and type(entry.get("response_tokens")) is int


class Journal:
    """Entries by key; the entries of a batch are one line, appended and synced when the batch is done.

    A line that a crash has cut is ignored: its batch is done again as a whole, so that a resumed comparison forms the
    same batches as an uninterrupted one. A failed entry is made again by the next comparison, not within this one.

    Args:
        path: The JSON Lines file; created with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries: dict[str, Entry] = {}
        self.reused = 0  #: entries returned that an earlier comparison had made
        self._earlier: set[str] = set()
        self._cut = False
        with storage_errors(path):
            content = path.read_bytes() if path.exists() else b""
        if content:
            *lines, rest = content.split(b"\n")
            self._cut = bool(rest)
            for line in lines:
                try:
                    self._entries |= {key: entry for key, entry in json.loads(line).items() if _is_made(entry)}
                except (ValueError, AttributeError, RecursionError):
                    continue
            self._earlier = set(self._entries)

    def fill(self, keys: Sequence[str], make: Callable[[list[int]], list[Entry]]) -> list[Entry]:
        """Return an entry for each key, and make those that are missing.

        Args:
            keys: Keys of a batch, as `key_of` returns them.
            make: Called once, with the places in ``keys`` of what is missing, each key once; returns their entries.
        """
        missing: dict[str, int] = {}
        self.reused += len(self._earlier & set(keys))
        for place, key in enumerate(keys):
            if key not in self._entries:
                missing.setdefault(key, place)
        if missing:
            torch.manual_seed(int(next(iter(missing))[:8], 16))
            self._append(dict(zip(missing, make(list(missing.values())), strict=True)))
        return [self._entries[key] for key in keys]

    def _append(self, batch: dict[str, Entry]) -> None:
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("\n" * self._cut + as_json(batch) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._cut = False
        self._entries |= batch
