"""Chat completions as endpoints speak them: which addresses make sense, how answers are read, what failures mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from wst.errors import ConfigError
from wst.types import Response

FATAL = {401: "the key is refused", 403: "access is refused", 404: "no such model or address"}
LONGEST_WAIT = 120.0  #: seconds; a server that asks for a longer one is not waited for


class Unusable(Exception):
    """The endpoint answered with something that is no chat completion."""


def check_address(base_url: str) -> None:
    """Check an endpoint's address.

    Raises:
        ConfigError: If it is no address, or holds what may be a secret.
    """
    parts = urlsplit(base_url)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("EndpointStudent: base_url holds a user or password; put the key into api_key_env's variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"EndpointStudent: base_url must be like https://host/v1, got {base_url!r}")
    if parts.query or parts.fragment:
        raise ConfigError("EndpointStudent: base_url ends at the path; put what follows '?' into extra_body or the key")


def is_passing(error: BaseException) -> bool:
    """Whether a failure may pass: too many requests, the server's own faults, time-outs, dropped connections."""
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, APIStatusError):
        passes = error.status_code >= 500 or (error.status_code == 429 and error.code != "insufficient_quota")
        return passes and (retry_after(error) or 0.0) <= LONGEST_WAIT
    return isinstance(error, TimeoutError | APIConnectionError)


def is_refusal(error: Any) -> bool:  # noqa: ANN401 - openai's APIStatusError
    """Whether a filter before the model declined (Azure says so with status 400)."""
    return error.status_code == 400 and error.code == "content_filter"


def retry_after(error: BaseException | None) -> float | None:
    """Return the seconds that the server asks to wait, from Retry-After-Ms or Retry-After (seconds or a date)."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    if headers is None:
        return None
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        date = parsedate_to_datetime(headers["retry-after"])
    except (KeyError, ValueError):
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def read_completion(completion: Any, stop: Sequence[str] = ()) -> Response:  # noqa: ANN401 - whatever the endpoint sent
    """Read a chat completion. Some servers leave the stop text that ended it in: it is cut off.

    Raises:
        Unusable: If it is none.
    """
    choices = getattr(completion, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise Unusable(f"no choices in {completion!r:.200}")
    choice = choices[0]
    message = getattr(choice, "message", None)
    if message is None:
        raise Unusable(f"no message in {choice!r:.200}")
    refusal = getattr(message, "refusal", None)
    finish = getattr(choice, "finish_reason", None)
    content = getattr(message, "content", None)
    text = content if isinstance(content, str) else ""
    text = min((text.split(end, 1)[0] for end in stop), key=len, default=text)
    usage = getattr(completion, "usage", None)
    return Response(
        (text or refusal or "").strip(),
        tokens=max(0, int(getattr(usage, "completion_tokens", None) or 0)),
        prompt_tokens=max(0, int(getattr(usage, "prompt_tokens", None) or 0)),
        truncated=finish == "length",
        refused=bool(refusal) or finish == "content_filter",
    )
