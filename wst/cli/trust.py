"""The settings inside a checkpoint, at the command line: what is taken, what is not, and how the user is told."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.fabric.utilities.rank_zero import rank_zero_only

from wst.cli.errors import Parser
from wst.errors import ConfigError
from wst.training.checkpoint import AtomicCheckpointIO
from wst.training.remembered import listed, nested, settings_in

#: The option that lets a checkpoint set everything. It is no option of the parser, so that no config can hold it.
TRUST = "trust_checkpoint"
#: Parts of the model that have a class and harmless settings.
CLASSES = ("class_path", "teacher.class_path")


def take_option(args: list[str], name: str) -> tuple[list[str], str | None]:
    """Return the arguments without an option, and the last value that it is given.

    >>> take_option(["fit", "--a", "1", "--b=2", "--a=3"], "a")
    (['fit', '--b=2'], '3')
    """
    parser = Parser("wst", add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}")
    found, left = parser.parse_known_args(args)
    return left, getattr(found, name)


def is_true(value: str | None) -> bool:
    """Return whether ``--trust_checkpoint`` says so.

    Raises:
        ConfigError: If its value is neither true nor false.
    """
    if value is not None and value.lower() not in ("true", "false"):
        raise ConfigError(f"{TRUST} must be true or false, got {value!r}")
    return value is not None and value.lower() == "true"


def load_settings(path: Path) -> dict[str, Any]:
    """Return the flat settings in a checkpoint; empty if it was made from Python.

    Raises:
        ModelError: If the file is not a checkpoint.
        ConfigError: If its settings cannot be read.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, "cpu")
    try:
        return settings_in(checkpoint)
    except ConfigError as error:
        raise ConfigError(f"ckpt_path {str(path)!r}: {error}") from error


def as_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat settings as a config has them: arguments of what has a class stand under ``init_args``."""

    def place(value: Any) -> Any:  # noqa: ANN401 - any plain value
        if not isinstance(value, dict):
            return value
        values = {key: place(inner) for key, inner in value.items()}
        class_path = values.pop("class_path", None)
        return values if class_path is None else {"class_path": class_path, "init_args": values}

    whole = place(nested(settings))
    return dict(whole)


def untrusted(error: ConfigError, settings: Mapping[str, Any]) -> ConfigError:
    """Return the error of a config with gaps that a checkpoint could fill, but may not."""
    if not settings:
        return error
    return ConfigError(
        f"{error}; give the run's config.yaml with --config, or let the checkpoint set this with --{TRUST} true: "
        f"{listed(settings)}"
    )


def report_settings(settings: Mapping[str, Any], trust: bool) -> None:
    """Print in one line which settings were taken from the checkpoint because the user trusts it, or which were not."""
    if not settings or cast(Any, rank_zero_only).rank:
        return
    if trust:
        print(f"wst: taken from the checkpoint (--{TRUST} true): {listed(settings)}", file=sys.stderr)
    else:
        print(
            f"wst: the checkpoint was made with other settings, which are not taken from it: {listed(settings)}; give "
            f"them yourself, or take them with --{TRUST} true",
            file=sys.stderr,
        )
