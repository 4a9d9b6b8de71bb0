"""``wst help`` and the short help of the commands, read from the source: what torch is not imported for."""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import sys
import textwrap

from wst._moved import MOVED
from wst.cli import COMMANDS
from wst.cli.early import did_you_mean
from wst.cli.signatures import Signature, find_class, public_names, signature_of
from wst.errors import ConfigError, first_line
from wst.terminal import escaped

FULL = "--help=all"
#: Classes whose options the short help lists, and the option that each stands under.
SHOWN = {
    "wst.WeakToStrong": "--model.init_args",
    "wst.Teacher": "--model.init_args.teacher.init_args",
    "wst.LocalStudent": "--model.init_args.student.init_args",
    "wst.QueryDataModule": "--data.init_args",
}
_WIDTH = 118
_HEAD = """\
usage: wst {name} --config FILE [--config FILE ...] [--OPTION VALUE ...]

{purpose}. A class is named by its class path, and its options stand under init_args, in the
config as on the command line. Later configs and options win over earlier ones.
"""
_COMMON = """
The run:
  -c, --config FILE                YAML file with any of the options, or wst:NAME (`wst list configs`)
  --ckpt_path FILE | last | best   checkpoint to go on with, or to test; last and best are of the newest run
  --trust_checkpoint true          take addresses, files, classes and code permissions from the checkpoint too
  --seed_everything N              seed of the run (default: 0)
  --trainer.NAME VALUE             option of Lightning's Trainer: max_steps, devices, strategy, logger, callbacks, ...
  --model CLASS, --data CLASS      wst.WeakToStrong or wst.PreferenceModel; wst.QueryDataModule, wst.GSM8K, ...
  --print_config                   print the whole configuration and exit
"""
_CHECK = """\
  --queries N                      queries tried all the way, with the models; 0: the gold answers alone (default: 2)
"""
_MORE = """
In full, with types:   wst help WeakToStrong (Teacher, EndpointStudent, LabelMatch, torch.optim.AdamW: any class)
All of the trainer's:  wst {name} {full}
What a config names:   wst list
"""


def run(args: list[str]) -> int:
    """Print the help of a class, or of ``wst`` itself.

    Raises:
        ConfigError: If there is no class of that name.
    """
    if not args or args[0].startswith("-"):
        print(overview())
        return 0
    print("\n".join(map(escaped, class_help(args[0]).splitlines())))  # a stranger may have written the class
    return 0


def overview() -> str:
    """Return the help of ``wst`` itself."""
    rows = "".join(f"  {name:<12}{purpose}\n" for name, (_, purpose) in COMMANDS.items())
    return (
        "usage: wst COMMAND [OPTIONS]\n\nWeak-to-Strong Transfer: train a small teacher to write the instructions a "
        f"frozen student needs.\n\n{rows}\n`wst COMMAND --help` lists a command's options, `wst --version` the version."
    )


def short_help(name: str) -> str:
    """Return the main options of a command that runs a config, a line each, with their defaults.

    They are read from the source of the classes, so that they cannot differ from what the parser accepts.
    """
    sections = [_section(class_path, option) for class_path, option in SHOWN.items()]
    head = _HEAD.format(name=name, purpose=COMMANDS[name][1].capitalize())
    common = _COMMON + (_CHECK if name == "check" else "")
    return head + "".join(sections) + common + _MORE.format(name=name, full=FULL)


def _section(class_path: str, option: str) -> str:
    signature = signature_of(class_path)
    if signature is None:  # its arguments cannot be read from the source: the full help has them
        return ""
    rows = [f"\n{class_path}: {option}.NAME VALUE\n"]
    for name in signature.defaults:
        default = _default(signature, name, 60)
        told = re.split(r"(?<=[.;]) ", signature.described.get(name, ""))[0].rstrip(".;")
        text = textwrap.shorten(told, _WIDTH - 29 - len(default), placeholder="…")
        rows.append(f"  {name:<24} {text} {default}\n")
    return "".join(rows)


def class_help(name: str) -> str:
    """Return what a class is, and its options with types and defaults.

    They are read from the source. Where that does not list them, as with a class that inherits its constructor, the
    module is imported: one of this package and what it needs, or for a dotted name the one that is named.

    Args:
        name: A public name of wst, with or without ``wst.``, or an import path.

    Raises:
        ConfigError: If there is no such class.
    """
    class_path = name if "." in name else f"wst.{name}"
    module, _, short = class_path.rpartition(".")
    # The user's own classes are in files of the current folder. Last: no file there stands for another's module.
    if not f"{class_path}.".startswith("wst.") and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    found, signature = find_class(MOVED.get(module, module), short), signature_of(class_path, anywhere=True)
    if found is None and class_path.startswith("wst."):
        raise ConfigError(f"help: no class {class_path!r}; {did_you_mean(short, public_names(), 'wst.')}")
    if found is None or signature is None:
        return _imported_help(class_path)
    text = (ast.get_docstring(found.node) or "").partition("\n\nArgs:")[0].partition("\n\nRaises:")[0]
    rows = [class_path, "", *inspect.cleandoc(text).splitlines(), "", "Options (below init_args in a config):"]
    for option in signature.defaults:
        told = f"{signature.described.get(option, '')} {_default(signature, option)}".strip()
        rows.append(f"  {option}: {signature.types.get(option, 'any')}")
        rows.append(textwrap.fill(told, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(rows if signature.defaults else [*rows[:-1], "It has no options."])


def _imported_help(class_path: str) -> str:
    """Return jsonargparse's help of a class whose arguments its source alone does not list."""
    from jsonargparse import ArgumentParser
    from jsonargparse._util import import_object

    try:
        cls = import_object(class_path)
    except (Exception, SystemExit) as error:  # the file is run, and may do anything
        if isinstance(error, ModuleNotFoundError) and not class_path.startswith(f"{error.name}."):
            raise ConfigError(f"help: {class_path} needs {error.name}, which is not installed") from error
        if not isinstance(error, ImportError | AttributeError | ValueError):
            why = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"help: {class_path.rpartition('.')[0]} cannot be imported ({why})") from error
        wrong = class_path.rpartition(".")[2]
        raise ConfigError(f"help: no class {class_path!r}; {did_you_mean(wrong, public_names(), 'wst.')}") from error
    parser = ArgumentParser(prog=class_path, usage=None, add_help=False)
    try:
        parser.add_class_arguments(cls, fail_untyped=False)
    except ValueError as error:
        raise ConfigError(f"help: {class_path!r} is no class; name one, such as wst.LabelMatch") from error
    found = find_class(*class_path.rpartition(".")[::2])
    text = inspect.cleandoc((found and ast.get_docstring(found.node)) or "").partition("\n\nArgs:")[0]
    listed = str(parser.format_help()).partition("\n\n")[2].strip()
    return "\n\n".join(filter(None, [class_path, text, listed or "It has no options."]))


def _default(signature: Signature, name: str, limit: int = 1000) -> str:
    default = signature.defaults[name]
    return (
        "(required)" if default is None else f"(default: {textwrap.shorten(_as_yaml(default), limit, placeholder='…')})"
    )


def _as_yaml(source: str) -> str:
    try:
        return json.dumps(ast.literal_eval(source))
    except ValueError:  # an expression
        return source
