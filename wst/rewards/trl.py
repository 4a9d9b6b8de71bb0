"""A reward function with TRL's signature as reward."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from wst.errors import ConfigError
from wst.rewards.base import Reward, function_identity
from wst.settings import check_arguments
from wst.students.loops import run_async
from wst.types import Query, Rollout


class TRLReward(Reward):
    """A reward function as TRL's trainers take it, ``function(prompts, completions, **columns)``.

    The prompt is the query without an instruction, and the completion is the student's answer. The columns are the
    fields of the rows, ``Query.extra``, each as a list with None where a row lacks the field, and the target. The
    function must take any columns (``**kwargs``), as TRL asks; it returns a number for each answer, or None if it
    cannot be scored. It may be async.

    Args:
        function: The function.
        target: Name of the column that holds the target, such as ``answer`` or ``solution``; several acceptable answers
            are a list.
        chat: Whether prompts and completions are lists of messages, as of conversational data sets, instead of text.

    Raises:
        ConfigError: If it is not a function; also, in ``score``, if it does not take the columns.

    Examples:
        >>> from wst.types import Response
        >>> def accuracy(prompts, completions, answer, **columns):
        ...     return [float(a == c) for a, c in zip(answer, completions)]
        >>> rollout = Rollout(Query("1", "2 + 3 = ?", target="5"), None, Response("5"))
        >>> TRLReward(accuracy, target="answer").score([rollout])
        [1.0]
    """

    def __init__(self, function: Callable[..., Any], target: str = "target", chat: bool = False) -> None:
        check_arguments(TRLReward, locals())
        if not callable(function) or isinstance(function, type):
            raise ConfigError(
                f"TRLReward: expected a function of prompts, completions and columns, got {function!r:.60}"
            )
        self.function = function
        self.target = target
        self.chat = chat

    def identity(self) -> object:
        """Return the function's name and the options."""
        return [function_identity(self.function), self.target, self.chat]

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return what the function returns, NaN in place of None."""
        queries = [rollout.query for rollout in rollouts]
        names = dict.fromkeys(name for query in queries for name in query.extra)
        columns = {name: [query.extra.get(name) for query in queries] for name in names}
        columns[self.target] = [
            list(query.targets) if len(query.targets) > 1 else next(iter(query.targets), None) for query in queries
        ]
        answers = [rollout.response.text for rollout in rollouts]
        columns |= {
            "prompts": [_chat(query) if self.chat else query.text for query in queries],
            "completions": [[{"role": "assistant", "content": text}] if self.chat else text for text in answers],
        }
        try:
            inspect.signature(self.function).bind(**columns)
        except TypeError as error:
            name = getattr(self.function, "__name__", type(self.function).__name__)
            raise ConfigError(
                f"TRLReward {name}: {error}; there are {', '.join(columns)}: set target to the name of the target's "
                "column, and let the function take **kwargs"
            ) from None
        except ValueError:  # functions written in C have no signature to check
            pass
        values = self.function(**columns)
        if inspect.isawaitable(values):
            values = run_async(_awaited(values))
        try:
            return [math.nan if value is None else value for value in values]
        except TypeError:
            return values  # no list: `score` says so


async def _awaited(values: Any) -> Any:  # noqa: ANN401
    return await values


def _chat(query: Query) -> list[dict[str, str]]:
    """Return a query with its history, as OpenAI's format has it."""
    turns = [{"role": turn.role, "content": turn.content} for turn in query.history]
    return [*turns, {"role": "user", "content": query.text}]
