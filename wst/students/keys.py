"""The key of an endpoint: read from the environment, checked, and taken out of whatever is shown, stored or logged."""

from __future__ import annotations

import base64
import html
import logging
import os
import re

from wst.errors import ConfigError

_SHORTEST_SECRET = 8  # characters
_LONGEST_LINE = 20_000  # characters of an error that are searched for the key; 300 of them are shown
_LONGEST_ESCAPE = 8  # backslashes: escapes of escapes of escapes


class ApiKey:
    """A key in an environment variable. It is read when it is needed and never part of a config or checkpoint.

    Args:
        variable: Name of the variable; None: the endpoint wants no key.
        address: The endpoint, for messages.
        owner: What messages call the one that it belongs to.

    Raises:
        ConfigError: If the name cannot be one: it may be the key itself, so the message does not repeat it.
    """

    def __init__(self, variable: str | None, address: str, owner: str = "EndpointStudent") -> None:
        if variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", variable):
            raise ConfigError(
                f"{owner}: api_key_env is not the name of an environment variable in capitals; put the key into "
                "a variable, and the variable's name here"
            )
        self.variable = variable
        self._address = address
        self.owner = owner
        self._forms: dict[str, re.Pattern[str]] = {}  # by key: the patterns of what is redacted

    def read(self) -> str | None:
        """Return the key, or None if the endpoint wants none.

        Raises:
            ConfigError: If the variable is not set, or its value cannot be a key.
        """
        if self.variable is None:
            return None
        key = os.environ.get(self.variable, "")
        if not key.strip():
            raise ConfigError(
                f"{self.owner}: the environment variable {self.variable} is not set; put the key for "
                f"{self._address} there, or set api_key_env: null if it wants none"
            )
        check_header(self.variable, key, self.owner)
        self._forms.setdefault(key, _escaped(key))
        return key

    def redact(self, text: str) -> str:
        """Replace every key that was read, however it is escaped, and the user and password of any URL."""
        for form in self._forms.values():
            text = form.sub("[key]", text)
        return re.sub(r"://[^\s/@]{1,500}@", "://", text)

    def redact_answer(self, text: str) -> str:
        """Replace every key that was read, but for placeholders such as "EMPTY", which are no secret."""
        for key, form in self._forms.items():
            text = form.sub("[key]", text) if len(key) >= _SHORTEST_SECRET else text
        return text

    def one_line(self, text: str) -> str:
        """Return one short printable line of what an endpoint said, without the key."""
        words = " ".join(self.redact(text[:_LONGEST_LINE]).split())[:300]
        return "".join(char if char.isprintable() else "\ufffd" for char in words)

    def redact_record(self, record: logging.LogRecord) -> bool:
        """Redact a log record; a filter for the loggers of the HTTP client, which repeat what a server sends."""
        record.msg, record.args = self.redact(record.getMessage()), None
        return True


def check_header(variable: str, value: str, owner: str = "EndpointStudent") -> None:
    """Check that a variable's value can be sent in a header. The message never repeats the value.

    Raises:
        ConfigError: If there are blanks, line breaks, control characters or non-ASCII characters in it.
    """
    if re.fullmatch(r"[!-~]+", value):
        return
    what = "more than one line or word"
    if not value.isascii() or any(ord(char) < 32 and not char.isspace() for char in value):
        what = "control or non-ASCII characters in it"
    elif len(value.split()) == 1:
        what = "blanks or line breaks around it"
    raise ConfigError(f"{owner}: the value of the environment variable {variable} has {what}; set it to the key alone")


def _escaped(key: str) -> re.Pattern[str]:
    """Return a pattern of the key, with characters escaped as in Python, JSON, URLs or HTML, or all of it in base64."""

    def forms(char: str) -> str:
        code = ord(char)
        found = [
            rf"\\{{0,{_LONGEST_ESCAPE}}}" + re.escape(char),
            rf"%(?:25){{0,3}}(?i:{code:02x})",
            rf"\\{{1,{_LONGEST_ESCAPE}}}(?:x|u00|u\{{0{{0,4}}|U000000)(?i:{code:02x})\}}?",
            rf"&#(?:0{{0,5}}{code}|[xX]0{{0,5}}(?i:{code:x}));?",
        ]
        if html.escape(char) != char:
            found.append(re.escape(html.escape(char)))
        return f"(?:{'|'.join(found)})"

    # In pieces, as a body may be cut off in the middle of the key.
    patterns = ["".join(map(forms, piece)) for piece in _pieces(key, 8)]
    for before in range(3) if len(key) >= 8 else ():  # a group of base64 holds three bytes: three ways to begin
        coded = base64.b64encode(b"\0" * before + key.encode()).decode()
        certain = coded[-(-8 * before // 6) : 8 * (before + len(key)) // 6]  # without what neighbours share
        for piece in _pieces(certain, 12):
            patterns.append(re.escape(piece).replace(r"\+", "[+-]").replace("/", "[/_]"))
    return re.compile(f"(?:{'|'.join(patterns)})+")


def _pieces(text: str, length: int) -> list[str]:
    """Return a text in pieces of a length, of which the last may be up to twice as long."""
    count = max(1, len(text) // length)
    return [text[i * length : (i + 1) * length if i + 1 < count else None] for i in range(count)]
