"""Pages of the site that are made, not written: files that lie elsewhere in the repository, and the reference."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
#: The repository's files that are pages, by their place on the site; docs/ itself is on the site as it is.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "benchmarks.md": "benchmarks/README.md",
    "reviews.md": "data/reviews/README.md",
    "languages.md": "data/languages/README.md",
}
#: Pages of the reference, and the rooms whose public names they hold.
REFERENCE = {
    "method": "notebook module teacher prompts training preference",
    "students": "students",
    "rewards": "rewards",
    "data": "data",
    "evaluation": "evaluation",
    "inference": "inference",
    "callbacks": "callbacks",
    "types": "types",
}
_LINK = re.compile(r"(?<=\]\()(?!#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    texts = {place: (ROOT / source).read_text(encoding="utf-8") for place, source in PAGES.items()}
    for place, text in {**texts, **dict(_reference())}.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository to pages, and those to other files to the repository."""
    place = page.file.src_uri
    source = PAGES.get(place, f"docs/{place}")
    repository = config.extra["repository"]
    places = {file: page for page, file in PAGES.items()}

    def target(link: re.Match[str]) -> str:
        path, anchor = link[1], link[2] or ""
        own = re.match(rf"{re.escape(repository)}/(?:blob|tree|raw)/main/(.+)", path)
        if not own and "://" in path:
            return link[0]
        path = own[1] if own else normpath(join(dirname(source), path))
        if path in places or path.startswith("docs/"):
            return relpath(places.get(path, path.removeprefix("docs/")), dirname(place) or ".") + anchor
        # What does not exist stays as it is: the build warns of it, and fails.
        return f"{repository}/blob/main/{path}{anchor}" if (ROOT / path).exists() else link[0]

    return _LINK.sub(target, markdown)


def _reference() -> Iterator[tuple[str, str]]:
    """Yield places and texts of the reference's pages: the commands' help, and each public name by its room."""
    rooms: dict[str, list[str]] = {}
    for statement in ast.parse((ROOT / "wst" / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.ImportFrom):
            room = str(statement.module).split(".")[1]
            rooms.setdefault(room, []).extend(alias.name for alias in statement.names)
    for page, held in REFERENCE.items():
        names = [name for room in held.split() for name in rooms.pop(room, ())]
        yield f"reference/{page}.md", f"# {page.title()}\n\n" + "".join(f"::: wst.{name}\n\n" for name in names)
    if rooms:
        raise LookupError(f"{', '.join(rooms)}: name these rooms of wst/__init__.pyi in REFERENCE of {__file__}")
    helps = (["--help"], ["list"], ["fit", "--help"])
    shown = "".join(f"## `wst {' '.join(args)}`\n\n```text\n{_said(args)}\n```\n\n" for args in helps)
    yield "reference/commands.md", "# Commands\n\n" + shown


def _said(args: list[str]) -> str:
    command = [sys.executable, "-m", "wst", *args]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.rstrip()
