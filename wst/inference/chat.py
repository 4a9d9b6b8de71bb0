"""OpenAI chat requests: the query in one, and the request with the instruction put in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import NoneType
from typing import Any

from wst.data.jsonl import finite, refuse_constant
from wst.prompts import StudentPrompt, fill
from wst.types import Instruction, Message, Query

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_FIRST = ("system", "developer")
_CONTENT = (str, list, NoneType)
_MOST = 10_000  #: messages of a request


class BadRequest(ValueError):
    """A request that is not one; the message says what is wrong and goes to the client."""


@dataclass(frozen=True)
class ChatRequest:
    """A chat completion request.

    Attributes:
        body: The request as the client sent it.
        place: Index of the last user message.
        query: Its text, with the user's and the assistant's turns before it.
    """

    body: dict[str, Any]
    place: int
    query: Query

    @classmethod
    def parse(cls, content: bytes) -> ChatRequest:
        """Read a request's body.

        Raises:
            BadRequest: If it is not JSON, or not a chat request.
        """
        try:
            body = read_json(content)
        except RecursionError:
            raise BadRequest("the body is nested too deeply") from None
        except ValueError as error:
            raise BadRequest(f"the body is not JSON: {error!s:.200}") from None
        return cls.of(body)

    @classmethod
    def of(cls, body: Any) -> ChatRequest:  # noqa: ANN401 - whatever the client sent
        """Check a request that was parsed.

        Raises:
            BadRequest: If its messages are not a chat with text from a user.
        """
        messages = body.get("messages") if isinstance(body, dict) else None
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list with at least one message")
        if len(messages) > _MOST:
            raise BadRequest(f"messages are more than {_MOST:,}")
        for i, message in enumerate(messages):
            role = message.get("role") if isinstance(message, dict) else None
            if role not in _ROLES:
                raise BadRequest(f"messages[{i}].role must be one of {', '.join(_ROLES)}")
            if not isinstance(message.get("content"), _CONTENT):
                raise BadRequest(f"messages[{i}].content must be text or a list of parts")
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        if not users:
            raise BadRequest("messages hold no user message")
        place = users[-1]
        turns = ((m["role"], _text(m)) for m in messages[:place] if m["role"] in ("user", "assistant"))
        history = tuple(Message(role, text) for role, text in turns if text)
        return cls(body, place, Query("request", _text(messages[place]), history=history))

    def instructed(self, prompt: StudentPrompt, instruction: Instruction | None) -> dict[str, Any]:
        """Return the body with the student's prompt as training built it; without an instruction, the unaided prompt.

        Everything but ``messages`` stays as it was. The task's own system message is added only where the request has
        none. A user message in parts keeps its parts: the instruction becomes a text part, and a query template of the
        training is not applied to it. One without content stays as it is.
        """
        messages = [dict(message) for message in self.body["messages"]]
        words = instruction.text if instruction is not None else ""
        user = messages[self.place]
        before, after = (words if prompt.placement == where else "" for where in ("before", "after"))
        if isinstance(user.get("content"), list):
            head, tail = ([{"type": "text", "text": part}] if part else [] for part in (before, after))
            user["content"] = [*head, *user["content"], *tail]
        elif user.get("content") is not None:
            text = fill(prompt.query, query=user["content"])
            user["content"] = prompt.separator.join(filter(None, (before, text, after)))
        system = words if prompt.placement == "system" else ""
        if messages[0]["role"] in _FIRST:
            own = messages[0].get("content")
            if system and isinstance(own, list):
                messages[0]["content"] = [*own, {"type": "text", "text": system}]
            elif system:
                messages[0]["content"] = prompt.separator.join(filter(None, (own, system)))
        elif content := prompt.separator.join(filter(None, (prompt.system, system))):
            messages.insert(0, {"role": "system", "content": content})
        return self.body | {"messages": messages}


def _text(message: dict[str, Any]) -> str:
    """Return a message's text; of one in parts, its text parts joined by line breaks."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def read_json(content: str | bytes) -> Any:  # noqa: ANN401 - whatever it holds
    """Parse JSON of which everything can be written as JSON again: `json` also takes NaN, and reads 1e400 as infinity.

    Raises:
        ValueError: If it is none.
        RecursionError: If it is nested too deeply.
    """
    return json.loads(content, parse_constant=refuse_constant, parse_float=finite)
