"""The policy: its log-probabilities against a naive reference, and what it samples against both."""

import json
import math
import random
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from wst.errors import ConfigError, ModelError, WSTError
from wst.modeling import generation
from wst.modeling.loading import load_causal_lm
from wst.prompts import TeacherPrompt
from wst.teacher import LoRA, Teacher
from wst.training.objective import denominator, policy_loss
from wst.types import Instruction, Message, Query

CPU = torch.device("cpu")
TEMPERATURE = 0.7
QUERIES = [
    Query("short", "hi"),
    Query("long", "Say in a few words what this is all about, and mind the commas, please."),
    Query("middle", "2 + 2 = ?", history=(Message("user", "Hello"), Message("assistant", "Yes?"))),
]


def make(model: str, **settings: object) -> Teacher:
    """Load a teacher in float32 whose adapter, if it is new, does something."""
    defaults: dict[str, Any] = {
        "prompt": TeacherPrompt("Instruct: {query}"),
        "lora": LoRA(r=2, alpha=4),
        "dtype": "float32",
        "temperature": TEMPERATURE,
        "max_new_tokens": 12,
    }
    teacher = Teacher(model, **defaults | settings)
    torch.manual_seed(0)
    teacher.load(CPU)
    if teacher.lora is not None and teacher.adapter is None:
        move(teacher)
    return teacher


def move(teacher: Teacher, by: float = 0.05, seed: int = 1) -> None:
    """Change the trained weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainable(teacher):
            weight.add_(by * torch.randn(weight.shape, generator=generator))


def trainable(teacher: Teacher) -> list[nn.Parameter]:
    return [weight for weight in teacher.parameters() if weight.requires_grad]


def base_weights(teacher: Teacher) -> dict[str, Tensor]:
    network = teacher.network
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    assert base is not None
    return {name: weight.clone() for name, weight in base.state_dict().items() if "lora_" not in name}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def sample(teacher: Teacher, samples: int = 3, seed: int = 0, queries: Sequence[Query] = QUERIES) -> list[Instruction]:
    torch.manual_seed(seed)
    return teacher.sample(queries, samples)


def naive_logits(network: Callable[..., Any], instruction: Instruction) -> Tensor:
    """Logits [tokens, vocabulary] that the tokens were sampled from: one row, one plain forward pass."""
    ids = torch.tensor([[*instruction.prompt_ids, *instruction.token_ids]])
    logits: Tensor = network(input_ids=ids).logits[0]
    return logits[len(instruction.prompt_ids) - 1 : -1]


def naive(network: Callable[..., Any], instruction: Instruction) -> Tensor:
    log_probs = (naive_logits(network, instruction) / TEMPERATURE).log_softmax(dim=-1)
    return log_probs[torch.arange(len(instruction.token_ids)), torch.tensor(instruction.token_ids)]


def naive_sums(network: Callable[..., Any], instructions: Sequence[Instruction]) -> Tensor:
    with torch.no_grad():
        return torch.stack([naive(network, instruction).sum() for instruction in instructions])


def sums(teacher: Teacher, instructions: Sequence[Instruction]) -> Tensor:
    """Log-probability of each whole instruction."""
    with torch.no_grad():
        z = teacher.log_probs(instructions)
    return (z.values * z.mask).sum(dim=1)


def gradients(teacher: Teacher, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, trainable(teacher))])


def step(teacher: Teacher, instructions: Sequence[Instruction]) -> None:
    """Make one gradient step on the instructions' log-probability."""
    optimizer = torch.optim.SGD(trainable(teacher), lr=0.02)
    z = teacher.log_probs(instructions)
    policy_loss(z.values, z.mask, torch.ones(len(instructions)), torch.tensor(1.0)).backward()
    nn.utils.clip_grad_norm_(trainable(teacher), 1.0)
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture(scope="module", params=["chat template", "no chat template", "query last"])
def teacher(request: pytest.FixtureRequest, tiny_model: str, tiny_plain_model: str) -> Teacher:
    """A teacher with an adapter that no test may change; in the last form prompts do not end alike."""
    teacher = make(tiny_plain_model if request.param == "no chat template" else tiny_model)
    if request.param == "query last":
        teacher.tokenizer.chat_template = "{{ messages[-1].content }}"
    return teacher


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    """Folder of an adapter that was trained elsewhere, with dropout, a rank of its own and some layers only."""
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        r=3, lora_alpha=6, lora_dropout=0.5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)
    return str(folder)


# --- Log-probabilities


def test_samples_are_of_many_lengths_and_ends(teacher: Teacher) -> None:
    """What the tests below rely on: a batch where padding and end tokens matter."""
    instructions = sample(teacher, 6)
    assert len({len(i.token_ids) for i in instructions}) > 3
    assert {i.truncated for i in instructions} == {True, False}
    assert len({len(i.prompt_ids) for i in instructions}) == 3


def test_log_probs_are_those_of_a_plain_forward_pass_in_values_and_gradients(teacher: Teacher) -> None:
    instructions = sample(teacher, 5)
    random.Random(0).shuffle(instructions)
    z = teacher.log_probs(instructions, entropy=True)
    weights = torch.randn(z.values.shape, generator=torch.Generator().manual_seed(3))
    expected_loss = torch.tensor(0.0)
    for row, instruction in enumerate(instructions):
        count = len(instruction.token_ids)
        expected = naive(teacher.policy, instruction)
        assert z.mask[row].tolist() == [True] * count + [False] * (z.mask.shape[1] - count)
        torch.testing.assert_close(z.values[row, :count], expected, rtol=0, atol=1e-5)
        assert z.entropy is not None
        entropy = torch.distributions.Categorical(
            logits=naive_logits(teacher.policy, instruction) / TEMPERATURE
        ).entropy()
        torch.testing.assert_close(z.entropy[row, :count], entropy, rtol=0, atol=1e-5)
        expected_loss = expected_loss + (weights[row, :count] * expected).sum()
    actual = gradients(teacher, (weights * z.values * z.mask).sum())
    wanted = gradients(teacher, expected_loss)
    assert actual.norm() > 1
    assert (actual - wanted).norm() <= 1e-5 * wanted.norm()


def test_log_probs_of_a_batch_are_those_of_each_row_alone(teacher: Teacher) -> None:
    instructions = sample(teacher, 4)
    z = teacher.log_probs(instructions)
    for row, instruction in enumerate(instructions):
        alone = teacher.log_probs([instruction])
        assert alone.values.shape == (1, len(instruction.token_ids))
        torch.testing.assert_close(z.values[row, : alone.values.shape[1]], alone.values[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "prompts",
    [[(7,)], [(7,), (8,)], [(7,), (8, 9, 10, 11)]],
    ids=["one token", "one token each", "one token beside four"],
)
def test_prompts_of_one_token_have_log_probs(tiny_model: str, prompts: list[tuple[int, ...]]) -> None:
    teacher = make(tiny_model)
    instructions = [Instruction("", prompt, tokens) for prompt in prompts for tokens in [(20, 21, 3), (22,)]]
    torch.testing.assert_close(sums(teacher, instructions), naive_sums(teacher.policy, instructions), rtol=0, atol=1e-5)


@pytest.mark.parametrize("plain", [False, True])
def test_padding_tokens_change_nothing(tiny_model: str, tiny_plain_model: str, plain: bool) -> None:
    teacher = make(tiny_plain_model if plain else tiny_model)
    instructions = sample(teacher)
    before = sums(teacher, instructions)
    teacher.tokenizer.pad_token = "A"
    assert teacher.tokenizer.pad_token_id > 3
    torch.testing.assert_close(sums(teacher, instructions), before, rtol=0, atol=1e-6)
    assert [i.token_ids for i in sample(teacher)] == [i.token_ids for i in instructions]


def test_log_probs_are_those_the_sampler_drew_from(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn_from: dict[tuple[int, ...], Tensor] = {}  # by all tokens before the one that was drawn
    original = generation._SampledToken.__call__

    def recording(self: Any, input_ids: Tensor, scores: Tensor) -> Any:
        for row, table in zip(input_ids.tolist(), (scores / self.temperature).log_softmax(dim=-1), strict=True):
            before = tuple(token for token in row if token != teacher.tokenizer.pad_token_id)
            drawn_from.setdefault(before, table)  # not what is drawn for a row after its end
        return original(self, input_ids, scores)

    monkeypatch.setattr(generation._SampledToken, "__call__", recording)
    instructions = sample(teacher)
    z = teacher.log_probs(instructions)
    for row, instruction in enumerate(instructions):
        for position, token in enumerate(instruction.token_ids):
            scores = drawn_from[instruction.prompt_ids + instruction.token_ids[:position]]
            assert torch.isfinite(scores).all()
            assert z.values[row, position].item() == pytest.approx(float(scores[token]), abs=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_gradients_flow_through_a_quantized_base_after_sampling(tiny_model: str, adapter: str, adapted: bool) -> None:
    start = {"adapter": adapter} if adapted else {}
    teacher = make(tiny_model, quantization="nf4", **start)
    instructions = sample(teacher)
    teacher.reference_log_probs(instructions)
    z = teacher.log_probs(instructions)
    actual = gradients(teacher, z.values[z.mask].sum())

    plain = make(tiny_model, **start)
    layers = {name: layer for name, layer in teacher.policy.named_modules() if isinstance(layer, Linear4bit)}
    assert len(layers) == 2 * 7
    with torch.no_grad():
        for name, layer in layers.items():
            weight = plain.policy.get_submodule(name).weight
            weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    expected = torch.stack([naive(plain.policy, instruction).sum() for instruction in instructions])
    torch.testing.assert_close(sums(teacher, instructions), expected.detach(), rtol=0, atol=1e-3)
    wanted = gradients(plain, expected.sum())
    assert wanted.norm() > 1
    assert (actual - wanted).norm() <= 1e-4 * wanted.norm()


def test_micro_batches_gradients_add_up_to_the_batchs(teacher: Teacher) -> None:
    instructions = sample(teacher, 4)
    advantages = torch.linspace(-1, 1, len(instructions))
    total = denominator(torch.tensor([len(i.token_ids) for i in instructions]), "tokens")

    def gradient(start: int, end: int) -> Tensor:
        z = teacher.log_probs(instructions[start:end], entropy=True)
        return gradients(teacher, policy_loss(z.values, z.mask, advantages[start:end], total, z.entropy, 0.1))

    whole = gradient(0, 12)
    parts = gradient(0, 5) + gradient(5, 10) + gradient(10, 12)
    assert (whole - parts).norm() <= 1e-5 * whole.norm()


# --- Sampling


def test_the_models_own_sampling_defaults_are_there_to_be_ignored(tiny_model: str) -> None:
    config = GenerationConfig.from_pretrained(tiny_model)
    assert (config.top_k, config.top_p, config.temperature, config.repetition_penalty) == (2, 0.5, 0.1, 5.0)


def test_greedy_instructions_are_the_naive_argmax(teacher: Teacher) -> None:
    for query, instruction in zip(QUERIES, teacher.sample(QUERIES, greedy=True), strict=True):
        tokens: list[int] = []
        while len(tokens) < 12 and not (tokens and tokens[-1] in teacher.end_ids):
            with torch.no_grad():
                logits = teacher.policy(input_ids=torch.tensor([[*teacher.encode(query), *tokens]])).logits
            tokens.append(int(logits[0, -1].argmax()))
        assert list(instruction.token_ids) == tokens
    assert teacher.sample(QUERIES[:1], 2, greedy=True)[0] == teacher.sample(QUERIES[:1], greedy=True)[0]


def test_first_tokens_are_as_frequent_as_they_are_probable(teacher: Teacher) -> None:
    draws = 4000
    torch.manual_seed(0)
    (prompt,) = {teacher.encode(QUERIES[0])}
    teacher.max_new_tokens = 1
    try:
        tokens = [i.token_ids[0] for i in teacher.sample(QUERIES[:1], draws)]
    finally:
        teacher.max_new_tokens = 12
    with torch.no_grad():
        probability = (teacher.policy(input_ids=torch.tensor([prompt])).logits[0, -1] / TEMPERATURE).softmax(-1)
    frequency = torch.bincount(torch.tensor(tokens), minlength=len(probability)) / draws
    # Bernstein's inequality: over all tokens together it is off by more with a probability below 1e-6.
    log_odds = math.log(2 * len(probability) / 1e-6)
    bound = (2 * probability * (1 - probability) * log_odds / draws).sqrt() + 2 * log_odds / (3 * draws)
    assert ((frequency - probability).abs() <= bound).all()
    assert probability.max() > 2 * bound.max()


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_the_samples_of_a_query_stand_together(tiny_model: str, batch_size: int | None) -> None:
    teacher = make(tiny_model, sample_batch_size=batch_size)
    instructions = sample(teacher, 4)
    assert [i.prompt_ids for i in instructions] == [teacher.encode(query) for query in QUERIES for _ in range(4)]
    assert len({i.token_ids for i in instructions}) > 9
    greedy = teacher.sample(QUERIES, greedy=True)
    assert [i.token_ids for i in greedy] == [teacher.sample([q], greedy=True)[0].token_ids for q in QUERIES]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_each_instruction_is_told_as_soon_as_it_has_ended(tiny_model: str, batch_size: int | None) -> None:
    teacher = make(tiny_model, sample_batch_size=batch_size)
    told: list[tuple[int, Instruction]] = []
    torch.manual_seed(0)
    instructions = teacher.sample(QUERIES, 4, on_done=lambda place, z: told.append((place, z)))
    assert sorted(place for place, _ in told) == list(range(len(instructions)))
    assert all(instructions[place] is z for place, z in told)
    size = 4 * (batch_size or len(QUERIES))
    for start in range(0, len(told), size):
        lengths = [len(z.token_ids) for _, z in told[start : start + size]]
        assert lengths == sorted(lengths)  # the short ones of a batch did not wait for the long ones
    assert len({len(z.token_ids) for z in instructions}) > 1
    torch.manual_seed(0)
    assert teacher.sample(QUERIES, 4) == instructions


def test_no_queries_get_no_instructions(teacher: Teacher) -> None:
    assert teacher.sample([], 4) == []


def test_tokens_end_with_the_end_token_unless_the_limit_cut_them_off(teacher: Teacher) -> None:
    for instruction in sample(teacher, 10):
        *before, last = instruction.token_ids
        assert not set(before) & set(teacher.end_ids)
        assert (last in teacher.end_ids) is not instruction.truncated
        assert len(instruction.token_ids) == 12 or not instruction.truncated
        assert instruction.text == teacher.tokenizer.decode(instruction.token_ids, skip_special_tokens=True).strip()


def test_the_prompt_is_the_template_in_the_models_own_chat_format(tiny_model: str, tiny_plain_model: str) -> None:
    prompt = TeacherPrompt("Instruct: {query}", system="Be brief.")
    chat, plain = make(tiny_model, prompt=prompt), make(tiny_plain_model, prompt=prompt)
    assert chat.tokenizer.decode(chat.encode(QUERIES[2])) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nInstruct: user: Hello\n\nassistant: Yes?\n\n2 + 2 = ?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert plain.tokenizer.decode(plain.encode(QUERIES[0])) == "Be brief.\n\nInstruct: hi\n\n"


@pytest.mark.parametrize("limit", [60, 40, 7, 1])
@pytest.mark.parametrize("plain", [False, True])
def test_a_query_that_is_too_long_is_cut_with_a_counted_warning(
    tiny_model: str, tiny_plain_model: str, limit: int, plain: bool
) -> None:
    teacher = make(tiny_plain_model if plain else tiny_model, max_prompt_tokens=limit)
    whole = make(tiny_plain_model if plain else tiny_model).encode(Query("whole", "x" * 100))
    with pytest.warns(UserWarning, match=rf"query 'q' was cut .*max_prompt_tokens={limit} \(1 so far\)"):
        ids = teacher.encode(Query("q", "x" * 100))
    assert len(ids) <= limit
    tail = min(limit, 2)
    assert ids[-tail:] == whole[-tail:]
    with pytest.warns(UserWarning, match=r"query 'r' was cut .*\(2 so far\)"):
        (instruction,) = teacher.sample([Query("r", "naïve 🙂" * 50)])
    assert teacher.encoder.shortened == 2
    assert len(instruction.prompt_ids) <= limit
    torch.testing.assert_close(sums(teacher, [instruction]), naive_sums(teacher.policy, [instruction]))


def test_a_query_that_fits_is_not_cut(tiny_model: str) -> None:
    exact = len(make(tiny_model).encode(QUERIES[1]))
    teacher = make(tiny_model, max_prompt_tokens=exact)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(teacher.encode(QUERIES[1])) == exact
    assert teacher.encoder.shortened == 0


# --- What is trained


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_only_the_adapter_learns(tiny_model: str, quantization: str) -> None:
    teacher = make(tiny_model, quantization=quantization)
    names = {name for name, weight in teacher.named_parameters() if weight.requires_grad}
    assert names
    assert all(".lora_A.default." in name or ".lora_B.default." in name for name in names)
    assert all(weight.dtype == torch.float32 for weight in trainable(teacher))
    instructions = sample(teacher)
    base, before = base_weights(teacher), sums(teacher, instructions)
    step(teacher, instructions)
    assert same(base_weights(teacher), base)
    assert (sums(teacher, instructions) > before).any()


def test_an_nf4_base_is_in_four_bits(tiny_model: str) -> None:
    weights = base_weights(make(tiny_model, quantization="nf4"))
    packed = [name for name, weight in weights.items() if weight.dtype == torch.uint8 and name.endswith("weight")]
    assert len(packed) == 2 * 7


def test_full_fine_tuning_trains_every_weight(tiny_model: str) -> None:
    teacher = make(tiny_model, lora=None)
    assert teacher.full_finetuning
    assert all(weight.requires_grad for weight in teacher.parameters())
    instructions = sample(teacher)
    torch.testing.assert_close(sums(teacher, instructions), naive_sums(teacher.policy, instructions), rtol=0, atol=1e-4)
    step(teacher, instructions)
    after = base_weights(teacher)
    with teacher.untrained() as network:
        before = network.state_dict()
        assert [name for name in after if torch.equal(after[name], before[name])] == []
        assert not any(weight.requires_grad for weight in network.parameters())
    assert same(base_weights(teacher), after)
    assert teacher.state_dict().keys() == {f"network.{name}" for name in after}


@pytest.mark.parametrize("mode", ["lora", "adapter", "full"])
def test_there_is_no_dropout_even_when_training_is_asked_for(tiny_model: str, adapter: str, mode: str) -> None:
    assert json.loads((Path(adapter) / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    assert json.loads((Path(tiny_model) / "config.json").read_text())["attention_dropout"] == 0.5
    options: dict[str, Any] = {"lora": {}, "adapter": {"adapter": adapter}, "full": {"lora": None}}[mode]
    teacher = make(tiny_model, **options)
    instructions = sample(teacher)
    before = sums(teacher, instructions)
    nn.Sequential(teacher).train()
    assert not any(module.training for module in teacher.modules())
    assert not any(isinstance(module, nn.Dropout) and module.p for module in teacher.modules())
    torch.manual_seed(5)
    assert torch.equal(sums(teacher, instructions), before)


# --- Other policies: the one training started from, and the bare base


def test_an_adapter_to_start_from_has_its_own_shape_and_is_the_reference(tiny_model: str, adapter: str) -> None:
    teacher = make(tiny_model, adapter=adapter, lora=LoRA(r=5))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter).eval()
    instructions = sample(teacher)
    start = naive_sums(loaded, instructions)
    torch.testing.assert_close(sums(teacher, instructions), start, rtol=0, atol=1e-4)
    assert {tuple(w.shape) for name, w in teacher.named_parameters() if "lora_A" in name} == {(3, 64)}

    def reference_sums() -> Tensor:
        z = teacher.reference_log_probs(instructions)
        assert not z.values.requires_grad
        return (z.values * z.mask).sum(dim=1)

    torch.testing.assert_close(reference_sums(), start, rtol=0, atol=1e-4)
    reference = {n: w.clone() for n, w in teacher.named_parameters() if ".reference." in n}
    assert reference
    for _ in range(2):
        step(teacher, instructions)
    assert (sums(teacher, instructions) - start).abs().max() > 0.1
    torch.testing.assert_close(reference_sums(), start, rtol=0, atol=1e-4)
    assert same({n: w for n, w in teacher.named_parameters() if ".reference." in n}, reference)


@pytest.mark.parametrize("mode", ["lora", "nf4", "adapter", "full"])
@pytest.mark.parametrize("other", ["reference", "untrained"])
def test_the_other_policies_leave_the_trained_one_as_it_was(
    tiny_model: str, adapter: str, mode: str, other: str
) -> None:
    teacher = make(
        tiny_model,
        **{"lora": {}, "nf4": {"quantization": "nf4"}, "adapter": {"adapter": adapter}, "full": {"lora": None}}[mode],
    )
    instructions = sample(teacher)
    trained = {name for name, weight in teacher.named_parameters() if weight.requires_grad}
    before = sums(teacher, instructions)
    wanted = gradients(teacher, teacher.log_probs(instructions).values.sum())
    enter: Callable[[], AbstractContextManager[nn.Module]] = getattr(teacher, other)

    def enter_and_fail() -> None:
        with enter():
            raise KeyError("stopped")

    z = teacher.log_probs(instructions)
    teacher.reference_log_probs(instructions)
    with pytest.raises(KeyError, match="stopped"):
        enter_and_fail()
    assert {name for name, weight in teacher.named_parameters() if weight.requires_grad} == trained
    assert torch.equal(sums(teacher, instructions), before)
    # A graph that was built before is still whole.
    torch.testing.assert_close(gradients(teacher, z.values.sum()), wanted)


@pytest.mark.parametrize("mode", ["lora", "adapter", "full"])
def test_untrained_is_the_bare_base(tiny_model: str, adapter: str, mode: str) -> None:
    options: dict[str, Any] = {"lora": {}, "adapter": {"adapter": adapter}, "full": {"lora": None}}[mode]
    teacher = make(tiny_model, **options)
    instructions = sample(teacher)
    step(teacher, instructions)
    bare = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    expected = naive_sums(bare, instructions)
    trained = [i.token_ids for i in teacher.sample(QUERIES, greedy=True)]
    with teacher.untrained() as network:
        torch.testing.assert_close(naive_sums(network, instructions), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(sums(teacher, instructions), expected, rtol=0, atol=1e-4)
        greedy = teacher.sample(QUERIES, greedy=True)
    for instruction in greedy:
        with torch.no_grad():
            assert naive_logits(bare, instruction).argmax(dim=-1).tolist() == list(instruction.token_ids)
    assert [i.token_ids for i in teacher.sample(QUERIES, greedy=True)] == trained
    assert (sums(teacher, instructions) - expected).abs().max() > 0.1
    if mode != "adapter":
        z = teacher.reference_log_probs(instructions)
        torch.testing.assert_close((z.values * z.mask).sum(dim=1), expected, rtol=0, atol=1e-4)


# --- Files


@pytest.mark.parametrize("mode", ["lora", "adapter"])
def test_a_saved_adapter_loads_onto_the_base(tiny_model: str, adapter: str, mode: str, tmp_path: Path) -> None:
    teacher = make(tiny_model, adapter=adapter if mode == "adapter" else None)
    instructions = sample(teacher)
    step(teacher, instructions)
    teacher.save(tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) or "/" in name for name in names)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny_model

    expected = sums(teacher, instructions)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path).eval()
    torch.testing.assert_close(naive_sums(loaded, instructions), expected, rtol=0, atol=1e-4)
    again = make(tiny_model, adapter=str(tmp_path))
    torch.testing.assert_close(sums(again, instructions), expected, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == teacher.tokenizer.chat_template


def test_a_fully_trained_model_is_saved_whole(tiny_model: str, tmp_path: Path) -> None:
    teacher = make(tiny_model, lora=None)
    instructions = sample(teacher)
    step(teacher, instructions)
    teacher.save(tmp_path)
    model, tokenizer = load_causal_lm(str(tmp_path), device=CPU, dtype="float32")
    assert same(dict(model.state_dict()), base_weights(teacher))
    torch.testing.assert_close(naive_sums(model, instructions), sums(teacher, instructions), rtol=0, atol=1e-4)
    assert tokenizer.pad_token_id == teacher.tokenizer.pad_token_id


# --- Errors


@pytest.mark.parametrize(
    ("settings", "kind", "message"),
    [
        ({"temperature": 0.0}, ConfigError, r"Teacher: temperature must be above 0 to sample, got 0\.0"),
        ({"temperature": math.nan}, ConfigError, r"temperature must be above 0"),
        ({"max_new_tokens": 0}, ConfigError, r"Teacher: max_new_tokens must be at least 1, got 0"),
        ({"max_prompt_tokens": 0}, ConfigError, r"Teacher: max_prompt_tokens must be at least 1, got 0"),
        ({"sample_batch_size": 0}, ConfigError, r"Teacher: sample_batch_size must be at least 1, got 0"),
        ({"quantization": "nf4", "lora": None}, ConfigError, r"quantized weights cannot be trained; set lora"),
        (
            {"lora": LoRA(target_modules=["query_key_value"])},
            ConfigError,
            r"Teacher: lora does not fit model .*query_key",
        ),
        ({"adapter": "no/such/adapter"}, ModelError, r"adapter 'no/such/adapter': no adapter_config\.json"),
    ],
)
def test_impossible_settings_are_errors_of_one_line(
    tiny_model: str, settings: dict[str, Any], kind: type[WSTError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        make(tiny_model, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_is_an_error_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"model './no/such': no such folder"):
        Teacher("./no/such")


def test_adapters_that_cannot_be_read_safely_or_at_all_are_errors(
    tiny_model: str, adapter: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json is not JSON") as caught:
        Teacher(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)

    for change in ({"peft_type": "PREFIX_TUNING"}, {"peft_type": "NEW"}, {"alora_invocation_tokens": [5]}):
        (broken / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=r"adapter '.*broken': .* give a LoRA or its like"):
            Teacher(tiny_model, adapter=str(broken))

    (broken / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["query_key_value"]}))
    with pytest.raises(ModelError, match=r"adapter '.*broken' does not fit model") as caught:
        make(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)

    (broken / "adapter_config.json").write_text(json.dumps(config))
    (broken / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"adapter '.*broken' does not fit model") as caught:
        make(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)

    (broken / "adapter_model.safetensors").rename(broken / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors") as caught:
        Teacher(tiny_model, adapter=str(broken))
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_not_loaded_says_so(tiny_model: str) -> None:
    with pytest.raises(RuntimeError, match=r"call load\(\) first"):
        Teacher(tiny_model).sample(QUERIES)


def test_loading_twice_keeps_what_was_trained(tiny_model: str) -> None:
    teacher = make(tiny_model)
    network = teacher.network
    teacher.load(CPU)
    assert teacher.network is network
