"""What the vLLM student asks of vLLM: a stand-in with vLLM's interface answers with the same tiny model."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from wst import LocalStudent, Message, Prompt, VLLMStudent
from wst.errors import ConfigError, ModelError
from wst.students import vllm as module

STAND_IN = """
from types import SimpleNamespace

import torch

from wst.modeling.generation import Decoding, generate
from wst.modeling.loading import load_causal_lm

engines = []


class SamplingParams:
    def __init__(self, temperature, max_tokens, stop, stop_token_ids, seed):
        self.temperature, self.max_tokens, self.stop, self.seed = temperature, max_tokens, stop, seed
        self.stop_token_ids = stop_token_ids or []


class LLM:
    def __init__(self, model, **options):
        if options["gpu_memory_utilization"] > 0.9:
            raise ValueError("Free memory on device is less than desired\\nmore words")
        self.model, self.options, self.stopped, self.asked = model, options, False, []
        self.network, self.tokenizer = load_causal_lm(model, device=torch.device("cpu"), dtype="float32")
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self._shut_down))
        engines.append(self)

    def _shut_down(self):
        self.stopped = True

    def get_tokenizer(self):
        return self.tokenizer

    def generate(self, prompts, sampling_params, use_tqdm=True):
        self.asked.append((prompts, sampling_params, use_tqdm))
        return [self._one(*one) for one in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt, settings):
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        ends = (*self.network.generation_config.eos_token_id, *settings.stop_token_ids)
        how = Decoding(ends, self.tokenizer.pad_token_id, settings.max_tokens, settings.temperature)
        (tokens,) = generate(self.network, [prompt["prompt_token_ids"]], how)
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        reason = "stop" if tokens[-1] in ends else "length"
        output = SimpleNamespace(text=text, token_ids=tokens, finish_reason=reason)
        return SimpleNamespace(outputs=[output])
"""
GPU = torch.device("cuda")
PROMPTS = [Prompt((Message("user", text),)) for text in ("one", "another one", "a third", "one")]


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text(STAND_IN)
    (tmp_path / "vllm-1.2.dist-info").mkdir()
    (tmp_path / "vllm-1.2.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import vllm

    yield vllm.engines
    del sys.modules["vllm"]


def test_a_stop_text_that_is_a_special_token_ends_the_answer(tiny_model: str, engines: list[Any]) -> None:
    options: dict[str, Any] = {"dtype": "float32", "max_new_tokens": 300, "stop": ["never", "<|im_start|>"]}
    student, local = VLLMStudent(tiny_model, cache=False, **options), LocalStudent(tiny_model, cache=False, **options)
    student.setup(GPU)
    local.setup(torch.device("cpu"))
    assert student.respond(PROMPTS) == local.respond(PROMPTS)
    assert [settings.stop_token_ids for settings in engines[0].asked[0][1]] == [[2]] * 3


def test_answers_are_those_of_the_model(tiny_model: str, engines: list[Any]) -> None:
    student = VLLMStudent(tiny_model, memory_share=0.4, dtype="float32", max_new_tokens=20, engine_options={"seed": 3})
    student.setup(GPU)
    student.setup(GPU)
    local = LocalStudent(tiny_model, dtype="float32", max_new_tokens=20, cache=False)
    local.setup(torch.device("cpu"))
    assert student.deterministic
    assert student.respond(PROMPTS) == local.respond(PROMPTS)
    assert student.respond(PROMPTS[:2]) == local.respond(PROMPTS[:2])
    (engine,) = engines
    ((prompts, settings, bar),) = engine.asked  # equal prompts were asked once, and the second time none
    assert len(prompts) == 3
    assert not bar
    assert {(s.temperature, s.max_tokens, s.stop, s.seed) for s in settings} == {(0.0, 20, None, None)}
    assert engine.options == {
        "gpu_memory_utilization": 0.4,
        "max_model_len": 2048 + 20,
        "quantization": None,
        "dtype": "float32",
        "revision": None,
        "trust_remote_code": False,
        "seed": 3,
    }
    student.close()
    assert engine.stopped
    with pytest.raises(RuntimeError, match="call setup"):
        student.respond(PROMPTS)
    student.setup(GPU)
    assert len(engines) == 2


def test_a_sampling_student_follows_the_runs_seed(tiny_model: str, engines: list[Any]) -> None:
    student = VLLMStudent(tiny_model, dtype="float32", max_new_tokens=20, temperature=1.0, stop=["x"])
    student.setup(GPU)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append([response.text for response in student.respond(PROMPTS[:1] * 4)])
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) > 1
    assert all(settings[0].stop == ["x"] for _, settings, _ in engines[0].asked)


def test_what_cannot_be_is_said_in_one_line(
    tiny_model: str, engines: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"this run is on cpu; take LocalStudent"):
        VLLMStudent(tiny_model).setup(torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"memory_share must be above 0 and below 1, got 1.5"):
        VLLMStudent(tiny_model, memory_share=1.5)
    with pytest.raises(ModelError, match=r"cannot load it \(Free memory .* more words\); .* memory_share \(now 0.95\)"):
        VLLMStudent(tiny_model, memory_share=0.95).setup(GPU)
    with pytest.raises(ConfigError, match="starts on the first GPU, and this run is on cuda:1"):
        VLLMStudent(tiny_model).setup(torch.device("cuda:1"))
    with pytest.raises(ModelError, match="multiple values"):
        VLLMStudent(tiny_model, engine_options={"model": "twice"}).setup(GPU)
    monkeypatch.setattr(module, "is_distributed", lambda: True)
    with pytest.raises(ConfigError, match="several processes; serve the model"):
        VLLMStudent(tiny_model).setup(GPU)
    assert engines == []


def test_without_vllm_it_says_how_to_get_it(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'weak-to-strong-transfer\[vllm\]'"):
        VLLMStudent(tiny_model)
