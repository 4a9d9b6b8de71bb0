"""One look at an endpoint before any model is loaded: a wrong address, key or model costs seconds, not a run."""

from __future__ import annotations

import asyncio
import difflib
import os
from collections.abc import Awaitable, Callable

from wst.errors import StudentStopped
from wst.students.accounts import Accounts
from wst.students.completions import ChatClient, Failure
from wst.types import Message, Prompt

#: Accounts of endpoints that the command line has asked before it imported torch, by address and model.
ASKED: dict[tuple[str, str], Accounts] = {}
_HELLO = Prompt((Message("user", "Hello"),))
_PATIENCE = 20.0  #: seconds; a server that takes longer may be starting


def is_due(endpoint: tuple[str, str], accounts: Accounts) -> bool:
    """Return whether this process is to probe: one asks for all, and what the command line has asked is booked now.

    Args:
        endpoint: Address and model.
        accounts: The student's.
    """
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))):
        return False
    if (asked := ASKED.pop(endpoint, None)) is None:
        return True
    accounts.take_over(asked)
    return False


async def probe(client: ChatClient, model: str, call: Callable[[Prompt], Awaitable[object]]) -> Failure | None:
    """Return what is surely wrong with an endpoint, or None.

    Its list of models costs nothing. Only if the model is not on it (aliases often are not) is one call made, with the
    run's own limits: some models refuse an answer of a single token. What may pass, such as a full queue or a server
    that is starting, is no fault.

    Args:
        client: The connection.
        model: The model's name there.
        call: Makes one call, and books it.
    """
    listed: list[str] = []
    try:
        async with asyncio.timeout(_PATIENCE):
            listed = await client.models()
    except TimeoutError:
        return None
    except Failure as failure:
        if _unreachable(failure) or failure.kind == "never":
            return failure
    if model in listed:
        return None
    try:
        await call(_HELLO)
    except StudentStopped:  # the budget is spent; the cache may hold all that is asked for
        return None
    except Failure as failure:
        if near := difflib.get_close_matches(model, listed, 1):
            failure.reason += f"; did you mean {near[0]!r}?"
        web_page = failure.outcome == "no JSON"
        certain = failure.status and failure.kind not in ("passing", "filtered")
        return failure if web_page or _unreachable(failure) or certain else None
    return None


def _unreachable(failure: Failure) -> bool:
    """Return whether no connection was made; one that breaks may pass: some servers close it after an error."""
    return failure.outcome == "connection" and failure.free
