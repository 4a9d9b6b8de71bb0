"""Adapters and model folders from strangers: each is one line, changes nothing and runs nothing."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from wst import LocalStudent, LoRA, Message, Prompt, Query, Teacher
from wst.errors import Diverged, ModelError, WSTError
from wst.modeling.loading import load_causal_lm
from wst.modeling.spec import ModelSpec

CPU = torch.device("cpu")


def edit(folder: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / file
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def load(model: str, **options: Any) -> Teacher:
    teacher = Teacher(model, dtype="float32", **options)
    teacher.load(CPU)
    return teacher


def one_line(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(WSTError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for word in words:
        assert word in message


def works_or_one_line(action: Callable[[], object]) -> None:
    said = ""
    try:
        action()
    except WSTError as error:
        said = str(error)
    assert "\n" not in said


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """An adapter that the product saved."""
    folder = tmp_path_factory.mktemp("saved")
    load(tiny_model, lora=LoRA(r=4)).save(folder)
    return folder


@pytest.fixture
def adapter(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported, and a file that is there once it was."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap_module.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return sprung


def test_an_adapter_that_the_product_saved_is_taken(adapter: Path, tiny_model: str) -> None:
    assert load(tiny_model, adapter=str(adapter)).full_finetuning is False


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("modules_to_save", ["lm_head"]),
        ("modules_to_save", ["norm"]),
        ("bias", "all"),
        ("bias", "lora_only"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", {"odd": 1}),
        ("trainable_token_indices", [1, 2]),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("target_parameters", ["lm_head.weight"]),
        ("peft_type", "PROMPT_TUNING"),
        ("peft_type", "LOHA"),  # takes memory for any rank
        ("peft_type", "XLORA"),  # asks the hub for the adapters that it names
        ("peft_type", ["LORA"]),
        ("peft_type", {"a": 1}),
        ("peft_type", None),
    ],
)
def test_an_adapter_that_would_do_more_than_adapt_layers_is_refused_before_the_model_is_loaded(
    adapter: Path, tiny_model: str, option: str, value: object
) -> None:
    edit(adapter, "adapter_config.json", lambda config: config.update({option: value}))
    one_line(lambda: Teacher(tiny_model, adapter=str(adapter)), option)


def test_an_adapter_imports_nothing(adapter: Path, tiny_model: str, trap: Path) -> None:
    naming = {"megatron_core": "trap_module", "megatron_config": {"params_dtype": "x"}}
    edit(adapter, "adapter_config.json", lambda config: config.update(naming))
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "megatron_config")
    mapping = {"base_model_class": "Odd", "parent_library": "trap_module"}
    edit(adapter, "adapter_config.json", lambda config: config.update(megatron_config=None, auto_mapping=mapping))
    load(tiny_model, adapter=str(adapter))
    assert not trap.exists()


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.weight",
        "base_model.model.model.norm.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.embed_tokens.weight",
        "lm_head.weight",
        "anything",
    ],
)
def test_weights_that_are_not_an_adapters_are_refused(adapter: Path, tiny_model: str, name: str) -> None:
    size = {"norm": (64,), "q_proj": (64, 64)}.get(name.split(".")[-2] if "." in name else "", (260, 64))
    if "q_proj" in name:
        size = (64, 64)
    edit_weights(adapter, lambda weights: weights.update({name: torch.zeros(size)}))
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "would change the base model", name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_adapter_weights_that_are_not_numbers_are_refused(adapter: Path, tiny_model: str, value: float) -> None:
    edit_weights(adapter, lambda weights: next(iter(weights.values())).view(-1)[3:4].fill_(value))
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "are not numbers")


def test_an_adapter_that_lacks_weights_is_refused(adapter: Path, tiny_model: str) -> None:
    edit_weights(adapter, lambda weights: weights.popitem())
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "1 of its weights are missing")


@pytest.mark.parametrize(
    "changes",
    [{"r": 10**9}, {"r": 16}, {"rank_pattern": {"q_proj": 10**8}}, {"r": "x"}, {"r": -1}],
)
def test_an_adapter_that_asks_for_more_memory_than_its_file_is_refused(
    adapter: Path, tiny_model: str, changes: dict[str, Any]
) -> None:
    edit(adapter, "adapter_config.json", lambda config: config.update(changes))
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "does not fit model")


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ".{14}(.+)+!|.*_proj"},
        {"target_modules": ["(.+)+!"]},
        {"target_modules": 3},
        {"exclude_modules": "(.+)+!"},
        {"layers_pattern": "(.+)+!"},
        {"rank_pattern": {"(.+)+!": 2}},
        {"alpha_pattern": {"(.+)+!": 2}},
    ],
    ids=str,
)
def test_an_adapter_brings_no_regular_expression(adapter: Path, tiny_model: str, changes: dict[str, Any]) -> None:
    edit(adapter, "adapter_config.json", lambda config: config.update(changes))
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "train one with a list of names")
    one_line(lambda: LoRA(target_modules=".*_proj"), "must be all-linear or put in brackets")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_config_of_an_adapter_is_too_odd_for_one_line(
    saved: Path, tiny_model: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("odd") / "adapter"))
    config = json.loads((saved / "adapter_config.json").read_text())
    option = data.draw(st.sampled_from(sorted(config)))
    value = data.draw(JSON)
    edit(folder, "adapter_config.json", lambda config: config.update({option: value}))
    works_or_one_line(lambda: load(tiny_model, adapter=str(folder)).sample([Query("q", "x")], greedy=True))


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, '"LORA"', "\ufeff{}", "{}"])
def test_a_config_that_is_none_is_one_line(adapter: Path, tiny_model: str, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content, encoding="utf-8")
    one_line(lambda: Teacher(tiny_model, adapter=str(adapter)), "adapter")


@pytest.mark.parametrize("size", [0, 7, 8, 100, 5000])
def test_weights_that_are_cut_off_are_one_line(adapter: Path, tiny_model: str, size: int) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    one_line(lambda: load(tiny_model, adapter=str(adapter)), "does not fit model")


def test_damaged_weights_are_one_line_or_weights(adapter: Path, tiny_model: str) -> None:
    path = adapter / "adapter_model.safetensors"
    whole = path.read_bytes()
    for seed in range(20):
        noise = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(10):
            damaged[noise.randrange(2000)] = noise.randrange(256)  # in the header
        path.write_bytes(bytes(damaged))
        with pytest.raises(ModelError) as caught:
            load(tiny_model, adapter=str(adapter))
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------- base of an adapter


def test_an_adapter_does_not_choose_its_base(adapter: Path, tiny_model: str) -> None:
    for named in ("/evil/model", None):
        edit(adapter, "adapter_config.json", lambda config, named=named: config.update(base_model_name_or_path=named))
        assert load(tiny_model, adapter=str(adapter)).source == tiny_model


# ------------------------------------------------------------------------------------------------------ model folders


@pytest.fixture
def folder(tiny_model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_model_folder_runs_no_code_of_its_own(folder: Path, tmp_path: Path, file: str) -> None:
    sprung = tmp_path / "sprung"
    (folder / "modeling_odd.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    names = {"config.json": {"AutoConfig": "modeling_odd.C", "AutoModelForCausalLM": "modeling_odd.M"}}
    mapping = names.get(file, {"AutoTokenizer": ["modeling_odd.T", None]})

    def naming(config: dict[str, Any]) -> None:
        config.update(auto_map=mapping, **({"model_type": "odd"} if file == "config.json" else {}))
        if file == "tokenizer_config.json":
            config["tokenizer_class"] = "OddTokenizer"

    edit(folder, file, naming)
    for action in (ModelSpec(str(folder)).check, lambda: load_causal_lm(str(folder), device=CPU)):
        works_or_one_line(action)
    assert not sprung.exists()


def test_a_folder_with_pickled_weights_runs_nothing(folder: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(sprung), "w"))

    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Bomb()}, folder / "pytorch_model.bin")
    one_line(lambda: load_causal_lm(str(folder), device=CPU), "cannot be loaded")
    assert not sprung.exists()


def test_model_weights_that_are_not_numbers_are_refused(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    one_line(lambda: load_causal_lm(str(folder), device=CPU), "weights model.norm.weight are not numbers")


def test_a_model_whose_weights_become_nan_answers_nothing(tiny_model: str) -> None:
    student = LocalStudent(tiny_model, dtype="float32", max_new_tokens=3, cache=False)
    student.setup(CPU)
    with torch.no_grad():
        student._loaded[0].model.norm.weight[0] = float("nan")
    with pytest.raises(Diverged, match="logits are not numbers"):
        student.respond([Prompt((Message("user", "x"),))])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_config_of_a_model_is_too_odd_for_one_line(
    tiny_model: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("odd") / "model"))
    file = data.draw(st.sampled_from(["config.json", "generation_config.json", "tokenizer_config.json"]))
    option = data.draw(st.sampled_from(sorted(json.loads((folder / file).read_text()))))
    value = data.draw(JSON.filter(lambda value: not (isinstance(value, int) and abs(value) > 10**5)))
    edit(folder, file, lambda config: config.update({option: value}))
    for action in (ModelSpec(str(folder)).check, lambda: load_causal_lm(str(folder), device=CPU, dtype="float32")):
        works_or_one_line(action)


@pytest.mark.parametrize("end", [{}, [[3]], "3", [3, {"a": 1}], 2.5])
def test_an_end_token_that_is_no_id_is_refused(end: Any, tiny_model: str, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    with pytest.raises(ModelError):
        load_causal_lm(ModelSpec(str(folder)), device=CPU)
