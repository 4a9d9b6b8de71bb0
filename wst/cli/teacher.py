"""The options of commands that write with a trained teacher."""

from __future__ import annotations

import argparse

from wst.inference.instructor import Instructor
from wst.inference.remote import TeacherServer


def add_teacher(parser: argparse.ArgumentParser, batch: str) -> None:
    """Add the teacher and where it is computed; ``batch`` says what ``--batch_size`` is."""
    parser.add_argument("teacher", help="folder that `wst fit` exported (teacher/best), or a hub id")
    parser.add_argument("--base", help="where the base model lies on this machine (as the teacher says)")
    parser.add_argument("--revision", help="branch, tag or commit of a teacher on the hub")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--batch_size", type=int, default=32, help=f"{batch} (32)")
    parser.add_argument("--server", help="base URL of a server that serves the teacher, in place of weights here")
    parser.add_argument("--server_model", default="teacher", help="the teacher's name there (teacher)")
    parser.add_argument("--server_key_env", help="environment variable with the key for --server (it wants none)")


def read_teacher(options: argparse.Namespace) -> Instructor:
    """Return the teacher that the options name.

    Raises:
        WSTError: If it is not there, or an option is impossible.
    """
    server = None
    if options.server is not None:
        server = TeacherServer(options.server, options.server_model, options.server_key_env)
    return Instructor.from_pretrained(
        options.teacher,
        options.device,
        base=options.base,
        revision=options.revision,
        batch_size=options.batch_size,
        server=server,
    )
