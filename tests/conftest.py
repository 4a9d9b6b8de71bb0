"""Tiny models, written once a session, for every test that needs one by its path."""

import os
import shutil
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before transformers is imported, here and in the subprocesses that tests start: no test may need the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from runs import write_config, wst
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(1)  # tiny models gain nothing from a second thread, which waits in a loop

SPECIAL = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_model(folder: Path, *, chat_template: str | None, pad_token: str | None, eos_token: str) -> str:
    """Write a Llama with 83,000 weights in float32 that reads bytes, and return its path.

    Its sizes are the smallest that bitsandbytes can pack. It ends a text with a probability of about 5% a token.
    Its settings are traps: sampling defaults that change what is generated, and dropout.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos_token, pad_token=pad_token)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)

    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        initializer_range=0.2,
        attention_dropout=0.5,
        bos_token_id=None,
        eos_token_id=vocabulary[eos_token],
        pad_token_id=None if pad_token is None else vocabulary[pad_token],
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        # The first feature is the same everywhere, up to its norm, and speaks for the end and for ASCII.
        model.model.embed_tokens.weight.mul_(5.0)
        model.model.embed_tokens.weight[:, 0] = 4.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        model.lm_head.weight[:, 0] = torch.tensor([1.5 * (token in string.printable) for token in vocabulary])
        model.lm_head.weight[vocabulary[eos_token]] = 0.0
        model.lm_head.weight[vocabulary[eos_token], 0] = 4.05
    model.generation_config = GenerationConfig(
        eos_token_id=vocabulary[eos_token],
        pad_token_id=config.pad_token_id,
        do_sample=True,
        temperature=0.1,
        top_k=2,
        top_p=0.5,
        repetition_penalty=5.0,
    )
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny causal language model with a ChatML template, a padding token and an end token."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return write_tiny_model(folder, chat_template=CHATML, pad_token="<|pad|>", eos_token="<|im_end|>")


@pytest.fixture(scope="session")
def tiny_plain_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny causal language model that has neither a chat template nor a padding token."""
    folder = tmp_path_factory.mktemp("models") / "tiny-plain"
    return write_tiny_model(folder, chat_template=None, pad_token=None, eos_token="<|endoftext|>")


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """Folder with a config, a finished run of the tiny model in runs/tiny/version_0, and what it said in fit.out.

    Nothing but the first run is to be relied on: tests start others there.
    """
    folder = tmp_path_factory.mktemp("fitted")
    write_config(folder, tiny_model)
    done = wst(["fit", "--config", "config.yaml"], folder)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    (folder / "fit.out").write_text(done.out)  # later runs in this folder write their own
    return folder


@pytest.fixture(autouse=True)
def own_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use an empty answer cache for each test; converted models are shared."""
    monkeypatch.setattr("wst.students.cache.cache_dir", lambda: tmp_path / "answers")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium; not for the whole session, since playwright's loop would forbid others `asyncio.run`."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed; pages are not looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
