"""`wst serve` from its start to its end."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from inference_servers import Upstream, serving

from wst import Instruction, StudentPrompt
from wst.cli.serve import run
from wst.errors import ConfigError
from wst.inference.server import Gateway


def post(url: str, text: str, **more: Any) -> httpx2.Response:
    body = {"messages": [{"role": "user", "content": text}], **more}
    return httpx2.post(f"{url}/chat/completions", json=body, timeout=60, trust_env=False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--port", "99999"], "--port must be from 0 to 65535, got 99999"),
        (["--port", "-1"], "--port must be from 0 to 65535, got -1"),
        (["--host", "192.0.2.1"], "cannot listen at 192.0.2.1, port 8000"),  # an address of no machine
        (["--host", "x" * 70], "--host"),
        (["--host", ""], "--host is blank"),
        (["--max_body_mb", "0"], "--max_body_mb must be above 0, got 0"),
        (["--drain", "-5"], "--drain must be above 0, got -5"),
    ],
)
def test_an_address_that_is_none_is_said_before_the_teacher_is_read(options: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run(["/no/such/teacher", "--upstream", "http://host/v1", *options])


def test_a_port_in_use_is_said_before_the_teacher_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} \(.*in use\); give another --host or --port"):
            run(["/no/such/teacher", "--upstream", "http://host/v1", "--port", str(port)])
    assert not capsys.readouterr().out


def test_a_request_that_outlasts_the_end_is_told_so() -> None:
    student = Upstream()
    with serving(student.app()) as upstream, ThreadPoolExecutor(1) as pool:
        made = Gateway(lambda queries: [Instruction("Z")] * len(queries), StudentPrompt(), upstream)
        with serving(made.app()) as url:
            waiting = pool.submit(post, url, "slow")
            while not student.asked:
                pass
        answer = waiting.result(60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["message"] == "the server is stopping; try again"
    assert student.left.wait(60)


@pytest.mark.slow
def test_the_command_says_where_it_listens_and_ends_without_a_traceback(folder: Path) -> None:
    student = Upstream()
    with serving(student.app()) as upstream:
        options = ["--upstream", upstream, "--device", "cpu", "--port", "0", "--deadline", "60", "--drain", "1"]
        command = [sys.executable, "-m", "wst", "serve", str(folder), *options]
        with (
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
            ThreadPoolExecutor(2) as pool,
        ):
            try:
                assert process.stdout is not None
                url = process.stdout.readline().split()[2]
                assert post(url, "two plus two").headers["x-wst-status"] == "instructed"
                waiting = pool.submit(post, url, "slow")
                streamed = pool.submit(post, url, "now wait", stream=True)
                while len(student.asked) < 3:
                    pass
                process.send_signal(signal.SIGINT)
                answer = waiting.result(60)
                with pytest.raises(httpx2.RemoteProtocolError):  # the answer was broken off
                    streamed.result(60)
                _, said = process.communicate(timeout=60)
            finally:
                process.kill()
    assert (answer.status_code, process.returncode) == (503, 0)
    assert json.loads(answer.content)["error"]["type"] == "overloaded_error"
    assert "Traceback" not in said
