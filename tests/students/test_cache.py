"""The answer cache: nothing put is lost or torn, whoever shares the file and whatever happens to it."""

import copy
import json
import pickle
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wst.errors import CacheError, ConfigError
from wst.files import cache_dir
from wst.students import cache as module
from wst.students.cache import AnswerCache, answer_key, row_size
from wst.types import Message, Prompt, Response

IDENTITY: dict[str, Any] = {"class": "S", "model": "m", "revision": "r", "sampling": {"temperature": 0.5, "top_p": 1.0}}
PROMPT = Prompt((Message("system", "Be brief."), Message("user", "Hi")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.sqlite"


def filled(path: Path, number: int = 300, text: str = "x" * 300) -> dict[str, Response]:
    """Write some answers and close the file."""
    answers = {f"k{i:04}": Response(f"{i} {text}", i) for i in range(number)}
    cache = AnswerCache(str(path))
    cache.put(answers, "s")
    cache.close()
    assert not path.with_name(f"{path.name}-wal").exists()
    return answers


def query(path: Path, statement: str, *values: Any) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        with db:
            return db.execute(statement, values).fetchall()
    finally:
        db.close()


def total_is_right(path: Path) -> bool:
    return query(path, "SELECT (SELECT bytes FROM total) = (SELECT COALESCE(SUM(size), 0) FROM answers)") == [(1,)]


def script(code: str, *args: object) -> subprocess.Popen[str]:
    head = "import os, signal, sys, time\nfrom wst.types import Response\nfrom wst.students.cache import AnswerCache\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 100) -> str:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err
    return out


# Keys.


def test_a_key_tells_whatever_determines_the_answer() -> None:
    def key(identity: Any = IDENTITY, messages: Any = PROMPT.messages, sample: int = 0, sampled: bool = True) -> str:
        return answer_key(identity, Prompt(messages, sample), sampled)

    keys = [
        key(),
        key(IDENTITY | {"revision": "other"}),
        key(IDENTITY | {"model": None}),
        key(IDENTITY | {"quantization": "nf4"}),
        key({name: value for name, value in IDENTITY.items() if name != "revision"}),
        key(IDENTITY | {"sampling": {"temperature": 0.6, "top_p": 1.0}}),
        key(messages=PROMPT.messages[1:]),
        key(messages=PROMPT.messages[::-1]),
        key(messages=(PROMPT.messages[0], Message("user", "Hi "))),
        key(messages=(PROMPT.messages[0], Message("assistant", "Hi"))),
        key(messages=(Message("user", "Be brief."), Message("user", "Hi"))),
        key(messages=(Message("system", "Be brief.Hi"), Message("user", ""))),
        key(messages=(Message("user", "😀"),)),
        key(messages=(Message("user", "\ud83d\ude00"),)),  # the same two halves, apart
        key(sample=1),
        key(sampled=False),
    ]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch("[0-9a-f]{64}", each) for each in keys)


def test_a_key_is_the_same_in_every_process_and_order() -> None:
    turned = {name: IDENTITY[name] for name in reversed(IDENTITY)}
    turned["sampling"] = MappingProxyType({"top_p": 1.0, "temperature": 0.5})
    assert answer_key(turned, PROMPT, True) == answer_key(IDENTITY, PROMPT, True)
    # Answers that were paid for are lost when this changes.
    assert answer_key(IDENTITY, PROMPT, True) == "730263fd5c4c4ebb91ebdb8f5e15f276c7466009adee58e6927c388b77810e4a"


def test_the_sample_is_in_the_key_only_where_answers_are_sampled() -> None:
    draws = [Prompt(PROMPT.messages, sample) for sample in range(3)]
    assert len({answer_key(IDENTITY, draw, False) for draw in draws}) == 1
    assert len({answer_key(IDENTITY, draw, True) for draw in draws}) == 3


def test_an_identity_must_be_plain() -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        answer_key({"model": Path("m")}, PROMPT, False)
    with pytest.raises(ValueError, match="JSON"):
        answer_key({"temperature": float("nan")}, PROMPT, False)


# What goes in comes out.


def test_round_trip(path: Path) -> None:
    answers = {
        "a": Response("yes", 3, True, 17, False),
        "b": Response("", 0, False, 0, True),
        "c": Response("\ud800 lone, \ud83d\ude00 two, \0 NUL, \u2028 ½ 😀 \r\n\\ \"'", 2**40),
        "d": Response("long " * 200_000),
    }
    cache = AnswerCache(str(path))
    cache.put(answers, "s\ud800")
    assert cache.get([*answers, "missing", "a"]) == answers
    cache.close()
    assert cache.get(iter("ab")) == {"a": answers["a"], "b": answers["b"]}
    assert AnswerCache(str(path)).get(answers) == answers
    assert cache.get([]) == {}
    cache.put({"a": Response("no")}, "s")
    assert cache.get("a") == {"a": Response("no")}
    assert total_is_right(path)


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(exclude_categories=())))
def test_any_text_comes_back_as_it_was(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    blob = module._encode(Response(text))
    assert module.decode("k", blob, module.checksum("k", blob)) == Response(text)


def test_any_number_of_keys(path: Path) -> None:
    cache = AnswerCache(str(path))
    answers = {f"k{i}": Response(str(i)) for i in range(0, 40_000, 100)}
    cache.put(answers, "s")
    assert cache._db is not None
    cache._db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # as old versions have it
    assert cache.get(f"k{i}" for i in range(40_000)) == answers


def test_a_failed_response_is_refused_and_nothing_kept(path: Path) -> None:
    cache = AnswerCache(str(path))
    with pytest.raises(ValueError, match="no answer to keep"):
        cache.put({"a": Response("x"), "b": Response("", error="timeout")}, "s")
    assert cache.get("ab") == {}


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match="max_megabytes must be above 0"):
            AnswerCache(str(tmp_path / "a"), limit)
    with pytest.raises(ConfigError, match="is a folder"):
        AnswerCache(str(tmp_path))
    monkeypatch.setattr(module, "cache_dir", cache_dir)  # the real one, which conftest.py keeps from other tests
    monkeypatch.setenv("WST_CACHE", str(tmp_path / "w"))
    cache = AnswerCache()
    assert cache.path == tmp_path / "w" / "answers.sqlite"
    assert not cache.path.parent.exists(), "it touched the disk"
    cache.put({"a": Response("x")}, "s")
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert twin.get("a") == {"a": Response("x")}


def test_files_are_private_and_durable(path: Path) -> None:
    cache = AnswerCache(str(path))
    cache.put({"a": Response("x")}, "s")
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(modes) == {"answers.sqlite", "answers.sqlite-wal", "answers.sqlite-shm", "answers.sqlite.lock"}
    assert set(modes.values()) == {0o600}
    assert cache._db is not None
    pragmas = [cache._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]
    assert cache._db.execute("PRAGMA busy_timeout").fetchone()[0] >= 30_000


def test_no_prompt_setting_or_credential_stands_in_the_file(path: Path) -> None:
    cache = AnswerCache(str(path))
    prompt = Prompt((Message("user", "the-prompt"),))
    key = answer_key({"api_key": "sk-secret-1", "url": "https://u:sk-secret-2@h"}, prompt, False)
    cache.put({key: Response("fine")}, "gpt at https://me:sk-secret-3@host/v1?key=sk-secret-4#sk-secret-5 (nf4)")
    cache.close()
    content = path.read_bytes()
    assert b"fine" in content
    assert b"gpt at https://host/v1 (nf4)" in content
    assert not re.search(rb"secret|the-prompt|api_key", content)


# Sharing.

WRITER = """
path, mine, other, each = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
cache = AnswerCache(path)
answer = lambda name, i: Response(f"{name} {i} " + "word " * (i % 200), i, bool(i % 2), i + 1)
missing = 0
for start in range(0, 10_000, each):
    batch = range(start, start + each)
    cache.put({f"{mine}-{i}": answer(mine, i) for i in batch} | {f"both-{i}": answer("both", i) for i in batch}, mine)
    keys = [f"{name}-{i}" for i in batch for name in (mine, other, "both")]
    got = cache.get(keys)
    for key, response in got.items():
        name, i = key.split("-")
        assert response == answer(name, int(i)), (key, response)
    assert sum(key.startswith(mine + "-") for key in got) == each, "its own answers are not there"
"""


def share(path: Path, each: int) -> None:
    begun = time.monotonic()
    writers = [script(WRITER, path, *names, each) for names in (("a", "b"), ("b", "a"))]
    for writer in writers:
        finish(writer, 600)
    print(f"2 x 10,000 answers, {each} a commit: {time.monotonic() - begun:.1f} s")
    found = AnswerCache(str(path)).get(f"{name}-{i}" for i in range(10_000) for name in ("a", "b", "both"))
    assert len(found) == 30_000
    for key, response in found.items():
        name, i = key.split("-")
        number = int(i)
        text = f"{name} {i} " + "word " * (number % 200)
        assert response == Response(text, number, bool(number % 2), number + 1)
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert total_is_right(path)


@pytest.mark.slow
def test_two_processes_with_ten_thousand_writes_each_lose_and_tear_nothing(path: Path) -> None:
    share(path, each=20)


def test_threads_share_one_cache(path: Path) -> None:
    cache = AnswerCache(str(path))
    faults: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for i in range(20):
                cache.put({f"{name}{i}": Response(f"{name}{i}")}, name)
                got = cache.get(f"{other}{j}" for other in "abcdefgh" for j in range(i + 1))
                assert all(response.text == key for key, response in got.items())
                assert {f"{name}{j}" for j in range(i + 1)} <= set(got)
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert len(cache.get(f"{name}{i}" for name in "abcdefgh" for i in range(20))) == 160


FORKS = """
import threading
cache = AnswerCache(sys.argv[1])
cache.put({"before": Response("x")}, "s")
stop = threading.Event()
def busy():
    i = 0
    while not stop.is_set():
        cache.put({f"parent-{i}": Response("p")}, "s")
        i += 1
    print(i)
thread = threading.Thread(target=busy)
thread.start()
children = []
for child in range(6):
    pid = os.fork()
    if not pid:
        assert len(cache.get(["before"])) == 1
        for i in range(10):
            cache.put({f"child-{child}-{i}": Response("c")}, "s")
        sys.exit()  # with all that an interpreter does at its end
    children.append(pid)
codes = [os.waitpid(pid, 0)[1] for pid in children]
stop.set()
thread.join()
assert codes == [0] * 6, codes
assert len(cache.get(f"child-{child}-{i}" for child in range(6) for i in range(10))) == 60
"""


def test_a_fork_opens_the_file_anew(path: Path) -> None:
    written = int(finish(script(FORKS, path)))
    assert written > 0
    found = AnswerCache(str(path)).get(["before", *(f"parent-{i}" for i in range(written))])
    assert len(found) == written + 1
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


FORK_AND_CLOSE = """
cache = AnswerCache(sys.argv[1])
cache.put({"before": Response("x")}, "s")
reads, writes = os.pipe(), os.pipe()
if not os.fork():
    cache.get(["before"])
    os.write(reads[1], b"x")
    os.read(writes[0], 1)
    cache.put({f"child-{i}": Response("c") for i in range(5)}, "s")
    os._exit(0)
cache.get(["before"])
os.read(reads[0], 1)
cache.close()  # while the child has the file open
os.write(writes[1], b"x")
os.wait()
assert len(cache.get(f"child-{i}" for i in range(5))) == 5
"""


def test_a_forks_answers_outlive_its_parents_closing(path: Path) -> None:
    finish(script(FORK_AND_CLOSE, path))


KILLED = """
cache = AnswerCache(sys.argv[1])
for i in range(10**6):
    cache.put({f"{i}-{j}": Response(f"{i}-{j} " + "word " * 300) for j in range(3)}, "s")
    print(i, flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.31])
def test_a_killed_writer_loses_nothing_it_had_put(path: Path, delay: float) -> None:
    writer = script(KILLED, path)
    assert writer.stdout is not None
    writer.stdout.readline()
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    out, _ = writer.communicate()
    assert writer.returncode == -signal.SIGKILL
    last = max([0, *(int(line) for line in out.split("\n")[:-1])])
    found = AnswerCache(str(path)).get(f"{i}-{j}" for i in range(last + 1) for j in range(3))
    assert len(found) == 3 * (last + 1)
    assert all(response.text == f"{key} " + "word " * 300 for key, response in found.items())
    torn = {key for (key,) in query(path, "SELECT key FROM answers")} - set(found)
    assert torn in (set(), {f"{last + 1}-{j}" for j in range(3)}), "a put was kept in part"


# Damage.


def put_aside(path: Path) -> list[Path]:
    return [file for file in path.parent.glob("*.damaged-*") if not file.name.endswith(("-wal", "-shm"))]


def flip(path: Path, start: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        content = bytes(255 - byte for byte in file.read(length))
        file.seek(start)
        file.write(content)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: flip(path, 0, 16), id="magic"),
        pytest.param(lambda path: flip(path, 16, 40), id="header"),
        pytest.param(lambda path: flip(path, 100, 3000), id="first page"),
        pytest.param(lambda path: flip(path, 4096, 3 * 4096), id="roots"),
        pytest.param(lambda path: truncate(path, 4096), id="one page left"),
        pytest.param(lambda path: truncate(path, path.stat().st_size // 2 + 100), id="half"),
        pytest.param(lambda path: truncate(path, 50), id="half a header"),
        pytest.param(lambda path: path.write_bytes(b"garbage " * 5000), id="garbage"),
        pytest.param(lambda path: path.write_text('{"not": "sqlite"}'), id="other file"),
    ],
)
@pytest.mark.parametrize("first", ["get", "put"])
def test_a_damaged_file_is_set_aside_and_the_run_goes_on(path: Path, damage: Any, first: str) -> None:
    answers = filled(path)
    damage(path)
    content = path.read_bytes()
    cache = AnswerCache(str(path))
    if first == "get":
        with pytest.warns(UserWarning, match="damaged") as caught:
            assert cache.get(answers) == {}
        cache.put({"new": Response("n")}, "s")
    else:
        with pytest.warns(UserWarning, match="damaged") as caught:
            cache.put({"new": Response("n")}, "s")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    (aside,) = put_aside(path)
    assert re.fullmatch(r"answers\.sqlite\.damaged-\d{8}T\d{6}Z", aside.name)
    assert f"{path}:" in str(caught[0].message)
    assert f"{aside}," in str(caught[0].message)
    assert aside.read_bytes() == content, "the damaged file is evidence, and may hold answers"
    assert cache.get(["new", *answers]) == {"new": Response("n")}
    assert AnswerCache(str(path)).get(["new"]) == {"new": Response("n")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_damage_in_the_middle_of_a_file_in_use(path: Path) -> None:
    answers = filled(path, 3000)
    cache = AnswerCache(str(path))
    assert len(cache.get(["k0000"])) == 1
    flip(path, 40 * 4096, path.stat().st_size - 60 * 4096)
    with pytest.warns(UserWarning, match="set aside") as caught:
        got = cache.get(answers)
    assert len(caught) == 1
    assert all(answers[key] == response for key, response in got.items())
    cache.put(answers, "s")
    assert cache.get(answers) == answers


def test_every_single_damage_is_either_harmless_or_found(path: Path) -> None:
    """No answer ever comes back changed, wherever some bytes are wrong."""
    answers = filled(path, 60)
    sound = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for start in [*range(0, 100, 8), *range(0, len(sound), 997)]:
            path.write_bytes(sound)
            flip(path, start, 24)
            cache = AnswerCache(str(path))
            try:
                got = cache.get(answers)
            except CacheError:
                if 60 - 24 < start < 72:  # the bytes that say of which version the file is, and whose
                    continue
                raise
            cache.put({"new": Response("n")}, "s")
            assert cache.get(["new"]) == {"new": Response("n")}
            cache.close()
            assert all(answers[key] == response for key, response in got.items())
            for file in path.parent.iterdir():
                if "damaged" in file.name or file.name.endswith(("-wal", "-shm")):
                    file.unlink()


@pytest.mark.parametrize(
    "statement", ["DROP TABLE total", "DELETE FROM total", "ALTER TABLE answers DROP COLUMN created"]
)
def test_missing_tables_are_damage(path: Path, statement: str) -> None:
    filled(path)
    query(path, statement)
    with pytest.warns(UserWarning, match="damaged"):
        AnswerCache(str(path)).put({"a": Response("x")}, "s")
    assert len(put_aside(path)) == 1


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
    assert not put_aside(path)


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


FINDERS = """
import warnings
path, go, name = sys.argv[1:]
cache = AnswerCache(path)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    while not os.path.exists(go):
        pass
    cache.put({f"{name}-{i}": Response(name) for i in range(10)}, name)
    assert len(cache.get(f"{name}-{i}" for i in range(10))) == 10
print(len(caught))
"""


def test_processes_that_find_the_damage_at_once_set_it_aside_once(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"garbage " * 1000)
    finders = [script(FINDERS, path, tmp_path / "go", name) for name in "abcd"]
    time.sleep(0.7)
    (tmp_path / "go").touch()
    assert sum(int(finish(finder)) for finder in finders) == 1
    assert len(put_aside(path)) == 1
    assert len(AnswerCache(str(path)).get(f"{name}-{i}" for name in "abcd" for i in range(10))) == 40


def test_an_open_cache_follows_when_another_sets_the_file_aside(path: Path) -> None:
    answers = filled(path)
    first, second = AnswerCache(str(path)), AnswerCache(str(path))
    assert first.get(answers) == answers
    assert second.get(answers) == answers
    with pytest.warns(UserWarning, match="set aside"):
        second._run(lambda db: damaged_once(second))
    first.put({"first": Response("1")}, "s")
    second.put({"second": Response("2")}, "s")
    first.close()
    second.put({"third": Response("3")}, "s")
    second.close()
    assert set(AnswerCache(str(path)).get(["first", "second", "third"])) == {"first", "second", "third"}
    assert len(put_aside(path)) == 1


def damaged_once(cache: AnswerCache) -> None:
    if not cache._notices:
        raise module._Damaged("for a test")


def test_a_file_that_another_process_has_just_begun_is_not_set_aside(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(path)
    first, second = AnswerCache(str(path)), AnswerCache(str(path))
    first.get(["k0000"])
    set_aside = AnswerCache._set_aside

    def late(cache: AnswerCache, error: sqlite3.DatabaseError) -> None:
        if cache is first:  # has found the damage, and waits for the lock, which the second is given
            second._run(lambda db: damaged_once(second))
            second.put({"second": Response("2")}, "s")
        set_aside(cache, error)

    monkeypatch.setattr(AnswerCache, "_set_aside", late)
    with pytest.warns(UserWarning, match="set aside") as caught:
        first._run(lambda db: damaged_once(first) if not put_aside(path) else None)
    assert len(caught) == 1
    assert len(put_aside(path)) == 1
    assert first.get(["second"]) == {"second": Response("2")}


def test_what_is_in_the_log_is_set_aside_with_the_file(path: Path) -> None:
    answers = filled(path)
    cache = AnswerCache(str(path))
    cache.put({"late": Response("x")}, "s")
    with pytest.warns(UserWarning, match="set aside"):
        cache._run(lambda db: damaged_once(cache))
    (aside,) = put_aside(path)
    assert aside.with_name(f"{aside.name}-wal").stat().st_size
    assert AnswerCache(str(aside)).get([*answers, "late"]) == answers | {"late": Response("x")}


def test_a_put_that_another_process_set_aside_is_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path)
    first, second = AnswerCache(str(path)), AnswerCache(str(path))
    first.get(["k0000"])
    write = AnswerCache._write

    def interrupted(cache: AnswerCache, *args: Any) -> None:
        write(cache, *args)
        if not put_aside(path):
            second._run(lambda db: damaged_once(second))

    monkeypatch.setattr(AnswerCache, "_write", interrupted)
    with pytest.warns(UserWarning, match="set aside"):
        first.put({"a": Response("x")}, "s")
    assert AnswerCache(str(path)).get("a") == {"a": Response("x")}


def test_a_deleted_file_is_begun_anew(path: Path) -> None:
    filled(path)
    cache = AnswerCache(str(path))
    assert len(cache.get(["k0000"])) == 1
    for file in path.parent.iterdir():
        file.unlink()
    cache.put({"a": Response("x")}, "s")
    assert AnswerCache(str(path)).get(["a", "k0000"]) == {"a": Response("x")}


def test_damage_without_end_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: Any) -> None:
        raise module._Damaged("always")

    monkeypatch.setattr(AnswerCache, "_write", damaged)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CacheError, match="times on end"):
        AnswerCache(str(path)).put({"a": Response("x")}, "s")


# What is not damage.


def refusal(cache: AnswerCache, call: str = "put") -> str:
    """The message of a put, or get, that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        big = {f"full-{i}": Response("x" * 3000) for i in range(500)}
        with pytest.raises(CacheError) as caught:
            _ = cache.put(big, "s") if call == "put" else cache.get(["k0000"])
    message = str(caught.value)
    assert message.startswith(f"answer cache {cache.path}: ")
    assert len(message.splitlines()) == 1
    assert "; " in message, "no remedy"
    assert not put_aside(cache.path)
    return message


def test_a_full_disk_is_an_error_and_keeps_what_is_there(path: Path) -> None:
    answers = filled(path)
    cache = AnswerCache(str(path))
    assert cache.get(answers) == answers
    assert cache._db is not None
    cache._db.execute("PRAGMA max_page_count = 60")
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
    assert cache._db is not None
    cache._db.execute("PRAGMA query_only = ON")  # root, who may run the tests, can write whatever the modes are
    assert "cannot be written" in refusal(cache)
    assert cache.get(answers) == answers

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module.FileLock, "acquire", denied)
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
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.2)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    cache = AnswerCache(str(path))
    assert "another process has kept it locked" in refusal(cache)
    assert len(cache.get(["k0000"])) == 1
    with module.file_lock(path):
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


# The limit.


def keys(path: Path) -> list[str]:
    return [key for (key,) in query(path, "SELECT key FROM answers ORDER BY key")]


def sized(key: str, size: int) -> Response:
    """A response whose row counts for so many bytes."""
    return Response("x" * (size - row_size(key, "s", module._encode(Response("")))))


def test_beyond_the_limit_those_unused_for_longest_go(path: Path) -> None:
    cache = AnswerCache(str(path), max_megabytes=0.1)
    for i in range(10):
        cache.put({f"k{i}": sized(f"k{i}", 10_000)}, "s")
    assert len(keys(path)) == 10, "at the limit nothing goes"
    # k0, k1 and k4 are older than all; k1 is read, which refreshes it.
    query(path, "UPDATE answers SET used = used - 9000 WHERE key IN ('k0', 'k1', 'k4')")
    cache.get(["k1"])
    cache.put({"k10": sized("k10", 10_000)}, "s")
    assert keys(path) == ["k1", "k10", "k2", "k3", "k5", "k6", "k7", "k8", "k9"]
    cache.put({"k11": sized("k11", 10_000)}, "s")
    assert len(keys(path)) == 10
    cache.put({"k12": sized("k12", 25_000)}, "s")
    assert query(path, "SELECT bytes <= 90000 FROM total") == [(1,)]
    # As `used` has it: k2 to k10 as they were put, then k1, which was read before k10 was put.
    assert keys(path) == ["k1", "k10", "k11", "k12", "k7", "k8", "k9"]
    assert total_is_right(path)


def test_what_is_being_put_stays_even_if_it_is_more_than_the_limit(path: Path) -> None:
    cache = AnswerCache(str(path), max_megabytes=0.01)
    cache.put({"old": Response("x")}, "s")
    big = {f"k{i}": sized(f"k{i}", 5000) for i in range(5)}
    cache.put(big, "s")
    assert cache.get(["old", *big]) == big


def test_other_processes_writes_count(path: Path) -> None:
    small, large = AnswerCache(str(path), 0.1), AnswerCache(str(path))
    small.put({"first": sized("first", 10_000)}, "s")
    large.put({f"k{i:02}": sized(f"k{i:02}", 10_000) for i in range(50)}, "s")
    assert len(keys(path)) == 51
    small.put({"last": sized("last", 10_000)}, "s")
    assert keys(path) == [*(f"k{i:02}" for i in range(42, 50)), "last"]


def test_a_total_that_is_off_costs_no_answers(path: Path) -> None:
    filled(path)
    query(path, "UPDATE total SET bytes = 1 << 60")
    cache = AnswerCache(str(path))
    cache.put({"a": Response("x")}, "s")
    assert len(keys(path)) == 301
    assert total_is_right(path)


def test_replacing_an_answer_keeps_the_total(path: Path) -> None:
    cache = AnswerCache(str(path), max_megabytes=0.1)
    for i in range(50):
        cache.put({"k": sized("k", 9_000 + i)}, "s")
    assert keys(path) == ["k"]
    assert query(path, "SELECT bytes FROM total") == [(9_049,)]


def test_the_file_stays_near_the_limit(path: Path) -> None:
    cache = AnswerCache(str(path), max_megabytes=1)
    for start in range(0, 12_000, 500):
        answers = {answer_key({}, Prompt((), i), True): Response("word " * (i % 97)) for i in range(start, start + 500)}
        cache.put(answers, "s")
        assert cache.get(answers) == answers
        query(path, "UPDATE answers SET used = used - 7200 WHERE id % 3 = 0")
    cache.close()
    assert path.stat().st_size < 1.6e6
    assert query(path, "SELECT bytes BETWEEN 800000 AND 1000000 FROM total") == [(1,)]


def test_reading_writes_only_when_the_last_use_is_long_ago(path: Path) -> None:
    answers = filled(path)
    cache = AnswerCache(str(path))
    cache.get(answers)
    assert cache._db is not None
    changes = cache._db.total_changes
    cache.get(answers)
    assert cache._db.total_changes == changes
    query(path, "UPDATE answers SET used = used - 3700 WHERE key < 'k0010'")
    cache.get(answers)
    assert cache._db.total_changes == changes + 10
    assert query(path, "SELECT MIN(used) > ? FROM answers", time.time() - 100) == [(1,)]


def test_responses_are_stored_as_json(path: Path) -> None:
    cache = AnswerCache(str(path))
    cache.put({"a": Response("Größe", 3, True, 7, True)}, "s")
    ((blob,),) = query(path, "SELECT response FROM answers")
    assert json.loads(blob) == {"text": "Größe", "tokens": 3, "truncated": True, "prompt_tokens": 7, "refused": True}


def test_importing_the_cache_is_light() -> None:
    code = "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    assert finish(script(code)) == ""
