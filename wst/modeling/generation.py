"""Reading prompts and writing on from them, with no token computed that need not be.

- What rows have in common at their heads is read once, and its keys and values serve all of them.
- A row that has ended leaves the batch, in models whose rows may be padded within.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from wst.errors import Diverged
from wst.modeling.logprobs import split_backbone_and_head

Row = Sequence[int]

#: Share of a batch that must have ended before the others go on without it: each time takes a while.
_LEAVE = 0.5
#: Rows below which a smaller batch is hardly faster.
_FEW = 4
#: Tokens of the vocabulary that are cumulated as one, to begin with.
_BLOCK = 256
#: So many ways to part rows into groups are compared.
_CANDIDATES = 16


@dataclass(frozen=True)
class Decoding:
    """How rows are continued.

    Attributes:
        ends: Token ids that end a row.
        pad_id: What fills up.
        max_new_tokens: So many tokens at most.
        temperature: 0 takes the most probable token each time; above 0 samples, with no top-k or top-p.
        stop: Says what else ends a row.
    """

    ends: tuple[int, ...]
    pad_id: int
    max_new_tokens: int
    temperature: float
    stop: StoppingCriteria | None = None

    @property
    def config(self) -> GenerationConfig:
        """The same in transformers' words."""
        return GenerationConfig(
            do_sample=False,  # `_Draw` does it
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.ends),
            pad_token_id=self.pad_id,
            return_dict_in_generate=True,
        )


@torch.no_grad()
def write(
    network: nn.Module, rows: Sequence[Row], how: Decoding, on_end: Callable[[int, list[int]], None] | None = None
) -> list[list[int]]:
    """Continue each row until it ends.

    Args:
        network: A causal language model of transformers, adapted or not.
        rows: Token ids of the prompts, at least one each.
        how: How they are continued.
        on_end: Told of a row's place and its tokens as soon as it has ended; others may still be written.

    Returns:
        For each row the tokens written, with the end token where one was.
    """
    device = cast(Any, network).device
    written: dict[int, list[int]] = {}

    def ended(place: int, tokens: list[int]) -> None:
        written[place] = tokens
        if on_end is not None:
            on_end(place, tokens)

    ids, mask, cache = _begin(network, rows, how.pad_id, device)
    width, places = ids.shape[1], list(range(len(rows)))
    leaves = sharing(network) == "free"
    while True:
        left = replace(how, max_new_tokens=how.max_new_tokens - ids.shape[1] + width)
        watch = _Watch(left, width, leaves and len(places) > _FEW, partial(_tell, ended, places))
        output = cast(Any, network).generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=left.config,
            logits_processor=LogitsProcessorList([_Draw(how.temperature)] if how.temperature else []),
            stopping_criteria=StoppingCriteriaList([watch]),
            **({} if cache is None else {"past_key_values": cache}),
        )
        ids, open_rows = output.sequences, (~watch.ended).nonzero().flatten()
        if ids.shape[1] - width == how.max_new_tokens or not len(open_rows):
            break
        cache = output.past_key_values
        cache.batch_select_indices(open_rows)
        mask = functional.pad(mask, (0, ids.shape[1] - mask.shape[1]), value=1)[open_rows]
        ids, places = ids[open_rows], [places[i] for i in open_rows.tolist()]
    for i in open_rows.tolist():
        ended(places[i], ids[i, width:].tolist())
    return [written[place] for place in range(len(rows))]


def _tell(ended: Callable[[int, list[int]], None], places: list[int], row: int, written: list[int]) -> None:
    ended(places[row], written)


def draw(logits: Tensor, temperature: float) -> Tensor:
    """Sample a token of each row, [rows, 1], from logits [rows, vocabulary].

    One random number a row is looked up in the cumulated probabilities, first of blocks of tokens, then within one;
    torch.multinomial takes one for each token of the vocabulary, which on a CPU is a sixth of the time of small models.

    Raises:
        Diverged: If the logits are no numbers.
    """
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    vocabulary = logits.shape[1]
    logits = functional.pad(logits, (0, -logits.shape[1] % _BLOCK), value=-torch.inf)
    blocks = logits.softmax(dim=-1).view(len(logits), -1, _BLOCK)
    # Over blocks, and within one, in float64, so that rare tokens are drawn as often as they are probable.
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    below_one = 1 - 2 * torch.finfo(precise).eps
    cumulated = blocks.sum(dim=-1).cumsum(dim=-1, dtype=precise)
    if not bool(cumulated[:, -1].isfinite().all()):
        raise Diverged(
            "the model's logits are not numbers; lower the learning rate, or set a dtype with a larger range"
        )
    point = torch.rand(len(logits), 1, dtype=precise, device=logits.device).clamp_(max=below_one) * cumulated[:, -1:]
    place = torch.searchsorted(cumulated, point, right=True)
    before = functional.pad(cumulated, (1, 0)).gather(1, place)
    share = (point - before) / (cumulated.gather(1, place) - before)
    within = blocks[torch.arange(len(logits), device=logits.device), place[:, 0]].cumsum(dim=-1, dtype=precise)
    point = share.clamp_(0, below_one) * within[:, -1:]
    # A device that sums in parallel may leave a block that holds nothing a trace.
    return (place * _BLOCK + torch.searchsorted(within, point, right=True)).clamp_(max=vocabulary - 1)


class _Draw(LogitsProcessor):
    """Leaves the greedy choice nothing but the token drawn."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:  # noqa: ANN401 - as transformers has it
        """Give scores [rows, vocabulary] of which one a row is finite."""
        return torch.full_like(scores, -torch.inf).scatter_(1, draw(scores, self.temperature), 0.0)


class _Watch(StoppingCriteria):
    """Notes which rows of a batch have ended, tells of each, and stops all where the others had better go on alone."""

    def __init__(self, how: Decoding, width: int, may_stop: bool, tell: Callable[[int, list[int]], None]) -> None:
        self.how = how
        self.width = width  #: tokens of the prompts, which are no part of what may hold a stop text
        self.stopped = False
        self.may_stop = may_stop
        self.tell = tell
        self.ended = torch.empty(0, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Look at the tokens just written, [rows, tokens so far]."""
        if self.stopped:  # on some devices transformers learns of it a token too late, and takes that one back
            return torch.ones_like(self.ended)
        written = input_ids[:, self.width :]
        now = torch.isin(written[:, -1], torch.tensor(self.how.ends, device=written.device))
        if self.how.stop is not None:
            now |= cast(Tensor, self.how.stop(written, scores, **kwargs))
        if not len(self.ended):
            self.ended = torch.zeros_like(now)
        for i in (now & ~self.ended).nonzero().flatten().tolist():
            self.tell(i, written[i].tolist())
        self.ended |= now
        self.stopped = self.may_stop and int(self.ended.sum()) >= _LEAVE * len(self.ended)
        return torch.ones_like(now) if self.stopped else self.ended


# ------------------------------------------------------------------ reading


def pad_left(rows: Sequence[Row], pad_id: int, device: torch.device, prefix: int = 0) -> tuple[Tensor, Tensor]:
    """Give token ids and attention mask, both [rows, longest], padded on the left.

    Args:
        rows: Token ids.
        pad_id: What is put in.
        device: Where the tensors go.
        prefix: So many tokens, the same in all rows, stay at the head: the padding follows them.
    """
    width = max(map(len, rows))
    gaps = [width - len(row) for row in rows]
    ids = [[*row[:prefix], *[pad_id] * gap, *row[prefix:]] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * prefix + [0] * gap + [1] * (width - prefix - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def positions(mask: Tensor) -> Tensor:
    """Position ids that count real tokens only, [rows, tokens]."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def sharing(network: nn.Module) -> Literal["free", "whole", "none"]:
    """Say which heads of prompts can be read apart from the rest.

    "free": any. "whole": nothing but whole prompts, for models whose layers look back a fixed number of places: padding
    within a row would take up some of them. "none": the model keeps no keys and values, or finds places by itself.
    """
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    takes = inspect.signature(base.forward).parameters
    if "position_ids" not in takes or "logits_to_keep" not in takes:
        return "none"
    config = cast(Any, base).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        return "none"
    windows = getattr(config, "attention_types", None)  # GPT-Neo's word for layers with one
    if windows or kinds - {"full_attention"} or (not kinds and getattr(config, "sliding_window", None)):
        return "whole"
    return "free"


def common_prefix(network: nn.Module, rows: Sequence[Row]) -> int:
    """Count the leading tokens that all rows share and that can be read once for all of them.

    At least one token of each row stays out. It is 0 where sharing would save next to nothing, or cannot be done.
    """
    if len(rows) < 2 or sharing(network) != "free":
        return 0
    first, last = min(map(list, rows)), max(map(list, rows))  # in the order of lists, all others lie between them
    length = min(_common(first, last), *(len(row) - 1 for row in rows))
    return length if length >= 4 else 0


def read(network: nn.Module, ids: Tensor, mask: Tensor, shared: int = 0) -> Any:  # noqa: ANN401
    """Give keys and values (transformers' Cache) of rows [rows, tokens], of which so many leading tokens are alike."""
    cache = None
    if shared:
        head = ids[:1, :shared]
        cache = _pass(network, head, torch.ones_like(head), None).past_key_values
        cache.batch_repeat_interleave(len(ids))
    if ids.shape[1] > shared:
        cache = _pass(network, ids[:, shared:], mask, cache).past_key_values
    return cache


def _pass(network: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> Any:  # noqa: ANN401 - transformers' own
    places = positions(mask)[:, mask.shape[1] - ids.shape[1] :]
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places, "past_key_values": cache}
    parts = split_backbone_and_head(network)  # nobody wants logits of what is only read
    return network(**inputs, use_cache=True, logits_to_keep=1) if parts is None else parts[0](**inputs, use_cache=True)


def heads(rows: Sequence[Row]) -> list[int]:
    """Give for each row how many leading tokens to read once for all rows that begin with them.

    Of the ways to part the rows into groups by what they begin with, it is the one by which the fewest tokens are
    read, padding included. At least one token of each row stays out.
    """
    ceiling = [len(row) - 1 for row in rows]
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    alike = [_common(rows[a], rows[b]) for a, b in pairwise(order)]
    base = min([*alike, *ceiling])
    if not alike or not min(ceiling):
        return [base] * len(rows)

    def parted(least: int) -> list[int]:
        """Heads where rows with fewer common tokens than these are parted."""
        lengths, longest = list(ceiling), base
        for run in _runs(order, alike, least):
            common = min([_common(rows[run[0]], rows[run[-1]]), *(ceiling[i] for i in run)])
            for i in run:
                lengths[i] = common
            longest = max(longest, common) if len(run) > 1 else longest
        return [min(length, longest) for length in lengths]

    def cost(lengths: list[int]) -> int:
        distinct = {tuple(row[:length]) for row, length in zip(rows, lengths, strict=True)}
        tails = len(rows) * max(len(row) - length for row, length in zip(rows, lengths, strict=True))
        return base + len(distinct) * (max(lengths) - base) + tails

    values = sorted(set(alike))
    tried = values[:: -(-len(values) // _CANDIDATES)]
    return min((parted(least) for least in tried), key=cost)


def by_heads(rows: Sequence[Row]) -> list[int]:
    """Give the places of rows so that those which begin alike lie together, the longest first."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    alike = [_common(rows[a], rows[b]) for a, b in pairwise(order)]
    # Rows of one query have most of their tokens in common, however long the template is.
    shares = [common / min(len(rows[a]), len(rows[b])) for common, (a, b) in zip(alike, pairwise(order), strict=True)]
    runs = [sorted(run, key=lambda i: len(rows[i]), reverse=True) for run in _runs(order, shares, 0.5)]
    return [i for run in sorted(runs, key=lambda run: len(rows[run[0]]), reverse=True) for i in run]


def _runs(order: list[int], alike: Sequence[float], least: float) -> list[list[int]]:
    """Part an order where neighbours are less alike than this."""
    runs = [order[:1]] if order else []
    for place, value in zip(order[1:], alike, strict=True):
        if value < least:
            runs.append([])
        runs[-1].append(place)
    return runs


def _begin(
    network: nn.Module, rows: Sequence[Row], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor, Any | None]:
    """Read what can be read once; give token ids and mask of the rows, and what is read (None: nothing)."""
    how = sharing(network)
    lengths = heads(rows) if how == "free" else [len(row) - 1 for row in rows]
    heads_of = [tuple(row[:n]) for row, n in zip(rows, lengths, strict=True)]
    distinct = list(dict.fromkeys(heads_of))
    shared = common_prefix(network, distinct)
    if how == "none" or not min(lengths) or (len(distinct) == len(rows) and not shared):
        return *pad_left(rows, pad_id, device), None
    ids, mask = pad_left(distinct, pad_id, device, shared)
    cache = read(network, ids, mask, shared)
    order = {head: i for i, head in enumerate(distinct)}
    place = torch.tensor([order[head] for head in heads_of], device=device)
    cache.batch_select_indices(place)
    tails, tail_mask = pad_left([row[n:] for row, n in zip(rows, lengths, strict=True)], pad_id, device)
    return torch.cat([ids[place], tails], dim=1), torch.cat([mask[place], tail_mask], dim=1), cache


def _common(one: Row, other: Row) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
