"""The model card of an artefact: where the teacher comes from, its figures, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from wst.errors import ModelError
from wst.files import write_whole
from wst.inference.artefact import FILE, Artefact

CARD = "README.md"
_STAGES = {"validation": "validation", "test": "test"}
_FIGURES = {
    "reward": "mean reward with the teacher's instructions",
    "unaided": "mean reward without an instruction",
    "untrained": "mean reward under the untrained teacher",
    "gain": "gain over no instruction",
    "gain_over_untrained": "gain over the untrained teacher",
    "help": "help: share of queries made better",
    "harm": "harm: share of queries made worse",
    "leak": "leak: share of instructions that hold the answer",
    "n": "queries",
}
_FROM = ("data", "reward", "baseline", "steps", "seed")


def model_card(artefact: Artefact, place: str = ".") -> str:
    """Return a card that names base, student, data, reward and figures, and shows how to use the teacher.

    Args:
        artefact: What is described.
        place: What the card's snippet loads: a hub id, or a folder.

    Raises:
        ModelError: If what ``wst.json`` says of its origin or its figures is not of the form that an export writes.
    """
    try:
        return _card(artefact, place)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelError(
            f"{artefact.folder / FILE}: its student, figures or gate cannot be read; export the teacher again"
        ) from None


def _card(artefact: Artefact, place: str) -> str:
    about, base = artefact.about, artefact.base["model"]
    student = about.get("student") or {}
    called = student.get("class", "a language model")
    called += f" ({student['model']})" if student.get("model") else ""
    facts = {"base": base or "none: all weights are here", "student": called}
    facts |= {name: about[name] for name in _FROM if about.get(name) is not None}
    if artefact.gate is not None:
        facts["gate"] = f"at most {artefact.gate['harm']:.1%} of queries made worse, as shown on validation queries"
    figures = about.get("figures") or {}
    rows = [
        f"| {said} | " + " | ".join(_shown(figures.get(stage), name) for stage in _STAGES) + " |"
        for name, said in _FIGURES.items()
        if any((figures.get(stage) or {}).get(name) is not None for stage in _STAGES)
    ]
    table = ["| figure (with 95% interval) | " + " | ".join(_STAGES) + " |", "|---|---|---|", *rows]
    where = "  # this folder, or wherever you copied it" if place == "." else ""
    return f"""---
{_base_model(base)}library_name: {"transformers" if base is None else "peft"}
tags: [weak-to-strong-transfer, prompt-optimization]
---
# Teacher that instructs {_cell(called)}

Trained by Weak-to-Strong Transfer (Ge, Li, Huang 2025, arXiv 2508.16741): for each query it writes the instruction
under which the student answers best.

| | |
|---|---|
{chr(10).join(f"| {name} | {_cell(value)} |" for name, value in facts.items())}

{chr(10).join(table) if rows else "It has not been evaluated."}

To use it (`pip install weak-to-strong-transfer`):

```python
import wst

teacher = wst.Instructor.from_pretrained("{place}"){where}
print(teacher("The text of a query"))
```

`wst.json` holds the prompt that it was trained with, its limits, and where the student's prompt has the instruction.

Or name this folder in a config: `model.init_args.teacher.init_args.adapter`.
"""


def write_card(artefact: Artefact) -> None:
    """Write the card into the artefact's folder."""
    write_whole(artefact.folder / CARD, model_card(artefact))


def _base_model(base: str | None) -> str:
    """Return the card's metadata on the base, where it is on the hub."""
    found = re.match(r"(?:hub:)?([\w-][\w.-]*/[\w.-]+)(?:/[\w./-]+\.gguf)?$", base or "")
    return f"base_model: {found[1]}\n" if found else ""


def _shown(figures: Mapping[str, Any] | None, name: str) -> str:
    value = (figures or {}).get(name)
    if isinstance(value, Mapping):
        low, high = value["ci95"]
        return _number(value["mean"]) + ("" if low is None else f" ({_number(low)} to {_number(high)})")
    return _number(value)


def _number(value: object) -> str:
    return "-" if not isinstance(value, int | float) else str(value) if isinstance(value, int) else f"{value:.3f}"


def _cell(value: object) -> str:
    """Return a value as one cell of a table: no line breaks, no bars."""
    return " ".join(str(value).split()).replace("|", "\\|")
