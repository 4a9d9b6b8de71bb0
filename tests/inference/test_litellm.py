"""The hook of a LiteLLM proxy: with the real proxy where it is installed, and by itself."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import openai
import pytest
import yaml
from inference_servers import Upstream, serving
from servers import litellm_proxy

from wst import Instruction, Instructor
from wst.errors import ConfigError

KEY = f"sk-{secrets.token_hex(32)}"  # the proxy wants a strong one
INSTALLED = importlib.util.find_spec("litellm") is not None

#: The file beside the proxy's config: the hook, before a teacher that fails on command.
HOOK = """
import time
from wst.inference.litellm import TeacherHook

hook = TeacherHook({folder!r}, deadline=1.0, device="cpu")
write = hook.batcher.write

def moody(queries):
    for query in queries:
        if query.text == "break":
            raise RuntimeError("broken")
        if query.text == "hang":
            time.sleep(1000)
    return write(queries)

hook.batcher.write = moody
"""


# ------------------------------------------------------------- the real proxy


@pytest.fixture
def proxy(folder: Path, tmp_path: Path) -> Iterator[tuple[Upstream, str]]:
    upstream = Upstream()
    (tmp_path / "moody_teacher.py").write_text(HOOK.format(folder=str(folder)))
    with serving(upstream.app()) as url:
        model = {"model": "openai/s", "api_base": url, "api_key": "sk-upstream"}
        config = {
            "model_list": [{"model_name": "s", "litellm_params": model}],
            "litellm_settings": {"callbacks": ["moody_teacher.hook"]},
            "general_settings": {"master_key": KEY},
        }
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        with litellm_proxy(tmp_path / "config.yaml") as root:
            upstream.asked.clear()
            yield upstream, f"{root}/v1"


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="litellm[proxy] is not installed: it pins other versions (docs/serving.md)")
def test_the_real_proxy_puts_the_teacher_before_its_providers(folder: Path, proxy: tuple[Upstream, str]) -> None:
    upstream, url = proxy
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    wanted = Instructor.from_pretrained(str(folder), "cpu")("two plus two")

    def ask(text: str, **more: Any) -> tuple[str | None, str]:
        raw = client.chat.completions.with_raw_response.create(
            model="s", messages=[{"role": "user", "content": text}], **more
        )
        return raw.headers.get("x-wst-status"), str(raw.parse().choices[0].message.content)

    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert ask("two plus two", tools=tools, seed=3) == ("instructed", f"two plus two\n\n{wanted}")
    (sent,) = upstream.asked
    assert (sent["tools"], sent["seed"]) == (tools, 3)
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert "metadata" not in sent
    stream = client.chat.completions.create(
        model="s", messages=[{"role": "user", "content": "two plus two"}], stream=True
    )
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert said.split() == f"two plus two {wanted}".split()
    assert ask("break") == ("error", "break")
    assert ask("hang") == ("timeout", "hang")
    assert ask("two plus two") == ("timeout", "two plus two")
    assert len(upstream.asked) == 5
    assert {headers["authorization"] for headers in upstream.headers} == {"Bearer sk-upstream"}


# ------------------------------------------------------------------ by itself


@pytest.fixture
def hook(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A hook on a stand-in for LiteLLM's base class."""
    parent = ModuleType("litellm.integrations.custom_logger")
    parent.CustomLogger = type("CustomLogger", (), {})  # type: ignore[attr-defined]
    for name in ("litellm", "litellm.integrations"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, parent.__name__, parent)
    monkeypatch.delitem(sys.modules, "wst.inference.litellm", raising=False)
    module = importlib.import_module("wst.inference.litellm")
    monkeypatch.setitem(sys.modules, "wst.inference.litellm", module)  # forgotten again afterwards
    with pytest.raises(ConfigError, match="deadline"):
        module.TeacherHook(str(folder), deadline=0)
    return module.TeacherHook(str(folder), device="cpu")


def call(hook: Any, data: dict[str, Any], kind: str = "acompletion") -> tuple[Any, Any]:
    async def both() -> tuple[Any, Any]:
        done = await hook.async_pre_call_hook(None, None, data, kind)
        header = await hook.async_post_call_response_headers_hook(done or data, None, response=None)
        return done, header

    return asyncio.run(both())


def asking(content: Any) -> dict[str, Any]:
    return {"model": "s", "messages": [{"role": "user", "content": content}], "metadata": {"mine": 1}, "n": 2}


def test_the_hook_changes_the_messages_alone(hook: Any) -> None:
    hook.batcher.write = lambda queries: [Instruction(f"Z {query.text}") for query in queries]
    data = asking("q")
    done, header = call(hook, data)
    assert data == asking("q")
    assert header == {"x-wst-status": "instructed"}
    about = {"wst": {"status": "instructed", "instruction": "Z q"}}
    assert done == data | {
        "messages": [{"role": "system", "content": "You answer."}, {"role": "user", "content": "q\n\nZ q"}],
        "metadata": {"mine": 1} | about,
    }


@pytest.mark.parametrize("data", [{}, {"messages": []}, {"messages": [{"role": "user", "content": 5}]}, {"input": "x"}])
def test_what_is_no_chat_goes_through(hook: Any, data: dict[str, Any]) -> None:
    assert call(hook, data) == (None, None)
    assert call(hook, asking("q"), "aembedding")[0] is None


def test_a_client_cannot_write_the_header(hook: Any) -> None:
    forged = asking("q") | {"metadata": {"wst": {"status": "forged", "instruction": None}}}
    assert call(hook, forged, "aembedding") == (None, None)
    assert call(hook, forged)[1]["x-wst-status"] != "forged"


def test_a_hook_that_fails_lets_the_request_go(hook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("broken")

    hook.batcher.write = fail
    done, header = call(hook, asking("q"))
    assert header == {"x-wst-status": "error"}
    assert done["messages"][-1] == {"role": "user", "content": "q"}
    monkeypatch.setattr(hook.batcher, "ask", fail)
    assert call(hook, asking("q"))[1] == {"x-wst-status": "error"}
