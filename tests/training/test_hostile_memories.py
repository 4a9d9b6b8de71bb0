"""What a stranger's checkpoint holds in place of a memory ends as one line, and nothing of it reaches the terminal."""

from typing import Any

import pytest
import torch

from wst import Curriculum, EarlyStop, Query, QueryTracker, Replay
from wst.data.loader import QueryLoader
from wst.errors import ConfigError, DataError, ModelError
from wst.prompts import Experience, TeacherPrompt

ESCAPE = "\x1b]0;title\x07"


@pytest.mark.parametrize(
    "change",
    [{"step": ESCAPE}, {"waited": "x"}, {"gain": [0, 0]}, {"gain": ["a", 0, 0]}, {"reference": [1]}, {"step": 1e400}],
)
def test_early_stop(change: dict[str, Any]) -> None:
    stop = EarlyStop()
    with pytest.raises(ConfigError, match="EarlyStop cannot be read"):
        stop.load_state_dict(stop.state_dict() | change)


@pytest.mark.parametrize(
    "steps",
    [
        [[1.0, [[["text"], [1], 0.0, -1.0]]]],
        [[1.0, [[[1], [], 0.0, -1.0]]]],
        [[1.0, [[[1], [1], float("nan"), -1.0]]]],
        [[-1.0, []]],
        [["x", []]],
        [[1.0, [[[1], [1]]]]],
    ],
)
def test_replay(steps: Any) -> None:
    with pytest.raises((TypeError, ValueError)):  # the module names the checkpoint
        Replay().load_state_dict({"steps": steps})


def test_replay_of_another_vocabulary() -> None:
    replay = Replay()
    replay.load_state_dict({"steps": [[1.0, [[[1], [10**9], 0.5, -1.0]]]]})
    with pytest.raises(ModelError, match="does not know"):
        replay.check(1000)


@pytest.mark.parametrize("rows", [[["a", 5, 1.0]], [["a", "b", "1"]], [["a", "b"]], 5])
def test_experience(rows: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        Experience().load_state_dict({"rows": rows})


def test_experience_beyond_its_capacity() -> None:
    experience = Experience(capacity=2)
    experience.load_state_dict({"rows": [[str(i), "Do.", 1.0] for i in range(9)]})
    assert [row[0] for row in experience.state_dict()["rows"]] == ["7", "8"]


@pytest.mark.parametrize("past", [[1e400, 0, 0, 1, 0, 0], [1, 0, 0, -5, 0, 0], [1], "x", [1, 0, 0, 1, 1e400, 0]])
def test_curriculum(past: Any) -> None:
    with pytest.raises(ConfigError, match="curriculum cannot be read"):
        Curriculum().load_state_dict({"step": 1, "queries": {"a": past}})


@pytest.mark.parametrize("state", [{"queries": {}, "all": []}, {"queries": {"a": [-1, 0]}, "all": [0, 0]}, {}])
def test_query_tracker(state: Any) -> None:
    tracker = QueryTracker()
    with pytest.raises(RuntimeError, match="QueryTracker"):
        tracker.set_extra_state(state)
    assert torch.isfinite(tracker.get_extra_state()["all"][0] + torch.zeros(1)).all()


def test_examples_are_few_and_do_not_go_with_experience() -> None:
    with pytest.raises(ConfigError, match="at most 100"):
        TeacherPrompt(examples=(("a", "b"),) * 101)
    with pytest.raises(ConfigError, match="leave one of them out"):
        TeacherPrompt("{experience} {query}", examples=(("a", "b"),))


@pytest.mark.parametrize("target", [5, [5, 6], ["a", None]])
def test_a_target_that_is_no_text(target: Any) -> None:
    with pytest.raises(DataError, match="'q7': target is"):
        Query("q7", "x", target)


@pytest.mark.parametrize("change", [{"batches": "x"}, {"batches": -5}, {"epoch": 1.5}, {"epoch": None}])
def test_position_in_the_data(change: dict[str, Any]) -> None:
    loader = QueryLoader([Query("a", "x"), Query("b", "y")])
    with pytest.raises(ConfigError, match="position in the training data"):
        loader.load_state_dict(loader.state_dict() | change)


def test_a_setting_of_a_checkpoint_is_shown_without_control_characters() -> None:
    loader = QueryLoader([Query("a", "x")])
    with pytest.raises(ConfigError) as caught:
        loader.load_state_dict(loader.state_dict() | {"seed": ESCAPE})
    assert "\x1b" not in str(caught.value)
