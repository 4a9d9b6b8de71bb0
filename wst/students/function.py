"""A plain function as student."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from wst.errors import ConfigError, ContractError
from wst.students.base import Student
from wst.students.loops import run_async
from wst.types import Prompt, Response

StudentFunction = Callable[[list[dict[str, str]]], str | Awaitable[str]]


class FunctionStudent(Student):
    """A student that is a function, sync or async; from Python the function itself will do, a config names this class.

    Args:
        function: Takes the messages of a chat as OpenAI's format has them, ``[{"role": ..., "content": ...}]``, and
            returns the answer. An exception is a failed call: its rollout is not scored. The calls of an async function
            run concurrently.

    Raises:
        ConfigError: If it is not a function.
    """

    def __init__(self, function: StudentFunction) -> None:
        if isinstance(function, type):
            raise ConfigError(f"student {function.__name__}: it is a class; give an instance, {function.__name__}(...)")
        if not callable(function):
            raise ConfigError(f"student: expected a wst.Student or a function of messages, got {function!r:.60}")
        self.function = function

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Call the function once for each prompt."""
        # Not within a loop: a function that is not async may run one of its own.
        answers = [self._call(prompt) for prompt in prompts]
        if not any(map(inspect.isawaitable, answers)):
            return [self._response(answer) for answer in answers]

        async def all_answers() -> list[Response]:
            return list(await asyncio.gather(*map(self._awaited, answers)))

        return run_async(all_answers())

    def _call(self, prompt: Prompt) -> Any:  # noqa: ANN401 - checked in `_response`
        try:
            return self.function([{"role": turn.role, "content": turn.content} for turn in prompt.messages])
        except Exception as error:
            return error

    async def _awaited(self, answer: Any) -> Response:  # noqa: ANN401
        try:
            return self._response(await answer if inspect.isawaitable(answer) else answer)
        except ContractError:
            raise
        except Exception as error:
            return self._response(error)

    def _response(self, answer: Any) -> Response:  # noqa: ANN401
        if isinstance(answer, Exception):
            return Response("", error=f"{type(answer).__name__}: {answer}")
        if not isinstance(answer, str):
            raise ContractError(f"student {self.identity()}: expected a text, got {answer!r:.60}; return a str")
        return Response(answer)

    def identity(self) -> Any:  # noqa: ANN401 - what JSON knows
        """Return the function's name."""
        return f"{self.function.__module__}.{getattr(self.function, '__qualname__', type(self.function).__qualname__)}"


def as_student(student: Student | StudentFunction) -> Student:
    """Return the student itself, or a function as a `FunctionStudent`.

    Raises:
        ConfigError: If it is neither.
    """
    return student if isinstance(student, Student) else FunctionStudent(student)
