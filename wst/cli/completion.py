"""``wst completion SHELL``: a script that completes commands, options, classes and configs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib import import_module
from inspect import signature
from typing import Any

from wst.cli import COMMANDS, CONFIGURED
from wst.cli.early import TOP, TRAINER
from wst.cli.errors import Parser
from wst.cli.help import SHOWN
from wst.cli.list import KINDS, names_of
from wst.cli.quiet import prepare
from wst.cli.signatures import public_classes, signature_of
from wst.errors import ConfigError

_EPILOG = """\
bash:  echo 'eval "$(wst completion bash)"' >> ~/.bashrc
zsh:   wst completion zsh > "${fpath[1]}/_wst"
fish:  wst completion fish > ~/.config/fish/completions/wst.fish
"""


#: The configs that come with the package, and files: a function of each shell's own.
_CONFIGS = {
    "bash": '_wst_configs() {{ compgen -W "{names}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": "_wst_configs() {{ compadd -- {names}; _files }}",
    "fish": "function _wst_configs\n  string split ' ' -- '{names}'\n  __fish_complete_path (commandline -ct)\nend",
}
#: bash takes a colon for the end of a word, which a name like wst:quickstart has inside.
_JOINED = """
_wst_joined() {
  local i last=0 joined="" words=(wst)
  for ((i = 1; i <= COMP_CWORD; i++)); do
    if [[ ${COMP_WORDS[i]} == : || ${COMP_WORDS[i - 1]} == : ]]; then
      words[last]+=${COMP_WORDS[i]} joined=$last
    else
      words[++last]=${COMP_WORDS[i]}
    fi
  done
  COMP_WORDS=("${words[@]}")
  COMP_CWORD=$last
  _shtab_wst wst "${words[last]}" "${words[last - 1]}"
  if [[ $joined == "$last" ]]; then
    COMPREPLY=("${COMPREPLY[@]#"${words[last]%:*}:"}")
  fi
}
complete -o filenames -F _wst_joined wst
"""


def run(args: list[str]) -> int:
    """Print the script.

    Raises:
        ConfigError: If the extra is not installed.
    """
    parser = Parser("wst completion", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = parser.parse_args(args).shell
    try:
        import shtab
    except ImportError as error:
        install = "pip install 'weak-to-strong-transfer[completion]'"
        raise ConfigError(f"wst completion: {error.name} is not installed; {install}") from error
    prepare()  # some commands import torch with their options
    print(shtab.complete(_commands(shtab.FILE), shell) + (_JOINED if shell == "bash" else ""))
    return 0


def _commands(file: Any) -> argparse.ArgumentParser:  # noqa: ANN401 - typed only where shtab is installed
    """Return a parser of all commands that is only looked at."""
    parser = argparse.ArgumentParser("wst")
    parser.add_argument("--version", action="store_true", help="show the version")
    commands = parser.add_subparsers()
    for name, (module, purpose) in COMMANDS.items():
        if name in CONFIGURED:
            _add_config(commands.add_parser(name, help=purpose), file, CONFIGURED[name])
        elif name in ("help", "list", "completion"):
            known = {"help": [*COMMANDS, *public_classes()], "list": [*KINDS], "completion": ["bash", "zsh", "fish"]}
            commands.add_parser(name, help=purpose).add_argument("name", choices=known[name])
        elif name == "compare":
            options = ("config", "from", *signature(import_module("wst").compare).parameters)
            _add(commands.add_parser(name, help=purpose), options, file)
        else:
            own = import_module(module)._parser()
            commands.add_parser(name, help=purpose, parents=[own], conflict_handler="resolve")
    return parser


def _add_config(parser: argparse.ArgumentParser, file: dict[str, str], own: Iterable[str]) -> None:
    _add(parser, (*TOP, *own, *(f"trainer.{name}" for name in _options(TRAINER))), file)
    for kind, (_, option) in KINDS.items():
        if option.endswith(" NAME") and kind != "configs":
            parser.add_argument(option.removesuffix(" NAME"), choices=names_of(kind))
    for class_path, option in (*SHOWN.items(), ("wst.EndpointStudent", SHOWN["wst.LocalStudent"])):
        _add(parser, (f"{option.removeprefix('--')}.{name}" for name in _options(class_path)), file)


def _add(parser: argparse.ArgumentParser, options: Iterable[str], file: dict[str, str]) -> None:
    for option in options:
        if f"--{option}" not in parser._option_string_actions:
            action: Any = parser.add_argument(f"--{option}")
            if option == "config":
                action.complete = _configs()
            elif option == "ckpt_path":
                action.complete = file


def _configs() -> dict[str, Any]:
    """Return the completion of a config's name, as shtab takes it."""
    names = " ".join(names_of("configs"))
    functions = {shell: function.format(names=names) for shell, function in _CONFIGS.items()}
    return {"bash": "_wst_configs", "zsh": "_wst_configs", "fish": "(_wst_configs)", "preamble": functions}


def _options(class_path: str) -> Iterable[str]:
    found = signature_of(class_path)
    return found.defaults if found is not None else ()
