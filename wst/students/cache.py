"""What a student answered once, kept on disk: an SQLite file that the processes of one machine share.

An answer is committed and synced when `AnswerCache.put` returns, so that a kill, or a power cut, loses none that had
arrived. The file holds answers under hashes of what determines them: neither prompts nor settings stand in it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from wst.errors import CacheError, ConfigError
from wst.files import cache_dir
from wst.types import Prompt, Response

T = TypeVar("T")

SCHEMA = 1  #: version of the tables, in the file's ``user_version``
_APPLICATION = 0x77737463  # "wstc", in the file's ``application_id``: tells it from other programs' SQLite files
_KEY_FORMAT = 1  # part of every key: raise it when the same question would have to be asked anew

_FIELDS = {"text": str, "tokens": int, "truncated": bool, "prompt_tokens": int, "refused": bool}
_ROW_BYTES = 150  # what a row takes besides its texts: columns, headers, its key in one index, its use in the other
_BUSY_SECONDS = 120.0  # a prune of gigabytes holds the write lock for a minute
_COARSE = 3600.0  # seconds by which "last used" may lag: reading must not become writing
_CHUNK = 500  # keys a query: SQLite limits the variables of a statement, to 999 in old versions
_EVICT_TO = 0.9
_TRIES = 5  # damage on damage: something else is wrong then
_BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database

# The running total spares every put a scan, and counts what other processes write. Triggers keep it.
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
# Not INSERT OR REPLACE, which would pass by the trigger of the row that goes.
_PUT = """
INSERT INTO answers (key, student, response, checksum, size, created, used) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET student = excluded.student, response = excluded.response,
    checksum = excluded.checksum, size = excluded.size, created = excluded.created, used = excluded.used
"""


class _Damaged(sqlite3.DatabaseError):
    """The file reads as a database of ours, but its tables are not as we made them."""


def answer_key(identity: Mapping[str, Any], prompt: Prompt, sampled: bool) -> str:
    """Name an answer by everything that determines it.

    Args:
        identity: What the answer depends on besides the prompt, as JSON values: the student and its revision,
            quantization, sampling, template. Only its hash is kept. The order of names is no matter; 1 and 1.0 differ.
        prompt: What is asked.
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
    # Lone surrogates pass: escaped as JSON would have them, two of them would read like the character they make up.
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"the identity of a student must be made of JSON values, got a {type(value).__name__}: {value!r}")


class AnswerCache:
    """Answers on disk, under the keys that `answer_key` gives. Threads, forks and processes may share one file.

    A file that is damaged is set aside with a warning, and a new one begun; a row that is damaged counts as missing.

    Args:
        path: The file; by default ``answers.sqlite`` in `wst.files.cache_dir`. It is made when first used.
        max_megabytes: Limit (in 10^6 bytes) of what the answers take; beyond it those unused for longest are dropped,
            down to 90%. The file may be larger by the gaps they leave; ``wst cache prune`` gives those back.

    Raises:
        ConfigError: If the limit is not above 0, or the path is a folder.
    """

    def __init__(self, path: str | None = None, max_megabytes: float = 2048) -> None:
        if not max_megabytes > 0:
            raise ConfigError(f"AnswerCache: max_megabytes must be above 0, got {max_megabytes}")
        self.path = default_path(path)
        self.max_megabytes = max_megabytes
        self.damaged_rows = 0  #: rows found damaged, and removed, so far
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # device and inode of what the connection has open
        self._notices: list[str] = []
        _open_caches.add(self)

    def __reduce__(self) -> tuple[type[AnswerCache], tuple[str, float]]:
        """Copies, in this process or another, have connections of their own."""
        return type(self), (str(self.path), self.max_megabytes)

    def get(self, keys: Iterable[str]) -> dict[str, Response]:
        """Give the answers that are there, by key.

        Raises:
            CacheError: If the file cannot be used.
        """
        wanted = list(dict.fromkeys(keys))
        return self._run(lambda db: self._read(db, wanted)) if wanted else {}

    def put(self, answers: Mapping[str, Response], student: str) -> None:
        """Keep answers. They are on disk when this returns; a key's later answer takes the earlier one's place.

        Args:
            answers: The answers by key.
            student: A short name for people, by which ``wst cache`` sorts. Credentials in a URL are left out.

        Raises:
            ValueError: If a response has an error: that is no answer, and nothing is kept.
            CacheError: If they cannot be kept.
        """
        label = _label(student)
        rows = []
        for key, response in answers.items():
            if response.error is not None:
                raise ValueError(f"a failed response is no answer to keep: {response.error!r:.200}")
            blob = _encode(response)
            rows.append((key, label, blob, checksum(key, blob), row_size(key, label, blob)))
        if rows:
            self._run(lambda db: self._write(db, rows))

    def close(self) -> None:
        """Close the file. Using the cache again opens it again."""
        with self._lock:
            self._drop()

    def _read(self, db: sqlite3.Connection, keys: list[str]) -> dict[str, Response]:
        found, stale, bad = {}, [], []
        now = time.time()
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            rows = db.execute(f"SELECT id, key, response, checksum, used FROM answers WHERE key IN ({marks})", chunk)
            for number, key, blob, check, used in rows:
                response = decode(key, blob, check)
                if response is None:
                    bad.append((number, blob, check))
                    continue
                found[key] = response
                if not isinstance(used, float) or abs(now - used) > _COARSE:
                    stale.append((now, number, key))
        if bad:
            if not self.damaged_rows:
                self._notices.append(
                    f"answer cache {self.path}: an answer is damaged; it is dropped and the student asked again "
                    "(`wst cache verify` checks all of them)"
                )
            self.damaged_rows += len(bad)
        if stale or bad:
            # What was read is good, whether or not this can be noted.
            with _unless_damaged(), transaction(db):
                # Only this very content: another process may have put a good answer there in the meantime.
                db.executemany("DELETE FROM answers WHERE id = ? AND response IS ? AND checksum IS ?", bad)
                db.executemany("UPDATE answers SET used = ? WHERE id = ? AND key = ?", stale)
        return found

    def _write(self, db: sqlite3.Connection, rows: list[tuple[str, str, bytes, bytes, int]]) -> None:
        with transaction(db):
            now = time.time()
            db.executemany(_PUT, [(*row, now, now) for row in rows])
            limit = self.max_megabytes * 1e6
            if db.execute("SELECT bytes FROM total").fetchone()[0] > limit:
                recount(db)  # a total that is off must not cost answers
                drop(db, least_used(db, limit, _EVICT_TO * limit, keep={row[0] for row in rows}))

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something with the file: if it is found damaged, again with a new one.

        Raises:
            CacheError: If the file cannot be used.
        """
        notices: list[str] = []
        try:
            with self._lock:
                try:
                    return self._try(work)
                finally:
                    notices, self._notices = self._notices, []
        finally:
            for notice in notices:  # outside the lock: a filter may make them errors, or call what uses the cache
                warnings.warn(notice, stacklevel=3)

    def _try(self, work: Callable[[sqlite3.Connection], T]) -> T:
        problem: Exception | None = None
        for _ in range(_TRIES):
            try:
                result = work(self._connected())
                if not self._moved():
                    return result
                # Another process set the file aside meanwhile: what was written now is not in the new one.
            except sqlite3.DatabaseError as error:
                problem = error
                if self._moved():
                    continue
                if not is_damage(error):
                    if _is_full(error) and self._db is not None:
                        with suppress(sqlite3.Error):  # give back what the write that failed has filled
                            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    raise explained(self.path, error) from error
                try:
                    self._set_aside(error)
                except (OSError, sqlite3.Error) as obstacle:
                    raise explained(self.path, obstacle) from obstacle
            except OSError as error:
                raise explained(self.path, error) from error
        raise CacheError(
            f"answer cache {self.path}: it was damaged or replaced {_TRIES} times on end ({problem}); check the disk, "
            "or give another path"
        ) from problem

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and self._moved():
            self._drop()
        if self._db is None:
            with file_lock(self.path):
                _create(self.path)
                self._db, self._file = connect(self.path), _identity(self.path)
                try:
                    prepare(self._db, self.path)
                except Exception as error:
                    if not (isinstance(error, sqlite3.Error) and is_damage(error)):
                        self._drop()
                    raise
        return self._db

    def _moved(self) -> bool:
        """Whether the path names another file than the connection has open: it was set aside, or deleted."""
        return self._file is not None and _identity(self.path) != self._file

    def _drop(self) -> None:
        if self._db is not None:
            with suppress(sqlite3.Error):
                self._db.close()
        self._db = self._file = None

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Rename the damaged file, unless another process has done so."""
        with file_lock(self.path):
            if self._db is not None and not self._moved():
                aside = _free_name(self.path)
                # The database last: until it is gone, another try finds it and goes on here.
                for suffix in (*_BESIDE, ""):
                    with suppress(FileNotFoundError):
                        Path(f"{self.path}{suffix}").rename(f"{aside}{suffix}")
                self._notices.append(
                    f"answer cache {self.path}: the file is damaged ({error}); it is set aside as {aside}, and a new "
                    "one begun (the sqlite3 shell's .recover may rescue answers from it)"
                )
            # After the rename: SQLite sees that the file has moved, and leaves alone what it would tidy up by name.
            self._drop()


def default_path(path: str | None = None) -> Path:
    """The cache's file, absolute.

    Raises:
        ConfigError: If it is a folder.
    """
    file = (cache_dir() / "answers.sqlite" if path is None else Path(path).expanduser()).absolute()
    if file.is_dir():
        raise ConfigError(f"answer cache: path {str(file)!r} is a folder; name a file in it, such as answers.sqlite")
    return file


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Keep other processes from opening, and from setting aside, the file meanwhile.

    Raises:
        CacheError: If another process does not let go of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock", timeout=_BUSY_SECONDS, mode=0o600)
    try:
        lock.acquire()
    except Timeout as error:
        raise explained(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _create(path: Path) -> None:
    """Make an empty file that only its owner can read, unless there is one. What SQLite adds beside it is alike."""
    # Only ever a new file: to close one that SQLite has open in this process would take SQLite's locks away.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, which must be there; hold `file_lock` meanwhile."""
    db = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    db.text_factory = lambda text: text.decode("utf-8", "replace")  # damaged text is found by its checksum
    return db


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Set the connection up, and make the tables in an empty file.

    Raises:
        CacheError: If the file is another version's or another program's.
    """
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    ours = application == _APPLICATION
    if ours and version != SCHEMA:
        raise CacheError(
            f"answer cache {path}: the file has format {version}, this wst reads format {SCHEMA}; use the wst that "
            "made it, or give another path"
        )
    with _sound_sql():
        empty = not db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
    if not ours and (version or not empty):
        raise CacheError(
            f"answer cache {path}: this is another program's SQLite file; give the cache a path of its own"
        )
    if not ours:
        db.execute("PRAGMA journal_mode=WAL")  # stays with the file; where it is impossible the cache works without
        with transaction(db):
            for statement in _statements(_TABLES):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={_APPLICATION}")
            db.execute(f"PRAGMA user_version={SCHEMA}")
    with _sound_sql():  # compiles what will be asked of it, triggers and all
        db.execute(f"EXPLAIN {_PUT}", [None] * 7).fetchall()
        db.execute("EXPLAIN DELETE FROM answers WHERE id = 0").fetchall()
        if db.execute("SELECT COUNT(*) FROM total").fetchone() != (1,):
            raise _Damaged("the record of its size is missing")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA cell_size_check=ON")  # finds damage where it is, rather than where it leads
    db.execute(f"PRAGMA journal_size_limit={64 * 2**20}")


@contextmanager
def _sound_sql() -> Iterator[None]:
    """Take an error in SQL that is known to be right for damage: of the tables' definitions, or their format."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if _primary(error) != sqlite3.SQLITE_ERROR:
            raise
        raise _Damaged(str(error)) from error


def _statements(script: str) -> Iterator[str]:
    """Divide a script: `executescript` would commit the transaction that it stands in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing; the write lock is taken at once, so that waiting for it never fails halfway."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite rolls back by itself after some errors
            db.execute("ROLLBACK")
        raise


@contextmanager
def _unless_damaged() -> Iterator[None]:
    """Let a write go that is no loss, unless it shows that the file is damaged."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if is_damage(error):
            raise


def recount(db: sqlite3.Connection) -> int:
    """Bytes that the answers take, counted anew."""
    counted = int(db.execute("SELECT COALESCE(SUM(size), 0) FROM answers").fetchone()[0])  # reads the index alone
    db.execute("UPDATE total SET bytes = ? WHERE bytes IS NOT ?", (counted, counted))
    return counted


def least_used(
    db: sqlite3.Connection,
    limit: float,
    target: float,
    keep: Collection[str] = (),
    student: str | None = None,
    before: float | None = None,
) -> list[tuple[int, int]]:
    """Numbers and sizes of what must go if the answers take more than ``limit`` bytes, until they take ``target``.

    Args:
        db: The connection.
        limit: Up to this many bytes nothing must go.
        target: How many bytes may stay.
        keep: Keys that stay in any case.
        student: If given, only answers with this label go.
        before: If given, only answers last used before this time go.
    """
    total = float(db.execute("SELECT bytes FROM total").fetchone()[0])
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
    rows.close()  # a statement that is under way would keep the transaction from ending
    return going


def drop(db: sqlite3.Connection, rows: Iterable[tuple[int, int]]) -> None:
    """Remove the answers with these numbers."""
    db.executemany("DELETE FROM answers WHERE id = ?", ((number,) for number, _ in rows))


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the file's content is damaged, rather than that it cannot be got at now."""
    return isinstance(error, _Damaged) or _primary(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_full(error: sqlite3.Error) -> bool:
    # The second is of the shared index beside the file.
    return _primary(error) == sqlite3.SQLITE_FULL or (
        getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE
    )


def _primary(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest of the number tells cases of it apart


def explained(path: Path, error: Exception) -> CacheError:
    """Say in one line what is wrong with the file, and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    code = _primary(error) if isinstance(error, sqlite3.Error) else None
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    elsewhere = "give the cache a path elsewhere (or set WST_CACHE)"
    if (isinstance(error, sqlite3.Error) and _is_full(error)) or number in (errno.ENOSPC, errno.EDQUOT):
        said = f"the disk is full; free some space, or {elsewhere}"
    elif isinstance(error, Timeout) or code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
        said = f"another process has kept it locked for {_BUSY_SECONDS:.0f} s; end that process, then start again"
    elif code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_CANTOPEN) or number:
        said = f"it cannot be written ({reason}); make file and folder writable for this user, or {elsewhere}"
    elif isinstance(error, sqlite3.Error) and is_damage(error):
        said = f"the file is damaged ({reason}); `wst cache verify` says what to do"
    else:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        said = f"it cannot be used ({reason}, {name}); check the disk, or {elsewhere}"
    return CacheError(f"answer cache {path}: {said}")


def checksum(key: str, blob: bytes) -> bytes:
    """Checksum of a row: of what it says, and of what it answers."""
    return hashlib.blake2b(key.encode() + b"\0" + blob, digest_size=16).digest()


def row_size(key: str, label: str, blob: bytes) -> int:
    """Bytes that a row counts for."""
    return 2 * len(key) + len(label) + len(blob) + _ROW_BYTES


def decode(key: str, blob: object, check: object) -> Response | None:
    """Read a row's response; None if the row is damaged."""
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
    # Any text comes back as it was: control characters are escaped, lone surrogates pass as they are. (ASCII alone
    # would do for all but two surrogates side by side, which would come back as the one character they make up.)
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def _label(student: str) -> str:
    r"""Make a label one printable line, without what may be a credential in a URL.

    >>> _label("gpt\n at https://me:secret@host/v1?key=secret")
    'gpt at https://host/v1'
    """
    text = re.sub(r"(://)(?:[^\s/]*@)?([^\s?#]*)\S*", r"\1\2", student)
    return " ".join(text.encode("utf-8", "backslashreplace").decode().replace("\0", " ").split())


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # gone; or out of reach, which opening it will tell
        return None
    return status.st_dev, status.st_ino


def _free_name(path: Path) -> Path:
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    name, count = stem, 1
    while any(path.with_name(f"{name}{suffix}").exists() for suffix in ("", *_BESIDE)):
        count += 1
        name = f"{stem}-{count}"
    return path.with_name(name)


# Forks. The file is closed before, and opened again in each process when it is next used. A child that merely left
# the parent's connection alone would lose answers: SQLite notes by process which locks it holds, would take the
# parent's for the child's own, and the parent's close would delete the log that the child is writing to.
# The locks are held meanwhile: a child must not inherit one that a thread of the parent holds, for that thread does not
# exist in it.
_open_caches: weakref.WeakSet[AnswerCache] = weakref.WeakSet()
_forking = threading.RLock()
_held: list[AnswerCache] = []


def _before_fork() -> None:
    _forking.acquire()
    _held[:] = list(_open_caches)
    for cache in _held:
        cache._lock.acquire()
        cache._drop()


def _after_fork_in_parent() -> None:
    for cache in _held:
        cache._lock.release()
    _held.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.RLock()
    for cache in _held:
        cache._lock = threading.RLock()
    _held.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def open_cache(cache: AnswerCache | bool) -> AnswerCache | None:
    """Give the cache that a student's option asks for: true is the one in the user's cache folder, false is none."""
    return (AnswerCache() if cache else None) if isinstance(cache, bool) else cache
