"""``wst fit | validate | test | predict``: LightningCLI in subclass mode, with three additions.

- A user's mistake is one line; ``WST_DEBUG=1`` shows the traceback.
- ``--ckpt_path last`` and ``best`` find the newest run of the config's logger, and go on in its folder.
- Harmless settings in a checkpoint fill the gaps of what the user says. The user always wins.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from jsonargparse import dict_to_namespace
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from wst.cli.errors import OneLineErrors, find_mistake, guarded
from wst.cli.parser import mend
from wst.cli.runs import find_run
from wst.cli.trust import CLASSES, TRUST, as_config, is_true, load_settings, report_settings, take_option, untrusted
from wst.errors import ConfigError, WSTError
from wst.files import write_whole
from wst.training.folders import log_folder, run_number
from wst.training.remembered import flat, harmless, withheld

_EPILOG = (
    "`wst compare --help`: compare instructors. `wst check --config FILE`: try the reward on the gold answers. "
    "`wst cache --help`: the answers that are kept on disk."
)


mend()


class _Parser(OneLineErrors, LightningArgumentParser):
    def save(self, cfg: Any, path: Any, **options: Any) -> None:  # noqa: ANN401 - jsonargparse's signature
        """Save a config as UTF-8, whole or not at all; jsonargparse uses the locale's encoding."""
        write_whole(Path(path), self.dump(cfg, skip_none=bool(options.get("skip_none"))))


class _SaveConfig(SaveConfigCallback):
    """Saves each stage's config under a name of its own, so that a test in the run's folder keeps the run's."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save the config in the run's folder; Lightning takes one that all runs of W&B or MLflow share."""
        name = str(getattr(stage, "value", stage))  # Lightning hands over an enum
        if trainer.is_global_zero and not cast(Any, trainer).fast_dev_run:
            file = "config.yaml" if name == "fit" else f"config_{name}.yaml"
            folder = log_folder(trainer)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, folder / file, skip_none=False, overwrite=True)


class WSTCommandLine(LightningCLI):
    """``wst fit | validate | test | predict``."""

    def __init__(self, *settings: Any, args: ArgsType = None, **named: Any) -> None:  # noqa: ANN401
        given = sys.argv[1:] if args is None else args
        self._called = given[0] if isinstance(given, list) and given else ""
        super().__init__(*settings, args=args, **named)  # type: ignore[misc]

    def setup_parser(
        self, add_subcommands: bool, main_kwargs: dict[str, Any], subparser_kwargs: dict[str, Any]
    ) -> None:
        """Set up the subcommands, without Lightning's table of test figures: the report has them with intervals."""
        super().setup_parser(add_subcommands, main_kwargs, subparser_kwargs)
        if add_subcommands and "test" in self._subcommand_parsers:
            self._subcommand_parsers["test"].set_defaults({"verbose": False})

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the subcommand that is called, or all if none is: building a parser for each takes long."""
        every: dict[str, set[str]] = super().subcommands()
        return {self._called: every[self._called]} if self._called in every else every

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the arguments, and fill their gaps with what the checkpoint's settings may fill.

        Raises:
            ConfigError: If they do not parse, or ``--ckpt_path`` names no checkpoint.
        """
        self._parse(parser, sys.argv[1:] if args is None else args)
        config = self.config.get(self._called) or self.config
        seed = config.get("seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise ConfigError(f"seed_everything must be at least 0 and below 2**32, got {seed}")
        for part in ("trainer", "model", "data"):
            for name, value in flat(config.as_dict().get(part) or {}).items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise ConfigError(f"{part}.{name} must be a finite number, got {value}")

    def _parse(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        if not isinstance(args, list) or not args or args[0] not in self.subcommands():
            # Given arguments, Lightning would warn of those in sys.argv, even if they are the same.
            super().parse_arguments(parser, None if args == sys.argv[1:] else args)
            return
        args, said = take_option(args, TRUST)
        trusted = is_true(said)
        self.config = None
        try:
            self.config = parser.parse_args(args)
        except ConfigError as error:
            path = take_option(args, "ckpt_path")[1]
            if path is None or not Path(path).is_file():
                raise
            saved = load_settings(Path(path))
            if not trusted:
                raise untrusted(error, saved) from error
        else:
            path = self._find_checkpoint(args[0])
            saved = {} if path is None else load_settings(Path(path))
        if saved:
            self._fill_gaps(parser, args, saved, trusted)

    def _fill_gaps(self, parser: LightningArgumentParser, args: list[str], saved: dict[str, Any], trust: bool) -> None:
        """Parse again on top of the checkpoint's settings, if they make a difference.

        Args:
            parser: Parses the arguments.
            args: The command line, which wins over the checkpoint.
            saved: The checkpoint's settings, flat.
            trust: Whether all of them may be taken.
        """
        stage, *rest = args

        def model(config: Any) -> dict[str, Any]:  # noqa: ANN401 - jsonargparse's Namespace
            return flat(config[stage].as_dict().get("model") or {})

        said, result = {}, {}
        if self.config is not None:
            said, result = model(parser.parse_args(args, defaults=False)), model(self.config)
        classes = {name: value for name, value in result.items() if name in CLASSES}
        taken = saved if trust else harmless(saved, said)
        gaps = withheld(saved, said, result)
        report_settings({name: value for name, value in gaps.items() if trust or name not in taken}, trust)
        if gaps.keys() & taken.keys():
            with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
                json.dump({"model": as_config(taken if trust else taken | classes)}, file)
                file.flush()
                self.config = parser.parse_args([stage, f"--config={file.name}", *rest])
            # The temporary file is part of no run: it must not stand among the configs that are saved.
            self.config[stage].config = [c for c in self.config[stage].config or [] if str(c) != file.name]
            self._find_checkpoint(stage)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let the checkpoint overrule the user here."""

    def _find_checkpoint(self, stage: str) -> str | None:
        """Return the checkpoint's file; for "last" and "best", let the logger go on in the folder of its run.

        Raises:
            ConfigError: If there is no such checkpoint.
        """
        config = self.config[stage]
        name = config.get("ckpt_path")
        if name is None or "://" in name or name in ("hpc", "registry"):
            return None
        if name in ("last", "best"):
            run = find_run(config.trainer.as_dict(), name)
            config.ckpt_path = str(run.checkpoint)
            loggers = config.trainer.logger
            if run.logger is not None:
                logger = dict_to_namespace(run.logger)
                config.trainer.logger = [logger, *loggers[1:]] if isinstance(loggers, list) else logger
            elif run_number(run.checkpoint.parent.parent) is not None:
                config.trainer.default_root_dir = str(run.checkpoint.parent.parent)
        elif not Path(name).is_file():
            raise ConfigError(f"ckpt_path {name!r}: no such file; give a checkpoint file, last or best")
        return str(config.ckpt_path)

    def before_instantiate_classes(self) -> None:
        """Check that model and data are given, before anything is built.

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
    """Run ``wst fit``, ``validate``, ``test`` or ``predict``, and return its exit code."""

    def command() -> int:
        WSTCommandLine(
            LightningModule,
            None,
            save_config_callback=_SaveConfig,
            args=args,
            **SETTINGS,
        )
        return 0

    return guarded(command)
