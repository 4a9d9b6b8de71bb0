"""The records that travel from room to room: query, instruction, prompt, response, rollout.

All are plain frozen dataclasses: no tensors, no models, nothing that needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


class _Text:
    """What holds nothing that could be moved to a device; Lightning moves batches and outputs by their ``to``."""

    __slots__ = ()

    def to(self, *_: object, **__: object) -> Self:
        """Give the record itself."""
        return self


@dataclass(frozen=True, slots=True)
class Query(_Text):
    """What the student is asked.

    Attributes:
        id: Stable identity within the data set; what was answered once is remembered under it.
        text: The words of the query; of a dialogue, those of the last human turn.
        target: The gold answer where the data set has one, for rewards that compare with it.
        history: Turns before the query, oldest first.
        extra: Further fields of the data row, for rewards of the user's own.
    """

    id: str
    text: str
    target: str | None = None
    history: tuple[Message, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Instruction:
    """What the teacher wrote for a query.

    Attributes:
        text: The instruction as the student reads it.
        prompt_ids: Token ids of the teacher's prompt, without padding.
        token_ids: Token ids sampled, with the end token where one was sampled, without padding.
        truncated: Whether the token limit ended it rather than the teacher.
    """

    text: str
    prompt_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a student is given: a chat that ends with the turn to be answered.

    Attributes:
        messages: The turns.
        sample: Which of several draws is asked for. It tells a sampled student's answers to the same messages
            apart; one that always answers alike ignores it.
    """

    messages: tuple[Message, ...]
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """What a student answered.

    Attributes:
        text: The answer, without the prompt and without special tokens.
        tokens: Number of tokens generated; 0 where the student cannot tell.
        truncated: Whether the student's token limit cut the answer off.
        prompt_tokens: Number of tokens read; 0 where the student cannot tell.
        refused: Whether the student, or a filter before it, declined to answer. It is an answer all the same.
        error: Why there is no answer, or None. A failed response is never scored: its reward is NaN.
    """

    text: str
    tokens: int = 0
    truncated: bool = False
    prompt_tokens: int = 0
    refused: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rollout(_Text):
    """What one answer came from.

    Attributes:
        query: What was asked.
        instruction: The instruction given with it; None: the student was on its own.
        response: What the student answered.
        unaided: What it answers to the query on its own; there for rewards that need it (`Reward.needs_unaided`).
    """

    query: Query
    instruction: Instruction | None
    response: Response
    unaided: Response | None = None


def rollout_row(rollout: Rollout) -> dict[str, Any]:
    """A rollout as a row of a JSON Lines file."""
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
