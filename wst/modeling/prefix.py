"""Shared prefixes: leading tokens that rows have in common are read once, and their KV cache serves all of the rows."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from wst.modeling.backbone import split_backbone_and_head

Row = Sequence[int]

#: Shortest prefix that is worth a pass of its own, in tokens.
_SHORTEST = 4
#: Number of ways to group rows by prefix that are compared.
_CANDIDATES = 16


def pad_left(rows: Sequence[Row], pad_id: int, device: torch.device, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask, both [rows, longest], padded on the left.

    Args:
        rows: Token ids.
        pad_id: The padding token.
        device: Where the tensors go.
        prefix: Number of leading tokens, the same in all rows, that stay in front of the padding.
    """
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[*row[:prefix], *[pad_id] * gap, *row[prefix:]] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * prefix + [0] * gap + [1] * (width - prefix - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions(mask: Tensor) -> Tensor:
    """Return position ids that count real tokens only, [rows, tokens]."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def prefix_sharing(network: nn.Module) -> Literal["any", "whole prompts", "none"]:
    """Return which prefixes of prompts a model can read ahead of the rest.

    "any": any number of leading tokens. "whole prompts": only all of a prompt, because some layers attend to a fixed
    number of positions, and padding inside a row would use some of them up. "none": the model has no KV cache, or takes
    no position ids.
    """
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    takes = inspect.signature(base.forward).parameters
    if "position_ids" not in takes or "logits_to_keep" not in takes:
        return "none"
    config = cast(Any, base).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return "none"
    windows = getattr(config, "attention_types", None)  # GPT-Neo's name for windowed layers
    if windows or kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return "whole prompts"
    return "any"


def shared_prefix_length(network: nn.Module, rows: Sequence[Row]) -> int:
    """Return the number of leading tokens that all rows share and that can be read once for all of them.

    Leaves at least one token of each row. Returns 0 if sharing would save next to nothing, or the model cannot do it.
    """
    if len(rows) < 2 or prefix_sharing(network) != "any":
        return 0
    first, last = min(map(list, rows)), max(map(list, rows))  # in lexical order, all others lie between them
    length = min(_common(first, last), *(len(row) - 1 for row in rows))
    return length if length >= _SHORTEST else 0


def prefill(network: nn.Module, ids: Tensor, mask: Tensor, shared: int = 0) -> Any:  # noqa: ANN401
    """Return the KV cache (transformers' Cache) of rows [rows, tokens] whose first ``shared`` tokens are the same."""
    cache = None
    if shared:
        head = ids[:1, :shared]
        cache = _forward(network, head, torch.ones_like(head), None).past_key_values
        cache.batch_repeat_interleave(len(ids))
    if ids.shape[1] > shared:
        cache = _forward(network, ids[:, shared:], mask, cache).past_key_values
    return cache


def _forward(network: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> Any:  # noqa: ANN401 - transformers' own
    position_ids = positions(mask)[:, mask.shape[1] - ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position_ids, "past_key_values": cache}
    parts = split_backbone_and_head(network)  # a prefill needs no logits
    return network(**inputs, use_cache=True, logits_to_keep=1) if parts is None else parts[0](**inputs, use_cache=True)


def prefill_prompts(
    network: nn.Module, rows: Sequence[Row], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor, Any | None]:
    """Read what prompts share.

    Returns:
        Token ids [rows, tokens], attention mask, and the KV cache of the shared leading tokens, or None.
    """
    sharing = prefix_sharing(network)
    lengths = prefix_lengths(rows) if sharing == "any" else [len(row) - 1 for row in rows]
    prefixes = [tuple(row[:n]) for row, n in zip(rows, lengths, strict=True)]
    distinct = list(dict.fromkeys(prefixes))
    shared = shared_prefix_length(network, distinct)
    if sharing == "none" or not min(lengths) or (len(distinct) == len(rows) and not shared):
        return *pad_left(rows, pad_id, device), None
    ids, mask = pad_left(distinct, pad_id, device, shared)
    cache = prefill(network, ids, mask, shared)
    order = {prefix: i for i, prefix in enumerate(distinct)}
    place = torch.tensor([order[prefix] for prefix in prefixes], device=device)
    cache.batch_select_indices(place)
    tails, tail_mask = pad_left([row[n:] for row, n in zip(rows, lengths, strict=True)], pad_id, device)
    return torch.cat([ids[place], tails], dim=1), torch.cat([mask[place], tail_mask], dim=1), cache


def prefix_lengths(rows: Sequence[Row]) -> list[int]:
    """Return for each row the number of leading tokens to read once for all rows that begin with them.

    Compares ways to group the rows by prefix and takes the one that reads the fewest tokens, padding included. Leaves
    at least one token of each row.
    """
    ceiling = [len(row) - 1 for row in rows]
    order, common = _neighbours(rows)
    base = min([*common, *ceiling])
    if not common or not min(ceiling):
        return [base] * len(rows)

    def grouped(least: int) -> list[int]:
        """Return the prefix lengths if neighbours with fewer than ``least`` tokens in common go to different groups."""
        lengths, longest = list(ceiling), base
        for group in _groups(order, common, least):
            shared = min([_common(rows[group[0]], rows[group[-1]]), *(ceiling[i] for i in group)])
            for i in group:
                lengths[i] = shared
            longest = max(longest, shared) if len(group) > 1 else longest
        return [min(length, longest) for length in lengths]

    def cost(lengths: list[int]) -> int:
        distinct = {tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)}
        tails = len(rows) * max(len(row) - length for row, length in zip(rows, lengths, strict=True))
        return base + len(distinct) * (max(lengths) - base) + tails

    values = sorted(set(common))
    tried = values[:: -(-len(values) // _CANDIDATES)]
    return min((grouped(least) for least in tried), key=cost)


def order_by_prefix(rows: Sequence[Row]) -> list[int]:
    """Return the indices of rows so that those with a common prefix are neighbours, the longest first."""
    order, common = _neighbours(rows)
    # Rows of one query have most of their tokens in common, however long the template is.
    shares = [n / min(len(rows[a]), len(rows[b])) for n, (a, b) in zip(common, pairwise(order), strict=True)]
    groups = [sorted(group, key=lambda i: len(rows[i]), reverse=True) for group in _groups(order, shares, 0.5)]
    return [i for group in sorted(groups, key=lambda group: len(rows[group[0]]), reverse=True) for i in group]


def _neighbours(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Return the lexical order of rows, and how many leading tokens each has in common with the next."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    return order, [_common(rows[a], rows[b]) for a, b in pairwise(order)]


def _groups(order: list[int], common: Sequence[float], least: float) -> list[list[int]]:
    """Split an order where neighbours have less than ``least`` in common."""
    groups = [order[:1]] if order else []
    for i, value in zip(order[1:], common, strict=True):
        if value < least:
            groups.append([])
        groups[-1].append(i)
    return groups


def _common(one: Row, other: Row) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
