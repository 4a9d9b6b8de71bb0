"""What tests draw at random: rows of a data file, good and damaged, and the places in a nested config."""

import json
from typing import Any

from hypothesis import strategies as st

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["text", "label", "id"]) | st.text(max_size=6)
objects = st.fixed_dictionaries(
    {}, optional={"text": st.text() | values, "label": st.text() | values, "id": st.text() | st.integers() | values}
) | st.dictionaries(names, values, max_size=5)
sound = st.fixed_dictionaries({"text": st.text(min_size=1), "label": st.text(min_size=1)})


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line of a JSON Lines file: mostly an object, sometimes damaged."""
    line = json.dumps(draw(sound | objects | values), ensure_ascii=draw(st.booleans()))
    raw = line.encode("utf-8", "surrogatepass")
    match draw(st.integers(0, 9)):
        case 0:
            cut = draw(st.integers(0, len(raw)))
            raw = raw[:cut] + draw(st.binary(max_size=4)) + raw[cut:]
        case 1:
            raw = raw[: draw(st.integers(0, len(raw)))]
    return raw.replace(b"\n", b" ")


def places(config: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to everything in a config."""
    inside = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    found = [path] if path else []
    for key, value in inside:
        found += places(value, (*path, key))
    return found
