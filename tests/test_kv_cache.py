"""Tests of keys and values with room."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import DynamicCache

from wst.kv_cache import roomy
from wst.models import load_causal_lm

CPU = torch.device("cpu")


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.layers, other.layers, strict=True)
    return all(torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values) for a, b in pairs)


@torch.no_grad()
def test_it_holds_what_any_cache_would_whatever_is_done_to_it(tiny_model: str) -> None:
    network, _ = load_causal_lm(tiny_model, device=CPU, dtype="float32")
    torch.manual_seed(0)
    caches: list[Any] = [DynamicCache(config=network.config), roomy(network, None)]

    def feed(rows: int, tokens: int) -> None:
        ids = torch.randint(4, 50, (rows, tokens))
        logits = [cast(Any, network)(input_ids=ids, past_key_values=cache, use_cache=True).logits for cache in caches]
        assert torch.equal(*logits)
        assert same(*caches)

    def do(work: str, *given: Any) -> None:
        for cache in caches:
            getattr(cache, work)(*given)

    feed(3, 5)
    feed(3, 1)
    feed(3, 70)  # more than there is room for
    do("batch_select_indices", torch.tensor([2, 0]))
    feed(2, 1)
    feed(2, 1)
    do("crop", -2)
    feed(2, 1)
    do("batch_repeat_interleave", 2)
    feed(4, 3)
    do("reset")
    feed(2, 2)


@torch.no_grad()
def test_a_token_more_moves_nothing(tiny_model: str) -> None:
    network, _ = load_causal_lm(tiny_model, device=CPU, dtype="float32")
    cache = roomy(network, None)
    places = []
    for _ in range(60):
        cast(Any, network)(input_ids=torch.tensor([[5], [6]]), past_key_values=cache, use_cache=True)
        places.append([tensor.data_ptr() for layer in cache.layers for tensor in (layer.keys, layer.values)])
    assert all(place == places[0] for place in places)
    assert cache.get_seq_length() == 60
