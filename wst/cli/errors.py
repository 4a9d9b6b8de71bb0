"""Errors at the command line: a user's mistake is one line, everything else keeps its traceback."""

from __future__ import annotations

import argparse
import difflib
import errno
import inspect
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from wst.errors import ConfigError, Interrupted, StorageError, WSTError, debugging
from wst.files import storage_fault
from wst.terminal import printable

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
#: What to lower after running out of memory, by the phase of a step.
_TAKES_LESS = {
    "sample": "teacher.init_args.sample_batch_size, or its max_new_tokens",
    "respond": "student.init_args.batch_size, or its max_new_tokens",
    "score": "the reward model's batch_size",
    "update": "micro_batch_size",
}


class OneLineErrors:
    """Mixin for an argument parser: raise its errors as a `ConfigError` of one line."""

    hint = "; see `wst fit --help` for the options"

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ANN401 - argparse's signature
        """Raise what argparse would print before it exits.

        Raises:
            ConfigError: Always.
        """
        # Parsers of nested options pass their errors up through here, one after the other.
        said, hint = _function_remedy(one_line(message)).replace(self.hint, ""), self.hint
        if unknown := re.search(r"nrecognized arguments: (--[\w.]+)", said):
            near = difflib.get_close_matches(unknown[1], getattr(self, "_option_string_actions", ()), 1)
            hint = f"; did you mean {near[0]}?" if near else hint
        raise ConfigError(said + hint) from ex


class Parser(OneLineErrors, argparse.ArgumentParser):
    """A parser of plain options whose errors are one line."""

    @property
    def hint(self) -> str:  # type: ignore[override]
        """Where the options are listed."""
        return f"; see `{self.prog} --help`"


def guarded(command: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    A user's mistake (`wst.errors.WSTError`) is printed as one line, and the exit code is 2; Ctrl-C as well, with 130.
    Every other error keeps its traceback. Imports nothing heavy: what has not been loaded cannot have raised.
    """
    threading.excepthook = _skip_reported_storage_fault
    try:
        return command()
    except (Exception, KeyboardInterrupt) as error:
        mistake = find_mistake(error)
        if mistake is None or debugging():
            raise
        head = "wst" if isinstance(mistake, Interrupted) else "wst: error"
        # Of an error that all processes raise, rank 0 alone prints the line.
        rank = getattr(_loaded("lightning.fabric.utilities.rank_zero", "rank_zero_only"), "rank", 0)
        by_all = rank > 0 and _loaded("wst.distributed", "raised_by_all")(error)
        if not by_all:
            place = f": process {rank}" if rank else ""
            print(f"{head}{place}: {printable(one_line(str(mistake)))}", file=sys.stderr)
        return mistake.code if isinstance(mistake, Interrupted) else 2


def find_mistake(error: BaseException | None) -> BaseException | None:
    """Return the error in the chain of causes that the user can mend, or None.

    jsonargparse raises its own errors from those of a constructor.
    """
    while error is not None:
        if isinstance(error, WSTError | _loaded("lightning.fabric.utilities.exceptions", "MisconfigurationException")):
            return error
        if isinstance(error, KeyboardInterrupt):
            return Interrupted(signal.SIGINT, None)
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return StorageError(storage_fault(error.filename or "a file of the run", error))
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return ConfigError(f"{error.filename!s:.60}: too long for the name of a file; correct it")
        if isinstance(error, _loaded("torch", "OutOfMemoryError")):
            phase = next((note for note in getattr(error, "__notes__", []) if note in _TAKES_LESS), None)
            lower = _TAKES_LESS[phase] if phase else "; ".join(_TAKES_LESS.values())
            return WSTError(f"out of GPU memory{f' in phase {phase}' if phase else ''}: lower {lower}")
        error = error.__cause__
    return None


def one_line(message: str) -> str:
    r"""Fold a message of several lines into one.

    For an optional value, jsonargparse reports why it fits neither the type nor None, and repeats the value. Keep only
    the reason that names a cause, after the keys that lead to it.

    >>> one_line("Problem with\n  - this:   that")
    'Problem with this: that'
    """
    keys = re.findall(r'Parser key "([^"]+)":', message)
    message = re.sub(r'Parser key "[^"]+":', "", message)
    message = re.sub(r"Does not validate against any of the Union subtypes\s+Subtypes: .*?\s+Errors:", "", message)
    message = re.sub(r"\s*-? *Expected a <class 'NoneType'>(?=\s|$)", "", message)
    message = re.sub(r"\s*Given value( type)?: .*", "", message, flags=re.DOTALL)
    message = re.sub(r"Expected a path but \S+ either not accessible or invalid\s*", "", message)
    lines = [line.strip(" -\t") for line in message.splitlines()]
    text = re.sub(r"\s+", " ", " ".join(line for line in lines if line))
    return f"{'.'.join(dict.fromkeys(keys))}: {text}" if keys else text


_NO_CLASS = re.compile(r"Import path (([\w.]+)\.(\w+)) does not correspond to a subclass of (Reward|Student)\b")


def _function_remedy(said: str) -> str:
    """Name the class that makes a function a reward or a student, where a config names the function alone."""
    found = _NO_CLASS.search(said)
    if found is None or not inspect.isfunction(_loaded(found[2], found[3])):
        return said
    return _NO_CLASS.sub(r"\1 is a function; name wst.Function\4 with function: \1", said)


class _NotLoaded(Exception):
    """Stands for a class of a library that is not loaded: no error is an instance of it."""


def _loaded(module: str, name: str) -> Any:  # noqa: ANN401 - any attribute
    return getattr(sys.modules.get(module), name, _NotLoaded)


def _skip_reported_storage_fault(failure: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer thread passes a full disk on to the run, which ends with one line about it.
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in _STORAGE):
        threading.__excepthook__(failure)
