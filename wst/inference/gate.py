"""A gate: below a threshold on the teacher's own confidence, no instruction is given.

The threshold is chosen by Learn-then-Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed-sequence testing. For
a threshold t on the confidence c (the instruction's mean log-probability a token, in nats), the risk is the share of
all queries that are both instructed and made worse,

    R(t) = P(c >= t and reward with instruction < reward without),

and its null hypothesis is R(t) > level. From the strictest threshold of a fixed grid to the laxest, each is tested by
the exact binomial tail P(Bin(n, level) <= harmed) <= delta, and the last one before the first that is not rejected is
taken. Then R(threshold) <= level with probability at least 1 - delta over the draw of the validation queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wst.errors import ConfigError, DataError, ModelError

CONFIDENCE = "mean_log_prob"
# Fixed beforehand, as the guarantee demands: probabilities a token from almost 1 down to e**-8.
_GRID = [-0.02 * step for step in range(401)]


@dataclass(frozen=True)
class Gate:
    """A rule by which no instruction is given.

    Attributes:
        threshold: An instruction whose mean log-probability a token is below it is not given.
        harm: Level of harm that was asked for.
        delta: Probability that the level is exceeded.
        rows: Validation queries it was chosen on.
        instructed: Share of them that got an instruction.
        harmed: Share of them that were made worse.
        gain: Mean gain over the unaided student that remains, over all of them.
        gain_without: Mean gain with an instruction for each.
        confidence: What the threshold is on; "mean_log_prob" is the only one there is.
    """

    threshold: float
    harm: float
    delta: float
    rows: int
    instructed: float
    harmed: float
    gain: float
    gain_without: float
    confidence: str = CONFIDENCE

    def opens(self, confidence: float) -> bool:
        """Return whether an instruction of this confidence is given."""
        return confidence >= self.threshold

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in ``wst.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Gate:
        """Read it from ``wst.json``.

        Raises:
            ModelError: If it is not a gate that this version can follow.
        """
        try:
            gate = cls(**content)
            numbers = [value for name, value in vars(gate).items() if name != "confidence"]
            if gate.confidence != CONFIDENCE or not all(math.isfinite(number) for number in numbers):
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ModelError(
                "wst.json: its gate is not one that this version can follow; upgrade wst, or run wst gate"
            ) from None
        return gate


def rows_needed(harm: float, delta: float) -> int:
    """Return the fewest validation queries with which a level can be shown at all, with none of them harmed.

    >>> rows_needed(0.02, 0.1)
    114
    """
    return math.ceil(math.log(delta) / math.log1p(-harm))


def check_rows(rows: int, harm: float, delta: float, what: str = "validation queries") -> None:
    """Check that a level can be shown with so many queries.

    Raises:
        ConfigError: If a level is not between 0 and 1.
        DataError: If there are too few; it says how many are needed.
    """
    for name, value in (("harm", harm), ("delta", delta)):
        if not 0 < value < 1:
            raise ConfigError(f"gate: {name} must be above 0 and below 1, got {value}")
    if rows < (needed := rows_needed(harm, delta)):
        raise DataError(
            f"gate: {rows} {what}; to show at most {harm:.1%} harm with probability {1 - delta:.0%} takes at least "
            f"{needed}, with none of them harmed; give more validation queries (data's limit_val, val or val_share), "
            "or a larger harm"
        )


def choose(
    confidences: Sequence[float],
    rewards: Sequence[float],
    unaided: Sequence[float],
    harm: float,
    delta: float = 0.1,
    tolerance: float = 1e-6,
) -> Gate:
    """Choose the laxest threshold that keeps harm under a level.

    Args:
        confidences: [n] mean log-probability a token of each instruction.
        rewards: [n] rewards with the instruction; NaN where one could not be scored.
        unaided: [n] rewards without one.
        harm: Largest share of all queries that may be made worse, above 0 and below 1.
        delta: Probability that this is exceeded, above 0 and below 1.
        tolerance: Rewards that differ by no more are equal.

    Raises:
        ConfigError: If a level is not between 0 and 1.
        DataError: If there are too few queries that both could be scored for; it says how many are needed.
    """
    known = [
        (confidence, with_it - without)
        for confidence, with_it, without in zip(confidences, rewards, unaided, strict=True)
        if not math.isnan(with_it - without)
    ]
    n = len(known)
    check_rows(n, harm, delta, "validation queries could be scored")
    from scipy.stats import binom

    threshold = math.inf  # shut for all
    for candidate in _GRID:
        harmed = sum(confidence >= candidate and change < -tolerance for confidence, change in known)
        if binom.cdf(harmed, n, harm) > delta:
            break
        threshold = candidate
    opened = [change for confidence, change in known if confidence >= threshold]
    return Gate(
        threshold=threshold if threshold < math.inf else 1.0,  # no log-probability is above 0: shut for all
        harm=harm,
        delta=delta,
        rows=n,
        instructed=len(opened) / n,
        harmed=sum(change < -tolerance for change in opened) / n,
        gain=sum(opened) / n,
        gain_without=sum(change for _, change in known) / n,
    )
