"""Words: how short answers are compared, whether a text gives an answer away, and how words are counted."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

#: Scripts that write words without spaces between them; a class of a regular expression, without its brackets.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    r"\uf900-\ufaff\U00020000-\U0003ffff"
)
_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBER_WORDS = {word: value for value, word in enumerate(_ONES.split())}
NUMBER_WORDS |= {word: 10 * value for value, word in enumerate(_TENS.split(), start=2)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)

# Characters that only look different: full-width forms, typographic quotes and dashes, invisible characters.
_SAME: dict[int, int | str] = {0xFEE0 + code: code for code in range(0x21, 0x7F)}
_SAME |= dict.fromkeys(map(ord, "\u2018\u2019\u02bc\u2032"), "'") | dict.fromkeys(
    map(ord, "\u201c\u201d\u201e\u2033"), '"'
)
_SAME |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63"), "-")
_SAME |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"), "") | {0x3000: " ", 0x3002: "."}


def unify(text: str) -> str:
    r"""Return a text with one character for those that only look different, such as full-width letters and dashes.

    Examples:
        >>> unify("\uff59\uff45\uff53 \u2212 don\u2019t")
        "yes - don't"
    """
    return unicodedata.normalize("NFC", text).translate(_SAME)


def strip_emphasis(text: str) -> str:
    """Remove Markdown's emphasis and code marks around words: ``**Paris**``, ``_Paris_``."""
    return _EMPHASIS.sub("", text)


# A mark is emphasis where it touches a word on one side only: 2*3 and snake_case keep theirs.
_EMPHASIS = re.compile(
    r"(?<![\w*_~`)\]}])(?:\*{1,3}|_{1,3}|~~|`{1,3})(?=[^\s*_~`])"
    r"|(?<=[^\s*_~`])(?:\*{1,3}|_{1,3}|~~|`{1,3})(?![\w*_~`(\[{])"
)

_NUMBER = re.compile(
    r"([$\u20ac\u00a3\u00a5]?)([-+]?)([$\u20ac\u00a3\u00a5]?)(\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(\.\d+)?(e[-+]?\d{1,4})?",
    re.I,
)
_EXACT = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)
_ABBREVIATION = re.compile(r"(?<![\w.])(?:[^\W\d_]\.){2,}")
_PAIRS = ((re.compile(r'"([^"]*)"'), r"\1"), (re.compile(r"(?<!\w)'([^']*)'(?!\w)"), r"\1"))
_ENCLOSED = re.compile(r"\(([^(),;:]*)\)|\[([^\[\],;:]*)\]")
_ASIDE = re.compile(r"(?<=\s)\(([^\W\d_][^()\d,;:]*)\)(?!\w)")
_STOPS = re.compile(
    r"(?<![.?;:\u2026\uff0c\uff1b\u3001])(?<!(?<!\d)!)(?:(?<!\d)!|[.?;:\u2026\uff0c\uff1b\u3001])+(?=\s|\Z)|(?<!\d),(?=\s|\Z)"
    r"|(?<=\d),(?=\s+[^\s\d.+-]|\s*\Z)|[\u00a1\u00bf]"
)
_SPACED_OPERATOR = re.compile(r"\s*([<>=+*/^|~]+)\s*")
_HYPHEN = re.compile(
    r"(?<=[^\W\d_]{2})[-\u2014](?=[^\W\d_])|(?<=[^\W\d_])[-\u2014](?=[^\W\d_]{2})|(?<=[^\W\d_]{2})-(?=\d)"
)


def comparable(text: str, *, lowercase: bool = True, articles: bool = False, hyphen: str = " ") -> str:
    """Return the form in which two short answers are compared: without the punctuation that carries no meaning.

    Removed are the marks at the end of a clause, quotes and brackets around words, emphasis, and the points of
    abbreviations (U.S.). Kept are signs, decimal points, slashes, symbols, and commas and hyphens between figures. A
    number becomes its plain decimal form.

    Args:
        text: The answer.
        lowercase: Ignore case.
        articles: Ignore the English articles.
        hyphen: What a hyphen within a word becomes; "New-York" equals "New York" and "e-mail" equals "email".

    Examples:
        >>> comparable("**Paris**, France."), comparable("51.0"), comparable("x < 5")
        ('paris france', '51', 'x<5')
    """
    text = " ".join(strip_emphasis(unify(text.casefold() if lowercase else text)).split())
    for pattern, inner in _PAIRS:
        text = pattern.sub(inner, text)
    text = _STOPS.sub("", _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), text)).strip()
    enclosed = _ENCLOSED.fullmatch(text)
    if enclosed:
        text = (enclosed[1] or enclosed[2] or "").strip()
    number = _NUMBER.fullmatch(text)
    if number and not re.match(r"0\d", number[4]):  # 007 is a name
        currency, sign, other, whole, fraction, exponent = (part or "" for part in number.groups())
        value = Decimal(sign + whole.replace(",", "") + fraction + exponent)
        return f"{currency}{other}{_EXACT.add(value.normalize(_EXACT), 0):f}" if abs(value.adjusted()) < 1000 else text
    text = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])", lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"(?<=\d),\s+(?=[-+.\d])", ",", text)
    text = _HYPHEN.sub(hyphen, _ASIDE.sub(r"\1", text))
    text = _SPACED_OPERATOR.sub(r"\1", text)
    return " ".join((_ARTICLES.sub(" ", text) if articles else text).split())


def count_words(text: str) -> int:
    r"""Return the number of words; in Chinese and Japanese every character counts, in Thai and its like every fourth.

    Examples:
        >>> count_words("two words"), count_words("\u4eca\u5929\u5929\u6c14")
        (2, 4)
    """
    whole = len(re.findall(rf"[{_IDEOGRAPHS}]", text))
    parts = [len(run) for run in re.findall(rf"[{_SYLLABLES}]+", text)]
    return (
        whole
        + sum(-(-length // 4) for length in parts)
        + len(
            re.sub(
                rf"[{_IDEOGRAPHS}{_SYLLABLES}\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]",
                " ",
                text,
            ).split()
        )
    )


_IDEOGRAPHS = r"\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SYLLABLES = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"

#: Answers that a task offers together: who names several of a row names the task, not the answer.
_OPTIONS = (
    {"yes", "no", "maybe"},
    {"true", "false", "unknown", "not given"},
    {"positive", "negative", "neutral"},
    {"entailment", "neutral", "contradiction"},
    {"correct", "incorrect"},
    {"right", "wrong"},
    {"spam", "ham"},
)
_CHOICE = re.compile(r"\(?([a-z])\)?[.)]?", re.IGNORECASE)
_DENIES = re.compile(r"\b(?:not|wrong|incorrect|false|neither|nor)\b|n't\b", re.IGNORECASE)
_NAMED = re.compile(
    r"[(\[]([A-Za-z])[)\]]|\b([A-Z])\)|\b(?i:option|choice|answer|letter|label|choose|pick|select|say|write|output|reply)"
    r"(?:\s+(?:is|with|only|just))*[\s:]+['\"*_(]*([A-Z])\b(?![\w'+#-]|\s+[a-z])|\bis\s+['\"*_(]*([B-HJ-Z])\b(?![\w'+#-])"
)


def named_choices(text: str) -> set[str]:
    """Return the letters that a text names as choices and does not deny: ``(A)``, ``B)``, "choose C"; in upper case."""
    clauses = re.split(r"[.;\n](?=\s|\Z)|,|\bbut\b", unify(text))
    return {"".join(g).upper() for clause in clauses if not _DENIES.search(clause) for g in _NAMED.findall(clause)}


def gives_away(text: str, answer: str) -> bool:
    """Return whether a text contains an answer, as whole words, in whatever case, accents, spelling or spacing.

    A letter counts only if it is the only one named as a choice. An answer is not given away if the text names its
    alternatives too ("True or False"). Also found are letters spelt out (``P a r i s``), base64, and formulas with
    other spaces or Unicode signs.

    Args:
        text: What is searched.
        answer: What is looked for; an empty one is never found.
    """
    words = _plain(answer)
    letter = _CHOICE.fullmatch(answer.strip())
    if letter:
        return named_choices(text) == {letter[1].upper()}
    if not words:
        return False
    searched = _plain(text)
    if re.search(r"[^\W\d_]", words) and not re.search(r"[^\w\s]", words):
        spelt = re.escape(words).replace(r"\ ", r"\s+")
        loose = r"[\s\-.,_*]{0,3}".join(re.escape(character) for character in words if character not in " _")
        exact = rf"(?<!\w){spelt}(?:s|'s)?(?!\w)"
        found = bool(re.search(rf"{exact}|(?<!\w){loose}(?!\w)" if len(words) > 3 else exact, searched))
    else:
        found = _in_formula(text, answer)
    if not found:
        return any(_plain(decoded) == words for decoded in decoded(text))
    others = next((row for row in _OPTIONS if words in row), set()) - {words}
    return not any(re.search(rf"(?<!\w){re.escape(other)}(?!\w)", searched) for other in others)


def _plain(text: str) -> str:
    """Return the words of a text without case and accents."""
    stripped = unicodedata.normalize("NFKD", unify(text).casefold())
    text = "".join(character for character in stripped if not unicodedata.combining(character))
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), strip_emphasis(text))
    return " ".join(re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", text).split()).strip(" .,;:!?\"'")


_POWERS = str.maketrans(
    {
        **dict(
            zip(
                "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079",
                ("^" + digit for digit in "0123456789"),
                strict=True,
            )
        ),
        "\u00d7": "*",
    }
)


def _in_formula(text: str, answer: str) -> bool:
    """Return whether a text contains an answer that has symbols, whatever its spaces."""

    def compact(part: str) -> str:
        part = unify(part.translate(_POWERS)).casefold()
        return re.sub(r"\s|\\[,;!: ]|\\left|\\right|\$", "", part)

    wanted = compact(answer)
    edges = (r"(?<![\w.])" if wanted[:1].isalnum() else ""), (r"(?![\w]|\.\d)" if wanted[-1:].isalnum() else "")
    # Spaces are gone, so a boundary is looked for where the text had one.
    spaced = re.sub(r"(?<=[^\W\d_])\s+(?=\w)|(?<=\w)\s+(?=[^\W\d_])", "\0", text.strip())
    return bool(wanted) and bool(re.search(edges[0] + re.escape(wanted) + edges[1], compact(spaced)))


def decoded(text: str) -> list[str]:
    """Return what the base64 strings of a text hold, as far as it is text."""
    found = []
    for code in re.findall(r"(?<![\w+/=])[A-Za-z0-9+/]{2,200}={0,2}(?![\w+/=])", text):
        try:
            found.append(base64.b64decode(code, validate=True).decode("utf-8"))
        except (binascii.Error, ValueError):
            continue
    return found
