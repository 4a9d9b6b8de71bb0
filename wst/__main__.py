"""Entry point of the ``wst`` command: help and plain mistakes are answered before torch is imported."""

from __future__ import annotations

import difflib
import os
import sys
from importlib import import_module

from wst.cli.errors import guarded
from wst.errors import ConfigError
from wst.terminal import protect_output

#: Module (with a function ``run``) and one line of help for each command.
COMMANDS = {
    "fit": ("wst.cli.lightning", "train the teacher"),
    "validate": ("wst.cli.lightning", "compute the validation metrics"),
    "test": ("wst.cli.lightning", "compare the trained teacher with the untrained one and with no instruction"),
    "predict": ("wst.cli.lightning", "write instructions and responses to predictions.jsonl"),
    "check": ("wst.cli.check", "try the reward on the gold answers of a config"),
    "compare": ("wst.cli.compare", "compare instructors on one test set"),
    "instruct": ("wst.cli.instruct", "write instructions with a trained teacher"),
    "serve": ("wst.cli.serve", "serve a trained teacher before any student, as an OpenAI-compatible server"),
    "distil": ("wst.cli.distil", "find the best static sentence, and compare the trained teacher with it"),
    "gate": ("wst.cli.gate", "give no instruction where the trained teacher may do harm"),
    "cache": ("wst.cli.cache", "show, verify and prune the answers kept on disk"),
}
#: Commands that import torch themselves, if and when they need it.
LIGHT = ("cache", "instruct", "serve")
#: Commands that take LightningCLI's options.
CONFIGURED = ("fit", "validate", "test", "predict", "check")


def main() -> int:
    """Run the command line and return its exit code."""
    protect_output()
    if "LOCAL_RANK" not in os.environ:  # the ranks that this process starts end with it, see `end_with_parent`
        os.environ["WST_RANK_0"] = str(os.getpid())
    return guarded(lambda: _dispatch(sys.argv[1:]))


def _dispatch(args: list[str]) -> int:
    name, *rest = args or [""]
    if name == "--version":
        from wst import __version__

        print(f"wst {__version__}")
        return 0
    if name in ("-h", "--help"):
        from wst.cli.help import overview

        print(overview(COMMANDS))
        return 0
    if name in LIGHT:
        return int(import_module(COMMANDS[name][0]).run(rest))
    if name not in COMMANDS and not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, 1)
        said = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(COMMANDS)}"
        raise ConfigError(f"{f'no command {name!r}' if name else 'no command given'}; {said}")
    from wst.cli.early import check_configs, check_options
    from wst.cli.help import FULL, short_help

    if name in CONFIGURED and {"-h", "--help"} & set(rest):
        print(short_help(name, COMMANDS[name][1]))
        return 0
    check_configs(rest)
    if name in CONFIGURED:
        check_options(rest)
    # As with `python -m`: a config may name classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    from wst.cli.quiet import prepare

    prepare()
    module = COMMANDS.get(name, COMMANDS["fit"])[0]  # options before the command are LightningCLI's
    rest = ["--help" if arg == FULL else arg for arg in rest]
    code: int = import_module(module).run([name, *rest] if module == "wst.cli.lightning" else rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
