"""The documentation site and TensorBoard in a real browser; the report's tests are in evaluation/test_report.py."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browsing import in_every_form, opened
from runs import TESTS

import wst
from wst.evaluation.curve import training_curve

ROOT = TESTS.parent

pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None: ...


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the site, built from this tree without a warning."""
    pytest.importorskip("mkdocs", reason="the extra docs is not installed; the site is not built")
    folder = str(tmp_path_factory.mktemp("site"))
    command = [sys.executable, "-m", "mkdocs", "build", "-f", "docs/site/mkdocs.yml", "-d", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["index", "task", "recipes", "results", "reference/rewards"])
def test_a_page_on_desktop_and_phone_in_light_and_dark(site: str, browser: Any, path: str) -> None:
    with opened(browser, f"{site}/{path}.html") as page:
        assert page.locator("h1").count() == 1
        assert page.locator("img").evaluate_all("(all) => all.every((image) => image.naturalWidth > 0)")
        assert len(list(in_every_form(page))) == 4
        if path == "results":  # which tests/test_results.py holds to the published rows
            text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
            shown = page.locator("tr", has_text=re.compile("^\\s*trained teacher")).evaluate_all(
                "(rows) => rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(' | '))"
            )
            assert shown == re.findall(r"^\| (trained teacher.* \| .*) \|$", text, re.MULTILINE)
            assert len(shown) > 3


def test_the_reference_has_every_public_name_and_is_searched(site: str, browser: Any) -> None:
    names = set(wst.__all__) - {"__version__"}
    with opened(browser, f"{site}/index.html") as page:
        links = page.locator("nav a[href*='reference/']").evaluate_all("(all) => all.map((link) => link.href)")
        assert len(set(links)) > 5
        for link in sorted(set(links)):
            page.goto(link)
            names -= set(page.locator("h2[id]").evaluate_all("(all) => all.map((head) => head.id.replace('wst.', ''))"))
        assert names == set()
        page.locator("[data-md-component=search-query]").press_sequentially("LeaveOneOut")
        page.locator("a.md-search-result__link[href*='reference/method.html']").first.wait_for(state="attached")


@pytest.fixture(scope="module")
def tensorboard(fitted: Path) -> Iterator[str]:
    """Address of a TensorBoard that shows the first run."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", "runs/tiny/version_0", "--port", "0"]
    with subprocess.Popen(command, cwd=fitted, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        while not (address := re.search(r"http://[^\s/]+/", said)):
            line = server.stderr.readline()
            assert line, said
            said += line
        yield address[0]
        server.terminate()


def test_tensorboard_shows_the_figures_of_the_files(tensorboard: str, browser: Any, fitted: Path) -> None:
    run = fitted / "runs/tiny/version_0"
    curve = training_curve(run)
    sample = json.loads((run / "instructions.jsonl").read_text().splitlines()[-1])
    with opened(browser, f"{tensorboard}?smoothing=0&tagFilter=%5E(train%7Cval)%2Freward%24#timeseries") as page:
        for name in ("train", "val"):
            card = page.locator("scalar-card", has_text=re.compile(rf"^\s*{name}\s*/"))
            value, step = (card.locator("tb-data-table-content-cell").nth(column) for column in (2, 3))
            value.wait_for()
            assert float(value.inner_text()) == pytest.approx(curve[name][-1][1], rel=1e-3)
            assert int(step.inner_text()) >= 0
        page.goto(f"{tensorboard}#text")
        page.get_by_text(sample["query"]).first.wait_for()
