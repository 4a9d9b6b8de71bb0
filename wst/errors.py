"""The errors that a user can mend: each is one line that names the place and the remedy."""

import os


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


class CacheError(WSTError):
    """The file of the answer cache cannot be used: the disk is full, it is locked, or not this version's."""
