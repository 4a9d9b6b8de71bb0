"""``wst instruct FOLDER``: instructions for texts, without a student."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from wst.cli.options import read_teacher, teacher_parser
from wst.cli.quiet import prepare
from wst.errors import ConfigError, DataError


def run(args: list[str]) -> int:
    """Write an instruction for each text and return the exit code.

    Raises:
        WSTError: If the teacher cannot be loaded, a text is blank, or a line of standard input is not what the options
            say.
    """
    options = _parser().parse_intermixed_args(args)  # a text may follow an option
    if blank := [number for number, text in enumerate(options.text, 1) if not text.strip()]:
        raise DataError(f"wst instruct: text {blank[0]} is blank; leave it out")
    prepare()
    instructor = read_teacher(options)
    asked = [(text, {"query": text}) for text in options.text] or _stdin(options.jsonl, options.field)
    remaining = iter(asked)
    while batch := list(islice(remaining, options.batch_size)):
        written = instructor([text for text, _ in batch], sample=options.sample)
        for (_, row), instruction in zip(batch, written, strict=True):
            print(_line(row, instruction, options.jsonl), flush=True)
    return 0


def _line(row: dict[str, Any], instruction: str, jsonl: bool) -> str:
    if jsonl:
        return json.dumps(row | {"instruction": instruction}, ensure_ascii=True)
    # One instruction a line, whatever the teacher wrote: no line breaks, no control sequences for the terminal.
    return " ".join("".join(c if c.isprintable() else " " for c in instruction).split())


def _stdin(jsonl: bool, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield texts to write for, each with the JSON Lines row that it stood in."""
    from wst.inference.chat import read_json  # the package imports much

    if sys.stdin is None:
        raise ConfigError("wst instruct: no text is given, and standard input is closed; give texts or a file (< FILE)")
    lines: Iterable[bytes] = sys.stdin.buffer
    for number, raw in enumerate(lines, 1):
        place = f"standard input, line {number}"
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: it is not UTF-8 ({error.reason}); convert it first") from error
        if not line.strip():
            continue
        if not jsonl:
            yield line, {}
            continue
        try:
            row = read_json(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: it is not JSON ({error!s:.100}); leave out --jsonl for plain text") from error
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            raise DataError(f"{place}: there is no text in field {field!r}; name the field with --field")
        if not row[field].strip():
            raise DataError(f"{place}: the text in field {field!r} is blank; leave the row out")
        yield row[field], row


def _parser() -> argparse.ArgumentParser:
    parser = teacher_parser("instruct", "Write instructions with a trained teacher; the student need not be up.")
    parser.add_argument("text", nargs="*", help="texts to write for; without any, they are read from standard input")
    parser.add_argument("--jsonl", action="store_true", help="read JSON Lines, and write them with a field instruction")
    parser.add_argument("--field", default="query", help="field of a JSON Lines row that holds the text (query)")
    parser.add_argument("--sample", action="store_true", help="sample at the temperature of training (greedy)")
    return parser
