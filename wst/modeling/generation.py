"""Batched decoding: shared prefixes are read once, and a row that has ended leaves the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
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
from wst.modeling.prefix import Row, prefill_prompts, prefix_sharing

#: Share of a batch that must have ended before the batch is made smaller, which takes a while each time.
_ENDED_SHARE = 0.5
#: Number of rows up to which a smaller batch is hardly faster.
_SMALL_BATCH = 4
#: Tokens of the vocabulary whose probabilities are first added up as one block.
_BLOCK = 256


@dataclass(frozen=True)
class Decoding:
    """How rows are continued.

    Attributes:
        ends: Token ids that end a row.
        pad_id: The padding token.
        max_new_tokens: Largest number of tokens to write.
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
        """The same as transformers' configuration."""
        return GenerationConfig(
            do_sample=False,  # `_SampledToken` samples
            max_new_tokens=self.max_new_tokens,
            eos_token_id=list(self.ends),
            pad_token_id=self.pad_id,
            return_dict_in_generate=True,
        )


@torch.no_grad()
def generate(
    network: nn.Module, rows: Sequence[Row], how: Decoding, on_end: Callable[[int, list[int]], None] | None = None
) -> list[list[int]]:
    """Continue each row until it ends.

    Args:
        network: A causal language model of transformers, adapted or not.
        rows: Token ids of the prompts, at least one each.
        how: How they are continued.
        on_end: Called with a row's index and its tokens as soon as it has ended, while others may still go on.

    Returns:
        For each row the tokens written, with the end token where one was.
    """
    device = cast(Any, network).device
    written: dict[int, list[int]] = {}

    def ended(row: int, tokens: list[int]) -> None:
        written[row] = tokens
        if on_end is not None:
            on_end(row, tokens)

    ids, mask, cache = prefill_prompts(network, rows, how.pad_id, device)
    width, places = ids.shape[1], list(range(len(rows)))
    can_shrink = prefix_sharing(network) == "any"  # rows that stay are padded inside
    while True:
        left = replace(how, max_new_tokens=how.max_new_tokens - ids.shape[1] + width)
        watch = _EndedRows(left, width, can_shrink and len(places) > _SMALL_BATCH, partial(_tell, ended, places))
        output = cast(Any, network).generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=left.config,
            logits_processor=LogitsProcessorList([_SampledToken(how.temperature) if how.temperature else _Finite()]),
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
    return [written[row] for row in range(len(rows))]


def _tell(ended: Callable[[int, list[int]], None], places: list[int], row: int, tokens: list[int]) -> None:
    ended(places[row], tokens)


def sample_tokens(logits: Tensor, temperature: float) -> Tensor:
    """Sample a token of each row, [rows, 1], from logits [rows, vocabulary].

    Looks one random number a row up in the cumulative probabilities, first of blocks of tokens, then within one block.
    torch.multinomial draws one for each token of the vocabulary, which on a CPU takes a sixth of a small model's time.

    Raises:
        Diverged: If the logits are not numbers.
    """
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    vocabulary = logits.shape[1]
    logits = functional.pad(logits, (0, -logits.shape[1] % _BLOCK), value=-torch.inf)
    blocks = logits.softmax(dim=-1).view(len(logits), -1, _BLOCK)
    # In float64, over blocks and within one, so that rare tokens are drawn as often as they are probable.
    precise = torch.float32 if logits.device.type == "mps" else torch.float64
    below_one = 1 - 2 * torch.finfo(precise).eps
    cumulative = blocks.sum(dim=-1).cumsum(dim=-1, dtype=precise)
    _check_finite(cumulative[:, -1])
    point = torch.rand(len(logits), 1, dtype=precise, device=logits.device).clamp_(max=below_one) * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, point, right=True)
    before = functional.pad(cumulative, (1, 0)).gather(1, block)
    share = (point - before) / (cumulative.gather(1, block) - before)
    within = blocks[torch.arange(len(logits), device=logits.device), block[:, 0]].cumsum(dim=-1, dtype=precise)
    point = share.clamp_(0, below_one) * within[:, -1:]
    # Rounding of parallel sums may select a block of probability 0 past the end.
    return (block * _BLOCK + torch.searchsorted(within, point, right=True)).clamp_(max=vocabulary - 1)


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise Diverged(
            "the model's logits are not numbers; lower the learning rate, or set a dtype with a larger range"
        )


class _Finite(LogitsProcessor):
    """Check each row's largest logit before argmax, which takes NaN for the largest."""

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:  # noqa: ANN401 - as transformers has it
        """Return scores [rows, vocabulary] as they are.

        Raises:
            Diverged: If they are not numbers.
        """
        _check_finite(scores.amax(dim=-1))
        return scores


class _SampledToken(LogitsProcessor):
    """Mask all logits except the sampled token's, so that argmax returns it."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Any) -> Any:  # noqa: ANN401 - as transformers has it
        """Return scores [rows, vocabulary] of which one a row is finite."""
        return torch.full_like(scores, -torch.inf).scatter_(1, sample_tokens(scores, self.temperature), 0.0)


class _EndedRows(StoppingCriteria):
    """Track which rows have ended, report each, and stop the batch once the others had better go on without them."""

    def __init__(self, how: Decoding, width: int, may_stop: bool, tell: Callable[[int, list[int]], None]) -> None:
        self.how = how
        self.width = width  #: tokens of the prompts, in which no stop text is looked for
        self.stopped = False
        self.may_stop = may_stop
        self.tell = tell
        self.ended = torch.empty(0, dtype=torch.bool)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Check the tokens just written, [rows, tokens so far]."""
        if self.stopped:  # on some devices transformers reads the answer one token late, and drops that token
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
        self.stopped = self.may_stop and int(self.ended.sum()) >= _ENDED_SHARE * len(self.ended)
        return torch.ones_like(now) if self.stopped else self.ended
