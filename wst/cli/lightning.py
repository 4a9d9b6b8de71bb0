"""The command line: LightningCLI in subclass mode, with three things of our own.

- A user's mistake is one line; ``WST_DEBUG=1`` brings the traceback back.
- ``--ckpt_path last`` and ``best`` find the newest run of the config's logger, and go on in its folder.
- What a checkpoint remembers fills the gaps of what the user says, and never overrules it.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback

from wst.distributed import raised_by_all
from wst.errors import ConfigError, Interrupted, StorageError, WSTError, debugging
from wst.files import storage_fault

_EPILOG = (
    "`wst compare --help`: compare instructors. `wst check --config FILE`: try the reward on the gold answers. "
    "`wst cache --help`: the answers that are kept on disk."
)


_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}
#: What to lower where memory ran out, by the phase of a step.
_TAKES_LESS = {
    "sample": "teacher.init_args.sample_batch_size, or its max_new_tokens",
    "respond": "student.init_args.batch_size, or its max_new_tokens",
    "score": "the reward model's batch_size",
    "update": "micro_batch_size",
}


class OneLineErrors:
    """Makes a parser's errors one line."""

    hint = "; see `wst fit --help` for the options"

    def error(self, message: str, ex: Exception | None = None) -> Any:  # noqa: ANN401 - as argparse has it
        """Raise what argparse would print and exit with.

        Raises:
            ConfigError: Always.
        """
        # Parsers of nested options hand their errors up through here, one after the other.
        raise ConfigError(one_line(message).replace(self.hint, "") + self.hint) from ex


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
            if (mistake := _mistake(error)) is not None:
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


def guarded(command: Callable[[], int]) -> int:
    """Run a command and give its exit code.

    A mistake of the user's (`wst.errors.WSTError`) is printed as one line. Whatever else goes wrong keeps its
    traceback.
    """
    _quieten()
    try:
        return command()
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None or debugging():
            raise
        head = "wst" if isinstance(mistake, Interrupted) else "wst: error"
        rank = cast(Any, rank_zero_only).rank
        if rank and not raised_by_all(error):
            head += f": process {rank}"
        if not rank or not raised_by_all(error):
            print(f"{head}: {one_line(str(mistake))}", file=sys.stderr)
        return mistake.code if isinstance(mistake, Interrupted) else 2


def _mistake(error: BaseException | None) -> BaseException | None:
    """Find what the user can mend behind an error: jsonargparse raises its own from what a constructor raised."""
    while error is not None and not isinstance(error, WSTError | MisconfigurationException):
        if isinstance(error, OSError) and error.errno in _STORAGE:
            return StorageError(storage_fault(error.filename or "a file of the run", error))
        if isinstance(error, torch.OutOfMemoryError):
            phase = next((note for note in getattr(error, "__notes__", []) if note in _TAKES_LESS), None)
            lower = _TAKES_LESS[phase] if phase else "; ".join(_TAKES_LESS.values())
            return WSTError(f"out of GPU memory{f' in phase {phase}' if phase else ''}: lower {lower}")
        error = error.__cause__
    return error


def one_line(message: str) -> str:
    r"""Fold a message of several lines into one.

    jsonargparse says of an optional value why it fits neither the type nor None, and shows the value: only the
    reason that names a cause is kept, after the keys that lead to it.

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


def _unless_told_anyway(failure: threading.ExceptHookArgs) -> None:
    # TensorBoard's thread hands a full disk on to the run, which ends with a line about it.
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in _STORAGE):
        threading.__excepthook__(failure)


def _quieten() -> None:
    """Keep what is no news to the user out of the terminal."""
    threading.excepthook = _unless_told_anyway
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")  # as here
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # on purpose: no dropout
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*when logging on epoch level.*")  # all log the same
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(lambda record: "💡" not in record.getMessage())  # advertisements
