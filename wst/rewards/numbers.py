r"""Numbers in prose: the number that a text gives as its answer, and all numbers that it mentions.

Notation: ``1,200``, ``1{,}200``, ``1 200``, ``1'200``, ``2.5``, ``2,5``, ``1.200,50``, ``3/4``, ``2 1/2``, ``5^2``,
``1e3``, ``1.2k``, ``3 million``, ``minus 5``, ``forty-two``. Currency and percent signs are skipped: 50% is 50.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal
from itertools import pairwise

from wst.rewards.words import NUMBER_WORDS, SCALES, decoded

# Every alternative fails within a few characters or consumes what it read, so the search takes linear time.
_TOKEN = re.compile(
    r"(?P<other>\d{4}-\d{1,2}-\d{1,2}(?!\d)|\d{1,2}/\d{1,2}/\d{2,4}(?!\d)|\d{1,2}:\d{2}(?::\d{2})?(?!\d)"
    r"|\d+(?:\.\d+){2,})"  # dates, times of day, versions
    r"|(?P<sign>(?<![\w)\]}%\-\u2212])[-+\u2212])?"  # after a word, bracket or dash: a hyphen or minus operator
    r"[$€£¥₹]?"
    r"(?P<magnitude>\d{1,3}(?P<comma>,|\{,\}|\\,|['\u2019_ \u00a0\u2009\u202f])"
    r"\d{3}(?:(?P=comma)\d{3})*(?!\d)(?:\.\d+)?"
    r"|\d{1,3}(?:\.\d{3})+,\d+(?![\d,])|(?<![\d,])\d+,(?:\d{1,2}|\d{4,})(?![\d]|,\d)"
    r"|\d+(?:\.\d+)?|(?<![\w.])\.\d+)"
    r"(?P<exponent>[eE][-+\u2212]?\d+)?"
    r"(?:\s*(?P<scale>hundred|thousand|million|billion|trillion)\b|(?P<kilo>[kK])\b)?"
)

# Read any number of digits without rounding; an exponent beyond 10^18 gives infinity instead of an error.
_READ = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
_COMPUTE = Context(prec=50, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])

# What may stand between two numbers that form one expression.
_JOINS = {
    "fraction": re.compile(r"\s?/\s?"),
    "mixed": re.compile(r"[ \u00a0]"),
    "power": re.compile(r"\s?(?:\^|\*\*)\s?[{(]?"),
    "product": re.compile(r"\)?\s*(?:\*|\u00d7|\u00b7|\\times|\\cdot|\bx\b|\btimes\b|\bmultiplied by\b)\s*\(?"),
    "sum": re.compile(r"\)?\s*(?:\+|\bplus\b)\s*\(?"),
    "difference": re.compile(r"\)?\s*(?:[-\u2013\u2014\u2212]|\bminus\b)\s*\(?"),
    "quotient": re.compile(r"\)?\s*(?:\u00f7|\\div|\bdivided by\b)\s*\(?"),
    "choice": re.compile(r"\s*,?\s*(?:\bor\b|\bto\b|\bor else\b)\s*\$?", re.IGNORECASE),
    "list": re.compile(r"[ \t\u00a0]*[,;]?[ \t\u00a0]+|[,;:]"),
}
_RANGE = re.compile(r"\bbetween\s*\$?\Z", re.IGNORECASE)
_FROM = re.compile(r"\bfrom\s*\$?\Z", re.IGNORECASE)

_MARKER = re.compile(r"(?:\A|(?<=[\s(:;,.!?]))\(?(\d{1,3})[.):]\)?(?=\s+\S)")  # "1. " or "(1) " before text
_STEP = re.compile(r"^(\W*)step\s*\d{1,3}\s*[:.)]", re.IGNORECASE | re.MULTILINE)
_REFERENCE = re.compile(
    r"\b(?:steps?|fig(?:ure)?s?|tables?|sections?|ref(?:erence)?s?|notes?|pages?|eq(?:uation)?s?|questions?|problems?|"
    r"parts?|chapters?|lines?|items?|examples?|stages?|phases?|rules?|hints?|points?)\.?\s*#?\s*\Z",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    r"\s*(?:-\s*)?(?:\w+\s+)?(?:steps?|sentences?|words?|decimals?|decimal places|lines?|paragraphs?|bullets?|"
    r"bullet points?|stages?|phases?|digits?|characters?|tokens?|attempts?|tries|times over)\b",
    re.IGNORECASE,
)
_MEANS = re.compile(r"\b(?:took|takes?|taking|used?|uses|using|in|after|within)\s+\Z", re.IGNORECASE)
_OPEN = re.compile(r"(?<!=)(?<!= )\Z")  # what follows an equals sign is a result, whatever it counts
_YEAR = re.compile(
    r"\b(?:in|since|by|during|until|year|"
    r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?(?:\s+\d{1,2},?)?)\s*\Z",
    re.IGNORECASE,
)
_NEGATED = re.compile(r"\b(?:minus|negative)\s+\Z", re.IGNORECASE)
_GLUED = re.compile(r"(?<![\\a-z])(?!(?:usd|eur|gbp|rs|inr|us|approx|x)\Z)[a-z]+-?\Z", re.IGNORECASE)
_RAISED = re.compile(r"[\^_]\s?[{(]?[-\u2212]?\Z")
_ASIDE = re.compile(r"(?<!\\)\([^()\n]{0,200}(?<!\\)\)|(?<!\\)(?<!\[)\[[^\[\]\n]{0,200}(?<!\\)\]")

_STATED = re.compile(
    r"\banswer\b[\s*_]*(?:(?:\([^()\n]{0,40}\)|(?:to|for|here|of|in|that|we|i)\b[^.\n\d:=]{0,30}?|,[^,.\n\d]{0,20},)[\s*_]*)?"
    r"(?:\bis\b|\bequals\b|[:=\uff1a])(?!\s*(?:not|n't)\b)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?](?=\s|\Z|[*_])|\n")
_RETRACTED = re.compile(r"\b(?:wait|actually|correction|sorry|oops|instead|mistake|hmm|recheck|no,)", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")

_WORD = rf"(?:{'|'.join((*NUMBER_WORDS, *SCALES))})"
_SPOKEN = re.compile(rf"\b(?:(minus|negative)\s+)?({_WORD}(?:(?:\s+and\s+|[\s-]+){_WORD})*)\b", re.IGNORECASE)


@dataclass(slots=True)
class _Token:
    """A number with its place in the text; ``value`` is None if it is no quantity (a date, a list marker, CO2)."""

    start: int
    end: int
    value: Decimal | None


@dataclass(slots=True)
class _Cluster:
    """Numbers that form one expression; ``value`` is None if it has no single value, such as "5 or 6"."""

    tokens: list[_Token]
    value: Decimal | None
    aside: bool


def last_number(text: str) -> Decimal | None:
    r"""Return the number that a text gives as its answer: the last one, unless the text says which it is.

    The text after the last ``####``, in the last ``\boxed{...}`` or after the last "answer is" counts first. Numbers
    that are not quantities are skipped: list markers, dates, times of day, versions, exponents of units, digits of
    names (CO2, GPT-4), "step 2"; and, if others remain, years ("in 2024"), counts of steps, and numbers in brackets.
    Number words are read if there are no digits.

    Returns:
        Its exact value (of a fraction, 50 digits); infinity if an exponent is beyond 10^18; None if there is no number,
        or several to choose from: ranges (``5-6``), alternatives (``5 or 6``), lists (``1 2 3``), sums (``3 + 4``).

    Examples:
        >>> last_number("3 boxes at $1,200 make #### -$3,600.50.")
        Decimal('-3600.50')
    """
    for part, first in _stated(text):
        clusters = _clusters(part)
        if clusters:
            return clusters[0 if first else -1].value
        spoken = list(_spoken(part))
        if spoken and (len(spoken) > 1 or first or spoken[0][1].casefold() != "one" or len(part.split()) == 1):
            return spoken[0 if first else -1][0]
    return None


def _stated(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text in which to look for its answer, and whether their first number counts, or the last."""
    _, hashes, rest = text.rpartition("####")
    if hashes:
        yield rest.strip().partition("\n")[0], True
    boxes = _BOXED.findall(text) if "\\boxed" in text else []
    if boxes:
        yield boxes[-1], False
    for cue in [*_STATED.finditer(text)][-1:]:
        end = _SENTENCE.search(text, cue.end())
        stop = len(text) if end is None else end.start()
        if not text[cue.end() : stop].strip(" *_$:"):  # the answer stands on the next line
            end = _SENTENCE.search(text, len(text) - len(text[stop:].lstrip("\n .*_$:")))
            stop = len(text) if end is None else end.start()
        stated, rest = text[cue.end() : stop], text[stop:]
        if _RETRACTED.search(rest[:2000]):
            yield rest, False
        yield stated.rpartition("=")[2], True
    yield text, False


def numbers(text: str) -> list[Decimal]:
    """Return all numbers that a text mentions, also in words or as an expression that gives them.

    Unlike a search for digits it skips the markers of lists and of steps ("1. Read", "Step 2") and counts of steps,
    sentences or decimals, which prompts are full of.
    """
    found: list[Decimal] = []
    for cluster in _clusters(text, asides=False):
        mentioned = [(token.value, token.end) for token in cluster.tokens if token.value is not None]
        found += [value for value, _ in mentioned]
        found += [_COMPUTE.scaleb(value, -2) for value, end in mentioned if re.match(r"\s?\\?%", text[end : end + 3])]
        computed = _computed(text, cluster.tokens)
        found += [] if computed is None else [computed]
    spoken = [value for value, words, end in _spoken(text) if _speaks(text, words, end)]
    return found + spoken + _hinted(text)


def _tokens(text: str) -> list[_Token]:
    """Return the numbers of a text; list markers, dates and the like have no value."""
    markers = _markers(text)
    tokens = []
    for match in _TOKEN.finditer(text):
        start, end = match.span()
        before = text[max(0, start - 24) : start]
        place = match.start("magnitude") if match["magnitude"] else start
        skipped = (
            match["other"] is not None
            or place in markers
            or _GLUED.search(before)
            or (_RAISED.search(before) and not re.search(r"\d\s?(?:\^|\*\*)\s?[{(]?\Z", before))
            or _REFERENCE.search(before)
        )
        tokens.append(_Token(start, end, None if skipped else _value(match, before)))
    return tokens


def _value(match: re.Match[str], before: str) -> Decimal:
    digits = match["magnitude"]
    if match["comma"]:
        digits = digits.replace(match["comma"], "")
    elif "," in digits:
        digits = digits.replace(".", "").replace(",", ".")
    sign = (match["sign"] or "").strip().replace("\u2212", "-")
    value = _READ.create_decimal(sign + digits + (match["exponent"] or "").replace("\u2212", "-"))
    if match["scale"] or match["kilo"]:
        value = _READ.multiply(value, 1000 if match["kilo"] else SCALES[match["scale"].casefold()])
    negated = _NEGATED.search(before)
    if negated and not re.search(r"\d\s*\Z", before[: negated.start()]):
        value = _READ.minus(value)
    return value


def without_markers(text: str) -> str:
    """Return a text without the markers of its lists and the numbers of its steps, which are no answers."""
    marks = _markers(text)
    return _STEP.sub(r"\1", _MARKER.sub(lambda match: "" if match.start(1) in marks else match[0], text))


def _markers(text: str) -> set[int]:
    """Return where the markers of numbered lists stand: at the start of a line, or in a sequence (1) ... (2) ..."""
    found = [(int(match[1]), match.start(1), match.end()) for match in _MARKER.finditer(text)]
    marks = set()
    for i, (number, start, _) in enumerate(found):
        line = text.rfind("\n", max(0, start - 8), start)
        at_line = not text[line + 1 if line >= 0 else max(0, start - 8) : start].strip(" \t(*-#>\u2022")
        follows = i > 0 and found[i - 1][0] == number - 1
        precedes = i + 1 < len(found) and found[i + 1][0] == number + 1
        if (at_line and number == 1) or follows or precedes:
            marks.add(start)
    return marks


def _clusters(text: str, asides: bool = True) -> list[_Cluster]:
    """Return the quantities of a text, joined to expressions.

    Args:
        text: Where to look.
        asides: Leave out years, counts of steps and numbers in brackets, unless they are all there is.
    """
    spans = [match.span() for match in _ASIDE.finditer(text)] if asides else []
    clusters: list[_Cluster] = []
    previous: _Token | None = None
    aside = 0
    for token in _tokens(text):
        if token.value is None:
            previous = None
            continue
        before = text[max(0, token.start - 24) : token.start]
        counted = _COUNTED.match(text, token.end, token.end + 40) and (_MEANS if asides else _OPEN).search(before)
        if counted and not asides:
            previous = None
            continue
        while aside < len(spans) and spans[aside][1] <= token.start:
            aside += 1
        inside = aside < len(spans) and spans[aside][0] < token.start
        year = text[token.start : token.end].isdigit() and 1000 <= token.value <= 2100 and _YEAR.search(before)
        joined = previous is not None and _join(text, previous, token) is not None
        if joined and clusters:
            clusters[-1].tokens.append(token)
        else:
            clusters.append(_Cluster([token], None, bool(counted or inside or year)))
        previous = token
    for cluster in clusters:
        cluster.value = _single(text, cluster.tokens)
    return [cluster for cluster in clusters if not cluster.aside] or clusters


def _join(text: str, left: _Token, right: _Token) -> str | None:
    """Return how two neighbouring numbers are joined; None if they are not."""
    if right.start - left.end > 20:
        return None
    gap = text[left.end : right.start]
    for kind, pattern in _JOINS.items():
        if pattern.fullmatch(gap):
            return kind
    if re.fullmatch(r"\s*(?:and|&)\s*\$?", gap) and _RANGE.search(text[max(0, left.start - 12) : left.start]):
        return "choice"
    # A sign right after a number is a minus operator.
    return "difference" if not gap.strip() and text[right.start] in "-+\u2212" else None


def _single(text: str, tokens: list[_Token]) -> Decimal | None:
    """Return the value of an expression that is a number: a plain one, a fraction, a mixed number or a power."""
    if len(tokens) == 1:
        return tokens[0].value
    kinds = [_join(text, left, right) for left, right in pairwise(tokens)]
    if kinds in (["fraction"], ["power"], ["mixed", "fraction"]):
        return _computed(text, tokens)
    if kinds == ["choice"] and text[tokens[0].end : tokens[1].start].strip() == "to":  # "rose from 5 to 6"
        return tokens[1].value if _FROM.search(text[max(0, tokens[0].start - 8) : tokens[0].start]) else None
    return None


def _computed(text: str, tokens: list[_Token]) -> Decimal | None:
    """Return the value of an expression of two numbers, or of a mixed number; None if there is none."""
    values = [token.value for token in tokens if token.value is not None]
    kinds = [_join(text, left, right) for left, right in pairwise(tokens)]
    if len(values) == 3 and kinds == ["mixed", "fraction"] and values[2]:
        return _COMPUTE.add(values[0], _COMPUTE.divide(values[1], values[2]))
    if len(values) != 2:
        return None
    a, b = values
    if kinds == ["power"]:
        return _COMPUTE.power(a, b) if a and b.copy_abs() <= 100 else None
    if kinds in (["fraction"], ["quotient"]):
        return _COMPUTE.divide(a, b) if b else None
    if kinds == ["product"]:
        return _COMPUTE.multiply(a, b)
    if kinds == ["sum"]:
        return _COMPUTE.add(a, b)
    if kinds == ["difference"]:
        return _COMPUTE.subtract(a, b.copy_abs())
    between = kinds == ["choice"] and _COMPUTE.subtract(b, a) == 2  # "between 41 and 43"
    return _COMPUTE.add(a, 1) if between else None


def _spoken(text: str) -> Iterator[tuple[Decimal, str, int]]:
    """Yield the value, the words and the end of every number in words."""
    for match in _SPOKEN.finditer(text):
        total = part = 0
        for word in re.findall(r"[a-z]+", match[2].casefold()):
            if word in NUMBER_WORDS:
                part += NUMBER_WORDS[word]
            elif word == "hundred":
                part = 100 * max(part, 1)
            elif word in SCALES:
                total, part = total + max(part, 1) * SCALES[word], 0
        yield Decimal(-(total + part) if match[1] else total + part), match[2], match.end()


def _speaks(text: str, words: str, end: int) -> bool:
    """Return whether a number word states a number, which "one" and "two steps" do not."""
    if _COUNTED.match(text, end, end + 40):
        return False
    stated = re.search(r"(?:\bis|\bequals|[:=])\s*\W?\Z", text[max(0, end - len(words) - 12) : end - len(words)])
    return words.casefold() not in ("one", "zero") or (bool(stated) and not re.match(r"\s+\w", text[end : end + 3]))


_ROOT = re.compile(r"\\sqrt\s*\{?\s*(\d{1,12})\s*\}?|\bsquare root of (\d{1,12})\b|\u221a\s?(\d{1,12})")
_OFFSET = re.compile(r"\b(\w+)\s+(more|less|fewer|greater|smaller) than\s+\$?(\d{1,12})\b", re.IGNORECASE)
_MULTIPLE = re.compile(r"\b(twice|double|half|thrice|triple)\s+(?:of\s+)?\$?(\d{1,12})\b", re.IGNORECASE)
_TIMES = {"twice": 2.0, "double": 2.0, "half": 0.5, "thrice": 3.0, "triple": 3.0}
_SPLIT = re.compile(r"(?<![\w.,])\d(?:(?!\d)\s{0,2}(?:(?:-|,|and)\s{0,2}){0,2}\d){1,60}(?![\w]|[.,]\d)")
_HEX = re.compile(r"\b0x([0-9a-fA-F]{1,12})\b")
_ROMAN = re.compile(r"\b(?=[IVXLCDM]{2})M{0,3}(?:CM|CD|D?C{0,3})(?:XC|XL|L?X{0,3})(?:IX|IV|V?I{0,3})(?<=\w)\b")


def _hinted(text: str) -> list[Decimal]:
    """Return numbers that a text gives away without writing them: as a root, a difference, digits, hexadecimal."""
    found = [_COMPUTE.sqrt(Decimal(a or b or c)) for a, b, c in _ROOT.findall(text)]
    for amount, word, base in _OFFSET.findall(text):
        step = int(amount) if amount.isdecimal() and len(amount) < 12 else NUMBER_WORDS.get(amount.casefold(), 0)
        found.append(Decimal(int(base) + (step if word.casefold() in ("more", "greater") else -step)))
    for word, base in _MULTIPLE.findall(text):
        if (times := _TIMES.get(word.casefold())) is not None:  # ignoring case, a dotless i is an i as well
            found.append(Decimal(times) * Decimal(base))
    for match in _SPLIT.finditer(text):
        nearby = text[max(0, match.start() - 30) : match.end() + 20].casefold()
        if "digit" in nearby or "space" in nearby or "dash" in nearby:
            found.append(Decimal("".join(re.findall(r"\d", match[0]))[:1000]))
    found += [Decimal(int(digits, 16)) for digits in _HEX.findall(text)]
    found += [_value(whole, "") for code in decoded(text) if (whole := _TOKEN.fullmatch(code)) and whole["magnitude"]]
    return found + [Decimal(_roman(match[0])) for match in _ROMAN.finditer(text)]


def _roman(numeral: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}[letter] for letter in numeral]
    return sum(-a if a < b else a for a, b in zip(values, [*values[1:], 0], strict=True))
