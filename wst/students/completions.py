"""OpenAI's chat completions: how a request is sent, how an answer is read, and what a failure means.

Whatever an endpoint sends ends as a `Response` or as a `Failure`. Nothing it says is trusted: sizes, numbers and waits
are bounded.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlsplit

from wst.errors import ConfigError
from wst.students.keys import ApiKey, check_header
from wst.terminal import printable
from wst.types import Response

if TYPE_CHECKING:
    import httpx2

#: What a failure says of further calls: this one may succeed if repeated; a filter declined this prompt; no repetition
#: of this prompt will succeed; perhaps no call will (until one has succeeded); no call will.
Kind = Literal["passing", "filtered", "prompt", "access", "never"]

LONGEST_WAIT = 120.0  #: seconds; a server that asks for a longer one is not waited for
_MOST_BYTES = 4 * 2**20  # of a response
_MOST_TOKENS = 10**7  # of a prompt or an answer: above that the usage is wrong
_ENDED = {"stop", "eos", "eos_token", "length", "content_filter"}  # Together and TGI say "eos" for "stop"
_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
#: What moderation says of a prompt; a bare "policy" may be the organization's, which concerns every prompt.
_MODERATED = re.compile(r"moderat|flagged|content.?(?:policy|filter|management)|safety|usage polic|violat", re.I)
_REASONS = {401: "the key is refused", 403: "access is refused", 404: "no such model or address"}
_LOGGERS = ("httpx2", "httpcore2.connection", "httpcore2.http11", "httpcore2.proxy")


#: Fields of a request that follow from settings.
OURS = {"model", "messages", "n", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop"}


class Failure(Exception):
    """A call that brought no answer.

    Args:
        reason: What happened; may quote the endpoint, so redact it before it is shown.
        kind: What it says of further calls.
        outcome: The same for the ledger, in a word or two.
        status: The status that it amounts to, or 0.
        wait: Seconds that the endpoint asks to wait.
        free: Whether it certainly cost nothing.
    """

    def __init__(
        self,
        reason: str,
        kind: Kind = "prompt",
        outcome: str = "unusable",
        status: int = 0,
        wait: float | None = None,
        free: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason, self.kind, self.outcome = reason, kind, outcome
        self.status, self.wait, self.free = status, wait, free

    @property
    def meaning(self) -> str:
        """Why no call can succeed, for failures that say so."""
        if self.outcome == "connection":
            return "no server answers"
        if self.outcome == "no JSON":
            return "what answers there is no API"
        if 300 <= self.status < 400:
            return "the address redirects elsewhere"
        if self.kind == "prompt":
            return "the request is refused"
        return _REASONS.get(self.status, "the quota is spent")


class ChatClient:
    """Sends chat requests to one address, and the key to no other: redirects are not followed.

    Args:
        base_url: The address.
        key: The key.
        model: The model, which is part of Azure's addresses.
        azure_api_version: Version of Azure's own interface, or None.

    Raises:
        ConfigError: If the key, or a variable for proxies or certificates, is unusable.
    """

    def __init__(self, base_url: str, key: ApiKey, model: str, azure_api_version: str | None) -> None:
        import httpx2  # takes long

        self._url, self._listing = f"{base_url}/chat/completions", f"{base_url}/models"
        secret = key.read()
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if azure_api_version is not None:
            version = quote(azure_api_version, safe="")
            self._url = f"{base_url}/openai/deployments/{quote(model, safe='')}/chat/completions?api-version={version}"
            self._listing = ""  # Azure lists models, not the deployments that are asked for
        if secret is not None:
            self._headers |= {"Authorization": f"Bearer {secret}"} if azure_api_version is None else {"api-key": secret}
        host = urlsplit(base_url).hostname or ""
        for variable, header in (("OPENAI_ORG_ID", "OpenAI-Organization"), ("OPENAI_PROJECT_ID", "OpenAI-Project")):
            # They name the user's account: for OpenAI alone.
            if (value := os.environ.get(variable)) and (host == "openai.com" or host.endswith(".openai.com")):
                check_header(variable, value)
                self._headers[header] = value
        try:
            self._client: httpx2.AsyncClient = httpx2.AsyncClient(
                follow_redirects=False,
                timeout=None,  # one time limit for all of a call is set outside
                limits=httpx2.Limits(max_connections=1000, max_keepalive_connections=100),
            )
        except Exception as error:
            names = [name for name in os.environ if name.lower() in _NETWORK_VARIABLES]
            raise ConfigError(
                key.redact(
                    f"{key.owner}: no connection to {base_url} can be made ({type(error).__name__}: {error}"[:400]
                )
                + f"); correct the variables for proxies and certificates: {', '.join(sorted(names)) or 'none is set'}"
            ) from None
        self._filter = key.redact_record
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self._filter)

    async def ask(self, request: Mapping[str, Any]) -> Any:  # noqa: ANN401 - whatever the endpoint sent
        """Send a request, and return the body of the response, parsed.

        Raises:
            Failure: If there is none, or it says that the call failed.
        """
        return await self._send("POST", self._url, json.dumps(request).encode())

    async def models(self) -> list[str]:
        """Return the names of the models that the endpoint lists; none if it has no such list.

        Raises:
            Failure: If there is no response, or it says that the call failed.
        """
        body = await self._send("GET", self._listing) if self._listing else None
        rows = body.get("data") if isinstance(body, dict) else None
        return (
            [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row] if isinstance(rows, list) else []
        )

    async def _send(self, method: str, url: str, content: bytes | None = None) -> Any:  # noqa: ANN401
        import httpx2

        try:
            async with self._client.stream(method, url, content=content, headers=self._headers) as response:
                self._client.cookies.clear()  # none is ever sent back
                data = bytearray()
                async for chunk in response.aiter_raw():
                    data += chunk
                    if len(data) > _MOST_BYTES:
                        break
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:  # it was never sent
            raise Failure(f"{type(error).__name__}: {error}", "passing", "connection", free=True) from None
        except httpx2.TransportError as error:
            raise Failure(f"{type(error).__name__}: {error}", "passing", "connection") from None
        return _checked(response.status_code, response.headers, bytes(data))

    async def close(self) -> None:
        """Close the connections."""
        for name in _LOGGERS:
            logging.getLogger(name).removeFilter(self._filter)
        await self._client.aclose()


_NETWORK_VARIABLES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"}


def check_address(base_url: str, owner: str = "EndpointStudent") -> None:
    """Check an endpoint's address.

    Raises:
        ConfigError: If it is no address, or holds what may be a secret.
    """
    import httpx2

    try:
        parts = urlsplit(base_url)
        parts.port, httpx2.URL(base_url)  # both raise
    except (ValueError, httpx2.InvalidURL) as error:
        raise ConfigError(f"{owner}: base_url {printable(base_url, 80)!r} is no address ({error})") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{owner}: base_url holds a user or password; put the key into api_key_env's variable")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{owner}: base_url must be like https://host/v1, got {base_url!r}")
    if parts.query or parts.fragment:
        raise ConfigError(f"{owner}: base_url ends at the path; put what follows '?' into extra_body or the key")


def _checked(status: int, headers: Mapping[str, str], data: bytes) -> Any:  # noqa: ANN401 - whatever was sent
    """Return the parsed body of a success.

    Raises:
        Failure: If it is none, or the status is an error's, or the body explicitly is.
    """
    fault = "" if len(data) <= _MOST_BYTES else f"a response of more than {_MOST_BYTES:,} bytes"
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "deflate"):  # unasked
        try:
            data = zlib.decompressobj(47).decompress(data, _MOST_BYTES)
        except zlib.error as error:
            fault = f"a broken {encoding} encoding ({error})"
    elif encoding != "identity":
        fault = "a content encoding that was not asked for"
    body = None
    if not fault:
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            fault = f"no JSON: {data[:2000].decode('utf-8', 'replace')}"
    succeeded = 200 <= status < 300
    message, codes = _error_in(body)
    if succeeded:
        if fault:
            raise Failure(f"status {status} with {fault}", outcome=fault.partition(":")[0][:40])
        outer = body[0] if isinstance(body, list) and body else body
        if not isinstance(outer, dict) or outer.get("choices") or not outer.get("error"):
            return body
    told = next((int(code) for code in codes if code.isdecimal() and 400 <= int(code[:4]) < 600), 500)
    meant = told if succeeded else status
    reason = f"HTTP {status}: {message or data[:20_000].decode('utf-8', 'replace').strip() or 'an empty body'}"
    free = not succeeded and (status < 500 or status == 503)  # other gateway errors may follow a charged answer
    wait = retry_after(headers)
    kind = _kind(meant, message, codes)
    if kind == "passing" and (wait or 0.0) > LONGEST_WAIT:
        kind = "prompt"
    raise Failure(reason, kind, f"HTTP {status}", meant, wait, free)


def _kind(status: int, message: str, codes: set[str]) -> Kind:
    if status == 402 or status == 401 or codes & _QUOTA:
        return "never"
    if status == 400 and "content_filter" in codes:  # Azure's filter before the model
        return "filtered"
    if status == 403 and _MODERATED.search(" ".join([message, *codes])):
        return "prompt"
    if status in (403, 404) or 300 <= status < 400:
        return "access"
    return "passing" if status in (408, 409, 425, 429) or status >= 500 else "prompt"


def _error_in(body: object) -> tuple[str, set[str]]:
    """Return the message and the codes of an error body, in any of the shapes that servers give them."""
    message, codes = "", set()
    for _ in range(8):  # levels
        if isinstance(body, list) and body:
            body = body[0]
            continue
        if isinstance(body, str):
            message = message or body
        if not isinstance(body, dict):
            break
        for name in ("code", "type", "status"):
            if isinstance(body.get(name), str | int):
                codes.add(str(body[name])[:100].lower())
        message = message or next(
            (body[name] for name in ("message", "detail", "msg", "title") if isinstance(body.get(name), str)), ""
        )
        body = body.get("error") or body.get("detail")
    return message, codes


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the server asks to wait, from Retry-After-Ms or Retry-After (seconds or a date)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if 0 <= seconds < math.inf else None
    try:
        date = parsedate_to_datetime(headers["retry-after"])
        date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
        return max(0.0, (date - datetime.now(UTC)).total_seconds())
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def read_completion(body: Any, stop: Sequence[str] = (), strip_thinking: bool = True) -> Response:  # noqa: ANN401
    """Return the answer in a chat completion.

    Some servers leave the stop text in that ended it: it is cut off. An answer of which only reasoning is there counts
    as truncated.

    Args:
        body: What the endpoint sent, parsed.
        stop: The stop texts.
        strip_thinking: Whether to remove ``<think>`` sections from the text.

    Raises:
        Failure: If it is not surely an answer.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Failure("the response has no choice with a message")
    if error := choice.get("error") or message.get("error") or body.get("error"):
        raise Failure(f"an error beside the answer: {_error_in(error)[0] or type(error).__name__}")
    finish = choice.get("finish_reason")
    if not isinstance(finish, str) or finish not in _ENDED:
        raise Failure(f"finish_reason is {finish if isinstance(finish, str) else type(finish).__name__}")
    text, refusal, thought = _text_of(message)
    if strip_thinking:
        text, cut = without_thinking(text)
        thought = thought or cut
    text = min((text.split(end, 1)[0] for end in stop), key=len, default=text)
    usage = body.get("usage")
    read, written = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    if read is None or written is None:
        read = written = 0
    return Response(
        valid_text(text or refusal).strip(),
        tokens=written,
        prompt_tokens=read,
        truncated=finish == "length" or (thought and not text.strip()),
        refused=bool(refusal) or finish == "content_filter",
    )


def _text_of(message: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Return a message's text and refusal, and whether there is reasoning in it."""
    content, refusal = message.get("content"), message.get("refusal") or ""
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "thinking"))
    texts: list[str] = []
    if not isinstance(refusal, str):
        raise Failure(f"the refusal is a {type(refusal).__name__}")
    if content is None:
        if not refusal and (message.get("tool_calls") or message.get("function_call")):
            raise Failure("tool calls in place of an answer")
    elif isinstance(content, str):
        texts.append(content)
    elif isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else "text"
            said = part.get("text") if isinstance(part, dict) else part
            if kind in ("thinking", "redacted_thinking", "reasoning"):
                thought = True
            elif kind == "refusal" and isinstance(part.get("refusal"), str):
                refusal = refusal or part["refusal"]
            elif kind in ("text", "output_text") and isinstance(said, str):
                texts.append(said)
            else:
                raise Failure("a part of the answer is no text")
    else:
        raise Failure(f"the content is a {type(content).__name__}")
    return "".join(texts), refusal, thought


def without_thinking(text: str) -> tuple[str, bool]:
    """Return a text without its ``<think>`` sections, and whether there were any.

    A template may have opened the section in the prompt, so that only its end is in the answer. One that is never
    closed takes the rest of the text. Of a text without sections, nothing more is taken.

    >>> without_thinking("<think>2 + 2</think>4")
    ('4', True)
    """
    first, *sections = text.split("<think>")
    kept = [first.rpartition("</think>")[2]]
    kept += [section.rpartition("</think>")[2] for section in sections if "</think>" in section]
    return ("".join(kept).lstrip(), True) if sections or "</think>" in first else (text, False)


def valid_text(text: str) -> str:
    """Return a text that UTF-8 can encode: pairs of surrogates are joined, lone ones replaced.

    >>> valid_text("a" + chr(0xD83D))
    'a\ufffd'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _count(usage: object, name: str) -> int | None:
    """Return a count of tokens; None if there is none, or it cannot be."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
