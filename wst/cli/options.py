"""Parsers and options that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wst.cli.errors import Parser
from wst.errors import ConfigError

if TYPE_CHECKING:
    from wst.inference.instructor import Instructor


def teacher_parser(command: str, description: str, rest: bool = False) -> Parser:
    """Return a parser of a command that loads a trained teacher.

    Args:
        command: Name of the command.
        description: One sentence for its help.
        rest: Whether the command also takes the options of ``wst fit``; the teacher is then a folder. Otherwise it may
            be a hub id, and texts are written for in batches.
    """
    parser = Parser(
        prog=f"wst {command}",
        description=description,
        epilog="All other options, --config first of all, are those of `wst fit`." if rest else None,
    )
    parser.add_argument(
        "teacher", help=f"folder that `wst fit` exported (teacher/best){'' if rest else ', or a hub id'}"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--base", help="where the base model lies on this machine (as the teacher says)")
    if not rest:
        parser.add_argument("--revision", help="branch, tag or commit of a teacher on the hub")
        parser.add_argument("--batch_size", type=int, default=32, help="texts that the teacher writes for at once (32)")
        parser.add_argument("--server", help="base URL of a server that serves the teacher, in place of weights here")
        parser.add_argument("--server_model", default="teacher", help="the teacher's name there (teacher)")
        parser.add_argument("--server_key_env", help="environment variable with the key for --server (it wants none)")
    return parser


def read_teacher(options: argparse.Namespace) -> Instructor:
    """Return the teacher that the options of `teacher_parser` name.

    Raises:
        WSTError: If it is not there, or an option is impossible.
    """
    from wst.inference.instructor import Instructor  # it imports torch
    from wst.inference.remote import TeacherServer

    server = None
    if options.server is None:
        for option, usual in (("server_model", "teacher"), ("server_key_env", None)):
            if getattr(options, option) != usual:
                raise ConfigError(f"wst: --{option} is for a teacher on a server; give --server, or leave it out")
    else:
        server = TeacherServer(options.server, options.server_model, options.server_key_env)
    return Instructor.from_pretrained(
        options.teacher,
        options.device,
        base=options.base,
        revision=options.revision,
        batch_size=options.batch_size,
        server=server,
    )
