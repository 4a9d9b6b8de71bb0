"""Rollouts of mathematical answers."""

from wst.types import Instruction, Query, Response, Rollout


def rollout_of(response: str, target: str | None, instruction: str | None = None, name: str = "row-7") -> Rollout:
    told = None if instruction is None else Instruction(instruction)
    return Rollout(Query(name, "?", target=target), told, Response(response))


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"
