"""`wst cache` as a user meets it: what it prints, what it removes, and what it says of mistakes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from caches import query

from wst.cli import cache as cache_command
from wst.errors import CacheError
from wst.files import cache_dir
from wst.students.cache import AnswerCache
from wst.types import Response

DAY = 86400


def keys(path: Path) -> list[str]:
    return [key for (key,) in query(path, "SELECT key FROM answers ORDER BY used, id")]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of 40 answers of one student and 10 of another, last used 0 to 49 days ago."""
    monkeypatch.setattr("wst.students.cache.cache_dir", cache_dir)  # the real one, which subprocesses have too
    monkeypatch.setenv("WST_CACHE", str(tmp_path))
    path = tmp_path / "answers.sqlite"
    cache = AnswerCache()
    cache.put({f"k{i:02}": Response("x" * 10_000) for i in range(40)}, "gpt [bold] at https://host/v1")
    cache.put({f"k{i:02}": Response("y" * 20_000) for i in range(40, 50)}, "tiny")
    query(path, f"UPDATE answers SET used = used - {DAY} * (50 - id) - 60, created = created - {DAY} * 50")
    cache.close()
    return path


def succeed(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    assert cache_command.run(list(args)) == code
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def fail(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a mistake is told in."""
    assert cache_command.run(list(args)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch("wst: error: .*; .*\n", printed.err)
    return printed.err


def wst(*args: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-X", "importtime", "-m", "wst", *args]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_the_command_is_light(path: Path) -> None:
    done = wst("cache", "show")
    assert done.returncode == 0
    assert "50 answers" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "lightning", "jsonargparse", "numpy"}


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in (
        (["--help"], ("wst cache prune --older-than 30 --dry-run", "verify", "WST_CACHE")),
        (["show", "--help"], ("--path FILE", "whose answers")),
        (["verify", "--help"], ("exit code 1",)),
        (["prune", "--help"], ("--student LABEL", "--older-than DAYS", "--max-megabytes N", "--all", "--dry-run")),
    ):
        with pytest.raises(SystemExit) as caught:
            cache_command.run(args)
        assert caught.value.code == 0
        out = capsys.readouterr().out
        assert all(word in out for word in words)


def test_show(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = succeed(capsys, "show")
    head, *table = out.splitlines()
    assert re.fullmatch(rf"{re.escape(str(path))}: 50 answers, 0\.\d\d MB on disk", head)
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]
    date = r"\d{4}-\d\d-\d\d"
    assert [row[:3] for row in rows] == [["gpt [bold] at https://host/v1", "40", "0.41"], ["tiny", "10", "0.20"]]
    assert all(re.fullmatch(date, row[3]) and re.fullmatch(rf"{date} \d\d:\d\d", row[4]) for row in rows)
    assert rows[0][4] < rows[1][4]


def test_show_of_an_empty_cache(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query(path, "DELETE FROM answers")
    assert "0 answers" in succeed(capsys, "show")


@pytest.mark.parametrize("command", [["show"], ["verify"], ["prune", "--all"]])
def test_no_file(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "none" / "a.sqlite"
    assert succeed(capsys, *command, "--path", str(missing)) == f"no answer cache at {missing}\n"
    assert not missing.parent.exists()


def test_verify_of_a_sound_cache(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert succeed(capsys, "verify") == f"{path}: 50 answers checked, 0 damaged; file structure: sound\n"


def test_verify_finds_damaged_answers(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query(path, "UPDATE answers SET response = ? WHERE id IN (3, 5)", b"{}")
    out = succeed(capsys, "verify", code=1)
    assert "50 answers checked, 2 damaged; file structure: sound" in out
    assert "counts as missing" in out
    assert len(keys(path)) == 50, "it only looks"


def test_verify_finds_a_wrong_total_and_prune_mends_it(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query(path, "UPDATE total SET bytes = 5")
    assert "`wst cache prune` corrects the record" in succeed(capsys, "verify", code=1)
    succeed(capsys, "prune", "--older-than", "1000")
    succeed(capsys, "verify")


@pytest.mark.parametrize("damage", ["middle", "garbage", "truncated", "tables"])
def test_verify_finds_a_damaged_file_and_leaves_it(damage: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = path.read_bytes()
    if damage == "middle":
        path.write_bytes(content[: 20 * 4096] + b"\xff" * 8192 + content[22 * 4096 :])
    elif damage == "garbage":
        path.write_bytes(b"garbage " * 1000)
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        query(path, "DROP TRIGGER answers_added")
        query(path, "DROP TABLE total")
    content = path.read_bytes()
    out = succeed(capsys, "verify", code=1)
    assert "file structure: damaged" in out
    assert f"sqlite3 '{path}' .recover" in out
    assert path.read_bytes() == content
    if damage != "middle":
        for command in (["show"], ["prune", "--all"])[damage == "tables" :]:  # show does not need what is missing
            assert "the file is damaged" in fail(capsys, *command)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--student", "tiny"], range(40)),
        (["--older-than", "20"], range(30, 50)),
        (["--older-than", "5", "--student", "tiny"], [*range(40), *range(45, 50)]),
        (["--max-megabytes", "0.3"], range(31, 50)),
        (["--max-megabytes", "0.55", "--student", "tiny"], [*range(40), *range(44, 50)]),
        (["--max-megabytes", "0.3", "--older-than", "40"], range(10, 50)),
        (["--max-megabytes", "100"], range(50)),
        (["--max-megabytes", "0"], []),
        (["--all"], []),
    ],
)
def test_prune(options: list[str], left: list[int], path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = path.stat().st_size
    gone = 50 - len(left)
    told = rf"{re.escape(str(path))}: (\w+ ?\w+) {gone} answers \((\d\.\d\d) MB\); {len(left)} answers left\n"
    dry = succeed(capsys, "prune", *options, "--dry-run")
    assert (found := re.fullmatch(told, dry))
    assert found[1] == "would remove"
    assert len(keys(path)) == 50
    assert path.stat().st_size == before
    out = succeed(capsys, "prune", *options)
    assert (again := re.match(told, out))
    assert again.groups() == ("removed", found[2])
    assert keys(path) == [f"k{i:02}" for i in left]
    assert re.search(r"on disk: 0\.\d\d MB before, 0\.\d\d MB now\n$", out)
    freed = before - path.stat().st_size
    assert freed >= 0.8e6 * float(found[2])
    assert AnswerCache().get(["k49"]).keys() == ({"k49"} if 49 in left else set())
    assert query(path, "SELECT bytes = (SELECT COALESCE(SUM(size), 0) FROM answers) FROM total") == [(1,)]


def test_prune_while_a_run_has_the_file_open(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = AnswerCache()
    assert len(cache.get(["k00", "k49"])) == 2
    succeed(capsys, "prune", "--student", "tiny")
    assert set(cache.get(["k00", "k49"])) == {"k00"}
    cache.put({"new": Response("n")}, "s")
    assert set(AnswerCache().get(["k00", "new"])) == {"k00", "new"}
    assert path.stat().st_size < 0.6e6


def test_prune_of_a_student_that_is_not_there_says_who_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = succeed(capsys, "prune", "--student", "Tiny")
    assert "removed 0 answers" in out
    assert "no answers of student 'Tiny'; there are: gpt [bold] at https://host/v1, tiny" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "the following arguments are required"),
        (["shwo"], "invalid choice: 'shwo'"),
        (["show", "--pth", "x"], "unrecognized arguments: --pth x"),
        (["prune"], "say what to prune: --student, --older-than, --max-megabytes or --all"),
        (["prune", "--dry-run"], "say what to prune"),
        (["prune", "--all", "--older-than", "3"], "leave it out, or --older-than"),
        (["prune", "--older-than", "soon"], "argument --older-than: must be a number, at least 0, got 'soon'"),
        (["prune", "--max-megabytes", "-1"], "argument --max-megabytes: must be a number, at least 0, got '-1'"),
        (["prune", "--max-megabytes", "nan"], "must be a number"),
        (["show", "--path", "/"], "path '/' is a folder"),
    ],
)
def test_mistakes_are_one_line(args: list[str], said: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fail(capsys, *args)
    assert len(keys(path)) == 50


@pytest.mark.parametrize("command", [["show"], ["verify"], ["prune", "--all"]])
def test_a_file_of_another_version_is_a_mistake(
    command: list[str], path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    query(path, "PRAGMA user_version = 7")
    content = path.read_bytes()
    assert "has format 7, this wst reads format 1" in fail(capsys, *command)
    assert path.read_bytes() == content
    monkeypatch.setenv("WST_DEBUG", "1")
    with pytest.raises(CacheError):
        cache_command.run(command)


def test_without_a_home_the_variable_is_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("wst.students.cache.cache_dir", cache_dir)
    for name in ("WST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    assert "set WST_CACHE to a folder" in fail(capsys, "show")


def test_a_folder_without_permission_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def denied(*_: Any) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", denied)  # root, who may run the tests, may look everywhere
        assert cache_command.run(["show"]) == 2
    assert capsys.readouterr().err == f"wst: error: [Errno 13] Permission denied: '{path}'\n"


def test_exit_codes_and_tracebacks_of_the_real_command(path: Path) -> None:
    done = wst("cache", "prune")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "wst: error: say what to prune" in done.stderr
    done = wst("cache", "prune", WST_DEBUG="1")
    assert "Traceback" in done.stderr
    assert wst("cache", "verify").returncode == 0


def test_labels_of_a_strangers_file_are_shown_and_not_obeyed(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query(path, "UPDATE answers SET student = char(27) || ']0;owned' || char(7) WHERE student = 'tiny'")
    assert "\\x1b]0;owned" in succeed(capsys, "show")
    query(path, "UPDATE answers SET student = CAST(x'00ff' AS BLOB) WHERE student LIKE '%owned%'")
    assert "10" in succeed(capsys, "show")
    assert "there are" in succeed(capsys, "prune", "--student", "nobody", "--dry-run")
