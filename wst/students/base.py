"""The interface of students, and the check of what they return."""

from __future__ import annotations

import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError, ContractError
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

    #: Whether the same prompt always gets the same answer; a deterministic student is asked only once.
    deterministic: bool = False
    #: The ledger of its calls, for students that are paid by the call.
    accounts: Accounts | None = None
    #: Called while ``respond`` waits, with the number of answers received and expected, by students that know.
    on_progress: Callable[[int, int], None] | None = None

    def check(self) -> None:
        """Check that what it needs is there, before any model is loaded."""

    def setup(self, device: torch.device) -> None:
        """Load what answering needs. Called at every stage, so it must be idempotent."""

    def prefetch(self, prompt: Prompt) -> None:
        """Hear of a prompt that `respond` will soon be asked, so that a student may begin in the background."""

    @abstractmethod
    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Answer a batch of prompts.

        Args:
            prompts: A batch of any size above 0. The student splits it to fit its memory.

        Returns:
            One response a prompt, in order. A call that failed for good is a `Response` with ``error`` set.
        """

    def identity(self) -> Any:  # noqa: ANN401 - what JSON knows
        """Return the settings that determine its answers besides the prompt, to tell it from other students.

        By default these are the public attributes that hold plain values.
        """
        return public_settings(self)

    def close(self) -> None:
        """Release what `setup` took."""


def check_decoding(owner: str, temperature: float | None, stop: Sequence[str] | None) -> None:
    """Check a temperature and stop texts.

    Raises:
        ConfigError: If the temperature is below 0 or no number, or a stop text is empty.
    """
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ConfigError(f"{owner}: temperature must not be below 0, got {temperature}")
    if any(not text for text in stop or []):
        raise ConfigError(f"{owner}: stop holds an empty text, which would end every answer; take it out")


def respond(student: Student, prompts: Sequence[Prompt]) -> list[Response]:
    """Call the student and check the responses.

    Raises:
        ContractError: If it returns the wrong count, or something else than responses.
    """
    responses = student.respond(prompts) if prompts else []
    name = type(student).__name__
    if inspect.iscoroutine(responses):
        responses.close()
        raise ContractError(
            f"student {name}: respond() is async; write it with def, or wrap an async function of messages in "
            "wst.FunctionStudent"
        )
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
        if not isinstance(response.text, str):
            raise ContractError(f"student {name}: a response's text must be a str, got {response.text!r:.60}")
    return responses


def check_json(owner: str, **options: Any) -> None:  # noqa: ANN401
    """Check what is to be sent with each prompt.

    Raises:
        ConfigError: If an option is not JSON.
    """
    for name, value in options.items():
        try:
            json.dumps(value, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{owner}: {name} cannot be sent as JSON ({error})") from None
