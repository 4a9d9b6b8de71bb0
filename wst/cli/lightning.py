"""The command line: LightningCLI in subclass mode, with three things of our own.

- A user's mistake is one line; ``WST_DEBUG=1`` brings the traceback back.
- ``--ckpt_path last`` and ``best`` find the newest run of the config's logger, and go on in its folder.
- What a checkpoint remembers fills the gaps of what the user says, and never overrules it.
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from wst.cli.errors import OneLineErrors, find_mistake, guarded
from wst.errors import ConfigError, WSTError

_EPILOG = (
    "`wst compare --help`: compare instructors. `wst check --config FILE`: try the reward on the gold answers. "
    "`wst cache --help`: the answers that are kept on disk."
)


class _Parser(OneLineErrors, LightningArgumentParser):
    pass


class _SaveConfig(SaveConfigCallback):
    """Saves each stage's config under a name of its own, so that a test in the run's folder keeps the run's."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the config, if there is a log folder to save it in."""
        name = str(getattr(stage, "value", stage))  # Lightning hands over an enum
        self.config_filename = "config.yaml" if name == "fit" else f"config_{name}.yaml"
        if trainer.log_dir is not None:
            super().setup(trainer, pl_module, stage)


class WSTCommandLine(LightningCLI):
    """``wst fit | validate | test | predict``."""

    def __init__(self, *settings: Any, args: ArgsType = None, **named: Any) -> None:  # noqa: ANN401
        given = sys.argv[1:] if args is None else args
        self._called = given[0] if isinstance(given, list) and given else ""
        super().__init__(*settings, args=args, **named)  # type: ignore[misc]

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Set up the subcommands. Lightning's own table of a test would repeat the report's, without intervals."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if add_subcommands and "test" in self._subcommand_parsers:
            self._subcommand_parsers["test"].set_defaults({"verbose": False})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Give the subcommand that is called, or all if none is: building a parser for each takes long."""
        every: dict[str, set[str]] = super().subcommands()
        return {self._called: every[self._called]} if self._called in every else every

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments on top of what the named checkpoint remembers.

        Raises:
            ConfigError: If they do not parse, or ``--ckpt_path`` names no checkpoint.
        """
        args = sys.argv[1:] if args is None else args
        if not isinstance(args, list) or not args or args[0] not in self.subcommands():
            # Told of arguments, Lightning would warn of those in sys.argv, even if they are the same.
            super().parse_arguments(parser, None if args == sys.argv[1:] else args)
            return
        stage, *rest = args
        said = _option(rest, "ckpt_path")
        named = said is not None and Path(said).is_file()
        if named:
            path = said
        else:  # "last" and "best" need the config's logger to be found
            self.config = parser.parse_args(args)
            path = self._find_run(stage)
        remembered = {} if path is None else _remembered(Path(path))
        if remembered:
            with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
                yaml.safe_dump({"model": remembered}, file)
                file.flush()
                self.config = parser.parse_args([stage, f"--config={file.name}", *rest])
            # The temporary file is part of no run: it must not stand among the configs that are saved.
            self.config[stage].config = [c for c in self.config[stage].config or [] if str(c) != file.name]
            self._find_run(stage)
        elif named:
            self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint overrule the user here."""

    def _find_run(self, stage: str) -> str | None:
        """Put the newest run's checkpoint for "last" or "best", and let the logger go on in that run's folder.

        Raises:
            ConfigError: If ``ckpt_path`` names a file that is not there, or no run has such a checkpoint.
        """
        config = self.config[stage]
        name = config.get("ckpt_path")
        if name is None:
            return None
        if name not in ("last", "best"):
            if not Path(name).is_file() and "://" not in name and name not in ("hpc", "registry"):
                raise ConfigError(f"ckpt_path {name!r}: no such file; give a checkpoint file, last or best")
            return None
        folder = _logger_folder(config)
        if folder is None:
            return None  # no logger that numbers its runs: Lightning's own search
        runs = {int(m[1]): p for p in folder.glob("version_*") if (m := re.fullmatch(r"version_(\d+)", p.name))}
        having = [n for n, run in runs.items() if (run / "checkpoints" / f"{name}.ckpt").is_file()]
        if not having:
            if stage == "fit" and name == "last":
                warnings.warn(f"ckpt_path last: no run under {folder} to go on with; starting anew", stacklevel=2)
                config.ckpt_path = None
                return None
            raise ConfigError(
                f"ckpt_path {name}: no version_*/checkpoints/{name}.ckpt under {folder}; run `wst fit` first, or give "
                "a checkpoint file"
            )
        run = runs[max(having)]
        config.ckpt_path = str(run / "checkpoints" / f"{name}.ckpt")
        config.trainer.logger.init_args.version = max(having)
        return str(config.ckpt_path)

    def before_instantiate_classes(self) -> None:
        """Ask for data before anything is built.

        Raises:
            ConfigError: If the config names none.
        """
        config = self.config[self.subcommand] if self.subcommand else self.config
        if config.get("model") is None:
            raise ConfigError("no model is given; name one in the config as model.class_path (wst.WeakToStrong)")
        if config.get("data") is None:
            raise ConfigError("no data module is given; name one in the config as data.class_path")

    def instantiate_classes(self) -> None:
        """Build what the config names.

        Raises:
            ConfigError: If something of another library does not accept what the config says.
        """
        try:
            super().instantiate_classes()
        except (WSTError, MisconfigurationException):
            raise
        except Exception as error:
            if (mistake := find_mistake(error)) is not None:
                raise mistake from error
            said = f"{type(error).__name__}: {error}"
            raise ConfigError(f"the config cannot be used ({said:.600}); WST_DEBUG=1 shows where") from error


#: How every command sets Lightning's command line up.
SETTINGS: dict[str, Any] = {
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "parser_class": _Parser,
    "parser_kwargs": {"epilog": _EPILOG},
    "trainer_defaults": {"plugins": [{"class_path": "wst.training.checkpoint.AtomicCheckpointIO"}]},
    "auto_configure_optimizers": False,
}


def run(args: list[str] | None = None) -> int:
    """Run ``wst fit``, ``validate``, ``test`` or ``predict`` and give its exit code."""

    def command() -> int:
        WSTCommandLine(
            LightningModule,
            None,
            save_config_callback=_SaveConfig,
            save_config_kwargs={"overwrite": True},
            args=args,
            **SETTINGS,
        )
        return 0

    return guarded(command)


def _option(args: list[str], name: str) -> str | None:
    """Value of the last ``--name VALUE`` or ``--name=VALUE``."""
    value = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"--{name}="):
            value = arg.partition("=")[2]
    return value


def _remembered(path: Path) -> dict[str, Any]:
    """Class and arguments of the model as a checkpoint has them; empty if it was made from Python.

    Raises:
        ConfigError: If the file is not a checkpoint.
    """
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        hparams = dict(checkpoint.get("hyper_parameters", {}))
    except Exception as error:
        raise ConfigError(
            f"ckpt_path {str(path)!r}: not a checkpoint that loads with weights_only ({type(error).__name__}); "
            "give one that `wst fit` wrote"
        ) from error
    hparams.pop("_instantiator", None)
    class_path = hparams.pop("_class_path", None)
    return {"class_path": class_path, "init_args": hparams} if class_path else {}


def _logger_folder(config: Any) -> Path | None:  # noqa: ANN401 - jsonargparse's Namespace
    """Folder that the config's logger keeps its numbered runs in."""
    logger = config.trainer.get("logger")
    init = logger.get("init_args") if hasattr(logger, "get") else None
    if init is None or init.get("save_dir") is None or init.get("version") is not None:
        return None
    return Path(init.save_dir) / (init.get("name") or "lightning_logs")
