"""The answer cache: what determines a key, what comes back, and which answers are dropped beyond the limit."""

import copy
import json
import pickle
import re
import sqlite3
import stat
import time
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from caches import filled, finish, query, script, total_is_right
from hypothesis import given, settings
from hypothesis import strategies as st

from wst.errors import ConfigError
from wst.files import cache_dir
from wst.students import cache as module
from wst.students.cache import AnswerCache, answer_key, row_size
from wst.types import Message, Prompt, Response

IDENTITY: dict[str, Any] = {"class": "S", "model": "m", "revision": "r", "sampling": {"temperature": 0.5, "top_p": 1.0}}
PROMPT = Prompt((Message("system", "Be brief."), Message("user", "Hi")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.sqlite"


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
    assert cache.get("a") == {"a": answers["a"]}, "an answer was replaced"
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
    with cache.database.use() as db:
        db.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)  # as old versions have it
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
    with cache.database.use() as db:
        pragmas = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 2]
        assert db.execute("PRAGMA busy_timeout").fetchone()[0] >= 30_000


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


def test_an_answer_that_is_there_keeps_the_total(path: Path) -> None:
    cache = AnswerCache(str(path), max_megabytes=0.1)
    for i in range(50):
        cache.put({"k": sized("k", 9_000 + i)}, "s")
    assert keys(path) == ["k"]
    assert query(path, "SELECT bytes FROM total") == [(9_000,)]


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
    with cache.database.use() as db:
        changes = db.total_changes
        cache.get(answers)
        assert db.total_changes == changes
        query(path, "UPDATE answers SET used = used - 3700 WHERE key < 'k0010'")
        cache.get(answers)
        assert db.total_changes == changes + 10
    assert query(path, "SELECT MIN(used) > ? FROM answers", time.time() - 100) == [(1,)]


def test_responses_are_stored_as_json(path: Path) -> None:
    cache = AnswerCache(str(path))
    cache.put({"a": Response("Größe", 3, True, 7, True)}, "s")
    ((blob,),) = query(path, "SELECT response FROM answers")
    assert json.loads(blob) == {"text": "Größe", "tokens": 3, "truncated": True, "prompt_tokens": 7, "refused": True}


def test_importing_the_cache_is_light() -> None:
    code = "assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"
    assert finish(script(code)) == ""
