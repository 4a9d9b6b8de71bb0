r"""Compare `MathAnswer` with plain math-verify on real answers, and count which rules of spelling they need.

    python benchmarks/math_rules.py ANSWERS.jsonl [--show] [--rules]

Each line of the file needs the fields ``response``, ``target``, ``set`` and ``instruction`` (null if there was none).
``--show`` prints every response on which the two differ, to be judged by reading. ``--rules`` takes away one rule of
`wst.rewards.math.normalize` at a time and counts the verdicts that change, on these answers and on their gold answers.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from wst.rewards import MathAnswer
from wst.rewards.math import normalize
from wst.rewards.math.extract import final_answer, gold_answer
from wst.rewards.math.verdict import is_correct
from wst.types import Query, Response, Rollout


def plain_math_verify(response: str, target: str) -> bool:
    """Return the verdict of math-verify with its default settings."""
    from math_verify import parse, verify  # type: ignore[import-untyped]

    return bool(verify(parse(f"${target}$"), parse(response)))


def here(response: str, target: str) -> bool | None:
    """Return the verdict without a worker process; None if there is none within these limits."""
    text, stated = final_answer(response[-20_000:])
    try:
        return is_correct(text if stated else text[-2_000:], stated, gold_answer(target) or target)
    except Exception:
        return None


def needed_rules(rows: list[tuple[str, str]]) -> Counter[str]:
    """Count, for each rule of spelling, the verdicts that change without it."""
    pairs = rows + [(rf"\boxed{{{target}}}", target) for _, target in rows]
    before = [here(*pair) for pair in pairs]
    counts: Counter[str] = Counter()
    rules = list(normalize.RULES)
    for rule in rules:
        normalize.RULES[:] = [other for other in rules if other is not rule]
        normalize.tidy.cache_clear()
        touched = [i for i, pair in enumerate(pairs) if rule[0].search(pair[0]) or rule[0].search(pair[1])]
        counts[rule[0].pattern] = sum(here(*pairs[i]) != before[i] for i in touched)
    normalize.RULES[:] = rules
    return counts


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--rules", action="store_true")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.answers.read_text(encoding="utf-8").splitlines()]
    reward = MathAnswer(timeout=10.0)
    ours = reward.score(
        [Rollout(Query(str(i), "", target=r["target"]), None, Response(r["response"])) for i, r in enumerate(rows)]
    )
    reward.close()
    table: Counter[tuple[str, str]] = Counter()
    for row, mine in zip(rows, ours, strict=True):
        theirs = plain_math_verify(row["response"], row["target"])
        kind = "both right" if mine and theirs else "only ours" if mine else "only math-verify" if theirs else "neither"
        table[row["set"] + (", instructed" if row["instruction"] else ""), kind] += 1
        if options.show and kind.startswith("only"):
            print(f"--- {kind}: target {row['target']!r}\n{row['response'][-400:]}\n")
    kinds = ["both right", "only ours", "only math-verify", "neither"]
    print("| answers | " + " | ".join(kinds) + " |\n|---|" + "---:|" * len(kinds))
    for group in sorted({group for group, _ in table}):
        print(f"| {group} | " + " | ".join(str(table[group, kind]) for kind in kinds) + " |")
    if options.rules:
        counts = needed_rules([(row["response"], row["target"]) for row in rows])
        print(f"\n{sum(count > 0 for count in counts.values())} of {len(counts)} rules change a verdict:")
        for pattern, count in counts.most_common():
            if count:
                print(f"{count:5d}  {pattern}")


if __name__ == "__main__":
    main()
