"""Models that map a dialogue to one number: Hugging Face sequence classifiers with a single output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from wst.errors import ModelError
from wst.modeling.loading import read_pretrained
from wst.modeling.spec import ModelSpec


def load_classifier(
    spec: ModelSpec, *, device: torch.device, new_head: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier with one output, frozen and in eval mode, and its tokenizer.

    Args:
        spec: What to load.
        device: Where the weights go.
        new_head: Whether to make a classification head that is not in the files, because it is to be trained.

    Raises:
        ModelError: If the model cannot be found or loaded, has another number of outputs, or lacks weights.
    """
    verbosity = transformers_logging.get_verbosity()
    if new_head:  # transformers would warn of it
        transformers_logging.set_verbosity_error()
    try:
        model, tokenizer, missing = read_pretrained(
            spec,
            AutoModelForSequenceClassification,
            device,
            {"padding_side": "right", "truncation_side": "left"},
            kind="reward model",
            **({"num_labels": 1} if new_head else {}),
        )
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = [key for key in missing if not (new_head and _of_head(key))]
    if missing:
        raise ModelError(
            f"reward model {spec.model!r}: {len(missing)} of its weights are missing, {missing[0]} among them; name a "
            "sequence classifier that was trained as a reward model"
        )
    if model.config.num_labels != 1:
        raise ModelError(f"reward model {spec.model!r}: it has {model.config.num_labels} outputs; one with 1 is needed")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"reward model {spec.model!r}: its tokenizer has no pad and no end token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # by it decoders find the last token of a row
    model.requires_grad_(False)
    return model.eval(), tokenizer


def _of_head(key: str) -> bool:
    return key.split(".")[0] in ("score", "classifier", "classification_head", "pooler")


def score_rows(
    network: Any,  # noqa: ANN401 - a classifier, with an adapter or without
    rows: Sequence[Sequence[int]],
    pad_id: int,
) -> Tensor:
    """Return the score of each row of token ids, [rows] in float32. The rows are padded on the right, with a mask."""
    device = cast(torch.device, network.device)
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    logits: Tensor = network(input_ids=ids, attention_mask=mask).logits
    return logits.float().squeeze(-1)
