"""The report in a real browser: its figures, its controls, and words that would like to be markup."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comparison_rows import KINDS, made_rows

from wst.evaluation import NONE, Comparison, rebuild
from wst.evaluation.figures import SCHEMA
from wst.evaluation.report import write_comparison

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"><!-- {{7*7}}'
BACKWARDS = "safe \u202eevil\u2066 \u2028 text \x00 😀"
MINUS = "\u2212"
LONG = "x" * 100_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; the report is not looked at")


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, comparison: Comparison) -> Iterator[Any]:
    opened = browser.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto((comparison.folder / "report.html").as_uri())
    yield opened
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.evaluate("window.hacked") is None
    opened.close()


def test_the_numbers_are_those_of_the_results(page: Any, comparison: Comparison) -> None:
    results = json.loads((comparison.folder / "results.json").read_text())
    tables = page.locator("table")
    for number, (student, entry) in enumerate(results["students"].items()):
        assert page.locator("p.lead").nth(number).inner_text() == results["summary"][student]
        shown = {
            line.locator("th").inner_text(): line.locator("td").all_inner_texts()
            for line in tables.nth(number).locator("tbody tr").all()
        }
        assert len(shown) == len(KINDS)
        for arm, cell in entry["arms"].items():
            name = arm + (" (best fixed)" if arm == entry["best_fixed"] else "")
            line = [text.replace(MINUS, "-") for text in shown[name]]
            assert line[0] == f"{cell['mean']:.3f}"
            assert line[1] == "{:.3f} to {:.3f}".format(*cell["ci95"])
            if arm != NONE:
                assert line[3] == f"{cell['vs_unaided']['mean']:+.3f}"
                assert line[4] == "{:.3f} to {:.3f}".format(*cell["vs_unaided"]["ci95"])
                p = cell["vs_unaided"]["p_holm"]
                assert line[5] == ("<0.001" if p < 0.001 else f"{p:.3f}")
                assert line[8:10] == [f"{100 * cell[k] + 1e-9:.0f}%" for k in ("help", "harm")]
        bars = page.locator("svg").nth(2 * number).locator("text[data-mean]").all_text_contents()
        assert bars == [f"{cell['mean']:.3f}" for cell in entry["arms"].values()]
    transfer = {
        line.locator("th").inner_text(): line.locator("td").all_inner_texts()
        for line in tables.nth(2).locator("tbody tr").all()
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


def test_it_can_be_read_on_a_phone_in_the_dark(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_the_keyboard_reaches_every_control(page: Any) -> None:
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"student", "arm", "over", "order", "search", "all", "more"} <= reached
    page.focus("#order")
    page.keyboard.type("largest harm")
    assert page.evaluate("document.getElementById('order').value") == "harm"
