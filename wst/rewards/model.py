"""Rewards given by a model that was trained to rank answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wst.modeling.chat import ChatEncoder, dialogue
from wst.modeling.spec import DType, FromSpec, ModelSpec, Quantization
from wst.rewards.base import Reward
from wst.settings import check_arguments, check_counts
from wst.types import Rollout

if TYPE_CHECKING:
    import torch


class RewardModel(FromSpec, Reward):
    """The output of a Hugging Face sequence classifier for the dialogue with the response at its end.

    The model reads the query's history, the query and the response, in its tokenizer's chat template; it does not see
    the instruction. Models that `wst.PreferenceModel` trains are such classifiers, as are most of the hub's reward
    models. It has a single output.

    Args:
        model: Name of the classifier; for this and the other options of loading see `ModelSpec`.
        quantization: "nf4", "int8" or "none".
        dtype: Number format of the weights.
        batch_size: Dialogues scored at once, sorted by length.
        max_tokens: Largest number of tokens in a dialogue; of a longer one the last tokens are read, with a warning.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether the model's own Python code may run.
        chat_template_options: Further arguments for the tokenizer's chat template.

    Raises:
        ConfigError: If a setting is impossible.
        ModelError: If the model named is not there.
    """

    def __init__(
        self,
        model: str,
        quantization: Quantization = "none",
        dtype: DType = "auto",
        batch_size: int = 16,
        max_tokens: int = 1024,
        revision: str | None = None,
        trust_remote_code: bool = False,
        chat_template_options: dict[str, Any] | None = None,
    ) -> None:
        check_arguments(RewardModel, locals())
        check_counts("RewardModel", batch_size=batch_size, max_tokens=max_tokens)
        self.spec = ModelSpec(model, quantization, dtype, revision, trust_remote_code)
        self.batch_size = batch_size
        self.encoder = ChatEncoder(max_tokens, "max_tokens", chat_template_options)
        self._loaded: tuple[Any, Any] | None = None

    def setup(self, device: torch.device) -> None:
        """Load the model onto the device; do nothing when called again.

        Raises:
            ModelError: If it cannot be loaded, has more outputs than one, or no trained head.
        """
        from wst.modeling.classifiers import load_classifier  # it brings torch

        if self._loaded is None:
            self._loaded = load_classifier(self.spec, device=device)

    def close(self) -> None:
        """Free the memory; `setup` loads again."""
        self._loaded = None

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return the model's output for each rollout; equal dialogues are computed once."""
        import torch

        from wst.modeling.classifiers import score_rows

        if self._loaded is None:
            raise RuntimeError("RewardModel: call setup(device) first")
        model, tokenizer = self._loaded
        dialogues = [dialogue(rollout.query, rollout.response.text) for rollout in rollouts]
        rows = list(map(tuple, self.encoder.dialogues(tokenizer, dialogues, f"reward model {self.source!r}")))
        todo = sorted(set(rows), key=lambda row: (len(row), row))
        scores: dict[tuple[int, ...], float] = {}
        with torch.no_grad():
            for start in range(0, len(todo), self.batch_size):
                batch = todo[start : start + self.batch_size]
                scores |= dict(zip(batch, score_rows(model, batch, tokenizer.pad_token_id).tolist(), strict=True))
        return [scores[row] for row in rows]

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return NaN: there is no gold answer that an instruction could hold."""
        return [float("nan")] * len(rollouts)
