"""The SQLite layer under the answer cache and the ledger: one connection a process, one lock, errors of one line."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from wst.errors import CacheError

BUSY_SECONDS = 120.0  #: wait for another process; pruning gigabytes holds the write lock for a minute


@dataclass(frozen=True)
class Layout:
    """What tells one kind of file from another.

    Attributes:
        name: What error messages call the file.
        tables: SQL script that makes the tables of a new file.
        elsewhere: What the user can do if the file cannot be written where it is: "or …".
        rescue: What the user can do if the file is damaged.
        application: ``application_id`` in the file's header, which tells it from other programs' SQLite files.
        version: Version of the tables, ``user_version`` in the file's header.
        synchronous: "FULL" syncs each commit to the disk. With "NORMAL" a killed process loses nothing, but a power
            cut may take the last commits.
        mode: Permissions of a new file.
    """

    name: str
    tables: str
    elsewhere: str
    rescue: str
    application: int = 0
    version: int = 0
    synchronous: str = "FULL"
    mode: int = 0o600


class Database:
    """An SQLite file that threads, forks and processes may share.

    It is opened, and made if necessary, when first used. A damaged file is an error and stays as it is: nothing in it
    that was paid for is thrown away.

    Args:
        path: The file; None: a database in memory.
        layout: Its kind.
    """

    def __init__(self, path: Path | None, layout: Layout) -> None:
        self.path = path
        self.layout = layout
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        _databases.add(self)

    @contextmanager
    def use(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, for this thread alone.

        Raises:
            CacheError: If the file cannot be used.
        """
        with self._lock, self.errors():
            yield self._connected()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of SQLite and of the operating system into a `CacheError` that names the file."""
        try:
            yield
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: damage in a name
            if self._db is not None and _is_full(error):
                with suppress(sqlite3.Error):  # give back what the failed write has filled
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            raise CacheError(f"{self.layout.name} {self.path}: {self._explain(error)}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection and write all or nothing. The write lock is taken at once, so no upgrade can fail.

        Raises:
            CacheError: If the file cannot be written.
        """
        with self.use() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # SQLite rolls back by itself after some errors
                    db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the file; using it again opens it again. A database in memory is left open, as closing empties it."""
        with self._lock:
            if self._db is not None and self.path is not None:
                with suppress(sqlite3.Error):
                    self._db.close()
                self._db = None

    def _connected(self) -> sqlite3.Connection:
        if self._db is not None and self.path is not None and _inode(self.path) != self._file:
            self.close()  # the file was deleted or replaced: what is written to the old one would be lost
        if self._db is None and self.path is None:
            self._db = self._connect(":memory:")
        elif self._db is None and self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # One process at a time: SQLite does not wait for another that changes the journal's mode.
            with FileLock(f"{self.path}.lock", timeout=BUSY_SECONDS, mode=self.layout.mode):
                # Never close a descriptor of a file that SQLite has open: that would release SQLite's own locks.
                with suppress(FileExistsError):
                    os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, self.layout.mode))
                self._db, self._file = self._connect(f"{self.path.as_uri()}?mode=rw"), _inode(self.path)
        assert self._db is not None
        return self._db

    def _connect(self, uri: str) -> sqlite3.Connection:
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            db.text_factory = lambda text: text.decode("utf-8", "replace")  # damaged text is found by checksums
            layout = self.layout
            application, version, tables = db.execute(
                "SELECT application_id, user_version, (SELECT COUNT(*) FROM sqlite_master) "
                "FROM pragma_application_id, pragma_user_version"
            ).fetchone()
            if not (application or version or tables):
                db.execute("PRAGMA journal_mode=WAL")  # where the file system cannot do it, the rollback journal works
                db.executescript(
                    f"BEGIN IMMEDIATE;{layout.tables}PRAGMA application_id={layout.application};"
                    f"PRAGMA user_version={layout.version};COMMIT;"
                )
            elif application != layout.application:
                raise CacheError(f"{layout.name} {self.path}: this is another program's SQLite file; name another file")
            elif version != layout.version:
                raise CacheError(
                    f"{layout.name} {self.path}: the file has format {version}, this wst reads format "
                    f"{layout.version}; use the wst that made it, or name another file"
                )
            db.execute(f"PRAGMA synchronous={layout.synchronous}")
            db.execute("PRAGMA cell_size_check=ON")  # report damage where it is, not where it leads
            db.execute(f"PRAGMA journal_size_limit={64 * 2**20}")
        except BaseException:
            db.close()
            raise
        return db

    def _explain(self, error: Exception) -> str:
        number = error.errno if isinstance(error, OSError) else None
        code = _primary_code(error)
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        if _is_full(error):
            return f"the disk is full; free some space, or {self.layout.elsewhere}"
        if isinstance(error, Timeout) or code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL):
            return f"another process has kept it locked for {BUSY_SECONDS:.0f} s; end that process, then start again"
        if number or code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
            return (
                f"it cannot be written ({reason}); make file and folder writable for this user, or "
                f"{self.layout.elsewhere}"
            )
        if is_damage(error):
            return f"the file is damaged ({reason}) and was left as it is; {self.layout.rescue}"
        return f"it cannot be used ({reason}); check the disk, or {self.layout.elsewhere}"


def is_damage(error: BaseException | None) -> bool:
    """Whether an error says that the file's content is damaged, not that it cannot be reached now.

    An error in the SQL counts: ours is right, so that the tables must be wrong.
    """
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
    return isinstance(error, UnicodeDecodeError) or _primary_code(error) in damage


def _primary_code(error: BaseException | None) -> int:
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF  # higher bits tell cases of it apart


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    shared_index = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE  # the -shm file
    return _primary_code(error) == sqlite3.SQLITE_FULL or shared_index


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:  # deleted, or out of reach, which opening it will report
        return None
    return status.st_dev, status.st_ino


# Forks. All files are closed before a fork; each process opens its own connection when it needs one. It is not enough
# that the child leaves the parent's connection alone: SQLite records in memory which locks the process holds, so the
# child would take the parent's for its own, and the parent's close would delete the log that the child writes to.
# The locks are held meanwhile: a lock held by another thread of the parent would never be released in the child.
_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_forking = threading.RLock()
_held: list[Database] = []


def _before_fork() -> None:
    _forking.acquire()
    _held[:] = list(_databases)
    for database in _held:
        database._lock.acquire()
        database.close()


def _after_fork_in_parent() -> None:
    for database in _held:
        database._lock.release()
    _held.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _forking = threading.RLock()
    for database in _held:
        database._lock = threading.RLock()
    _held.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
