"""`wst serve` on an upstream server that closes idle connections just as they are used again."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import pytest
from inference_servers import serving

from wst import Instruction, StudentPrompt
from wst.inference.server import Gateway

ANSWER = json.dumps({"choices": [{"message": {"role": "assistant", "content": "hello"}}]}).encode()


def _read(connection: socket.socket) -> None:
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(65536)
    head, _, body = content.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += connection.recv(65536)


def _answer(connection: socket.socket) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n"
    connection.sendall(head.encode() + ANSWER)


@contextmanager
def closing_upstream(reads: bool) -> Iterator[tuple[str, list[str]]]:
    """Serve one request a connection; at the second one close the connection, unread or when it has been read."""
    happened: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    _read(connection)
                    happened.append("read")
                    _answer(connection)
                    select.select([connection], [], [])  # the second request, or the client's end
                    if reads:
                        _read(connection)
                        happened.append("read")
                    happened.append("closed")

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", happened
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("reads", "second"), [(False, 200), (True, 502)])
def test_a_request_that_was_not_read_is_sent_again_and_one_that_may_be_paid_for_is_not(
    reads: bool, second: int
) -> None:
    with closing_upstream(reads) as (upstream, happened):
        gateway = Gateway(lambda queries: [Instruction("Think.") for _ in queries], StudentPrompt(), upstream)
        with serving(gateway.app()) as url:
            body = {"messages": [{"role": "user", "content": "two plus two"}]}
            for status in (200, second):
                answer = httpx2.post(f"{url}/chat/completions", json=body, timeout=30, trust_env=False)
                assert answer.status_code == status
            assert happened == (["read", "read", "closed"] if reads else ["read", "closed", "read"])
