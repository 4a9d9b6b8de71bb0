"""Pages opened in a real browser, and what holds for each of them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Texts that stand outside the window, or on another text of the same line of a drawing.
CUT = """() => {
  const texts = [...document.querySelectorAll("main *")].filter((node) =>
    node.childElementCount === 0 && node.textContent.trim() && !node.closest(".wide, option"));
  const outside = ({ left, right }) => left < 0 || right > innerWidth;
  const short = ({ scrollWidth, clientWidth }) => clientWidth && scrollWidth > clientWidth + 1;
  const cut = texts.filter((node) => outside(node.getBoundingClientRect()) || short(node));
  const boxes = [...document.querySelectorAll(".track, .plot")].map((line) =>
    [...line.querySelectorAll("span")].map((node) => [node, node.getBoundingClientRect()]));
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
  const met = boxes.flatMap((line) => line.filter(([, a], i) => line.slice(0, i).some(([, b]) => !apart(a, b))));
  return [...cut, ...met.map(([node]) => node)].map((node) => node.textContent.slice(0, 60));
}"""


def is_light(page: Any) -> bool:
    colours = [page.evaluate(f"getComputedStyle(document.body).{shade}") for shade in ("backgroundColor", "color")]
    back, ink = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    return back > ink


def in_every_form(page: Any) -> Iterator[int]:
    """Show the page on a desktop and on a phone, in light and in dark, and check what holds in each; yield widths."""
    for width in (1400, 390):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            # A script of the page may set the colours, a moment later.
            assert any(is_light(page) == (scheme == "light") or page.wait_for_timeout(50) for _ in range(200))
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            yield width


@contextmanager
def opened(browser: Any, url: str, width: int = 1400, **options: Any) -> Iterator[Any]:
    """Open a page; at the end no error may be on the console, nothing asked of other hosts, nothing wider than it."""
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: message.type == "error" and said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    assert said == []
    own = tuple({"file:", "data:", "blob:", "/".join(url.split("/")[:3])} - {"file://"})
    assert [address for address in asked if not address.startswith(own)] == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
