"""HTTP headers between client, server and upstream: what goes on, what comes back, and the server's own."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from wst.inference.batching import Outcome

Headers = list[tuple[bytes, bytes]]

# Headers of one connection (RFC 9110, 7.6.1), and those that are computed anew for the next one.
_HOP = set(b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer".split())
_HOP |= {b"transfer-encoding", b"upgrade"}
_NOT_SENT = _HOP | {b"host", b"content-length", b"expect", b"cookie", b"forwarded"}
_NOT_RETURNED = _HOP | {b"set-cookie", b"date", b"server"}
_LIMIT = 4096


def sent_on(raw: Headers) -> Headers:
    """Return a client's headers as upstream gets them."""
    return _end_to_end(raw, _NOT_SENT, (b"x-wst-", b"x-forwarded-"))


def returned(raw: Headers) -> Headers:
    """Return upstream's headers as the client gets them."""
    return _end_to_end(raw, _NOT_RETURNED, (b"x-wst-",))


def _end_to_end(raw: Headers, dropped: set[bytes], own: tuple[bytes, ...]) -> Headers:
    """Return headers byte for byte, without those of one connection: known ones, and any that ``connection`` names."""
    headers = [(name.lower(), value) for name, value in raw]
    named = {option.strip().lower() for name, value in headers if name == b"connection" for option in value.split(b",")}
    return [(name, value) for name, value in headers if name not in dropped | named and not name.startswith(own)]


def about(outcome: Outcome) -> Headers:
    """Return the headers that say what came of the instruction."""
    words = "" if outcome.instruction is None else quote(outcome.instruction.text, safe=" ", errors="replace")
    headers = [(b"x-wst-status", outcome.status.encode())]
    return [*headers, (b"x-wst-instruction", words[:_LIMIT].encode())] if words else headers


def is_plain_json(headers: Mapping[str, str]) -> bool:
    """Return whether an answer is JSON that is not compressed."""
    kind = headers.get("content-type", "").partition(";")[0].strip()
    return kind == "application/json" and headers.get("content-encoding", "identity") == "identity"


def is_foreign(origin: str | None) -> bool:
    """Return whether a request comes from a page of another machine; programs name no origin.

    >>> is_foreign("https://evil.example"), is_foreign("null"), is_foreign("http://localhost:3000"), is_foreign(None)
    (True, True, False, False)
    """
    if origin is None:
        return False
    try:
        host = urlsplit(origin).hostname or ""
        return host != "localhost" and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True
