r"""Find the final answer of a text without a box or ``####``.

Brief answers ("She sold 72 clips.") must be read as well as long ones; a text that hedges between several answers,
denies one or only lists the choices states none.
"""

from __future__ import annotations

import re

from wst.rewards.math.normalize import CHOSEN, LINKS, NAMES, PROSE_WORDS, choice_of, is_text, tidy, words_of
from wst.rewards.math.spoken import digits_for_words
from wst.rewards.math.units import magnitude_of, without_unit
from wst.rewards.numbers import without_markers

FORMULA = re.compile(r"(?<!\\)\$\$?([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.S)
_BLOCK = re.compile(r"\$\$.*?\$\$|\\\[.*?\\\]|\\begin\s*\{(\w+\*?)\}.*?\\end\s*\{\1\}", re.S)
_EMPHASIS = re.compile(r"(?<![\w*\\])(\*{1,3}|_{2,3})(?=[^\s*_])([^*\n]+?)(?<=\S)\1(?![\w*])")
_SENTENCE = re.compile(r"\n+|(?<=[.!?])(?<![ap]\.m\.)\s+(?=[^a-z])|(?<=\u3002)")
STATES = re.compile(
    "(?:\\b(?:answers?|ans|respuesta|r\u00e9ponse|antwort)\\b|\u7b54\u6848)[\\s*_]*"
    "(?:[^\n.:=$\\\\]{0,60}?(?:\\b(?:is|are|be|es|est|ist)\\b|\u662f)|[:=\uff1a])[\\s*_]*:?\\s*(.+)",
    re.I | re.S,
)
_FOREIGN = re.compile(r"respuesta|r\u00e9ponse|antwort", re.I)  # the decimal sign is a comma
_TURN = re.compile(r"(?:oh,? |hmm,? |but )?(?:no\b|wait\b|actually|correction|sorry|oops|hold on|i mean)", re.I)
_HEDGE = re.compile(
    r"\b(?:maybe|perhaps|possibly|anything|anywhere|not sure|unsure"
    r"|(?:do not|don't|cannot|can't) (?:know|say|tell))\b[^.]*$"
    r"|\bbetween\s+\W{0,3}\d.*\band\b[^.]*$"
    r"|\b(?:less|fewer|more|greater|larger|smaller|higher|lower) than\s+\W{0,3}[\d\\][^\s=]*(?:\s+\w+){0,2}$"
    r"|\b(?:not|isn't|never|can't be|cannot be)\s+(?:equal to\s+)?\W{0,3}[\d\\]"
    r"|\b(?:is|are|was|were|would be|looks?)\s+(?:also\s+|clearly\s+|just\s+)?"
    r"(?:wrong|incorrect|false|not (?:right|correct|true|the answer)|impossible)\b",
    re.I,
)
_REASON = r",?\s+(?:since|because|as|for (?:all|any|every)|in (?:19|20)\d\d)\b|\s+\((?=[a-z]{2})"
_ASIDE = re.compile(rf"(?<=[\w$)}}%])(?:{_REASON}).*", re.I | re.S)
#: After "the answer is", the answer comes first.
_REST = re.compile(
    rf"(?<=[\w$)}}%])(?:{_REASON}|,?\s+(?:which|where|from|obtained|by|when|after|so|and the|but)\b"
    r"|,\s+(?=(?!and\b|or\b)[a-z]{2})).*",
    re.I | re.S,
)
_SCRIPT = re.compile(r"[^\W\d_a-zA-Z\u0370-\u03ff]")  # letters of other languages
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d)?\s*[ap]\.?m\b\.?|\b\d{1,2}:\d\d\b", re.I)
_INSTEAD = re.compile(r"\bnot\s+\W{0,3}\d[\d.,]*\s*,?\s*but\s+", re.I)  # not 5 but 6
_SOME = re.compile(r"\d|\\[A-Za-z]|\$")  # a number or formula
_DENIAL = re.compile(
    r"\b(?:no|not|neither|nor|wrong|incorrect|false|never|maybe|except|eliminated?|respond"
    r"|(?:answer|reply) with)\b|n't\b",
    re.I,
)
_CHOOSES = re.compile(
    r"\b(?:answers?|choose|choice|pick|select|correct|thus|hence|therefore|so|final(?:ly)?|is)\b", re.I
)
_LETTER = re.compile(r"\(([A-Za-z])\)|(?<![\w'])([B-HJ]|A(?!\s+[a-z]))(?![\w'])")


def find_answer(text: str, gold: str | None) -> str | None:
    """Return the final answer of a text; None if it states none, or several that exclude each other.

    Args:
        text: A response or target.
        gold: The gold answer, which tells whether to look for a number, a word or a choice; None if this is the target.
    """
    if gold is not None and choice_of(gold) is not None and not is_text(gold := f"({choice_of(gold)})"):
        letter = chosen_letter(text)
        return f"({letter})" if letter else None
    if _is_bare(text):
        return text
    text = without_markers(text)
    if gold is not None and _CLOCK.search(gold) and (times := _CLOCK.findall(text)):
        return str(times[-1])
    words = gold is not None and is_text(magnitude_of(gold))
    if not words and not re.search(r"[\d\\$]", text):
        text = digits_for_words(text)
    sentences = _sentences(text)
    place, said = len(sentences), ""
    for i, sentence in enumerate(sentences):
        match = STATES.search(sentence)
        if match and (words or _SOME.search(match[1]) or (_is_bare(match[1]) and not is_text(tidy(match[1])))):
            place, said = i, match[1]
            if _FOREIGN.search(match[0]):
                said = re.sub(r"(?<=\d)\.(?=\d{3}\b)", "", re.sub(r"(?<=\d),(?=\d)", "#", said)).replace("#", ".")
    stated = bool(said)
    for sentence in sentences[place + 1 :]:
        if _TURN.match(sentence) and _SOME.search(sentence):
            stated, said = False, sentence
    if not said:
        said = next((s for s in reversed(sentences) if words or _SOME.search(s)), sentences[-1])
    said = _INSTEAD.sub("", said.strip())
    if _is_bare(said):
        return said
    if words_of(said):
        said = said.rstrip("!")
    short = (_REST if stated else _ASIDE).sub("", said).strip().rstrip(".")
    if not words and _HEDGE.search((short if stated else said).rstrip(" .!")):
        return None
    for part in (short, said):
        if _is_bare(part) or words:
            return part
    between = re.split(r"\bor\b", short)
    if len(between) > 1 and all(re.search(r"\d", part) for part in between[-2:]):
        found = [_last_expression(part) for part in between]
        return " or ".join(expression for expression in found if expression)
    return _last_expression(short) or _last_expression(said) or (None if gold is not None and not stated else said)


def chosen_letter(text: str) -> str | None:
    """Return the only choice that a text selects and does not deny, in upper case; None if there is not exactly one."""
    text = re.sub(r"\\text(?:bf|rm|it)?\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"[*_`$]", "", text).strip()
    if match := re.fullmatch(r"([A-Za-z])[.)]?", text):
        return match[1].upper()
    if (match := CHOSEN.match(text)) and not _LETTER.search(text, match.end()) and not _DENIAL.search(text):
        return (match[1] or match[2]).upper()
    text = re.sub(r",(?=\s*(?:and |or )?\(?[A-J]\)?(?:\W|$))", " ", text)  # a list stays in one clause
    letters: set[str] = set()
    decided: str | None = None
    for clause in re.split(r"[,;\n]|\.\s|\bbecause\b|\bbut\b|\bsince\b|\bso\b(?=.*\()", text):
        found = {(match[1] or match[2]).upper() for match in _LETTER.finditer(clause)}
        if not found or _DENIAL.search(clause):
            continue
        letters |= found
        if _CHOOSES.search(clause):
            decided = min(found) if len(found) == 1 else None
    return decided or (min(letters) if len(letters) == 1 else None)


def _sentences(text: str) -> list[str]:
    """Split a text into sentences and lines, without Markdown."""
    text = _BLOCK.sub(lambda match: match[0].replace("\n", " "), text)
    text = re.sub(r"^\s*(?:#+|[-*]\s)\s*", "", text, flags=re.M)
    text = _EMPHASIS.sub(r"\2", text)
    return [part.strip() for part in _SENTENCE.split(text) if part and part.strip()] or [text.strip()]


def _is_bare(text: str) -> bool:
    """Return whether a text consists of an answer alone."""
    text = tidy(text) if "\n" not in text.strip() or r"\begin" in text else ""
    if not text or len(text) > 400 or _SCRIPT.search(text):
        return False
    if choice_of(text) is not None or CHOSEN.match(text):
        return True
    words = [word.lower() for word in words_of(text) if word.lower() not in NAMES | LINKS]
    if any(word in PROSE_WORDS for word in words):
        return False
    measure, unit = without_unit(text)
    if unit is not None and not is_text(measure):
        return True
    digits = re.search(r"\d", text) and not re.match(r"\w+ \d{1,2}(?:, \d{4})?$|.*[ap]\.?m\.?$", text, re.I)
    return len(words) <= 3 and not (digits and is_text(text))


def _last_expression(text: str) -> str | None:
    """Return the last expression that math-verify finds, as it is written."""
    import sympy  # type: ignore[import-untyped]
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse  # type: ignore[import-untyped]

    formulas = list(FORMULA.finditer(text))
    if formulas and not re.search(r"\d", text[formulas[-1].end() :]):
        last = [formulas.pop()]
        while formulas and re.fullmatch(r"\s*,?\s*(?:and|or)?\s*", text[formulas[-1].end() : last[0].start()]):
            last.insert(0, formulas.pop())
        return ", ".join(next(group for group in match.groups() if group) for match in last)
    text = re.sub(r"\\\$(?=\s*[\d.])", "", text)  # the parser overlooks escaped dollar signs
    found = parse(text, [LatexExtractionConfig(), ExprExtractionConfig()], parsing_timeout=None)
    written = next((one for one in found if isinstance(one, str)), None)
    if written is None:
        return next(iter(re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)[-1:]), None) if len(text) < 400 else None
    hundredth = sympy.UnevaluatedExpr(sympy.Rational(1, 100))
    percent = isinstance(found[0], sympy.Mul) and hundredth in found[0].args and "%" not in written
    return f"{written}%" if percent else written
