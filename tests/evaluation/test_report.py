"""The report in a real browser: its figures, its controls, and words that would like to be markup."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browsing import CUT, in_every_form, opened
from comparison_rows import KINDS, made_rows

from wst.evaluation import NONE, Comparison, rebuild
from wst.evaluation.figures import SCHEMA
from wst.evaluation.report import write_comparison

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><!-- {{7*7}}'
BACKWARDS = "safe \u202eevil\u2066 \u2028 text \x00 😀"
MINUS = "\u2212"
UNKNOWN = "\u2013"
LONG = "x" * 100_000


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    rows = made_rows(students=("student one", "<b>two</b>"))
    by_id = {(row["student"], row["arm"], row["id"]): row for row in rows}
    by_id["student one", "teacher", "q1"]["response"] = HOSTILE
    by_id["student one", "teacher", "q2"]["response"] = BACKWARDS
    by_id["student one", "teacher", "q3"]["response"] = LONG
    by_id["student one", "teacher", "q4"]["instruction"] = HOSTILE
    folder = tmp_path_factory.mktemp("report")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extra = {"curve": {"train": [[1, 0.1], [2, 0.4], [3, 0.8]], "val": [[3, 0.9]]}}
    (folder / "results.json").write_text(json.dumps({"schema": SCHEMA, "inputs": extra}))
    return rebuild(str(folder / "rows.jsonl"), resamples=1000)


@pytest.fixture
def page(browser: Any, comparison: Comparison) -> Iterator[Any]:
    with opened(browser, (comparison.folder / "report.html").as_uri(), width=1200) as found:
        yield found
        assert found.evaluate("window.hacked") is None


def test_the_numbers_are_those_of_the_results(page: Any, comparison: Comparison) -> None:
    results = json.loads((comparison.folder / "results.json").read_text())
    tables = page.locator("table")  # two a student: the figures, and further ones
    for number, (student, entry) in enumerate(results["students"].items()):
        assert page.locator("p.lead").nth(number).inner_text() == results["summary"][student]
        shown = {
            line.locator("th").inner_text(): line.locator("td").all_inner_texts()
            for line in tables.nth(2 * number).locator("tbody tr").all()
        }
        assert len(shown) == len(KINDS)
        for arm, cell in entry["arms"].items():
            name = arm + (" (best fixed)" if arm == entry["best_fixed"] else "")
            line = [text.replace(MINUS, "-") for text in shown[name]]
            assert line[0] == f"{cell['mean']:.3f}"
            assert line[1] == "{:.3f} to {:.3f}".format(*cell["ci95"])
            if arm != NONE:
                gain = cell["vs_unaided"]
                assert line[2] == f"{gain['mean']:+.3f}"
                assert line[3] == "{:.3f} to {:.3f}".format(*gain["ci95"])
                assert line[4] == ("<0.001" if gain["p_holm"] < 0.001 else f"{gain['p_holm']:.3f}")
                assert line[5] == f"{100 * gain['relative']:+.0f}%"
                assert line[6:8] == [f"{100 * cell[k] + 1e-9:.0f}%" for k in ("help", "harm")]
                assert line[9] == ("1" if cell["failed"] else UNKNOWN)
        chart = page.locator(".chart").nth(2 * number)
        values = chart.locator("[data-mean]").all_text_contents()
        assert values == [f"{cell['mean']:.3f}" for cell in entry["arms"].values()]
        assert chart.locator(".tick").all_text_contents() == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        drawn = chart.evaluate(
            """chart => [...chart.querySelectorAll(".bar")].map((bar) => {
                 const box = (node) => node.getBoundingClientRect();
                 const [zero, one] = [0, 5].map((line) => box(bar.parentNode.children[line]).left);
                 return [box(bar).left - zero, (box(bar).right - zero) / (one - zero)];
               })"""
        )
        for (start, length), cell in zip(drawn, entry["arms"].values(), strict=True):
            assert abs(start) < 0.5
            assert length == pytest.approx(cell["mean"], abs=0.002)
    transfer = {
        line.locator("th").inner_text(): line.locator("td").all_inner_texts()
        for line in tables.nth(4).locator("tbody tr").all()
    }
    assert transfer["teacher"] == [f"{e['arms']['teacher']['mean']:.3f}" for e in results["students"].values()]
    assert page.locator("polyline").count() == 1


def test_rows_are_sorted_by_help_and_harm(page: Any, comparison: Comparison) -> None:
    rewards = {(row["arm"], row["id"]): row["reward"] for row in comparison.rows if row["student"] == "student one"}
    ids = [f"q{i}" for i in range(120)]
    gains = {i: rewards["teacher", i] - rewards[NONE, i] for i in ids if rewards["teacher", i] is not None}
    page.select_option("#order", "help")
    while page.locator("#more").is_visible():
        page.click("#more")
    shown = [card.get_attribute("data-id") for card in page.locator("article").all()]
    assert shown == [*sorted(gains, key=lambda i: (-gains[i], ids.index(i))), "q5"]  # the unknown one is last
    page.select_option("#order", "harm")
    first = page.locator("article").first
    assert gains[str(first.get_attribute("data-id"))] == min(gains.values())
    assert first.locator(".worse").count() == 1


def test_search_finds_words_of_any_arm(page: Any) -> None:
    page.fill("#search", "SAYS hello to 77")
    assert [card.get_attribute("data-id") for card in page.locator("article").all()] == ["q77"]
    assert page.locator("#count").inner_text() == "1 of 1 shown (120 in all)"
    page.fill("#search", "no such words")
    assert page.locator("article").count() == 0


def test_all_arms_stand_side_by_side(page: Any) -> None:
    assert page.locator("article").first.locator(".arm").count() == 2
    page.check("#all")
    assert page.locator("article").first.locator(".arm").count() == len(KINDS)
    tops = {round(arm.bounding_box()["y"]) for arm in page.locator("article").first.locator(".arm").all()}
    assert len(tops) == 1


def test_hostile_words_are_shown_as_words(page: Any) -> None:
    def response(id_: str) -> Any:
        return page.locator(f'article[data-id="{id_}"] .arm').nth(1).locator(".words").nth(1)

    assert response("q1").text_content() == HOSTILE
    assert response("q2").text_content() == BACKWARDS
    assert response("q2").evaluate("(node) => getComputedStyle(node).unicodeBidi") == "isolate"
    assert response("q3").text_content() == LONG
    assert page.locator('article[data-id="q4"] .arm').nth(1).locator(".words").nth(0).text_content() == HOSTILE
    assert page.locator("img").count() == 0
    assert "<b>two</b>" in page.locator("h2").nth(1).inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_three_arms_of_a_test_stand_side_by_side_and_names_are_only_names(browser: Any, tmp_path: Path) -> None:
    names = {NONE: "none", "fixed 1": "untrained", "teacher": "trained"}
    rows = [row | {"kind": names[row["arm"]]} for row in made_rows() if row["arm"] in names]
    for row in rows:
        row["arm"] = "__proto__" if row["arm"] == "fixed 1" else row["arm"]
        row["kind"] = "x);background:url(//evil" if row["arm"] == "teacher" else row["kind"]
    found = write_comparison(rows, {}, tmp_path)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("thead").first.locator("th").all_inner_texts() == ["instructor", NONE, "__proto__", "teacher"]
    lines = {
        line.locator("th").inner_text(): line.locator("td").all_inner_texts() for line in page.locator("tbody tr").all()
    }
    assert lines["mean"] == [f"{cell['mean']:.3f}" for cell in found.results["students"]["s"]["arms"].values()]
    assert "evil" not in page.evaluate("document.getElementById('page').outerHTML")
    page.close()


def test_nothing_is_cut_or_hidden_on_desktop_and_phone_in_light_and_dark(page: Any) -> None:
    wide, cue = page.locator(".wide").first, page.locator(".cue").first
    for width in in_every_form(page):
        assert page.evaluate(CUT) == []
        assert wide.evaluate("(node) => node.scrollWidth > node.clientWidth") == (width == 390)
        assert cue.is_visible() == (width == 390)
    assert page.locator("details").first.inner_text().count("\n") >= 5


def test_names_stay_in_sight_when_a_table_is_scrolled(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 200})
    wide = page.locator(".wide").first
    name, head, mean = (wide.locator(cell).first for cell in ("tbody th", "thead th:nth-child(2)", "tbody td"))
    before = [cell.bounding_box() for cell in (name, head, mean)]
    wide.evaluate("(node) => node.scrollTo(60, 40)")
    after = [cell.bounding_box() for cell in (name, head, mean)]
    moved = [(new["x"] - old["x"], new["y"] - old["y"]) for old, new in zip(before, after, strict=True)]
    assert moved == [(0, -40), (-60, 0), (-60, -40)]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 700.0])
def test_axes_have_round_ticks(browser: Any, tmp_path: Path, scale: float) -> None:
    rows = [row | {"reward": row["reward"] and scale * row["reward"]} for row in made_rows(scalar=True)]
    train = [[step, scale * (step / 37 - 0.3)] for step in range(1, 38)]
    found = write_comparison(rows, {"curve": {"train": train, "val": []}}, tmp_path, resamples=1000)
    means = [cell["mean"] for cell in found.results["students"]["s"]["arms"].values()]
    with opened(browser, (tmp_path / "report.html").as_uri(), width=390) as page:
        for ticks in (".chart >> nth=0 >> .tick", ".plot .tick.up"):
            marks = [float(text.replace(MINUS, "-")) for text in page.locator(ticks).all_text_contents()]
            steps = {f"{b - a:.3e}" for a, b in pairwise(marks)}
            assert len(steps) == 1
            assert next(iter(steps))[0] in "125"
            assert 0.0 in marks
            assert 3 <= len(marks) <= 8
            shown = means if "chart" in ticks else [value for _, value in train]
            assert marks[0] <= min(shown)
            assert max(shown) <= marks[-1]
        assert page.locator(".plot .tick:not(.up)").all_text_contents() == ["10", "20", "30"]
        assert page.evaluate(CUT) == []


def test_the_keyboard_reaches_every_control(page: Any) -> None:
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"student", "arm", "over", "order", "search", "all", "more"} <= reached
    page.focus("#order")
    page.keyboard.type("largest harm")
    assert page.evaluate("document.getElementById('order').value") == "harm"
