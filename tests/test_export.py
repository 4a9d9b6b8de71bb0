"""Exports: their permissions."""

import os
from pathlib import Path

import pytest
import torch

from wst import LoRA, Teacher
from wst.files import follow_umask


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_exported_files_follow_the_umask(tiny_model: str, tmp_path: Path, umask: int, mode: int) -> None:
    teacher = Teacher(tiny_model, lora=LoRA(r=2), dtype="float32")
    teacher.load(torch.device("cpu"))
    before = os.umask(umask)
    try:
        folder = tmp_path / "scratch"
        folder.mkdir()
        teacher.save(folder)
        follow_umask(folder)
    finally:
        os.umask(before)
    found = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(found.values()) == {mode}
    assert "adapter_model.safetensors" in found
