"""What is printed is harmless, and printing never ends a run."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from wst.terminal import never_fatal, printable, protect_output, show


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("a\tb\r\nc\u2028d\u0085e", "a b c d e"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("left\u200eright\u200fand\u061c", "left\\u200eright\\u200fand\\u061c"),
        ("half \ud83d", "half \\ud83d"),
        ("Ünïcode 漢字 👩‍🔬 é", "Ünïcode 漢字 👩‍🔬 é"),
        ("del\x7f\x00", "del\\x7f\\x00"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    printable(text).encode()


def test_a_path_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show("/runs/12:100:3/:cat:/[b]x")
    assert capsys.readouterr().out == "/runs/12:100:3/:cat:/[b]x\n"


def test_printable_is_cut() -> None:
    assert printable("x" * 10**7, limit=20) == "x" * 19 + "…"
    assert printable(" " * 10**7 + "x", limit=20) == "…"
    assert printable("x" * 20, limit=20) == "x" * 20
    assert len(printable("\x1b" * 100, limit=20)) == 20


class Stream(io.TextIOWrapper):
    """A stream of an encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)


def table() -> Table:
    found = Table(title="漢字 …")
    found.add_column("[b]é")
    found.add_row("👩‍🔬")
    return found


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_will_do(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = Stream(encoding)
    monkeypatch.setattr("sys.stdout", stream)
    show(table(), "a [path] 漢字")
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "a [path] " in shown
    assert ("漢字" if encoding == "utf-8" else "\\u6f22") in shown


def test_output_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream("utf-8")
    stream.close()
    for gone in (stream, None):
        monkeypatch.setattr("sys.stdout", gone)
        show(table())


def test_with_wst_debug_drawing_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: Any) -> None:
        with never_fatal():
            raise AssertionError("no such task")

    draw()
    monkeypatch.setenv("WST_DEBUG", "1")
    with pytest.raises(AssertionError):
        draw()


SCRIPT = """
import os, sys
from wst.terminal import protect_output, show
protect_output()
for i in range(3):
    print("printed 漢字" * 20000)
    show("shown")
    print("error 漢字", file=sys.stderr)
    sys.stdout.flush()
print(os.open("file", os.O_CREAT | os.O_WRONLY) > 2, file=open("done", "w"))
"""


@pytest.mark.parametrize("how", ["{}", "{} | head -c 1", "{} >&-", "{} 2>&-", "{} >&- 2>&- <&-", "{} >/dev/full"])
def test_a_process_outlives_the_reader_of_its_output(tmp_path: Path, how: str) -> None:
    command = how.format(f"{sys.executable} script.py")
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "True\n"


def test_protecting_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Stream("utf-8"))
    monkeypatch.setattr("sys.stderr", Stream("utf-8"))
    protect_output()
    first = sys.stdout
    protect_output()
    assert sys.stdout is first
    assert sys.stdout.encoding == "utf-8"
