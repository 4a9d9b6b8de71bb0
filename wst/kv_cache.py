"""Keys and values of a model's layers, with room for the tokens to come."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

#: Tokens that there is room for each time that keys and values are moved.
_ROOM = 64


class RoomyLayer(DynamicLayer):
    """Writes a token's keys and values behind those before it; a `DynamicLayer` copies all of them for each token.

    For passes without gradient: what was handed out before is written to.
    """

    _keys: tuple[Tensor, Tensor] | None = None  #: block with room, and its part that is in use
    _values: tuple[Tensor, Tensor] | None = None

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *args: Any,  # noqa: ANN401 - as transformers has it
        **kwargs: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor]:
        """Add keys and values [rows, heads, tokens, size]; give all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._keys = _added(self._keys, cast(Tensor, self.keys), key_states)
        self._values = _added(self._values, cast(Tensor, self.values), value_states)
        self.keys, self.values = self._keys[1], self._values[1]
        return self.keys, self.values


def _added(block: tuple[Tensor, Tensor] | None, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    before = held.shape[-2] if held.numel() else 0
    count = before + new.shape[-2]
    whole, used = block or (None, None)
    # Rows may have been chosen since, which puts other tensors in the place of the part in use.
    if whole is None or held is not used or count > whole.shape[-2]:
        whole = new.new_empty(*new.shape[:-2], count + _ROOM, new.shape[-1])
        if before:
            whole[..., :before, :] = held
    whole[..., before:count, :] = new
    return whole, whole[..., :count, :]


def roomy(network: nn.Module, cache: Any | None) -> Any:  # noqa: ANN401 - transformers' Cache
    """Give the cache, or a new one, with room; the layers must all look at all tokens."""
    if cache is None:
        cache = DynamicCache(config=cast(Any, network).config)
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = RoomyLayer
    return cache
