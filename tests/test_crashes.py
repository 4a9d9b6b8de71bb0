"""Killed at any moment, a run of one process or of two goes on as if it had not been.

The long form: ``pytest -m long -s tests/test_crashes.py``.
"""

from pathlib import Path

import pytest
from crashes import crash


@pytest.mark.parametrize(
    ("processes", "kills"),
    [
        (1, 6),
        (2, 3),
        pytest.param(1, 100, marks=pytest.mark.long),
        pytest.param(2, 100, marks=pytest.mark.long),
    ],
)
def test_killed_at_random_moments(tmp_path: Path, tiny_model: str, processes: int, kills: int) -> None:
    assert crash(tmp_path, tiny_model, kills, processes, seed=kills + processes) == []
