"""Templates: query -> the teacher's chat, (instruction, query) -> the student's chat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wst.errors import ConfigError
from wst.types import Instruction, Message, Prompt, Query

Placement = Literal["system", "before", "after"]


def fill(template: str, **values: str) -> str:
    """Put values at their ``{name}`` places, in one pass and without evaluating anything.

    Braces that name none of the values stay as they are, and so does whatever a value holds.

    >>> fill("{instruction} {x} {query}", instruction="Say {query}.", query="2+2")
    'Say {query}. {x} 2+2'
    """
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def require_places(owner: str, option: str, template: str, *names: str) -> None:
    """Check that a template has the places it needs.

    Raises:
        ConfigError: If it lacks one.
    """
    for name in names:
        if f"{{{name}}}" not in template:
            raise ConfigError(f"{owner}: {option} has no place for {{{name}}}; put {{{name}}} where it is to stand")


@dataclass(frozen=True)
class TeacherPrompt:
    """What the teacher reads when it is to write an instruction.

    Args:
        template: The user turn; ``{query}`` is where the query stands.
        system: The system turn, or None.
    """

    template: str = (
        "Write one short instruction that helps an assistant to answer the following request well. "
        "Do not answer it yourself.\n\nRequest: {query}\n\nInstruction:"
    )
    system: str | None = None

    def __post_init__(self) -> None:
        """Check the template.

        Raises:
            ConfigError: If it has no ``{query}``.
        """
        require_places("TeacherPrompt", "template", self.template, "query")

    def __call__(self, query: Query) -> Prompt:
        """Give the chat for a query; earlier turns of a dialogue stand before it as plain text."""
        turns = [f"{message.role}: {message.content}" for message in query.history]
        user = Message("user", fill(self.template, query="\n\n".join([*turns, query.text])))
        return Prompt(((Message("system", self.system), user)) if self.system is not None else (user,))


@dataclass(frozen=True)
class StudentPrompt:
    """What the student reads: the query, with the teacher's instruction or without.

    Args:
        placement: Where the instruction stands: "system" (as system message), "before" or "after" the query
            in the same turn.
        query: The query's own words in the prompt; ``{query}`` is where the query stands. It is the same with
            and without an instruction, so that the two differ in nothing else.
        system: A system message of the task's own, or None. With placement "system" the instruction follows it.
        separator: What stands between two pieces that share a turn.
    """

    placement: Placement = "system"
    query: str = "{query}"
    system: str | None = None
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: If the query template has no ``{query}``, or the placement is unknown.
        """
        require_places("StudentPrompt", "query", self.query, "query")
        if self.placement not in ("system", "before", "after"):
            raise ConfigError(f"StudentPrompt: placement must be system, before or after, got {self.placement!r}")

    def __call__(self, query: Query, instruction: Instruction | None) -> Prompt:
        """Give the chat for a query; with no instruction (None, or an empty one) the student is on its own."""
        words = instruction.text if instruction is not None else ""
        system, user = [self.system or ""], [fill(self.query, query=query.text)]
        match self.placement:
            case "system":
                system.append(words)
            case "before":
                user.insert(0, words)
            case "after":
                user.append(words)
        head = self.separator.join(filter(None, system))
        messages = [Message("system", head)] if head else []
        messages += [*query.history, Message("user", self.separator.join(filter(None, user)))]
        return Prompt(tuple(messages))
