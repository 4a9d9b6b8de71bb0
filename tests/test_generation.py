"""Prompts read together, and rows written on, are what each would be alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoTokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    StopStringCriteria,
)

from wst import LocalStudent, LoRA, Message, Prompt, Teacher
from wst.errors import Diverged, ModelError
from wst.modeling.backbone import split_backbone_and_head
from wst.modeling.generation import Decoding, generate, sample_tokens
from wst.modeling.loading import load_causal_lm
from wst.modeling.prefix import order_by_prefix, pad_left, positions, prefix_lengths, shared_prefix_length

CPU = torch.device("cpu")


def test_rows_are_padded_on_the_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8], []], 0, CPU)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8], [0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]


def test_the_padding_follows_a_shared_prefix() -> None:
    ids, mask = pad_left([[1, 2, 3], [1, 2, 4, 5, 6]], 0, CPU, prefix=2)
    assert ids.tolist() == [[1, 2, 0, 0, 3], [1, 2, 4, 5, 6]]
    assert mask.tolist() == [[1, 1, 0, 0, 1], [1, 1, 1, 1, 1]]
    assert positions(mask).tolist() == [[0, 1, 1, 1, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7], [1, 2, 3, 4, 5, 8, 9]], 4),
        ([[1, 2, 3, 4, 5]] * 3, 4),  # one token stays out
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5]], 4),
        ([[1, 2, 3, 9], [1, 2, 3, 4]], 0),  # too short to be worth it
        ([[1, 2, 3, 4, 5, 6]], 0),
    ],
)
def test_rows_share_what_they_begin_with(tiny_model: str, rows: list[list[int]], length: int) -> None:
    model, _ = load_causal_lm(tiny_model, device=CPU)
    assert shared_prefix_length(model, rows) == length


@pytest.mark.parametrize("kinds", [["full_attention", "sliding_attention"], ["linear_attention"]])
def test_layers_that_look_back_a_fixed_way_share_nothing(tiny_model: str, kinds: list[str]) -> None:
    model, _ = load_causal_lm(tiny_model, device=CPU)
    model.config.layer_types = kinds
    assert shared_prefix_length(model, [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]]) == 0


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8))
def test_prefixes_leave_a_token_of_each_row_and_never_cost_more_than_one_for_all(rows: list[list[int]]) -> None:
    lengths = prefix_lengths(rows)
    assert all(0 <= length < len(row) for length, row in zip(lengths, rows, strict=True))
    distinct = {tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)}
    tails = len(rows) * max(len(row) - length for row, length in zip(rows, lengths, strict=True))
    shortest = min(map(len, rows)) - 1
    base = next((i for i in range(shortest) if len({row[i] for row in rows}) > 1), shortest)
    dearest = base + len(rows) * (max(map(len, rows)) - base)  # what all have in common is read once, all else by row
    assert base + len(distinct) * (max(lengths) - base) + tails <= dearest
    assert sorted(order_by_prefix(rows)) == list(range(len(rows)))


def test_rows_are_parted_by_what_they_begin_with() -> None:
    template, one, other = [9] * 10, [1] * 20, [2] * 22
    rows = [[*template, *query, *end] for end in ([5], [6, 6], [7]) for query in (one, other)]
    assert prefix_lengths(rows) == [30, 32] * 3
    assert prefix_lengths([[1, 2, 3], [4, 5], [6]]) == [0, 0, 0]
    order = order_by_prefix(rows)
    assert {i % 2 for i in order[:3]} == {1}  # those of a query together, the longest first


ROWS = [
    [*range(10, 40), *query, *instruction]
    for query in ([50, 51, 52, 53, 54, 55], [60, 61], [70, 71, 72, 73])
    for instruction in ([80, 81], [82], [83, 84, 85, 86])
]


def alone(network: Any, row: list[int], how: Decoding) -> list[int]:
    """Write on from a row the plain way, reading all of it for each token."""
    written: list[int] = []
    while len(written) < how.max_new_tokens and not set(written) & set(how.ends):
        logits = network(input_ids=torch.tensor([row + written]), use_cache=False).logits
        written.append(int(logits[0, -1].argmax()))
    return written


def windowed(kind: str, vocabulary: int) -> nn.Module:
    sizes = {"vocab_size": vocabulary, "hidden_size": 32, "bos_token_id": 0, "eos_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "Mistral":
        small = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
        return MistralForCausalLM(MistralConfig(**sizes, **small, sliding_window=8, initializer_range=0.3)).eval()
    kinds = [[["global", "local"], 1]]
    config = GPTNeoConfig(**sizes, num_layers=2, attention_types=kinds, num_heads=2, window_size=8)
    return GPTNeoForCausalLM(config).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiny", "Mistral", "GPT-Neo"])
def test_rows_written_together_are_those_written_alone(tiny_model: str, kind: str) -> None:
    network: Any = load_causal_lm(tiny_model, device=CPU, dtype="float32")[0] if kind == "tiny" else windowed(kind, 300)
    how = Decoding(ends=(3, 100, 101, 102), pad_id=0, max_new_tokens=24, temperature=0.0)
    rows = [*ROWS, *ROWS[:4]]
    expected = [alone(network, row, how) for row in rows]
    told: dict[int, list[int]] = {}
    assert generate(network, rows, how, on_end=told.__setitem__) == expected
    assert [told[place] for place in range(len(rows))] == expected


def test_no_token_is_computed_that_need_not_be(tiny_model: str) -> None:
    network: Any = load_causal_lm(tiny_model, device=CPU, dtype="float32")[0]
    computed: list[tuple[int, ...]] = []

    def count(_: nn.Module, __: Any, options: dict[str, Any]) -> None:
        computed.append(tuple(options["input_ids"].shape))

    split_backbone_and_head(network)  # which tries the model on two tokens
    network.model.register_forward_pre_hook(count, with_kwargs=True)
    logit_rows: list[int] = []
    network.lm_head.register_forward_hook(lambda _, __, logits: logit_rows.append(len(logits)))
    how = Decoding(ends=(3,), pad_id=0, max_new_tokens=40, temperature=1.0)
    torch.manual_seed(0)
    written = generate(network, ROWS, how)
    # 30 tokens that all have in common, three queries of at most 6, nine instructions of at most 4.
    assert computed[:3] == [(1, 30), (3, 6), (9, 4)]
    assert all(tokens == 1 for _, tokens in computed[3:])
    rows = [rows for rows, _ in computed[2:]]
    assert logit_rows == rows  # what is only read needs no logits
    assert rows == sorted(rows, reverse=True)
    lengths = [len(row) for row in written]
    assert min(lengths) < max(lengths)
    assert sum(rows) <= 2 * sum(lengths)  # not 9 * max(lengths)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_probable(temperature: float) -> None:
    logits = torch.tensor([3.0, -torch.inf, 0.0, 1.0, -4.0, 2.0, -torch.inf])
    expected = (logits / temperature).softmax(dim=-1)
    torch.manual_seed(0)
    draws = 200_000
    counts = sample_tokens(logits.expand(draws, -1), temperature).flatten().bincount(minlength=7)
    assert counts[expected == 0].sum() == 0
    spread = (draws * expected * (1 - expected)).sqrt()
    assert ((counts - draws * expected).abs() <= 5 * spread).all()  # one in 300,000 fails by chance


def test_tokens_far_below_the_resolution_of_float32_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of 1.5e-8 each after one of nearly 1: the second token's turn is from 1 - 3e-8 to 1 - 1.5e-8."""
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, device: torch.full(shape, 1 - 2.2e-8, dtype=dtype))
    assert sample_tokens(torch.tensor([[0.0, -18.0, -18.0]]), 1.0).item() == 1


def test_each_token_has_its_share_of_the_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over some blocks of tokens, one of which nothing is drawn from and the last of which is not full."""
    torch.manual_seed(0)
    logits = torch.randn(1000) * 3
    logits[256:512] = logits[-40:] = -torch.inf
    draws = 50_000
    grid = (torch.arange(draws, dtype=torch.float64)[:, None] + 0.5) / draws
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, device: grid.clone())
    counts = sample_tokens(logits.expand(draws, -1), 0.8).flatten().bincount(minlength=1000)
    expected = draws * (logits.double() / 0.8).softmax(dim=-1)
    # Its share begins and ends between two points of the grid; float32 moves both by less than another.
    assert (counts - expected).abs().max() < 2
    assert counts[expected == 0].sum() == 0


@pytest.mark.parametrize("point", [0.0, 1.0])
def test_the_ends_of_the_range_are_tokens_that_can_be_drawn(point: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, device: torch.full(shape, point, dtype=dtype))
    logits = torch.full((1, 600), -torch.inf)
    logits[0, 300:320] = torch.randn(20)
    assert sample_tokens(logits, 1.0).item() == (300 if point == 0 else 319)


def test_logits_that_are_no_numbers_are_not_drawn_from() -> None:
    with pytest.raises(Diverged, match="lower the learning rate"):
        sample_tokens(torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), 1.0)


def test_a_stop_text_is_not_begun_by_the_prompt(tiny_model: str) -> None:
    network, tokenizer = load_causal_lm(tiny_model, device=CPU, dtype="float32")
    plain = Decoding(ends=(3,), pad_id=0, max_new_tokens=8, temperature=0.0)
    row = tokenizer("the end")["input_ids"]
    (free,) = generate(network, [row], plain)
    border = tokenizer.decode([row[-1], free[0]])
    stopped = replace(plain, stop=StopStringCriteria(tokenizer, [border]))
    assert generate(network, [row], stopped) == [free]


@pytest.fixture(scope="module")
def recurrent(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("recurrent")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.5}
    MambaForCausalLM(MambaConfig(vocab_size=len(tokenizer), eos_token_id=3, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_recurrent_model_answers_and_cannot_teach(recurrent: str) -> None:
    student = LocalStudent(recurrent, dtype="float32", max_new_tokens=6, temperature=1.0)
    student.setup(CPU)
    prompts = [Prompt((Message("user", text),)) for text in ("one", "one", "another")]
    torch.manual_seed(0)
    assert len({response.text for response in student.respond(prompts)}) == 3
    with pytest.raises(ModelError, match=r"MambaForCausalLM has no KV cache .* attention layers only"):
        Teacher(recurrent, lora=LoRA(target_modules=["in_proj"])).load(CPU)
