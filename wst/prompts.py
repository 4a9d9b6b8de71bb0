"""Templates: query -> the teacher's chat, (instruction, query) -> the student's chat."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from wst.errors import ConfigError
from wst.types import Instruction, Message, Prompt, Query

Placement = Literal["system", "before", "after"]


def fill(template: str, **values: str) -> str:
    """Replace each ``{name}`` in a template by its value, in one pass and without evaluating anything.

    Braces that name no value stay as they are, as do braces inside a value.

    >>> fill("{instruction} {x} {query}", instruction="Say {query}.", query="2+2")
    'Say {query}. {x} 2+2'
    """
    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", lambda match: values[match[1]], template)


def require_places(owner: str, option: str, template: str, *names: str) -> None:
    """Check that a template holds ``{name}`` for each name.

    Raises:
        ConfigError: If it lacks one.
    """
    for name in names:
        if f"{{{name}}}" not in template:
            raise ConfigError(f"{owner}: {option} has no place for {{{name}}}; put {{{name}}} where it is to stand")


@dataclass(frozen=True)
class TeacherPrompt:
    """The teacher's prompt: it asks for an instruction for a query.

    Args:
        template: The user turn; ``{query}`` is replaced by the query.
        system: The system turn, or None.
        examples: Pairs of a query and an instruction for it, shown as earlier turns of the chat. They tell a small
            model the form of an instruction.
    """

    template: str = (
        "Write one short instruction that helps an assistant to answer the following request well. "
        "Do not answer it yourself.\n\nRequest: {query}\n\nInstruction:"
    )
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ConfigError: If the template has no ``{query}``, or an example is not a pair of texts.
        """
        require_places("TeacherPrompt", "template", self.template, "query")
        examples = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in self.examples)
        for number, pair in enumerate(examples, 1):
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise ConfigError(f"TeacherPrompt: example {number} must be a pair of texts: [query, instruction]")
        object.__setattr__(self, "examples", examples)  # JSON brings lists

    def __call__(self, query: Query) -> Prompt:
        """Return the chat for a query. Earlier turns of a dialogue are put before the query as plain text."""
        turns = [f"{message.role}: {message.content}" for message in query.history]
        chat = [Message("system", self.system)] if self.system is not None else []
        for text, instruction in self.examples:
            chat += [Message("user", fill(self.template, query=text)), Message("assistant", instruction)]
        return Prompt((*chat, Message("user", fill(self.template, query="\n\n".join([*turns, query.text])))))


@dataclass(frozen=True)
class StudentPrompt:
    """The student's prompt: the query, with or without an instruction.

    Args:
        placement: Where the instruction goes: "system" (system message), or "before" or "after" the query in the same
            turn.
        query: Template of the query; ``{query}`` is replaced by its text. It is the same with and without an
            instruction, so that the two prompts differ in nothing else.
        system: The task's own system message, or None. With placement "system" the instruction follows it.
        separator: Text between two parts of one turn.
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
        """Return the chat for a query; without an instruction (None, or an empty one) the query stands alone."""
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
