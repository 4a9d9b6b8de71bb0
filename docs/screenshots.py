"""Take the pictures of docs/ in Chromium: `python docs/screenshots.py RUN`, the log folder of a run that was compared.

report.png is the report of the run's comparison, tensorboard.png the TensorBoard of the run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

from wst.evaluation import rebuild

DOCS = Path(__file__).parent


def main(run: Path) -> None:
    """Take both pictures."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(run.parent), "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    address = next(found[0] for line in server.stderr if (found := re.search(r"http://[^\s/]+/", line)))
    with sync_playwright() as playwright, TemporaryDirectory() as folder:
        rebuild(str(run / "compare" / "rows.jsonl"), folder)
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto((Path(folder) / "report.html").as_uri())
        page.screenshot(path=DOCS / "report.png", clip={"x": 0, "y": 0, "width": 1200, "height": 1080}, full_page=True)
        page.set_viewport_size({"width": 1200, "height": 640})
        page.goto(address + "?smoothing=0&tagFilter=%5E(train%7Cval)%2Freward%24#timeseries")
        page.get_by_text("Ignore outliers in chart scaling").click()
        page.get_by_role("button", name="Settings").click()
        page.wait_for_timeout(3000)  # the charts are drawn one after the other
        page.screenshot(path=DOCS / "tensorboard.png")
        browser.close()
    for name in ("report.png", "tensorboard.png"):
        Image.open(DOCS / name).quantize(64).save(DOCS / name, optimize=True)
    server.terminate()
    server.wait()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
