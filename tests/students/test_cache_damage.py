"""The answer cache on a damaged file, a full or read-only disk, or another's file: one line, and nothing is lost."""

import sqlite3
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from caches import filled, query

from wst.errors import CacheError
from wst.students import cache as module
from wst.students import sqlite
from wst.students.cache import AnswerCache
from wst.types import Response


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.sqlite"


# Damage.


def flip(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        content = bytes(255 - byte for byte in file.read(length))
        file.seek(start)
        file.write(content)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def refusal(cache: AnswerCache, call: str = "put") -> str:
    """Return the message of a put, or get, that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        big = {f"full-{i}": Response("x" * 3000) for i in range(500)}
        with pytest.raises(CacheError) as caught:
            _ = cache.put(big, "s") if call == "put" else cache.get(["k0000"])
    message = str(caught.value)
    assert message.startswith(f"answer cache {cache.path}: ")
    assert len(message.splitlines()) == 1
    assert "; " in message, "no remedy"
    return message


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: flip(path, 0, 16), id="magic"),
        pytest.param(lambda path: flip(path, 16, 40), id="header"),
        pytest.param(lambda path: flip(path, 100, 3000), id="first page"),
        pytest.param(lambda path: flip(path, 4096, 3 * 4096), id="roots"),
        pytest.param(lambda path: truncate(path, 4096), id="one page left"),
        pytest.param(lambda path: truncate(path, 50), id="half a header"),
        pytest.param(lambda path: path.write_bytes(b"garbage " * 5000), id="garbage"),
        pytest.param(lambda path: path.write_text('{"not": "sqlite"}'), id="other file"),
        pytest.param(lambda path: query(path, "DROP TABLE total"), id="missing table"),
        pytest.param(lambda path: query(path, "ALTER TABLE answers DROP COLUMN created"), id="missing column"),
    ],
)
def test_a_damaged_file_is_an_error_and_stays_as_it_is(path: Path, damage: Any) -> None:
    filled(path)
    damage(path)
    content = path.read_bytes()
    message = refusal(AnswerCache(str(path)))
    assert "the file is damaged (" in message
    assert "was left as it is; run `wst cache verify`" in message
    assert path.read_bytes() == content, "the damaged file may hold answers"
    path.rename(f"{path}.moved")  # as the message says
    cache = AnswerCache(str(path))
    cache.put({"new": Response("n")}, "s")
    assert cache.get(["new"]) == {"new": Response("n")}


def test_damage_in_the_middle_of_a_file_in_use(path: Path) -> None:
    answers = filled(path, 3000)
    cache = AnswerCache(str(path))
    assert len(cache.get(["k0000"])) == 1
    flip(path, 40 * 4096, path.stat().st_size - 60 * 4096)
    with pytest.raises(CacheError, match="the file is damaged"):
        cache.get(answers)


def test_every_single_damage_is_either_harmless_or_found(path: Path) -> None:
    """No answer ever comes back changed, wherever some bytes are wrong."""
    answers = filled(path, 60)
    sound = path.read_bytes()
    found: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in [*range(0, 100, 8), *range(0, len(sound), 1997)]:
            path.write_bytes(sound)
            flip(path, start, 24)
            cache = AnswerCache(str(path))
            try:
                got = cache.get(answers)
                assert all(answers[key] == response for key, response in got.items())
                cache.put({"new": Response("n")}, "s")
                assert cache.get(["new"]) == {"new": Response("n")}
            except CacheError as error:
                found.append(str(error))
            cache.close()
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
    assert len(found) > 10
    said = ("is damaged", "another program's", "has format")
    assert [error for error in found if not any(words in error for words in said)] == []


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("response", b'{"text":"forged","tokens":0,"truncated":false,"prompt_tokens":0,"refused":false}'),
        ("response", b""),
        ("response", "text"),
        ("checksum", b"0" * 16),
        ("key", "k9999"),
    ],
)
def test_a_damaged_row_counts_as_missing_and_is_removed(path: Path, column: str, value: Any) -> None:
    answers = filled(path, 20)
    for key in ("k0003", "k0004"):
        query(path, f"UPDATE OR REPLACE answers SET {column} = ? WHERE key = ?", value, key)
    cache = AnswerCache(str(path))
    wrong = {"k9999"} if column == "key" else {"k0003", "k0004"}
    with pytest.warns(UserWarning, match="an answer is damaged") as caught:
        assert [cache.get([key]) for key in sorted(wrong)] == [{}] * len(wrong)
    assert len(caught) == 1
    assert cache.damaged_rows == len(wrong)
    rest = {key: response for key, response in answers.items() if key not in ("k0003", "k0004")}
    assert cache.get(answers) == rest
    assert {key for (key,) in query(path, "SELECT key FROM answers")} == set(rest)
    cache.put(answers, "s")
    assert cache.get(answers) == answers


@pytest.mark.parametrize(
    "fields",
    ['{"text":"x"}', "[]", '{"text":5,"tokens":0,"truncated":false,"prompt_tokens":0,"refused":false}', "\ud800", "{"],
)
def test_a_row_that_is_no_response_counts_as_missing(path: Path, fields: str) -> None:
    filled(path, 1)
    blob = fields.encode("utf-8", "surrogatepass")
    query(path, "UPDATE answers SET response = ?, checksum = ?", blob, module.checksum("k0000", blob))
    with pytest.warns(UserWarning, match="an answer is damaged"):
        assert AnswerCache(str(path)).get(["k0000"]) == {}


def test_a_deleted_file_is_begun_anew(path: Path) -> None:
    filled(path)
    cache = AnswerCache(str(path))
    assert len(cache.get(["k0000"])) == 1
    for file in path.parent.iterdir():
        file.unlink()
    cache.put({"a": Response("x")}, "s")
    assert AnswerCache(str(path)).get(["a", "k0000"]) == {"a": Response("x")}


def test_a_missing_total_costs_no_answers(path: Path) -> None:
    answers = filled(path, 20)
    query(path, "DELETE FROM total")
    cache = AnswerCache(str(path))
    cache.put({"a": Response("x")}, "s")
    assert cache.get([*answers, "a"]) == answers | {"a": Response("x")}


# What is not damage.


def test_a_full_disk_is_an_error_and_keeps_what_is_there(path: Path) -> None:
    answers = filled(path)
    cache = AnswerCache(str(path))
    assert cache.get(answers) == answers
    with cache.database.use() as db:
        db.execute("PRAGMA max_page_count = 60")
    assert "the disk is full; free some space" in refusal(cache)
    assert cache.get(answers) == answers
    assert cache.get(["full-0"]) == {}
    cache.close()
    cache.put({"a": Response("x")}, "s")
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 1024):
            pass


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    path = small_disk / "answers.sqlite"
    answers = filled(path)
    cache = AnswerCache(str(path))
    assert cache.get(answers) == answers
    assert "the disk is full; free some space" in refusal(cache)
    fill(small_disk / "filler")
    assert cache.get(answers) == answers, "reading needs no space"
    cache.close()
    others = [AnswerCache(str(small_disk / name)) for name in ("answers.sqlite", "new/answers.sqlite")]
    for other in others:
        assert "the disk is full; free some space" in refusal(other)
    (small_disk / "filler").unlink()
    for other in (cache, *others):
        other.put({"a": Response("x")}, "s")
        assert other.get("a") == {"a": Response("x")}
    assert cache.get(["a", *answers]) == {"a": Response("x")} | answers


def test_a_file_that_may_not_be_written_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = filled(path)
    cache = AnswerCache(str(path))
    assert cache.get(answers) == answers
    with cache.database.use() as db:
        db.execute("PRAGMA query_only = ON")  # root, who may run the tests, can write whatever the modes are
    assert "cannot be written" in refusal(cache)
    assert cache.get(answers) == answers

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sqlite.FileLock, "acquire", denied)
    assert "it cannot be written (Permission denied); make file and folder writable" in refusal(AnswerCache(str(path)))


def test_a_read_only_disk_is_an_error(small_disk: Path) -> None:
    path = small_disk / "answers.sqlite"
    answers = filled(path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in ("get", "put"):
        assert "Read-only file system" in refusal(AnswerCache(str(path)), call)
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert AnswerCache(str(path)).get(answers) == answers


def test_a_lock_that_is_never_let_go_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    cache = AnswerCache(str(path))
    assert "another process has kept it locked" in refusal(cache)
    assert len(cache.get(["k0000"])) == 1
    with sqlite.FileLock(f"{path}.lock"):
        assert "another process has kept it locked" in refusal(AnswerCache(str(path)))
    holder.execute("ROLLBACK")
    holder.close()
    cache.put({"a": Response("x")}, "s")


@pytest.mark.parametrize("version", [0, 2, 99])
def test_a_file_of_another_version_is_left_alone(path: Path, version: int) -> None:
    filled(path)
    query(path, f"PRAGMA user_version = {version}")
    content = path.read_bytes()
    for call in ("get", "put"):
        message = refusal(AnswerCache(str(path)), call)
        assert f"has format {version}, this wst reads format 1; use the wst that made it" in message
    assert path.read_bytes() == content


def test_another_programs_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    query(path, "CREATE TABLE notes (text)")
    content = path.read_bytes()
    assert "another program's" in refusal(AnswerCache(str(path)))
    assert path.read_bytes() == content


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("")
    assert "cannot be written" in refusal(AnswerCache(str(tmp_path / "deep" / "answers.sqlite")))
