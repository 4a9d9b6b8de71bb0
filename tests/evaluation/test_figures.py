"""The figures of a comparison: recomputed by an independent script, and from the rows alone."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_rows import made_rows
from scipy import stats

from wst.errors import DataError
from wst.evaluation import NONE, rebuild
from wst.evaluation.figures import SCHEMA, figures
from wst.evaluation.rows import read_rows


@pytest.mark.parametrize("scalar", [False, True])
def test_every_interval_and_p_value_is_recomputed_independently(tmp_path: Path, scalar: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made_rows(scalar)))
    results = rebuild(str(tmp_path / "rows.jsonl")).results
    assert results == json.loads((tmp_path / "results.json").read_text())

    # The independent script: from the file to the figures with scipy alone.
    rewards: dict[str, dict[str, float]] = {}
    for line in (tmp_path / "rows.jsonl").read_text().splitlines():
        row = json.loads(line)
        rewards.setdefault(row["arm"], {})[row["id"]] = np.nan if row["reward"] is None else row["reward"]
    columns = {arm: np.array(list(by_id.values())) for arm, by_id in rewards.items()}
    cells = results["students"]["s"]["arms"]
    best = max(("fixed 1", "fixed 2"), key=lambda arm: columns[arm].mean())
    assert results["students"]["s"]["best_fixed"] == best
    settings: dict[str, Any] = {"n_resamples": 10_000, "rng": 0}
    raw: dict[str, dict[str, float]] = {"vs_unaided": {}, "vs_best_fixed": {}}
    for arm, column in columns.items():
        known = column[~np.isnan(column)]
        assert cells[arm]["mean"] == pytest.approx(known.mean(), abs=1e-9)
        if scalar:  # close to Student's, and never shorter; the difference is that of a bootstrap
            expected = stats.t.interval(0.95, len(known) - 1, known.mean(), stats.sem(known))
        else:
            expected = stats.binomtest(int(known.sum()), len(known)).proportion_ci(method="wilson")
        assert cells[arm]["ci95"] == pytest.approx(list(expected), abs=3e-2 if scalar else 1e-9)
        for field, over in (("vs_unaided", NONE), ("vs_best_fixed", best)):
            if arm in (over, NONE):
                assert cells[arm][field] is None
                continue
            pairs = ~np.isnan(column) & ~np.isnan(columns[over])
            one, two = column[pairs], columns[over][pairs]
            assert cells[arm][field]["mean"] == pytest.approx(one.mean() - two.mean(), abs=1e-9)
            if scalar:
                expected = stats.t.interval(0.95, len(one) - 1, (one - two).mean(), stats.sem(one - two))
            else:  # Wald's interval of a paired difference, with half a gain and half a loss more
                changes = np.concatenate([one - two, [1.0, -1.0]])
                half = (
                    stats.norm.ppf(0.975) * np.sqrt((changes**2).mean() - changes.mean() ** 2) / np.sqrt(len(changes))
                )
                expected = changes.mean() - half, changes.mean() + half
            assert cells[arm][field]["ci95"] == pytest.approx(list(expected), abs=3e-2 if scalar else 1e-9)
            moved = (one - two)[one != two]
            test = stats.permutation_test((moved,), np.mean, permutation_type="samples", **settings)
            assert cells[arm][field]["p"] == pytest.approx(test.pvalue, abs=1e-3)
            raw[field][arm] = test.pvalue
    for field, by_arm in raw.items():
        ordered, largest = sorted(by_arm, key=by_arm.__getitem__), 0.0
        for rank, arm in enumerate(ordered):
            largest = max(largest, min(1.0, by_arm[arm] * (len(ordered) - rank)))
            assert cells[arm][field]["p_holm"] == pytest.approx(largest, abs=3e-3)


def test_shares_and_lengths_are_worked_by_hand() -> None:
    rows = made_rows()
    results = figures(rows, {}, 200)
    cell = results["students"]["s"]["arms"]["teacher"]
    assert (cell["n"], cell["scored"], cell["failed"]) == (120, 119, 1)
    assert cell["leak"] == pytest.approx(0.1)
    assert cell["instruction_words"] == 5.0
    assert cell["instruction_truncated"] == 0.5
    assert (cell["response_words"], cell["response_tokens"]) == (3.0, 4.0)
    assert cell["response_truncated"] == pytest.approx(30 / 119)
    before = {row["id"]: row["reward"] for row in rows if row["arm"] == NONE}
    now = {row["id"]: row["reward"] for row in rows if row["arm"] == "teacher" and row["reward"] is not None}
    assert cell["help"] == pytest.approx(sum(now[i] > before[i] for i in now) / 119)
    assert cell["harm"] == pytest.approx(sum(now[i] < before[i] for i in now) / 119)
    unaided = results["students"]["s"]["arms"][NONE]
    over = sum(before[i] for i in now) / 119
    assert cell["vs_unaided"]["relative"] == pytest.approx((cell["mean"] - over) / over)
    assert unaided["leak"] is None
    assert unaided["help"] is None


def test_the_summary_says_who_helps_and_who_harms() -> None:
    rows = made_rows()
    for row in rows:
        if row["arm"] == "fixed 2":
            row["reward"] = 0.0
    text = figures(rows, {}, 2000)["summary"]["s"]
    assert text.startswith("Teacher instructs s best: mean reward 0.")
    assert "beats the best fixed instruction" in text
    assert "10% of its instructions hold the answer already" in text
    assert text.endswith("Worse than no instruction: the fixed instruction “fixed 2”.")
    for row in rows:
        row["reward"] = float(row["id"] < "q5")
    assert figures(rows, {}, 200)["summary"]["s"].startswith("No instructor is shown to make s better")


def test_the_summary_tells_of_the_surest_gain_and_not_only_of_the_highest_mean() -> None:
    """One arm is up by 10 with 40 better and 30 worse; the other by 9 with none worse."""
    rewards = {
        NONE: [1.0] * 30 + [0.0] * 90,
        "loud": [0.0] * 30 + [1.0] * 40 + [0.0] * 50,
        "sure": [1.0] * 39 + [0.0] * 81,
    }
    rows = [
        made_rows()[i] | {"arm": arm, "kind": "none" if arm == NONE else "asked", "reward": reward, "error": None}
        for arm, column in rewards.items()
        for i, reward in enumerate(column)
    ]
    assert figures(rows, {}, 2000)["summary"]["s"].startswith("Sure instructs s best")
    for row in rows:
        row["reward"] = float(row["arm"] == NONE)
    assert figures(rows, {}, 2000)["summary"]["s"].startswith("Every instructor makes s worse")


def test_what_failed_does_not_move_the_relative_gain() -> None:
    rows = [row for row in made_rows() if row["arm"] in (NONE, "teacher")]
    for row in rows:
        hard = int(row["id"][1:]) >= 60
        row["reward"] = None if hard and row["arm"] == "teacher" else float(not hard)
    cell = figures(rows, {}, 1000)["students"]["s"]["arms"]["teacher"]
    assert cell["vs_unaided"]["relative"] == 0.0
    assert cell["vs_unaided"]["mean"] == 0.0


def test_rows_that_are_none_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with pytest.raises(DataError, match=r"rows.jsonl: no such file"):
        read_rows(path)
    good = json.dumps(made_rows()[0])
    for line, message in {
        "{": "line 2: not JSON",
        '{"student": "s"}': "line 2: no arm, id, instruction, kind, query, response, reward",
        "[1]": "line 2: no arm",
        good.replace(f'"reward": {made_rows()[0]["reward"]}', '"reward": "high"'): "line 2: reward must be a number",
    }.items():
        path.write_text(f"{good}\n{line}\n")
        with pytest.raises(DataError, match=message):
            read_rows(path)
    row = made_rows()[0]
    for change, message in [
        ({"id": ["q"]}, "id must be a text"),
        ({"response": None}, "response must be a text"),
        ({"instruction": 3}, "instruction must be a text or null"),
        ({"target": ["a", 3]}, "target must be a text, a list of texts or null"),
        ({"leak": "much"}, "leak must be a number or null"),
        ({"reward": float("nan")}, "reward must be a number or null"),
        ({"reward/part": 10**400}, "reward/part must be a number or null"),
        ({"history": [{"role": "user"}]}, "history must be a list of turns"),
    ]:
        path.write_text(json.dumps(row | change) + "\n")
        with pytest.raises(DataError, match=f"line 1: {message}"):
            read_rows(path)
    path.write_text(json.dumps(row | {"target": ["a", "b"]}) + "\n")
    assert read_rows(path)[0]["target"] == ["a", "b"]
    path.write_text("[" * 200_000 + "\n")
    with pytest.raises(DataError, match="line 1: not JSON"):
        read_rows(path)
    path.write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_rows(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_rows(path)


def test_damaged_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made_rows()))
    for inputs in ({"arms": 3}, {"students": {"s": 7}}, {"arms": {"x": {}}}):
        (tmp_path / "results.json").write_text(json.dumps({"schema": SCHEMA, "inputs": inputs}))
        with pytest.raises(DataError, match=r"results\.json: its inputs are damaged"):
            rebuild(str(tmp_path / "rows.jsonl"), resamples=1000)


def test_float_noise_is_no_help_and_no_harm() -> None:
    rows = made_rows(scalar=True)
    before = {row["id"]: row["reward"] for row in rows if row["arm"] == NONE}
    for i, row in enumerate(rows):
        if row["arm"] == "fixed 1":
            row["reward"] = before[row["id"]] + 1e-5 * (-1) ** i
    cell = figures(rows, {}, 1000)["students"]["s"]["arms"]["fixed 1"]
    assert (cell["help"], cell["harm"], cell["vs_unaided"]["p"]) == (0.0, 0.0, 1.0)


def test_a_few_queries_are_called_too_few() -> None:
    rows = [row for row in made_rows() if int(row["id"][1:]) < 10]
    assert figures(rows, {}, 1000)["summary"]["s"].endswith("queries have a reward: too few to be certain.")
    assert "too few" not in figures(made_rows(), {}, 1000)["summary"]["s"]
