"""The interface of a reward, and the check that every reward's numbers pass through."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError, ContractError
from wst.rewards.words import gives_away
from wst.settings import identity_of
from wst.types import Rollout

if TYPE_CHECKING:
    import torch

    from wst.students.base import Student


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of a batch of rollouts.

    Attributes:
        total: One reward per rollout; NaN if the rollout cannot be scored.
        parts: The named components of ``total``, each as long as ``total``.
    """

    total: list[float]
    parts: dict[str, list[float]] = field(default_factory=dict)


class Reward(ABC):
    """Scores the student's responses. Subclass it and implement ``score``; every other method is optional."""

    #: Whether `score` needs the student's answer without an instruction, in `Rollout.unaided`.
    needs_unaided: bool = False

    #: Whether the reward depends on the instruction, besides query and response. An evaluation scores equal responses
    #: to a query once, whatever the instruction, unless this is set.
    reads_instruction: bool = False

    #: Number of queries whose unaided answers `calibrate` needs before the first score; 0 for none.
    calibration_size: int = 0

    def check(self) -> None:
        """Check that the models the reward needs exist, before anything is loaded. By default: of its students."""
        for student in self.students().values():
            student.check()

    def setup(self, device: torch.device) -> None:
        """Load what scoring needs. Called again in every stage, so it must be idempotent. By default: its students."""
        for student in self.students().values():
            student.setup(device)

    def calibrate(self, unaided: Sequence[Rollout]) -> None:
        """Measure what scoring needs on unaided answers. Called once, before the first score."""

    def state_dict(self) -> dict[str, Any]:
        """Return the calibration as plain values, to be stored in checkpoints."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the calibration from a checkpoint; after that ``calibration_size`` must be 0."""

    def students(self) -> dict[str, Student]:
        """Return the students that the reward itself queries, such as a judge, by the name used in logs."""
        return {}

    def close(self) -> None:
        """Release what `setup` loaded; `setup` may be called again."""
        for student in self.students().values():
            student.close()

    @abstractmethod
    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return one reward per rollout.

        Args:
            rollouts: A non-empty batch; every rollout has a response.

        Returns:
            One number per rollout, in order. NaN means "cannot be scored": the rollout is left out of training.
            It is never treated as 0.
        """

    def score_parts(self, rollouts: Sequence[Rollout]) -> Scores:
        """Return the rewards of `score` together with the components of a composite reward."""
        return Scores(self.score(rollouts))

    def leaks(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return which instructions contain the gold answer: there the teacher solved the task itself.

        By default an instruction leaks if `wst.rewards.words.gives_away` finds the target, or one of several acceptable
        answers, in it. Override this if the reward reads answers differently.

        Args:
            rollouts: Any number of rollouts; their responses are ignored.

        Returns:
            1.0 or 0.0 per rollout; NaN without an instruction or a target.
        """
        return [
            math.nan
            if rollout.instruction is None or not rollout.query.targets
            else float(self._leaks(rollout.instruction.text, rollout.query.targets))
            for rollout in rollouts
        ]

    def _leaks(self, instruction: str, targets: tuple[str, ...]) -> bool:
        return any(gives_away(instruction, target) for target in targets)


#: Largest size of a reward. Sums of squares stay finite, in float32 the reward itself.
LARGEST = 1e30

#: A reward, or a plain function that serves as one.
RewardLike = Reward | Callable[[Sequence[Rollout]], list[float]]


class FunctionReward(Reward):
    """A plain function as a reward: it takes a batch of rollouts and returns one number per rollout.

    Args:
        function: Called with a sequence of rollouts. NaN in its result means "cannot be scored".

    Raises:
        ConfigError: If ``function`` is a class, a coroutine function, not callable, or does not take one argument.

    Examples:
        >>> from wst.types import Query, Response
        >>> def brief(rollouts):
        ...     return [float(len(rollout.response.text) < 10) for rollout in rollouts]
        >>> FunctionReward(brief).score([Rollout(Query("1", "Hi?"), None, Response("Hi."))])
        [1.0]
    """

    def __init__(self, function: Callable[[Sequence[Rollout]], list[float]]) -> None:
        name = _name(function)
        if isinstance(function, type):
            raise ConfigError(f"reward {name}: it is a class; give an instance of it, {name}(...)")
        if not callable(function):
            raise ConfigError(
                f"reward: expected a wst.Reward or a function of a list of rollouts, got {_short(function)}"
            )
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
            raise ConfigError(f"reward {name}: it is a coroutine function; write it with def instead of async def")
        try:
            inspect.signature(function).bind([])
        except TypeError:
            raise ConfigError(
                f"reward {name}: it must take one argument, the list of rollouts, and return one number for each"
            ) from None
        except ValueError:  # functions written in C have no signature to check
            pass
        self.function = function

    def identity(self) -> object:
        """Return the function's module and qualified name, or the settings of a callable object."""
        return function_identity(self.function)

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """Return what the function returns."""
        return self.function(rollouts)


def function_identity(function: Callable[..., Any]) -> object:
    """Return a function's module and qualified name, or the settings of a callable object."""
    qualname = getattr(function, "__qualname__", None)
    return identity_of(function) if qualname is None else f"{function.__module__}.{qualname}"


def as_reward(reward: RewardLike) -> Reward:
    """Return the reward itself, or a plain function wrapped into a `FunctionReward`.

    Raises:
        ConfigError: If it is neither.
    """
    return reward if isinstance(reward, Reward) else FunctionReward(reward)


def score(reward: Reward, rollouts: Sequence[Rollout], name: str | None = None) -> Scores:
    """Score all rollouts that have a response, in one call; rollouts whose response failed get NaN.

    Args:
        reward: Scores them.
        rollouts: Any number of rollouts.
        name: The reward's name in error messages; the name of its class or function by default.

    Raises:
        ContractError: If the reward returns the wrong number of values, a value that is not a number, or an infinity.
    """
    answered = [i for i, rollout in enumerate(rollouts) if rollout.response.error is None]
    scores = reward.score_parts([rollouts[i] for i in answered]) if answered else Scores([])
    name = name or _name(reward.function if isinstance(reward, FunctionReward) else type(reward))
    if not isinstance(scores, Scores):
        raise ContractError(f"reward {name}: score_parts() must return wst.Scores, got {_short(scores)}")
    parts = {part: _spread(f"{name}[{part}]", values, answered, len(rollouts)) for part, values in scores.parts.items()}
    return Scores(_spread(name, scores.total, answered, len(rollouts)), parts)


def _spread(name: str, values: Sequence[float], positions: list[int], length: int) -> list[float]:
    """Return a list of ``length`` NaN with the checked ``values`` at ``positions``."""
    countable = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not countable or len(values) != len(positions):
        got = f"{len(values)}" if countable else f"a {type(values).__name__}"
        raise ContractError(
            f"reward {name}: expected a list of {len(positions)} numbers, one per rollout, got {got}; return one "
            "number for each rollout (NaN if it cannot be scored)"
        )
    spread = [math.nan] * length
    for position, value in zip(positions, values, strict=True):
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            number = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise ContractError(
                f"reward {name}: expected numbers, got {_short(value)}; return NaN if a rollout cannot be scored"
            ) from None
        if abs(number) > LARGEST:
            raise ContractError(
                f"reward {name}: got {number}; rewards must be finite (NaN if they cannot be scored), and not beyond "
                f"{LARGEST:g}"
            )
        spread[position] = number
    return spread


def _name(named: object) -> str:
    """Return the name of a class or function, or of an object's class."""
    return getattr(named, "__name__", type(named).__name__)


def _short(value: object) -> str:
    """Return at most 60 characters of a value's repr, on one line."""
    return " ".join(f"{value!r:.60}".split())
