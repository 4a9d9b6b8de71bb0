r"""Where a worked solution states its final answer: in the last ``\boxed{...}``, or after the last ``####``."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\[\\{}]|[{}]")  # an escaped brace is a character of the answer
_END = re.compile(r"\\\)|\\\]|[$\n]")


def last_boxed(text: str) -> str | None:
    r"""Find what stands in the last ``\boxed{...}`` or ``\fbox{...}``.

    Of a box without braces (``$\boxed 5$``) it is what follows up to the end of the formula or line. A box that
    is empty, or whose brace is never closed, is passed over: an earlier one counts then.

    Returns:
        The content without surrounding spaces; None where there is no box.

    Example:
        >>> last_boxed(r"First \boxed{1}, then $x = \boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
        True
    """
    boxes = [match.end() for match in _BOX.finditer(text)]
    closed: dict[int, int] | None = None
    for start in reversed(boxes):
        if text[start : start + 1] != "{":
            end = _END.search(text, start)
            content = text[start : len(text) if end is None else end.start()].strip().rstrip(".,;")
        else:
            if closed is None:  # all at once: a million unclosed boxes must not cost a million searches
                closed = _closing(text, boxes[0])
            if start not in closed:
                continue
            content = text[start + 1 : closed[start]].strip()
        if content:
            return content
    return None


def after_hashes(text: str) -> str | None:
    """Find what follows the last ``####``, on the same line or, where that is blank, on the next one written on.

    Returns:
        The line without surrounding spaces; None where nothing follows, or there is no ``####``.

    Example:
        >>> after_hashes("3 + 4 = 7 #### 7")
        '7'
    """
    _, mark, rest = text.rpartition("####")
    return (rest.strip().partition("\n")[0].strip() or None) if mark else None


def gold_answer(text: str) -> str | None:
    r"""Read the final answer of a worked solution: the last box, else what follows the last ``####``.

    Returns:
        The answer as it is written; None where the text has neither.

    Example:
        >>> gold_answer("3 + 4 = 7 #### 7")
        '7'
    """
    boxed = last_boxed(text)
    return after_hashes(text) if boxed is None else boxed


def _closing(text: str, start: int) -> dict[int, int]:
    """Tell where each brace that opens at ``start`` or later is closed."""
    closed = {}
    opened = []
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closed[opened.pop()] = match.start()
    return closed
