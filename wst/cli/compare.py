"""``wst compare``: compare instructors on one test set."""

from __future__ import annotations

from jsonargparse import ArgumentParser

from wst.cli.errors import OneLineErrors, guarded
from wst.cli.parser import mend
from wst.errors import ConfigError
from wst.evaluation import Comparison, compare, rebuild
from wst.evaluation.tables import show

mend()


class _Parser(OneLineErrors, ArgumentParser):
    hint = "; see `wst compare --help` for the options"


def run(args: list[str]) -> int:
    """Run the command and return its exit code: 1 if an arm or a student could not be run, 2 for a user error."""

    def command() -> int:
        again = any(arg.partition("=")[0] == "--from" for arg in args)
        comparison = _rebuild(args) if again else _compare(args)
        show(comparison)
        return int(bool(comparison.errors))

    return guarded(command)


def _compare(args: list[str]) -> Comparison:
    parser = _Parser(prog="wst compare", description="Compare which instructors help the student, and which harm it.")
    parser.add_argument("--config", action="config", help="a YAML file with the options below; later options win")
    parser.add_argument("--from", metavar="ROWS.jsonl", help="rebuild figures and report, asking nobody; no config")
    parser.add_function_arguments(compare, sub_configs=True)
    made = vars(parser.instantiate(parser.parse_args(args)))
    if made["from"] is not None:
        raise ConfigError("compare: --from is given on the command line, not in a config, and needs no config")
    return compare(**{name: value for name, value in made.items() if name not in ("config", "from")})


def _rebuild(args: list[str]) -> Comparison:
    parser = _Parser(prog="wst compare --from")
    parser.add_argument("--from", dest="rows", type=str, required=True)
    parser.add_argument("--output", type=str | None, default=None)
    parser.add_argument("--resamples", type=int, default=10_000)
    options = parser.parse_args(args)
    return rebuild(options.rows, options.output, options.resamples)
