"""Errors that a user can fix: each is one line that names the place and the remedy."""

import os
import signal


def debugging() -> bool:
    """Return whether ``WST_DEBUG`` asks for tracebacks."""
    return os.environ.get("WST_DEBUG", "") not in ("", "0")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters, or its class's name if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


class WSTError(Exception):
    """Base class of all errors that a user can fix.

    The message is a single line: what is wrong, where (file and row, key, option), and what to do.
    The command line prints it without a traceback unless ``WST_DEBUG=1``.
    """


class ConfigError(WSTError, ValueError):
    """A setting is impossible, or does not fit the other settings."""


class WrongType(ConfigError):
    """A setting is of another type than its constructor takes."""


class DataError(WSTError, ValueError):
    """A data file cannot be read as asked; the message names file and row."""


class ModelError(WSTError):
    """A model, tokenizer or adapter cannot be found or loaded."""


class ContractError(WSTError, RuntimeError):
    """A student, reward or baseline returned something that its interface does not allow."""


class StudentStopped(WSTError):
    """No further call to the student can succeed or is allowed; the run stops and can be resumed."""


class Diverged(WSTError):
    """Loss or gradient was not finite in too many consecutive steps; the run stops with the weights before them."""


class CacheError(WSTError):
    """The answer cache cannot be used: the disk is full, the file is locked, or another version wrote it."""


class StorageError(WSTError):
    """A file cannot be written: the disk is full, or the folder is not writable."""


class Interrupted(WSTError):
    """A signal stopped the run, between two steps.

    Args:
        number: Number of the signal.
        step: Number of steps in the saved checkpoint; None if there was nothing to save.

    Attributes:
        code: The exit code that a shell expects after the signal.
    """

    def __init__(self, number: int, step: int | None) -> None:
        saved = "" if step is None else f" after step {step}, saved as last.ckpt; go on with --ckpt_path last"
        super().__init__(f"ended by {signal.Signals(number).name}{saved}")
        self.code = 128 + number
