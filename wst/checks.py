"""Checks of settings that many constructors share."""

from __future__ import annotations

from wst.errors import ConfigError


def check_choice(option: str, got: str, choices: tuple[str, ...]) -> None:
    """Check that an option has one of its values.

    Raises:
        ConfigError: If not.
    """
    if got not in choices:
        raise ConfigError(f"{option} must be one of {', '.join(map(repr, choices))}, got {got!r}")


def check_counts(owner: str, **options: int | None) -> None:
    """Check that each option is at least 1, or None.

    Raises:
        ConfigError: If one is not.
    """
    for option, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(f"{owner}: {option} must be at least 1, got {value}")
