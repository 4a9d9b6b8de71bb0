"""Output to the terminal: texts of models and data made harmless, and no output error that ends a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from wst.errors import debugging

# C0 and C1 control characters and DEL, which start the escape sequences of terminals; half surrogates, which cannot be
# encoded; and the characters that change the direction of the text around them.
_ESCAPED = {*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x61C, 0x200E, 0x200F}


def printable(text: str, limit: int | None = None) -> str:
    r"""Return a text on one line that a terminal shows and does not obey.

    White space becomes single spaces. Control characters, half surrogates and direction marks are escaped.

    Args:
        text: Whatever a model, an endpoint or a file says.
        limit: Largest number of characters; a longer text ends in "…".

    >>> printable("two\n lines, \x1b[31mred\x1b[0m")
    'two lines, \\x1b[31mred\\x1b[0m'
    >>> printable("a long text", limit=6)
    'a lon…'
    """
    cut = text if limit is None else text[: 4 * limit]  # a text of megabytes costs no more than a short one
    line = escaped(" ".join(cut.split()))
    if limit is not None and (len(line) > limit or len(cut) < len(text)):
        line = line[: limit - 1] + "…"
    return line


def escaped(line: str) -> str:
    """Return a line with control characters, half surrogates and direction marks escaped, and all else as it is."""
    if line.isprintable():
        return line
    return "".join(
        ascii(character)[1:-1] if ord(character) in _ESCAPED or "\ud800" <= character <= "\udfff" else character
        for character in line
    )


def show(*things: Any) -> None:  # noqa: ANN401 - what rich can print
    """Print texts, which may contain paths, and rich's tables to standard output; never raises.

    Characters that the encoding of the output does not have are escaped. Output that nobody reads is dropped.
    """
    from rich.console import Console  # the command line's help does not need it

    stream = sys.stdout
    if stream is None:  # closed before Python started
        return
    with never_fatal():
        console = Console(file=stream, highlight=False, soft_wrap=False)
        with console.capture() as captured:
            for thing in things:
                console.print(thing, markup=False, emoji=False, soft_wrap=isinstance(thing, str))
        encoding = stream.encoding or "utf-8"
        stream.write(captured.get().encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


@contextmanager
def never_fatal() -> Iterator[None]:
    """Suppress whatever goes wrong inside, because it only draws; with ``WST_DEBUG=1`` it is raised."""
    try:
        yield
    except Exception:
        if debugging():
            raise


def protect_output() -> None:
    """Make standard output and error outlive their reader, in the command line's process.

    ``wst fit | head`` trains to its end, ASCII and Latin-1 terminals see escapes, and a stream that was closed before
    Python started does not give its descriptor to a file of the run.
    """
    with suppress(OSError):
        while os.open(os.devnull, os.O_RDWR) <= 2:
            pass
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _Tolerant):
            setattr(sys, name, _Tolerant(stream or _nowhere()))  # None if it was closed


def _nowhere() -> TextIO:
    return open(os.devnull, "w")


class _Tolerant:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        with suppress(AttributeError, ValueError):  # not a file, or closed
            cast(Any, stream).reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:  # noqa: ANN401 - as io has it
        """Write, or drop the lines."""
        with self._dropping():
            self._stream.writelines(lines)

    def flush(self) -> None:
        """Flush, or drop what is buffered."""
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # nobody reads it, the disk is full, or it is closed
            # What is buffered goes nowhere; otherwise Python would complain when it flushes the stream at exit.
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)
