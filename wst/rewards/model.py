"""Rewards given by a model that was trained to rank answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from wst.rewards.base import Reward
from wst.settings import check_counts
from wst.types import Rollout

if TYPE_CHECKING:
    import torch


class RewardModel(Reward):
    """What a Hugging Face sequence classifier with one output gives the dialogue with the answer at its end.

    The model reads the query's history, the query and the response, in its tokenizer's chat template; it does not see
    the instruction. Models that are trained by `wst.PreferenceModel` are such classifiers, as are most of the hub's
    reward models.

    Args:
        model: Hub id or folder of the classifier; see `wst.modeling.loading`.
        quantization: "nf4" (4 bits) or "int8" by bitsandbytes, or "none".
        dtype: Number format of what is not quantized.
        batch_size: Dialogues scored at once, those of a length together.
        max_tokens: Length limit of a dialogue; of a longer one the last tokens are read, with a warning.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether Python code that comes with the model may run.
        chat_template_options: Further arguments for the tokenizer's chat template.

    Raises:
        ConfigError: If a setting is impossible.
        ModelError: If the model named is not there.
    """

    def __init__(
        self,
        model: str,
        quantization: Literal["none", "nf4", "int8"] = "none",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        batch_size: int = 16,
        max_tokens: int = 1024,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
    ) -> None:
        from wst.modeling import loading as models  # torch comes with it

        check_counts("RewardModel", batch_size=batch_size, max_tokens=max_tokens)
        models.locate(model)
        self.source = model
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.chat_template_options = chat_template_options
        self.shortened = 0  #: dialogues cut to fit so far
        self._loading: dict[str, Any] = {
            "quantization": quantization,
            "dtype": dtype,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        self._loaded: tuple[Any, Any] | None = None

    def check(self) -> None:
        """Make sure that the model is there, reading its configuration alone.

        Raises:
            ModelError: If it is not.
        """
        from wst.modeling import loading as models

        models.check(self.source, self._loading["revision"], self._loading["trust_remote_code"])

    def setup(self, device: torch.device) -> None:
        """Load the model onto the device; does nothing when called again.

        Raises:
            ModelError: If it cannot be loaded, has more outputs than one, or no trained head.
        """
        from wst.modeling.classifiers import load_scorer

        if self._loaded is None:
            self._loaded = load_scorer(self.source, device=device, **self._loading)

    def close(self) -> None:
        """Give the memory back; `setup` loads again."""
        self._loaded = None

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Give each rollout the model's number, equal dialogues once."""
        import torch

        from wst.modeling.classifiers import encode_dialogue, score_rows

        if self._loaded is None:
            raise RuntimeError("RewardModel: call setup(device) first")
        model, tokenizer = self._loaded
        rows: list[tuple[int, ...]] = []
        before = self.shortened
        for rollout in rollouts:
            ids, cut = encode_dialogue(
                tokenizer, rollout.query, rollout.response.text, self.max_tokens, self.chat_template_options
            )
            rows.append(tuple(ids))
            if cut:
                self.shortened += 1
        if self.shortened > before:
            warnings.warn(
                f"reward model {self.source!r}: {self.shortened - before} of {len(rollouts)} dialogues were cut to fit "
                f"max_tokens={self.max_tokens} ({self.shortened} so far)",
                stacklevel=2,
            )
        todo = sorted(set(rows), key=lambda row: (len(row), row))
        scores: dict[tuple[int, ...], float] = {}
        with torch.no_grad():
            for start in range(0, len(todo), self.batch_size):
                batch = todo[start : start + self.batch_size]
                scores |= dict(zip(batch, score_rows(model, batch, tokenizer.pad_token_id).tolist(), strict=True))
        return [scores[row] for row in rows]

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Give NaN: there is no answer that an instruction could hold."""
        return [float("nan")] * len(rollouts)
