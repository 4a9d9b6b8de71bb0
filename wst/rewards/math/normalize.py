"""One spelling for what LaTeX, Unicode and Markdown can write in several ways."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

from wst.rewards.text import normalize

NAMES = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp",
    "sqrt", "pi", "inf", "infty", "infinity", "det", "gcd", "lcm", "max", "min", "mod",
}  # fmt: skip
LINKS = {"and", "or"}
PROSE_WORDS = {
    "a", "an", "answer", "are", "be", "because", "but", "equal", "equals", "final", "finally", "for", "get", "gives",
    "have", "hence", "i", "is", "it", "let", "of", "result", "since", "so", "that", "the", "then", "therefore", "this",
    "thus", "to", "total", "value", "was", "we", "where", "which",
}  # fmt: skip


_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00f7": "/", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u00b0": r"^\circ ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u00b2": "^2", "\u00b3": "^3", "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2044": "/", "\u2205": r"\emptyset ", "\u2260": r"\ne ",
    "\u03b8": r"\theta ", "\u2248": r"\approx ", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_SYMBOL = re.compile("|".join(_SYMBOLS))
_ROOT = re.compile("\u221a(?:\\(([^()]*)\\)|(\\d+|[a-z]))")

_TIDY: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<!\\)\\\\(?=[A-Za-z])(?![A-Za-z]+\b[^\\]*\\end)"), r"\\"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\!\s*"), ""),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?(?=[\s()\[\]|\\.]|$)"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|bf|rm|it)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|operatorname\*?)"
                r"\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\(?:q?quad|hspace\{[^{}]*\}|thinspace|space|phantom\{[^{}]*\})(?![A-Za-z])"), " "),
    (re.compile(r"(?<!\\)\\[,;: >\n]|~"), " "),
    (re.compile(r"\\[(\[]|(?<!\\)\\[)\]]"), ""),
    (re.compile(r"\{\s*,\s*\}"), ","),
    (re.compile(r"\\(?:lbrace)(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\(?:rbrace)(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:langle|lparen)(?![A-Za-z])"), "("),
    (re.compile(r"\\(?:rangle|rparen)(?![A-Za-z])"), ")"),
    (re.compile(r"\\lbrack(?![A-Za-z])"), "["),
    (re.compile(r"\\rbrack(?![A-Za-z])"), "]"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge"),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne"),
    (re.compile(r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))"), r"^\\circ"),
    (re.compile(r"\\text\s*\{([^{}A-Za-z]*)\}"), r"\1"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\s*\\text\s*\{\s*%\s*\}"), "%"),
    (re.compile(r"\s*(?:\\text\s*\{\s*(?:percent|pct\.?)\s*\}|(?<![A-Za-z\\])(?:percent|pct)(?![A-Za-z]))", re.I), "%"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*(\d|[a-z](?![a-z]))"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\w\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\\(?:c?dots|ldots)(?![A-Za-z])"), r"\\ldots"),
]  # fmt: skip


@lru_cache(maxsize=1000)
def tidy(text: str) -> str:
    """Write what can be written in several ways in one, and leave out what only sets it."""
    text = text.strip()
    while len(text) > 4 and text[:2] == text[-2:] == "**":  # bold in Markdown
        text = text[2:-2].strip()
    text = text.strip("`").strip()
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    # A dollar before a number is money where it is escaped, or has no partner to make it a formula.
    text = re.sub(r"\\\$", "\u00a4", text)
    text = text.replace("$", "" if text.count("$") % 2 == 0 else "\u00a4")
    for pattern, by in _TIDY:
        text = pattern.sub(by, text)
    return re.sub(r"\s+", " ", text).strip().rstrip(".,;: ").strip()


_SPACE = re.compile(r"(?<=[^\w,]) | (?=\W)|(?<=,) (?!\d)")


def compact(text: str) -> str:
    """Leave out the spaces that part nothing: ``1, 200`` has two numbers."""
    return _SPACE.sub("", text)


def plain(text: str) -> str:
    """Give a text without what only typesets it, for comparing words."""
    return normalize(_unwrapped(tidy(text)), articles=True)


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def _unwrapped(text: str) -> str:
    return _TEXT.sub(r"\1", text)


def words_of(text: str) -> list[str]:
    r"""Find the words of more than one letter, also those in ``\text{...}``; commands and environments are none."""
    text = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}|\\text(?=\s*\{)", " ", text)
    return re.findall(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?![A-Za-z])", re.sub(r"\\[A-Za-z]+", r" ", text))


def is_text(text: str) -> bool:
    """Whether it is words rather than mathematics. Words must not become products: east is not seat."""
    if re.search(r"\\text\s*\{[^{}]*[A-Za-z]{2}", re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}", "", text)):
        return True
    words = [word for word in words_of(text) if word.lower() not in NAMES | LINKS]
    return any((len(word) > 2 and not set(word) <= set("abcxyz")) or word.lower() == "no" for word in words)


_CHOICE = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|([A-Z]))")
CHOSEN = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|([A-J])[.):])(?:\s|$)")


def choice_of(gold: str) -> str | None:
    """Read a gold answer that is the letter of a choice."""
    match = _CHOICE.fullmatch(_unwrapped(gold).strip().rstrip(".)") + (")" if "(" in gold else ""))
    return (match[1] or match[2]).upper() if match else None


def chosen(answer: str) -> str | None:
    """Return the letter that an answer chooses, in upper case; None if it is no choice."""
    answer = _unwrapped(answer).strip()
    match = CHOSEN.match(answer) or _CHOICE.fullmatch(answer) or re.fullmatch(r"([A-Za-z])()", answer)
    return (match[1] or match[2]).upper() if match else None
