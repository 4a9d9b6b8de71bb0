"""A tiny trained teacher and its artefact."""

from pathlib import Path

import pytest
import torch

from wst import LoRA, StudentPrompt, Teacher, TeacherPrompt
from wst.inference import Artefact

PROMPT = TeacherPrompt("Help with: {query}", system="Be brief.")


@pytest.fixture(scope="package")
def trained(tiny_model: str) -> Teacher:
    """A teacher whose adapter does something."""
    teacher = Teacher(tiny_model, prompt=PROMPT, dtype="float32", lora=LoRA(r=4, alpha=8), max_new_tokens=9)
    torch.manual_seed(0)  # before the adapter is drawn
    teacher.load(torch.device("cpu"))
    with torch.no_grad():
        for name, weights in teacher.named_parameters():
            if "lora_B" in name and "default" in name:
                weights.normal_(std=0.5)
    return teacher


@pytest.fixture
def folder(trained: Teacher, tiny_model: str, tmp_path: Path) -> Path:
    """The artefact of the teacher."""
    place = tmp_path / "teacher"
    trained.save(place)
    base = {"model": tiny_model, "revision": None, "dtype": "float32", "quantization": "none"}
    prompt = StudentPrompt("after", system="You answer.")
    Artefact(place, base, PROMPT, prompt, 9, 1024, 1.0, about={"seed": 0, "steps": 3}).write()
    return place
