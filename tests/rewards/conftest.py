"""The mathematical reward, with time enough."""

from collections.abc import Iterator

import pytest

from wst.rewards.math.reward import MathAnswer


@pytest.fixture(scope="module")
def math_answer() -> Iterator[MathAnswer]:
    reward = MathAnswer(timeout=20.0)  # a busy machine must not decide what is equal
    yield reward
    reward.close()
