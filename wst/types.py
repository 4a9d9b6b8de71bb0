"""The records of the method: query, instruction, prompt, response, rollout.

All are plain frozen dataclasses without tensors or models; nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from wst.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


class _Text:
    """A record without tensors: Lightning moves batches and outputs to a device by calling their ``to``."""

    __slots__ = ()

    def to(self, *_: object, **__: object) -> Self:
        """Return the record itself."""
        return self


@dataclass(frozen=True, slots=True)
class Query(_Text):
    """What the student is asked.

    Attributes:
        id: Stable identity within the data set; answers are cached under it.
        text: The query; in a dialogue, the last human turn.
        target: The gold answer, if the data set has one, for rewards that compare with it; a tuple (or a list) if there
            are several acceptable ones, any of which is right.
        history: Turns before the query, oldest first.
        extra: Further fields of the data row, for a user's own rewards.
    """

    id: str
    text: str
    target: str | Sequence[str] | None = None
    history: tuple[Message, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Turn lists of acceptable answers and of turns into tuples.

        Raises:
            DataError: If id or text is no text, a turn no message, or the target neither text nor several texts.
        """
        if not (isinstance(self.id, str) and isinstance(self.text, str)):
            raise DataError(f"query {self.id!r:.60}: id and text must be text, got {(self.id, self.text)!r:.60}")
        if isinstance(self.history, list):
            object.__setattr__(self, "history", tuple(self.history))
        if not isinstance(self.history, tuple) or not all(isinstance(turn, Message) for turn in self.history):
            raise DataError(f"query {self.id!r:.60}: history must be a tuple of wst.Message, got {self.history!r:.60}")
        if isinstance(self.target, list):
            object.__setattr__(self, "target", tuple(self.target))
        answers = self.target if isinstance(self.target, tuple) else (self.target or "",)
        if not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"query {self.id!r}: target is {self.target!r:.60}; make it text, or a list of texts")

    @property
    def targets(self) -> tuple[str, ...]:
        """The acceptable answers, empty if there are none."""
        if self.target is None or isinstance(self.target, str):
            return () if self.target is None else (self.target,)
        return tuple(self.target)


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the teacher wrote for a query.

    Attributes:
        text: The instruction as the student reads it.
        prompt_ids: Token ids of the teacher's prompt, without padding.
        token_ids: Sampled token ids, including the end token if it was sampled, without padding.
        truncated: Whether the token limit cut it off.
    """

    text: str
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a student answers: a chat that ends with a user turn.

    Attributes:
        messages: The turns.
        sample: Number of the draw. It distinguishes a sampled student's answers to the same messages; a deterministic
            student ignores it.
    """

    messages: tuple[Message, ...]
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """What a student answered.

    Attributes:
        text: The answer, without the prompt and without special tokens.
        tokens: Number of generated tokens; 0 if unknown.
        truncated: Whether the student's token limit cut the answer off.
        prompt_tokens: Number of prompt tokens; 0 if unknown.
        refused: Whether the student, or a filter before it, declined to answer. A refusal is an answer.
        error: Why there is no answer; None if there is one. A failed response is never scored: its reward is NaN.
    """

    text: str
    tokens: int = 0
    truncated: bool = False
    prompt_tokens: int = 0
    refused: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rollout(_Text):
    """A query, the instruction, and the answer under it.

    Attributes:
        query: What was asked.
        instruction: What the teacher wrote; None if the student had no instruction.
        response: What the student answered.
        unaided: The answer without an instruction, for rewards that need it (`Reward.needs_unaided`).
    """

    query: Query
    instruction: Instruction | None
    response: Response
    unaided: Response | None = None


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as a row of a JSON Lines file."""
    query, instruction, response = rollout.query, rollout.instruction, rollout.response
    row: dict[str, Any] = {
        "id": query.id,
        "query": query.text,
        "target": query.target,
        "instruction": instruction.text if instruction is not None else None,
        "response": response.text,
        "truncated": response.truncated,
    }
    return row if response.error is None else row | {"error": response.error}
