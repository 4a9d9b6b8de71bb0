"""``wst serve FOLDER --upstream URL``: an OpenAI-compatible server with a trained teacher before any student."""

from __future__ import annotations

import argparse
import os
import socket
from contextlib import suppress

from wst.cli.options import read_teacher, teacher_parser
from wst.cli.quiet import prepare
from wst.errors import ConfigError


def run(args: list[str]) -> int:
    """Load the teacher, serve until SIGTERM or Ctrl-C, and return the exit code.

    Raises:
        WSTError: If an option is impossible, the extra is not installed, or the teacher cannot be loaded.
    """
    options = _parser().parse_args(args)
    for option in ("deadline", "max_requests", "max_body_mb", "drain"):
        if not getattr(options, option) > 0:
            raise ConfigError(f"wst serve: --{option} must be above 0, got {getattr(options, option)}")
    with _bound(options.host, options.port) as listener:
        return _serve(options, listener)


def _serve(options: argparse.Namespace, listener: socket.socket) -> int:
    prepare()
    try:
        import uvicorn

        from wst.inference.server import Gateway, Limits
    except ImportError as error:
        raise ConfigError(
            f"wst serve: {error.name} is not installed; pip install 'weak-to-strong-transfer[serve]'"
        ) from error
    limits = Limits(options.deadline, options.max_requests, options.max_body_mb * 1_000_000)
    instructor = read_teacher(options)
    gateway = Gateway(
        instructor.write,
        instructor.artefact.student_prompt,
        options.upstream,
        key=_variable("key_env", options.key_env),
        token=_variable("token_env", options.token_env),
        limits=limits,
        **instructor.batches,
    )
    instructor.load()
    instructor("Hello")  # the first call is slower than any other; no client should wait for it
    server = uvicorn.Server(
        uvicorn.Config(
            gateway.app(), log_level="warning", timeout_keep_alive=30, timeout_graceful_shutdown=options.drain
        )
    )
    try:
        listener.listen()  # only now: until the teacher is loaded, clients are refused rather than kept waiting
    except OSError as error:
        raise _not_listening(options.host, options.port, error) from None
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"wst serve: http://{host}:{listener.getsockname()[1]}/v1 before {gateway.upstream}", flush=True)
    with suppress(KeyboardInterrupt):  # uvicorn has ended in order and passes the signal on
        server.run([listener])
    return 0


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address; no client can connect to it yet.

    Raises:
        ConfigError: If it cannot be.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"wst serve: --port must be from 0 to 65535, got {port}")
    if not host.strip():  # the system would listen at every address
        raise ConfigError("wst serve: --host is blank; give an address, such as 127.0.0.1, or leave it out")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        raise _not_listening(host, port, error) from None
    return listener


def _not_listening(host: str, port: int, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or error
    return ConfigError(f"wst serve: cannot listen at {host}, port {port} ({reason}); give another --host or --port")


def _variable(option: str, name: str | None) -> str | None:
    if name is None:
        return None
    value = os.environ.get(name, "")
    if not value or not all("!" <= character <= "~" for character in value):
        raise ConfigError(f"wst serve: --{option} {name}: set it to printable ASCII characters without blanks")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = teacher_parser("serve", "Serve a trained teacher before any student.")
    parser.add_argument(
        "--upstream", required=True, help="base URL of the student's server, such as http://host:8080/v1"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (8000)")
    parser.add_argument("--key_env", help="environment variable with the key for upstream (clients' own keys go on)")
    parser.add_argument("--token_env", help="environment variable with the token that clients must show (none)")
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds a request waits for its instruction (2)")
    parser.add_argument("--max_requests", type=int, default=256, help="requests at once; more get 503 (256)")
    parser.add_argument("--max_body_mb", type=int, default=20, help="size of a request in megabytes (20)")
    parser.add_argument("--drain", type=int, default=30, help="seconds for open requests at SIGTERM (30)")
    return parser
