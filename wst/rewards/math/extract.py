r"""The marks of a final answer: ``\boxed{...}``, ``####`` and ``<answer>``."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
#: What may stand between boxes that state one answer together: ``x = \boxed{3} and y = \boxed{4}``.
_BETWEEN = re.compile(
    r"[\s$.,;&()\[\]\\]*(?:(?:and|or)\b|\\text\s*\{\s*(?:and|or)\s*\})?[\s$.,;&()\[\]\\]*((?<![A-Za-z])[A-Za-z]\s*=\s*)?"
)
_LABEL = re.compile(r"(?<![\w\\])[A-Za-z]\s*=\s*$")
_TAG = re.compile(r"<answer>\s*(.+?)\s*</answer>", re.I | re.S)
_HEADING = re.compile(r"(?!\d+[.):]\s*[A-Za-z])[-+\d($\\{\[*.\u20ac\u00a3]")
_BRACE = re.compile(r"\\[\\{}]|[{}]")  # an escaped brace is a character of the answer
_END = re.compile(r"\\\)|\\\]|[$\n]")


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}``, ``\fbox{...}`` or ``\framebox{...}``.

    A box without braces (``$\boxed 5$``) extends to the end of the formula or line. A box that is empty or never closed
    is passed over: an earlier one counts then.

    Returns:
        The content without surrounding spaces; None if there is no box.

    Examples:
        >>> last_boxed(r"First \boxed{1}, then $x = \boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
        True
    """
    return next((content for _, _, content in _boxes(text)), None)


def boxed_answer(text: str) -> str | None:
    r"""Return what the last boxes state: several that only "and", "or", commas or labels separate are one list.

    A box that is never closed counts if there is no other.

    Examples:
        >>> boxed_answer(r"so $x = \boxed{3}$ and $y = \boxed{4}$"), boxed_answer(r"\boxed{1}, no, \boxed{2}")
        ('x = 3, y = 4', '2')
    """
    answers: list[tuple[str, str]] = []
    before = -1
    for start, end, content in _boxes(text):
        between = _BETWEEN.fullmatch(text, end, before) if answers else None
        if answers and between is None:
            break
        label = _LABEL.search(text, max(0, start - 20), start)
        before = start
        answers.insert(0, (label[0] if label else "", content))
    if not answers and (boxes := list(_BOX.finditer(text))) and boxes[-1].end() not in _closing(text, boxes[-1].end()):
        return text[boxes[-1].end() :].lstrip("{").partition("\n")[0].strip("$ .") or None
    if len({content for _, content in answers}) <= 1:
        return answers[0][1] if answers else None
    return ", ".join(label + content for label, content in answers)


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the start, the end and the content of each box, last first."""
    boxes = [(match.start(), match.end()) for match in _BOX.finditer(text)]
    closed: dict[int, int] | None = None
    inner = len(text) + 1
    for first, start in reversed(boxes):
        if text[start : start + 1] != "{":
            found = _END.search(text, start)
            end = len(text) if found is None else found.start()
            content = text[start:end].strip().rstrip(".,;")
        else:
            if closed is None:  # all at once: a million unclosed boxes must not cost a million searches
                closed = _closing(text, boxes[0][1])
            if start not in closed:
                continue
            end = closed[start] + 1
            content = text[start + 1 : end - 1].strip()
        if content and end <= inner:  # not the box around one that was read
            inner = first
            yield first, end, content


def after_hashes(text: str) -> str | None:
    """Return what follows the last ``####`` on its line or, if that is blank, the next line that is not.

    Returns:
        The line without surrounding spaces; None if nothing follows, or there is no ``####``.

    Examples:
        >>> after_hashes("3 + 4 = 7 #### 7")
        '7'
    """
    _, mark, rest = text.rpartition("####")
    return (rest.strip().partition("\n")[0].strip() or None) if mark else None


def gold_answer(text: str) -> str | None:
    r"""Return the final answer of a worked solution: the last boxes, else what follows the last ``####``.

    Returns:
        The answer as it is written; None if the text has neither.

    Examples:
        >>> gold_answer("3 + 4 = 7 #### 7")
        '7'
    """
    boxed = boxed_answer(text)
    return after_hashes(text) if boxed is None else boxed


def final_answer(text: str) -> tuple[str, bool]:
    r"""Return the final answer of a response, and True; or, if nothing marks it, the text that holds it, and False.

    Marks are boxes, ``<answer>`` tags, and ``####`` before a number, a formula or the last line; other lines with
    ``####`` are headings.
    """
    boxed = boxed_answer(text)
    if boxed is not None:
        return boxed, True
    if tags := _TAG.findall(text):
        return str(tags[-1]), False
    marked = after_hashes(text)
    if marked and (_HEADING.match(marked) or re.search(r"####\s*" + re.escape(marked) + r"\s*$", text[-5000:])):
        return marked, True
    return text.strip(), False


def _closing(text: str, start: int) -> dict[int, int]:
    """Map the position of each brace that opens at ``start`` or later to that of the brace that closes it."""
    closed = {}
    opened = []
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            closed[opened.pop()] = match.start()
    return closed
