"""Models that give a dialogue one number: Hugging Face sequence classifiers with a single output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from wst.errors import ModelError
from wst.modeling import loading as models
from wst.types import Message, Query


def load_scorer(
    source: str,
    *,
    device: torch.device,
    quantization: models.Quantization = "none",
    dtype: models.DType = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    new_head: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier with one output, frozen and in eval mode, and its tokenizer.

    Args:
        source: See the head of `wst.modeling.loading`.
        device: Where the weights go.
        quantization: "nf4" or "int8" by bitsandbytes, or "none".
        dtype: Format of the weights that are not quantized, and of the arithmetic.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether Python code that comes with the model may run.
        new_head: Whether a head is made that is not in the files: the model is to be trained.

    Raises:
        ModelError: If the model cannot be found or loaded, has another number of outputs, or lacks weights.
    """
    located = models.locate(source)
    folder = models.weights_folder(located)
    torch_dtype = models.resolve_dtype(dtype, device)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    verbosity = transformers_logging.get_verbosity()
    if new_head:  # that it is new is no news
        transformers_logging.set_verbosity_error()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right", truncation_side="left", **options)
        read: Any = AutoModelForSequenceClassification.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=torch_dtype,
            device_map={"": device},
            quantization_config=models.quantization_config(quantization, torch_dtype),
            **({"num_labels": 1} if new_head else {}),
            **options,
        )
    except models.LOADING_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"reward model {source!r}: cannot be loaded ({reason})") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    model: PreTrainedModel = read[0]
    missing = sorted(key for key in read[1]["missing_keys"] if not (new_head and _of_head(key)))
    if missing:
        raise ModelError(
            f"reward model {source!r}: {len(missing)} of its weights are missing, {missing[0]} among them; name a "
            "sequence classifier that was trained as a reward model"
        )
    if model.config.num_labels != 1:
        raise ModelError(f"reward model {source!r}: it has {model.config.num_labels} outputs; one with 1 is needed")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"reward model {source!r}: its tokenizer has no pad and no end token; set one")
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id  # by it decoders find the last token of a row
    model.requires_grad_(False)
    return model.eval(), tokenizer


def _of_head(key: str) -> bool:
    return key.split(".")[0] in ("score", "classifier", "classification_head", "pooler")


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    query: Query,
    answer: str,
    limit: int,
    template_options: dict[str, Any] | None = None,
) -> tuple[list[int], bool]:
    """Token ids of a query's dialogue with an answer at its end, and whether it was cut to its last ``limit`` ones.

    A tokenizer without a chat template gets the turns' texts, joined by blank lines.
    """
    messages = [*query.history, Message("user", query.text), Message("assistant", answer)]
    ids = models.encode_chat(tokenizer, messages, template_options, answered=True)
    return ids[-limit:], len(ids) > limit


def score_rows(
    network: Any,  # noqa: ANN401 - a classifier, with an adapter or without
    rows: Sequence[Sequence[int]],
    pad_id: int,
) -> Tensor:
    """Give each row of token ids its number, [rows] in float32. The rows are padded on the right, with a mask."""
    device = cast(torch.device, network.device)
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    logits: Tensor = network(input_ids=ids, attention_mask=mask).logits
    return logits.float().squeeze(-1)
