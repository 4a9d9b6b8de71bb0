"""What an endpoint's answers cost, and that no budget is exceeded."""

from pathlib import Path
from typing import Any

import pytest
from endpoints import FakeServer, prompt

from wst import Budget, Prices
from wst.errors import StudentStopped


def test_a_budget_of_calls_is_kept_over_resumes(student: Any, server: FakeServer, tmp_path: Path) -> None:
    for resume, limit in enumerate((5, 5, 8)):
        one = student(budget=Budget(calls=limit), concurrency=4)
        one.accounts.open(tmp_path, "fit")
        with pytest.raises(StudentStopped, match=rf"budget.calls: {limit} of {limit}"):
            one.respond([prompt(f"{resume} {i}") for i in range(20)])
        assert len(server.requests) == limit
        one.close()


def test_a_budget_of_cost_is_not_exceeded(student: Any, server: FakeServer, tmp_path: Path) -> None:
    # 2 tokens read and 2 written cost 4; bounds are far above that, so calls in flight hold others up.
    one = student(prices=Prices(1e6, 1e6), budget=Budget(cost=100), max_new_tokens=30, concurrency=8)
    one.accounts.open(tmp_path, "fit")
    server.delay = 0.02
    with pytest.raises(StudentStopped, match=r"budget\.cost"):
        one.respond([prompt(f"say {i:02}") for i in range(40)])
    spent = one.accounts.run()["fit"]["cost"]
    bound = 30 + len("say 00") + 8
    assert 100 - bound < spent <= 100
    assert spent == 4 * len(server.requests)


def test_what_the_endpoint_adds_to_prompts_is_in_the_budget(student: Any, server: FakeServer, tmp_path: Path) -> None:
    server.adds = 400
    one = student(prices=Prices(1e6, 1e6), budget=Budget(cost=2000), max_new_tokens=2, concurrency=1)
    one.accounts.open(tmp_path, "fit")
    with pytest.warns(UserWarning, match="adds tokens of its own") as warned, pytest.raises(StudentStopped):
        one.respond([prompt(f"say {i:02}") for i in range(40)])
    assert len(warned) == 1
    assert one.accounts.run()["fit"]["cost"] == 4 * 404  # a fifth call might cost more than what is left


def test_extra_fields_are_in_the_maximum_cost(student: Any, server: FakeServer, tmp_path: Path) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"description": "y" * 500}}}
    one = student(prices=Prices(1e6, 1e6), budget=Budget(cost=500), extra_body={"response_format": schema})
    one.accounts.open(tmp_path, "fit")
    with pytest.raises(StudentStopped, match=r"budget\.cost"):
        one.respond([prompt("hello")])
    assert not server.requests


def test_a_call_whose_end_nobody_saw_stays_booked(student: Any, tmp_path: Path) -> None:
    one = student(prices=Prices(1e6, 1e6), budget=Budget(cost=10))
    one.accounts.open(tmp_path, "fit")
    one.accounts.begin(6.0)  # and the process is killed
    one.accounts.close()
    other = student(prices=Prices(1e6, 1e6), budget=Budget(cost=10), max_new_tokens=1)
    other.accounts.open(tmp_path, "fit")
    with pytest.raises(StudentStopped, match="6 of 10"):
        other.respond([prompt("hello")])


def test_usage_that_is_not_told_is_booked_at_its_most(student: Any, tmp_path: Path) -> None:
    one = student(prices=Prices(1e6, 2e6), max_new_tokens=5)
    with pytest.warns(UserWarning, match="does not say how many tokens"):
        one.respond([prompt("[no-usage]")])
    assert one.accounts.take()["cost"] == len("[no-usage]") + 8 + 2 * 5
