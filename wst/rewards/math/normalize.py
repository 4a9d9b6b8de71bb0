"""Normalize an answer: one spelling for what LaTeX, Unicode and Markdown can write in several ways."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from wst.rewards.math.spoken import spoken_number
from wst.rewards.text import normalize

NAMES = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "log", "ln", "exp",
    "sqrt", "pi", "inf", "infty", "infinity", "det", "gcd", "lcm", "max", "min", "mod",
}  # fmt: skip
LINKS = {"and", "or"}
PROSE_WORDS = {
    "a", "an", "answer", "are", "at", "be", "because", "but", "equal", "equals", "final", "finally", "for", "get",
    "gives", "had", "has", "have", "hence", "i", "in", "is", "it", "left", "less", "let", "maybe", "more", "most",
    "not", "of", "perhaps", "result", "since", "so", "than", "that", "the", "then", "therefore", "this", "thus", "to",
    "total", "value", "was", "we", "were", "where", "which", "with", "wrong",
}  # fmt: skip


_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00f7": "/", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u00b0": r"^\circ ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u27e8": "(", "\u27e9": ")",
    "\u211d": r"\mathbb{R}", "\u2227": " and ", "\u2228": " or ", "\u2044": "/", "\u2205": r"\emptyset ",
    "\u2260": r"\ne ",    "\u03b8": r"\theta ", "\u2248": r"\approx ", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
}  # fmt: skip
_SYMBOL = re.compile("|".join(_SYMBOLS))
_ROOT = re.compile("\u221a(?:\\(([^()]*)\\)|(\\d+|[a-z]))")

_POWERS = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"
_POWER = re.compile(f"[{_POWERS}]+")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|log|ln|exp|pi"
_R = r"\\mathbb\s*(?:\{R\}|R)"

#: How an answer is introduced or qualified, inside a box too.
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|then|finally)\b[,:]?\s+)?(?:(?:we\s+(?:have|get|find|obtain)|it\s+is)\s+)?(?:that\s+)?"
    r"(?:(?:the\s+)?(?:final\s+|correct\s+)?(?:answers?|solutions?|roots?|values?|result|ans)\s*(?:is|are|:|=)\s*:?)?\s*"
    r"(?:(?:exactly|only|just|about|approximately|roughly|(?:the\s+)?point)\s+(?=[-\d($\\]))?",
    re.I,
)

RULES: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<!\\)\\\\(?=[A-Za-z])(?![A-Za-z]+\b[^\\]*\\end)"), r"\\"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\begin\s*\{(align\*?|aligned|gathered|split|equation\*?)\}(.*?)\\end\s*\{\1\}", re.S),
     lambda match: [row for row in match[2].split(r"\\") if row.strip()][-1].replace("&", "").strip().lstrip("=")
     if match[2].strip("\\ \n") else ""),
    (re.compile(r"\\begin\s*\{(array|[pbB]?matrix)\}(?:\s*\{[^{}]*\})?([^&\\{}]*)\\end\s*\{\1\}"), r"\2"),
    (re.compile(r"\\(?:text)?color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}|\\(?:boldsymbol|bm|pmb|underline|tiny|small|large|Large"
                r"|LARGE|huge|Huge|bfseries)(?![A-Za-z])"), ""),
    (re.compile(r"(?<![\w^_}\]\\])\{([^{}\\]*)\}"), r"\1"),
    (re.compile(r"\\!\s*"), ""),
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*\.?(?=[\s()\[\]|\\.]|$)"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|bf|rm|it)(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:mbox|hbox|textbf|textit|textrm|textnormal|textsf|mathrm|mathbf|mathit|mathsf|operatorname\*?)"
                r"\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\(?:q?quad|hspace\{[^{}]*\}|thinspace|space|phantom\{[^{}]*\})(?![A-Za-z])"), " "),
    (re.compile(r"(?<!\\)\\[,;: >\n]|~"), " "),
    (re.compile(r" {2,}"), " "),  # rules below would look at each space of a run for itself
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
    (re.compile(r"\^\s*\{?\s*\\text\s*\{o\}\s*\}?"), r"^\\circ"),
    (re.compile(r"\\text\s*\{([^{}A-Za-z]*)\}"), r"\1"),
    (re.compile(r"\\text\s*\{\s*infinity\s*\}|(?<![A-Za-z\\])infinity(?![A-Za-z])", re.I), r"\\infty"),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\(?:lor|vee)(?![A-Za-z])"), " or "),
    (re.compile(r"\\(?:land|wedge)(?![A-Za-z])"), " and "),
    (re.compile(r"(?<=[)\]])\s*U\s*(?=[(\[])"), r"\\cup "),
    (re.compile(r"^\s*(?:\+\s*/?\s*-|plus or minus)(?=\s*[\w\\])"), r"\\pm "),
    (re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"(?<![A-Za-z\\])cbrt\s*\(([^()]*)\)"), r"\\sqrt[3]{\1}"),
    (re.compile(r"\\sqrt\s*(\[[^\[\]]*\])\s*(\w)"), r"\\sqrt\1{\2}"),
    (re.compile(r"(?:\{\})?_\s*\{?(\d+)\}?\s*C\s*_\s*\{?(\d+)\}?|(?<![A-Za-z\\])C\((\d+),\s*(\d+)\)"),
     lambda match: rf"\binom{{{match[1] or match[3]}}}{{{match[2] or match[4]}}}"),
    (re.compile(r"(?<=\w)\s*(?:\\text\s*\{)?\s*(?:in\s+)?base\s*\}?\s*(\d+)"), r"_{\1}"),
    (re.compile(r"(?<!\d)(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?"), lambda match: _repeating(*match.groups())),
    (re.compile(r"(?<!\d)(\d{0,30})\.(\d{0,20}?)(\d{1,6}?)\3{2,30}(?:\\(?:c?dots|ldots)|\.\.\.+|\u2026)"),
     lambda match: _repeating(*match.groups())),
    (re.compile(r"(?<!\d)(\d+)\s*(?:\\text\s*\{\s*)?dollars?,?\s+(?:and\s+)?(\d{1,2})\s+cents?\s*\}?", re.I),
     lambda match: f"\u00a4{match[1]}.{int(match[2]):02}"),
    (re.compile(r"(?<![A-Za-z])(?:USD|US)\s*\u00a4?\s*(?=\d)"), "\u00a4"),
    (re.compile(r"^\s*\](.*)\[\s*$", re.S), r"(\1)"),
    (re.compile(r"^(\d+)\s+to\s+(\d+)$"), r"\1:\2"),
    (re.compile(r"^\\text\s*\{\s*((?:the set of )?all real[^{}]*)\}$"), r"\1"),
    (re.compile(r"^(?:the set of )?all (?:real )?(?:numbers|values|reals|x)(?: of x| x)?"
                r"(?: (?:with|such that|where|satisfying))?(?=$| (?:less|greater|at|x|\d|-))", re.I),
     lambda match: "" if match.end() < len(match.string) else r"\mathbb{R}"),
    (re.compile(r"^ (?:(less|greater) than( or equal to)?|(at most)|(at least))\b"),
     lambda match: "x " + ((r"\le" if match[2] else "<") if match[1] == "less" else (r"\ge" if match[2] else ">")
                           if match[1] else r"\le" if match[3] else r"\ge")),
    (re.compile(rf"^\s*(?:[a-z]\s*\\in\s*)?{_R}\s*$"), r"(-\\infty,\\infty)"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\s*\\text\s*\{\s*%\s*\}"), "%"),
    (re.compile(r"\s*(?:\\text\s*\{\s*(?:percent|pct\.?)\s*\}|(?<![A-Za-z\\])(?:percent|pct)(?![A-Za-z]))", re.I), "%"),
    (re.compile(r"\\frac\s*(\d|\\pi)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*(\d)"), r"\1{\2}"),
    (re.compile(r"(?<![A-Za-z])(?:the )?square root of (\d+|[a-z])(?![\w^/({\\]|\s*[/^]|[.,]\d)", re.I), r"\\sqrt{\1}"),
    (re.compile(r"(?<=\d) times (?=\d|\\sqrt)"), r"\\times "),
    (re.compile(r"\\sqrt\s*(\d|[a-z](?![a-z]))"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\w\\])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\pi\s*\("), r"\\pi \\cdot ("),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"\\(?:c?dots|ldots)(?![A-Za-z])"), r"\\ldots"),
]  # fmt: skip


def _repeating(whole: str, start: str, period: str) -> str:
    r"""Write a repeating decimal as a fraction: ``0.1\overline{6}`` is (16 - 1) / 90."""
    over = int(whole + start + period) - int((whole + start) or "0")
    return rf"\frac{{{over}}}{{{(10 ** len(period) - 1) * 10 ** len(start)}}}"


#: A number of more digits is cut: Python refuses to read 4,300, and a repeating decimal joins three numbers.
_DIGITS = re.compile(r"(?<!\d)(?<!\d,)((?:\d,?){1300})[\d,]+")


@lru_cache(maxsize=1000)
def tidy(text: str) -> str:
    """Return the normalized form of an answer, without introductory words and typesetting."""
    text = _DIGITS.sub(r"\1", re.sub(r"\s+", " ", text.strip()))
    while (match := re.fullmatch(r"(\*{1,3}|_{2,3})(?=[^\s*_])(.+?)\1[.:]?", text, re.S)) and match[1] not in match[2]:
        text = match[2].strip()  # emphasis in Markdown
    text = text.strip("`").strip()
    text = _VULGAR.sub(
        lambda match: r"\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match[0]).split("\u2044")), text
    )
    text = _POWER.sub(
        lambda match: "^{" + "".join(str(_POWERS.index(c)) if c != "\u207b" else "-" for c in match[0]) + "}", text
    )
    text = _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)
    text = _ROOT.sub(lambda match: rf"\sqrt{{{match[1] or match[2]}}}", text)
    # A dollar before a number is money if it is escaped, or if it has no partner to make it a formula.
    text = re.sub(r"\\\$", "\u00a4", text)
    text = text.replace("$", "" if text.count("$") % 2 == 0 else "\u00a4")
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    for pattern, by in RULES:
        text = pattern.sub(by, text)
    if match := re.fullmatch(r"\\text\s*\{([^{}]*)\}(.*)", text, re.S):
        inner = _LEAD.sub("", match[1], count=1)
        text = (inner if re.match(r"[-\d(]", inner) else rf"\text{{{inner}}}") + match[2]
    text = spoken_number(re.sub(r"\s+", " ", text).strip())
    return text.rstrip(".,;:\u3002 ").strip()


_SPACE = re.compile(r"(?<=[^\w,]) | (?=\W)|(?<=,) (?!\d)")


def compact(text: str) -> str:
    """Remove spaces that do not separate anything; ``1, 200`` keeps its space, since it is two numbers."""
    return _SPACE.sub("", text)


def plain(text: str) -> str:
    """Return a text's words without typesetting and articles, for comparison."""
    return normalize(_unwrapped(tidy(text)), articles=True)


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")


def _unwrapped(text: str) -> str:
    return _TEXT.sub(r"\1", text)


def words_of(text: str) -> list[str]:
    r"""Return the words of more than one letter, also in ``\text{...}``, without commands and environments."""
    text = re.sub(r"\\(?:begin|end)\s*\{[^{}]*\}|\\text(?=\s*\{)", " ", text)
    return re.findall(r"(?<![A-Za-z\\])[A-Za-z]{2,}(?![A-Za-z])", re.sub(r"\\[A-Za-z]+", r" ", text))


def is_text(text: str) -> bool:
    """Return whether a text is words rather than mathematics; read as a product, east would equal seat."""
    if re.search(r"\\text\s*\{[^{}]*[A-Za-z]{2}", re.sub(r"\\text\s*\{\s*(?:and|or)\s*\}", "", text)):
        return True
    words = [word for word in words_of(text) if word.lower() not in NAMES | LINKS]
    return any((len(word) > 2 and not set(word) <= set("abcxyz")) or word.lower() == "no" for word in words)


_CHOICE = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|([A-Z]))")
CHOSEN = re.compile(r"(?:\(\s*([A-Za-z])\s*\)|([A-J])[.):])(?:\s|$)")


def choice_of(gold: str) -> str | None:
    """Return the letter of a gold answer that is a choice, in upper case; None if it is not one."""
    match = _CHOICE.fullmatch(_unwrapped(gold).strip().rstrip(".)") + (")" if "(" in gold else ""))
    return (match[1] or match[2]).upper() if match else None
