"""Labels in prose: which labels of a classification a text names, and which it denies."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wst.rewards.words import UNSPACED, strip_emphasis, unify

# A negation and up to six words of the same clause before the label.
_NEGATION = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|none|nobody|nothing|without|hardly|barely|scarcely|cannot|isnt|wasnt|lacks?|unlikely|"
    r"far from|anything but|opposite of|instead of|rather than|(?<!more )than|less than|fails? to|"
    r"nicht|kein\w*|nie|pas|jamais|aucun\w*|non|"
    r"ni|nunca)\b|n't\b)"
    r"(?!\s+(?:only|just|merely|simply|but|short of|be more|a doubt|doubt|question)\b|\s*:)"
    r"[\s\"'(*-]*(?:\w++(?:['-]+\w++)*+[\s\"'(*-]+){0,6}\Z",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"[.;!?\n:\u3002\uff01\uff1f]|,|(?<!anything )\b(?:but|however|although|though|because|therefore|hence|thus)\b"
    r"|\band\s+(?=(?:the|it|this|that|is|was|i|we|he|she|they|so|overall|therefore|thus)\b)",
    re.IGNORECASE,
)
_DENIED_AFTER = re.compile(
    r"[\"'*_)\]]*(?:\s*\?[\"')\s]*(?:no|nope|not(?=\s+(?:really|quite|at|exactly|so|in)\b|\s*(?:[.,!\n]|\Z)))\b"
    r"|\s+(?:\w+\s+)?(?:is|was|are|would be|seems|does|do|can|could)\s*"
    r"(?:not\b|n't\b|never\b|wrong\b|incorrect\b|false\b)"
    r"|\s+(?:is|was|does|do|ca|could|would)n't\b)",
    re.IGNORECASE,
)
_DENIED_UNSPACED = re.compile(r"(?:\u4e0d|\u975e|\u6ca1|\u6c92|\u672a|\u65e0|\u7121)[^\u3002\uff0c,.!?\n]{0,4}\Z")
_DENIED_UNSPACED_AFTER = re.compile(
    r"(?:\u7684)?(?:\u3067\u306f|\u3058\u3083)\s?(?:\u306a|\u3042\u308a\u307e\u305b)|"
    r"(?:\uc774|\uac00|\uc740|\ub294)?\s?\uc544\ub2c8|"
    r"(?:\uc801\uc774)?\uc9c0\s?\uc54a"
)
_PHRASE = re.compile(r"\b(?:false|true|hiv|rh|covid|tested|tests|testing)[\s-]+\Z", re.IGNORECASE)

_NOUN = re.compile(  # whose number or letter is no label
    r"\b(?:steps?|vitamin|plan|hepatitis|influenza|appendix|figure|fig\.|table|section|chapter|part|page|exhibit|room|"
    r"line|item|point|reason|example|note|equation|phase|stage|team|gate|terminal|platform|question|problem|no\.|#)\s*#?\Z",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"(?:\b(?:answer|option|choice|label|letter|select|choose|pick|class|category)"
    r"(?:\s+(?:is|was|would be|of))?\s*[:=]?|[:=]|\bis)"
    r"[\s\"'*_(\[]*\Z",
    re.IGNORECASE,
)
_LETTER_ENDS = re.compile(
    r"[\"'*_)\]}]*(?:\s*[.,;:!?)/|]|\s*\Z|\s*\n|"
    r"\s+(?:is|was|because|since|as|would|and|or|by|wins|seems|due)\b|\s*[-\u2014]\s)",
)
_NO_ENDS = re.compile(
    r"[\"'*_)\]}]*(?:\s*[.,;:!?)/|\u2014-]|\s*\Z|\s*\n|\s+(?:because|since|as|"
    r"it|this|that|there|they|he|she|we|you|i|the|but|and|or|"
    r"is|was)\b)",
    re.IGNORECASE,
)
_INNOCENT = re.compile(
    r"\s+(?:aspects?|points?|sides?|features?|things?|parts?|elements?|details?|qualities|language|tone|attitude|feedback|"
    r"numbers?|integers?|values?)\b",
    re.IGNORECASE,
)


class Labels:
    """Finds the labels of a task in texts.

    Labels are whole words in any case, emphasis and width; of those that start at the same position the longest counts.
    In scripts without spaces between words they are found anywhere. These do not name a label: compounds
    ("HIV-positive"), terms ("false positive"), the determiner "no" ("no idea"), the article "a", and letters and
    numbers of other things ("vitamin C", "step 1", "-1", "1.5").

    Args:
        labels: All labels of the task, folded by `fold`.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = frozenset(labels)
        self._pattern = _any_of(self.labels, "")
        self._inflected = _any_of(self.labels, "(?:ly|ity|ness|s|'s)?")
        self._spelt = {
            folded: re.compile(r"(?<!\w)" + r"[\s\-._*]{1,3}".join(map(re.escape, folded.replace(" ", ""))) + r"(?!\w)")
            for folded in self.labels
            if len(folded) > 3
        }

    def find(self, text: str, leaks: bool = False) -> list[tuple[str, bool]]:
        """Return the labels that a text names, in order, each with whether the text affirms it or denies it.

        Args:
            text: Where to look.
            leaks: Also find inflected labels ("positively") and letters spelt out, but not topics ("positive aspects").
        """
        text = strip_emphasis(unify(text))
        text = "".join(c if len(c.casefold()) == 1 else c.casefold() for c in text)  # the pattern is casefolded too
        found = []
        for match in (self._inflected if leaks else self._pattern).finditer(text):
            folded = fold(match["label"])
            if folded not in self.labels or not _is_name(text, match.start(), match.end(), folded):
                continue
            if leaks and _INNOCENT.match(text, match.end()):
                continue
            found.append((folded, not _denied(text, match.start(), match.end(), folded)))
        if leaks:
            found += [(folded, True) for folded, pattern in self._spelt.items() if pattern.search(text.casefold())]
        return found


def fold(label: str) -> str:
    """Return the form in which labels are compared: case, width, emphasis, spaces and underscores do not count."""
    plain = strip_emphasis(unify(label)).casefold().replace("_", " ")
    return " ".join(plain.split()) or " ".join(label.casefold().split())


def _any_of(labels: frozenset[str], suffix: str) -> re.Pattern[str]:
    """Return a pattern for the labels as whole words, the longest first."""
    patterns = []
    for label in sorted(labels, key=lambda label: (-len(label), label)):
        spaced = r"[\s_]+".join(map(re.escape, label.split(" ")))
        before = "" if re.match(f"[{UNSPACED}]", label) else r"(?<![^\W_])(?<![^\W_]_)"
        after = "" if re.search(f"[{UNSPACED}]$", label) else r"(?!_*[^\W_])"
        patterns.append(f"{before}{spaced}(?={suffix}{after})")
    return re.compile(f"(?P<label>{'|'.join(patterns)})" + suffix, re.IGNORECASE)


def _is_name(text: str, start: int, end: int, label: str) -> bool:
    """Return whether the words at a place name the label, rather than being part of something else."""
    before, after = text[max(0, start - 40) : start], text[end : end + 4]
    if re.search(r"\w-\Z", before) and not re.search(r"\bnon-\Z", before, re.IGNORECASE):
        return False
    if re.match(r"-\w", after) and label[-1:].isalnum():
        return False
    if label in ("positive", "negative"):
        return not _PHRASE.search(before)
    if label == "no":
        return bool(_NO_ENDS.match(text, end))
    if label.isdecimal():
        part = re.search(r"[-+$#/]\Z|\d[.,:]\Z", before) or re.match(r"[.,:]\d|%|/\d", after)
        listed = re.match(r"[.)]\s+\S", after) and re.search(rf"\b{int(label[:9]) + 1}[.)]\s", text[end : end + 2000])
        return not (part or listed or _NOUN.search(before))
    return not re.fullmatch("[a-z]", label) or _is_letter(text, start, end, before)


def _is_letter(text: str, start: int, end: int, before: str) -> bool:
    """Return whether a single letter names a choice, unlike an article, a pronoun, "vitamin C" or "C++"."""
    if _NOUN.search(before) or re.match(r"[+#'-](?!\s)", text[end : end + 2]):
        return False
    if re.match(r"[)\]\"]", text[end : end + 1]):
        return True
    if text[:start].strip(" \n*_#>(") == "" and text[end:].strip(" \n*_.!)") == "":
        return True
    if text[start:end].islower():
        return bool(_CUE.search(before)) and bool(re.match(r"\s*[.!]?\s*\Z|[.,;\n]", text[end:]))
    return text[start] not in "AI" or bool(_LETTER_ENDS.match(text, end))


def _denied(text: str, start: int, end: int, label: str) -> bool:
    """Return whether the clause around a label denies it."""
    before = text[max(0, start - 90) : start]
    aside = re.search(r"(?:\bnot|n't),[^,.;:!?\n]{1,40},\s*\Z", before, re.IGNORECASE)
    clause = before[max((match.end() for match in _CLAUSE.finditer(before)), default=0) :]
    return bool(
        aside
        or _NEGATION.search(clause)
        or _DENIED_AFTER.match(text, end, end + 60)
        or (
            re.search(f"[{UNSPACED}]", label)
            and (_DENIED_UNSPACED.search(before) or _DENIED_UNSPACED_AFTER.match(text, end))
        )
    )
