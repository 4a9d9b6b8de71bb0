"""How often the 95% intervals of an evaluation contain the true mean: the table in docs/compare.md.

python benchmarks/coverage.py [SIMULATIONS]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np

from wst.evaluation.metrics import Estimate, Values, estimate_gain, estimate_mean, relative_gain

Draw = Callable[[np.random.Generator, int], Values]


def _before_and_after(generator: np.random.Generator, n: int) -> Values:
    """Return rewards [n, 2]: 20% are right before; of these 25% are wrong after, and 20% of the others right."""
    before = generator.random(n) < 0.2
    return np.stack([before, generator.random(n) < np.where(before, 0.75, 0.2)], axis=1) * 1.0


def _relative(rewards: Values, binary: bool, resamples: int) -> Estimate:
    return relative_gain(rewards[:, 1] - rewards[:, 0], rewards[:, 0])


#: By name: how values are drawn, their mean, the estimate, and whether they are binary.
CASES: dict[str, tuple[Draw, float, Callable[[Values, bool, int], Estimate], bool]] = {
    "right in 50%": (lambda g, n: (g.random(n) < 0.5) * 1.0, 0.5, estimate_mean, True),
    "right in 90%": (lambda g, n: (g.random(n) < 0.9) * 1.0, 0.9, estimate_mean, True),
    "right in 98%": (lambda g, n: (g.random(n) < 0.98) * 1.0, 0.98, estimate_mean, True),
    "gain: help 20%, harm 5%": (
        lambda g, n: g.choice([1.0, -1.0, 0.0], n, p=[0.2, 0.05, 0.75]),
        0.15,
        estimate_gain,
        True,
    ),
    "gain: help 5%, no harm": (lambda g, n: (g.random(n) < 0.05) * 1.0, 0.05, estimate_gain, True),
    "relative gain: right in 20%, then in 31%": (_before_and_after, 0.55, _relative, True),
    "normal": (lambda g, n: g.normal(size=n), 0.0, estimate_mean, False),
    "exponential": (lambda g, n: g.exponential(size=n), 1.0, estimate_mean, False),
    "share, mostly high": (lambda g, n: g.beta(2, 0.5, n), 0.8, estimate_mean, False),
    "share, 70% zeros": (lambda g, n: (g.random(n) < 0.3) * g.random(n), 0.15, estimate_mean, False),
}
SIZES = (5, 10, 20, 50, 200)


def coverage(name: str, n: int, simulations: int, seed: int = 0) -> float:
    """Return the share of simulated samples of n values whose interval contains the mean; no interval contains none."""
    draw, mean, estimate, binary = CASES[name]
    generator = np.random.default_rng(seed)
    found = [estimate(draw(generator, n), binary, 1000) for _ in range(simulations)]
    return float(np.mean([one.low <= mean + 1e-12 and mean - 1e-12 <= one.high for one in found]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("simulations", nargs="?", type=int, default=2000, help="samples a cell (2000)")
    simulations = parser.parse_args().simulations
    print("| rewards | " + " | ".join(f"n = {n}" for n in SIZES) + " |")
    print("|---|" + "---|" * len(SIZES))
    for case in CASES:
        print(
            f"| {case} | " + " | ".join(f"{100 * coverage(case, n, simulations):.0f}%" for n in SIZES) + " |",
            flush=True,
        )
