"""What a student is, and the check that every student's answers pass through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wst.errors import ContractError
from wst.settings import public_settings
from wst.types import Prompt, Response

if TYPE_CHECKING:
    import torch

    from wst.students.accounts import Accounts


class Student(ABC):
    """A frozen model that answers prompts. Subclass it and write ``respond``.

    A student is a plain class: it must not be a ``torch.nn.Module``, so that its weights never reach a
    checkpoint, an optimizer or a distributed strategy.
    """

    #: Whether the same prompt always gets the same answer; what is deterministic is asked only once.
    deterministic: bool = False
    #: What its calls have cost, for students that keep accounts.
    accounts: Accounts | None = None
    #: Told of answers that are there and of all asked for, while ``respond`` waits; for students that can tell.
    on_progress: Callable[[int, int], None] | None = None

    def check(self) -> None:
        """Make sure that the models it needs are there, before anything is loaded."""

    def setup(self, device: torch.device) -> None:
        """Load what answering needs, once; called again at every stage, so it must be idempotent."""

    def prefetch(self, prompt: Prompt) -> None:
        """Learn of a prompt that `respond` will soon be asked. A student that works in the background starts now."""

    @abstractmethod
    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer a batch of prompts.

        Args:
            prompts: A batch of any size above 0. The student divides it as its memory asks.

        Returns:
            One response a prompt, in order. A call that failed for good is a `Response` with ``error`` set.
        """

    def identity(self) -> Any:  # noqa: ANN401 - what JSON knows
        """Give the settings that determine its answers besides the prompt, to tell them from another student's.

        By default the public attributes that hold plain values.
        """
        return public_settings(self)

    def close(self) -> None:
        """Give back what `setup` took."""


def respond(student: Student, prompts: Sequence[Prompt]) -> list[Response]:
    """Let the student answer, and check what it returns.

    Raises:
        ContractError: If it returns the wrong count, or something else than responses.
    """
    responses = student.respond(prompts) if prompts else []
    name = type(student).__name__
    if not isinstance(responses, list) or len(responses) != len(prompts):
        got = len(responses) if isinstance(responses, list) else f"a {type(responses).__name__}"
        raise ContractError(
            f"student {name}: expected a list of {len(prompts)} responses, one a prompt, got {got}; "
            "let respond() return one Response for each prompt, in order"
        )
    for response in responses:
        if not isinstance(response, Response):
            raise ContractError(
                f"student {name}: expected wst.Response objects, got {response!r:.60}; return Response(text=...)"
            )
    return responses
