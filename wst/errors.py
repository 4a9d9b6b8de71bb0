"""The errors that a user can mend: each is one line that names the place and the remedy."""

import os
import signal


def debugging() -> bool:
    """Whether ``WST_DEBUG`` asks for tracebacks."""
    return os.environ.get("WST_DEBUG", "") not in ("", "0")


class WSTError(Exception):
    """Base of all errors that are the user's to mend.

    The message is a single line: what is wrong, where (file and row, key, option), and what to do.
    The command line prints it without a traceback unless ``WST_DEBUG=1``.
    """


class ConfigError(WSTError, ValueError):
    """A setting is impossible, or does not fit the other settings."""


class DataError(WSTError, ValueError):
    """A data file cannot be read as asked: the message names file and row."""


class ModelError(WSTError):
    """A model, tokenizer or adapter cannot be found or loaded."""


class ContractError(WSTError, RuntimeError):
    """A student, reward or baseline returned what its interface does not allow."""


class StudentStopped(WSTError):
    """No further call can succeed, or may be made: the run ends here, and can be resumed."""


class Diverged(WSTError):
    """Loss or gradient was no number in too many steps in a row: the run ends, with the weights from before them."""


class CacheError(WSTError):
    """The file of the answer cache cannot be used: the disk is full, it is locked, or not this version's."""


class StorageError(WSTError):
    """A file cannot be written: the disk is full, or its folder cannot be used."""


class Interrupted(WSTError):
    """A signal asked the run to end, and it did so between two steps.

    Args:
        number: The signal's.
        step: Steps that the saved checkpoint has behind it; None if nothing was to be saved.

    Attributes:
        code: The exit code that a shell expects of it.
    """

    def __init__(self, number: int, step: int | None) -> None:
        saved = "" if step is None else f" after step {step}, saved as last.ckpt; go on with --ckpt_path last"
        super().__init__(f"ended by {signal.Signals(number).name}{saved}")
        self.code = 128 + number
