"""Entry point of the ``wst`` command: help and plain mistakes are answered before torch is imported."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from wst.cli import COMMANDS, CONFIGURED, LIGHT
from wst.cli.errors import guarded
from wst.errors import ConfigError
from wst.terminal import protect_output


def main() -> int:
    """Run the command line and return its exit code."""
    protect_output()
    if "LOCAL_RANK" not in os.environ:  # the ranks that this process starts end with it, see `end_with_parent`
        os.environ["WST_RANK_0"] = str(os.getpid())
    return guarded(lambda: _dispatch(sys.argv[1:]))


def _dispatch(args: list[str]) -> int:
    if sys.platform == "win32":
        raise ConfigError("wst runs on Linux and macOS; on Windows use WSL (`wsl --install`)")
    name, *rest = args or [""]
    if name == "--version":
        from wst import __version__

        print(f"wst {__version__}")
        return 0
    if name in ("-h", "--help"):
        from wst.cli.help import overview

        print(overview())
        return 0
    if name == "help" and rest and rest[0] in COMMANDS:
        return _dispatch([rest[0], "--help"])
    if name in LIGHT:
        return int(import_module(COMMANDS[name][0]).run(rest))
    from wst.cli.early import check_configs, check_options, did_you_mean

    if name not in COMMANDS and not name.startswith("-"):
        said = did_you_mean(name, COMMANDS, otherwise=f"the commands are {', '.join(COMMANDS)}")
        raise ConfigError(f"{f'no command {name!r}' if name else 'no command given'}; {said}")
    from wst.cli.help import FULL, short_help
    from wst.cli.parts import WAITING, check_parts

    if name in CONFIGURED and {"-h", "--help"} & set(rest):
        print(short_help(name))
        return 0
    check_configs(rest)
    # As with `python -m`: a config may name classes in files of the current folder.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if name in CONFIGURED:
        settings = check_options(rest, CONFIGURED[name])
        if not any(arg.startswith(WAITING) for arg in rest):
            check_parts(settings)
    from wst.cli.quiet import prepare

    prepare()
    module = COMMANDS.get(name, COMMANDS["fit"])[0]  # options before the command are LightningCLI's
    rest = ["--help" if arg == FULL else arg for arg in rest]
    code: int = import_module(module).run([name, *rest] if module == "wst.cli.lightning" else rest)
    return code


if __name__ == "__main__":
    sys.exit(main())
