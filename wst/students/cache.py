"""The answer cache: an SQLite file of students' answers that the processes of one machine share.

An answer is committed and synced when `AnswerCache.put` returns, so that neither a kill nor a power cut loses one that
had arrived. Answers are filed under hashes of what determines them; the file holds neither prompts nor settings.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import sqlite3
import threading
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from wst.errors import CacheError, ConfigError
from wst.files import cache_dir, expanded
from wst.settings import check_arguments
from wst.students.sqlite import Database, Layout
from wst.terminal import printable
from wst.types import Prompt, Response

_KEY_FORMAT = 1  # part of every key: raise it when the same question would have to be asked anew
_FIELDS = {"text": str, "tokens": int, "truncated": bool, "prompt_tokens": int, "refused": bool}
_ROW_BYTES = 150  # size of a row without its texts: columns, headers, and its entries in the two indexes
_COARSE = 3600.0  # seconds by which "last used" may lag, so that reading seldom writes
_CHUNK = 500  # keys a query: SQLite limits the variables of a statement, to 999 in old versions
_EVICT_TO = 0.9

# Triggers keep a running total: it spares every put a scan, and counts what other processes write.
_TABLES = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, student TEXT NOT NULL, response BLOB NOT NULL,
    checksum BLOB NOT NULL, size INTEGER NOT NULL, created REAL NOT NULL, used REAL NOT NULL
);
CREATE INDEX answers_by_use ON answers (used, size);
CREATE TABLE total (bytes INTEGER NOT NULL);
INSERT INTO total VALUES (0);
CREATE TRIGGER answers_added AFTER INSERT ON answers
BEGIN UPDATE total SET bytes = bytes + new.size; END;
CREATE TRIGGER answers_changed AFTER UPDATE OF size ON answers
BEGIN UPDATE total SET bytes = bytes + new.size - old.size; END;
CREATE TRIGGER answers_removed AFTER DELETE ON answers
BEGIN UPDATE total SET bytes = bytes - old.size; END;
"""
_PUT = """
INSERT INTO answers (key, student, response, checksum, size, created, used) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO NOTHING
"""
_LAYOUT = Layout(
    "answer cache",
    _TABLES,
    elsewhere="give the cache another path (or set WST_CACHE)",
    rescue="run `wst cache verify`, which says how to rescue its answers, or move it away",
    application=0x77737463,  # "wstc"
    version=1,
)

_claims: dict[tuple[int, Path], tuple[int, set[str]]] = {}  # by process and cache: its open file, and the claimed keys
_claims_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _claims_lock
    _claims_lock = threading.Lock()  # a thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)


def answer_key(identity: Mapping[str, Any], prompt: Prompt, sampled: bool) -> str:
    """Return the key of an answer: a hash of everything that determines it.

    Args:
        identity: What the answer depends on besides the prompt, as JSON values: the student and its revision,
            quantization, sampling, template. The order of names does not matter; 1 and 1.0 differ.
        prompt: The prompt.
        sampled: Whether the answer is a random draw; which one (`Prompt.sample`) is part of the key then.

    Raises:
        TypeError: If the identity holds what JSON cannot.

    >>> from wst.types import Message
    >>> again = Prompt((Message("user", "Hi"),), sample=1)
    >>> answer_key({"model": "m"}, Prompt(again.messages), False) == answer_key({"model": "m"}, again, False)
    True
    """
    question: dict[str, Any] = {
        "format": _KEY_FORMAT,
        "identity": identity,
        "messages": [[message.role, message.content] for message in prompt.messages],
    }
    if sampled:
        question["sample"] = prompt.sample
    canonical = json.dumps(
        question, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"), default=_plain
    )
    # Lone surrogates pass as they are. Escaped, a pair of them would read like the character that they make up.
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"the identity of a student must be made of JSON values, got a {type(value).__name__}: {value!r}")


class AnswerCache:
    """Answers on disk, under the keys of `answer_key`. Threads, forks and processes may share one file.

    A damaged file is an error and stays as it is; a single damaged row counts as missing, with a warning.

    Args:
        path: The file; by default ``answers.sqlite`` in `wst.files.cache_dir`. It is made when first used.
        max_megabytes: Limit on the size of the answers, in 10^6 bytes. Beyond it the least recently used are dropped,
            down to 90%. The file keeps the gaps they leave until ``wst cache prune`` gives them back.

    Raises:
        ConfigError: If the limit is not above 0, or the path is a folder.
    """

    def __init__(self, path: str | None = None, max_megabytes: float = 2048) -> None:
        check_arguments(AnswerCache, locals())
        if not max_megabytes > 0:
            raise ConfigError(f"AnswerCache: max_megabytes must be above 0, got {max_megabytes}")
        # Without links: what lies beside the file, such as its locks, must be the same for all who use it.
        self.path = Path(os.path.realpath(cache_dir() / "answers.sqlite" if path is None else expanded(path)))
        if os.path.isdir(self.path):  # unlike the method, false for what is out of reach
            raise ConfigError(
                f"answer cache: path {str(self.path)!r} is a folder; name a file in it, such as answers.sqlite"
            )
        self.max_megabytes = max_megabytes
        self.damaged_rows = 0  #: rows found damaged, and removed, so far
        self.database = Database(self.path, _LAYOUT)

    def __reduce__(self) -> tuple[type[AnswerCache], tuple[str, float]]:
        """Copies, in this process or another, have connections of their own."""
        return type(self), (str(self.path), self.max_megabytes)

    def get(self, keys: Iterable[str]) -> dict[str, Response]:
        """Return the answers that are there, by key.

        Raises:
            CacheError: If the file cannot be used.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Response] = {}
        stale, bad = [], []
        now = time.time()
        for start in range(0, len(wanted), _CHUNK):
            chunk = wanted[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            statement = f"SELECT id, key, response, checksum, used FROM answers WHERE key IN ({marks})"
            with self.database.use() as db:
                rows = db.execute(statement, chunk).fetchall()
            for number, key, blob, check, used in rows:
                response = decode(key, blob, check)
                if response is None:
                    bad.append((number, blob, check))
                    continue
                found[key] = response
                if not isinstance(used, float) or abs(now - used) > _COARSE:
                    stale.append((now, number, key))
        if stale or bad:
            # The answers read are good, whether or not this can be written.
            with suppress(CacheError), self.database.transaction() as db:
                # Only this very content: another process may have put a good answer there in the meantime.
                db.executemany("DELETE FROM answers WHERE id = ? AND response IS ? AND checksum IS ?", bad)
                db.executemany("UPDATE answers SET used = ? WHERE id = ? AND key = ?", stale)
        if bad and not self.damaged_rows:
            warnings.warn(
                f"answer cache {self.path}: an answer is damaged; it is dropped and the student asked again "
                "(`wst cache verify` checks all of them)",
                stacklevel=2,
            )
        self.damaged_rows += len(bad)
        return found

    def put(self, answers: Mapping[str, Response], student: str) -> None:
        """Store answers. They are on disk when this returns. An answer that is there already is never replaced.

        Args:
            answers: The answers by key.
            student: A short name for people, by which ``wst cache`` groups. Credentials in a URL are left out.

        Raises:
            ValueError: If a response has an error: that is no answer, and nothing is stored.
            CacheError: If they cannot be stored.
        """
        label = _label(student)
        now = time.time()
        rows = []
        for key, response in answers.items():
            if response.error is not None:
                raise ValueError(f"a failed response is no answer to keep: {response.error!r:.200}")
            blob = _encode(response)
            rows.append((key, label, blob, checksum(key, blob), row_size(key, label, blob), now, now))
        if not rows:
            return
        with self.database.transaction() as db:
            db.executemany(_PUT, rows)
            limit = self.max_megabytes * 1e6
            if total_size(db) > limit:
                recount(db)  # a wrong total must not cost answers
                drop(db, least_used(db, limit, _EVICT_TO * limit, keep=set(answers)))

    def claim(self, key: str) -> bool:
        """Try to become the one that asks for an answer, so that no two runs pay for it.

        The claim is a lock on one byte of the file ``….asking``, at a place that the key gives. It ends with `release`
        or with the process, however that ends.

        Returns:
            False while another process, or another student in this one, has the claim.

        Raises:
            CacheError: If the file cannot be used.
        """
        with _claims_lock, self.database.errors():
            owner = (os.getpid(), self.path)  # a child of a fork does not inherit locks
            if owner not in _claims:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                # Never closed: closing any descriptor of the file would end all locks that the process has on it.
                _claims[owner] = os.open(f"{self.path}.asking", os.O_RDWR | os.O_CREAT, 0o600), set()
            file, claimed = _claims[owner]
            if key in claimed:
                return False
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _place(key))
            except (BlockingIOError, PermissionError):  # which of the two depends on the system
                return False
            claimed.add(key)
            return True

    def release(self, key: str) -> None:
        """End a claim."""
        with _claims_lock, self.database.errors():
            file, claimed = _claims[os.getpid(), self.path]
            claimed.remove(key)
            fcntl.lockf(file, fcntl.LOCK_UN, 1, _place(key))

    def close(self) -> None:
        """Close the file. Using the cache again opens it again."""
        self.database.close()


def _place(key: str) -> int:
    """Return the byte that a claim locks. Two keys with the same one would only wait for each other."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")


def open_cache(cache: AnswerCache | bool) -> AnswerCache | None:
    """Return the cache that a student's option asks for: true is the one in the user's cache folder, false is none."""
    return (AnswerCache() if cache else None) if isinstance(cache, bool) else cache


def total_size(db: sqlite3.Connection) -> int:
    """Return the size of all answers in bytes, as the triggers have recorded it."""
    return int(db.execute("SELECT SUM(bytes) FROM total").fetchone()[0] or 0)


def recount(db: sqlite3.Connection) -> None:
    """Replace the recorded size of all answers by a new sum."""
    db.execute("DELETE FROM total")
    db.execute("INSERT INTO total SELECT COALESCE(SUM(size), 0) FROM answers")  # reads the index alone


def least_used(
    db: sqlite3.Connection,
    limit: float,
    target: float,
    keep: Collection[str] = (),
    student: str | None = None,
    before: float | None = None,
) -> list[tuple[int, int]]:
    """Return ids and sizes of the rows to drop, least recently used first, so that ``target`` bytes are left.

    Args:
        db: The connection.
        limit: Up to this total, in bytes, nothing is dropped.
        target: How many bytes may stay.
        keep: Keys that stay in any case.
        student: If given, only answers with this label are dropped.
        before: If given, only answers last used before this time are dropped.
    """
    total = total_size(db)
    going: list[tuple[int, int]] = []
    if total <= limit:
        return going
    rows = db.execute(
        "SELECT id, key, size FROM answers WHERE (?1 IS NULL OR student = ?1) AND (?2 IS NULL OR used < ?2) "
        "ORDER BY used, id",
        (student, before),
    )
    for number, key, size in rows:
        if total <= target:
            break
        if key not in keep:
            going.append((number, size))
            total -= size
    rows.close()  # an open statement would keep the transaction from ending
    return going


def drop(db: sqlite3.Connection, rows: Iterable[tuple[int, int]]) -> None:
    """Remove the answers with these ids."""
    db.executemany("DELETE FROM answers WHERE id = ?", ((number,) for number, _ in rows))


def checksum(key: str, blob: bytes) -> bytes:
    """Return the checksum of a row: of its key and its answer."""
    return hashlib.blake2b(key.encode() + b"\0" + blob, digest_size=16).digest()


def row_size(key: str, label: str, blob: bytes) -> int:
    """Return the bytes that a row counts for."""
    return 2 * len(key) + len(label) + len(blob) + _ROW_BYTES


def decode(key: str, blob: object, check: object) -> Response | None:
    """Return a row's response, or None if the row is damaged."""
    if not isinstance(blob, bytes) or check != checksum(key, blob):
        return None
    try:
        fields = json.loads(blob.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != _FIELDS:
        return None
    return Response(**fields)


def _encode(response: Response) -> bytes:
    fields = {name: kind(getattr(response, name)) for name, kind in _FIELDS.items()}
    # Any text comes back as it was: lone surrogates pass as they are. (With escapes, a pair of them would come back as
    # the one character that they make up.)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _label(student: str) -> str:
    r"""Return a label as one printable line, without what may be a credential in a URL.

    >>> _label("gpt\n at https://me:secret@host/v1?key=secret")
    'gpt at https://host/v1'
    """
    text = re.sub(r"(://)(?:[^\s/]*@)?([^\s?#]*)\S*", r"\1\2", student)
    return printable(text)
