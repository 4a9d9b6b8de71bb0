"""The key of an endpoint: read from the environment, checked, and taken out of whatever is shown or stored."""

from __future__ import annotations

import os
import re

from wst.errors import ConfigError


class ApiKey:
    """A key in an environment variable. It is read when it is needed and never part of a config or checkpoint.

    Args:
        variable: Name of the variable; None: the endpoint wants no key.
        address: The endpoint, for messages.

    Raises:
        ConfigError: If the name is none: it may be the key itself, so the message does not repeat it.
    """

    def __init__(self, variable: str | None, address: str) -> None:
        if variable is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", variable):
            raise ConfigError(
                "EndpointStudent: api_key_env is not the name of an environment variable in capitals; put the key into "
                "a variable, and the variable's name here"
            )
        self.variable = variable
        self._address = address
        self._sent = ""

    def read(self) -> str:
        """Return the key, or "none" if the endpoint wants none.

        Raises:
            ConfigError: If the variable is not set.
        """
        if self.variable is None:
            return "none"
        key = os.environ.get(self.variable, "").strip()
        if not key:
            raise ConfigError(
                f"EndpointStudent: the environment variable {self.variable} is not set; put the key for "
                f"{self._address} there, or set api_key_env: null if it wants none"
            )
        self._sent = key
        return key

    def redact(self, text: str) -> str:
        """Replace the key in a text, both the one that was sent and the one in the environment now."""
        now = "" if self.variable is None else os.environ.get(self.variable, "").strip()
        for secret in filter(None, (self._sent, now)):
            text = text.replace(secret, "[key]")
        return text
