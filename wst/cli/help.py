"""The short help of the commands, written without importing torch."""

from __future__ import annotations

import ast
import json
import textwrap
from collections.abc import Mapping

from wst.cli.signatures import signature_of

FULL = "--help=all"
#: Classes whose options the short help lists, and the option that each stands under.
SHOWN = {
    "wst.WeakToStrong": "--model.init_args",
    "wst.Teacher": "--model.init_args.teacher.init_args",
    "wst.LocalStudent": "--model.init_args.student.init_args",
    "wst.QueryDataModule": "--data.init_args",
}
_COMMON = """\
usage: wst {name} --config FILE [--config FILE ...] [--OPTION VALUE ...]

{purpose}. A class is named by its class path, and its options stand under init_args, in the
config as on the command line. Later configs and options win over earlier ones.

  -c, --config FILE                YAML file with any of the options
  --ckpt_path FILE | last | best   checkpoint to go on with, or to test; last and best are of the newest run
  --trust_checkpoint true          take addresses, files, classes and code permissions from the checkpoint too
  --seed_everything N              seed of the run (default: 0)
  --trainer.NAME VALUE             option of Lightning's Trainer: max_steps, devices, strategy, logger, callbacks, ...
  --model CLASS, --data CLASS      wst.WeakToStrong or wst.PreferenceModel; wst.QueryDataModule, wst.GSM8K, ...
  --print_config                   print the whole configuration and exit
"""
_MORE = """
All options of the trainer: wst {name} {full}
Options of any class:       wst {name} --model.help CLASS (also --data.help, --trainer.logger.help, ...)
"""


def overview(commands: Mapping[str, tuple[str, str]]) -> str:
    """Return the help of ``wst`` itself.

    Args:
        commands: Module and purpose of each command by name.
    """
    rows = "".join(f"  {name:<10}{purpose}\n" for name, (_, purpose) in commands.items())
    return (
        "usage: wst COMMAND [OPTIONS]\n\nWeak-to-Strong Transfer: train a small teacher to write the instructions a "
        f"frozen student needs.\n\n{rows}\n`wst COMMAND --help` lists a command's options, `wst --version` the version."
    )


def short_help(name: str, purpose: str) -> str:
    """Return the main options of a command that runs a config, with their defaults.

    They are read from the source of the classes, so that they cannot differ from what the parser accepts.
    """
    sections = [_section(class_path, option) for class_path, option in SHOWN.items()]
    head = _COMMON.format(name=name, purpose=purpose.capitalize())
    return head + "".join(sections) + _MORE.format(name=name, full=FULL)


def _section(class_path: str, option: str) -> str:
    signature = signature_of(class_path)
    if signature is None:  # its arguments cannot be read from the source: the full help has them
        return ""
    rows = [f"\n{class_path}: {option}.NAME VALUE\n"]
    for name, default in signature.defaults.items():
        told = signature.described.get(name, "")
        shown = " (required)" if default is None else f" (default: {_as_yaml(default)})"
        text = textwrap.fill(told + shown, 116, initial_indent=" " * 27, subsequent_indent=" " * 27)
        rows.append(f"  {name:<24} {text[27:]}\n")
    return "".join(rows)


def _as_yaml(source: str) -> str:
    try:
        return json.dumps(ast.literal_eval(source))
    except ValueError:  # an expression
        return source
