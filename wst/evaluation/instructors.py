"""The arms of a comparison: who writes the instruction."""

from __future__ import annotations

import gc
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from wst.errors import ConfigError, ModelError
from wst.evaluation.rows import NONE
from wst.prompts import TeacherPrompt
from wst.settings import identity_of
from wst.students.base import Student, respond
from wst.teacher import Teacher
from wst.types import Instruction, Query

#: Fixed instructions that `wst compare` tries by default.
USUAL = [
    "Let's think step by step.",  # Kojima et al. 2022, arXiv 2205.11916
    "Take a deep breath and work on this problem step-by-step.",  # Yang et al. 2023, arXiv 2309.03409
    "Answer directly and concisely.",
]


class Arm(ABC):
    """Writes one instruction a query, greedily.

    Attributes:
        name: Name of the arm in tables and files.
        kind: "none", "fixed", "untrained", "asked" or "trained".
    """

    kind: str = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def identity(self) -> Any:  # noqa: ANN401 - JSON values
        """Return what determines the instructions besides the query, as JSON values.

        Raises:
            WSTError: If the arm cannot be run.
        """
        return [self.kind, self.name]

    def setup(self, device: torch.device) -> None:
        """Load the model, if there is one.

        Raises:
            WSTError: If it cannot be loaded.
        """

    @abstractmethod
    def instruct(self, queries: Sequence[Query]) -> list[Instruction | str | None]:
        """Return one instruction a query; None for no instruction, a string for why it is missing."""

    def close(self) -> None:
        """Release the model."""


class FixedInstruction(Arm):
    """The same instruction for every query, or no instruction.

    Args:
        text: The instruction; None for the student alone.
    """

    def __init__(self, text: str | None) -> None:
        super().__init__(NONE if text is None else text)
        self.kind = "none" if text is None else "fixed"
        self._written = None if text is None else Instruction(text)

    def instruct(self, queries: Sequence[Query]) -> list[Instruction | str | None]:
        """Return the instruction for each query."""
        return [self._written] * len(queries)


class TeacherArm(Arm):
    """A teacher, before or after training.

    Args:
        name: Name of the arm.
        teacher: Provides the settings; a copy of it is loaded.
        trained: Adapter folder, folder of a fully fine-tuned model, or checkpoint; None for the untrained teacher.
    """

    def __init__(self, name: str, teacher: Teacher | None, trained: str | None = None) -> None:
        super().__init__(name)
        self.kind = "untrained" if trained is None else "trained"
        self.trained = trained
        self._settings = teacher
        self._teacher: Teacher | None = None

    def identity(self) -> Any:  # noqa: ANN401
        """Return the settings and a checksum of the trained weights.

        Raises:
            ModelError: If there are no trained weights.
        """
        settings = None if self._settings is None else identity_of(self._settings)
        return [self.kind, settings, None if self.trained is None else _checksum(Path(self.trained))]

    def setup(self, device: torch.device) -> None:
        """Load the base and the trained weights.

        Raises:
            ConfigError: If the teacher's settings are needed and not given.
            ModelError: If the weights are missing or do not fit.
        """
        path = None if self.trained is None else Path(self.trained)
        if path is not None and path.is_file():
            self._teacher = _from_checkpoint(path, self._settings, device)
            return
        if self._settings is None:
            raise ConfigError(f"arm {self.name!r}: give teacher, with the prompt and settings it was trained with")
        if path is None:
            self._teacher = self._settings.unloaded(adapter=None)
        else:
            _check_folder(path)
            if (path / "adapter_config.json").is_file():
                self._teacher = self._settings.unloaded(
                    adapter=str(path), source=_base_of(path) or self._settings.source
                )
            else:
                self._teacher = self._settings.unloaded(adapter=None, source=str(path))
        self._teacher.load(device)

    def instruct(self, queries: Sequence[Query]) -> list[Instruction | str | None]:
        """Return the teacher's greedy instructions."""
        if self._teacher is None:
            raise RuntimeError("TeacherArm: call setup() first")
        if self.trained is None and not self._teacher.full_finetuning:
            with self._teacher.untrained():  # skips an adapter that changes nothing yet
                return [*self._teacher.sample(queries, greedy=True)]
        return [*self._teacher.sample(queries, greedy=True)]

    def close(self) -> None:
        """Release the model."""
        self._teacher = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class AskedStudent(Arm):
    """Any student, asked with the teacher's prompt to write the instruction."""

    kind = "asked"

    def __init__(self, name: str, student: Student, prompt: TeacherPrompt) -> None:
        super().__init__(name)
        self.student = student
        self.prompt = prompt

    def identity(self) -> Any:  # noqa: ANN401
        """Return the student's settings and the prompt."""
        return [self.kind, identity_of(self.student), identity_of(self.prompt)]

    def setup(self, device: torch.device) -> None:
        """Load the student."""
        self.student.setup(device)

    def instruct(self, queries: Sequence[Query]) -> list[Instruction | str | None]:
        """Return the student's answers; a failed call is a missing instruction, which is not the same as none."""
        answers = respond(self.student, [self.prompt(query) for query in queries])
        return [
            Instruction(answer.text, truncated=answer.truncated) if answer.error is None else answer.error
            for answer in answers
        ]

    def close(self) -> None:
        """Release the model."""
        self.student.close()


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise ModelError(f"trained {str(path)!r}: no such adapter folder or checkpoint; give one that `wst fit` wrote")
    if not any((path / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise ModelError(f"trained {str(path)!r}: neither adapter_config.json nor config.json is in it")


def _base_of(path: Path) -> str | None:
    try:
        base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"trained {str(path)!r}: adapter_config.json names no base model") from error
    return str(base) if base else None


def _checksum(path: Path) -> str:
    if not path.is_file():
        _check_folder(path)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*config.json")])
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def _from_checkpoint(path: Path, settings: Teacher | None, device: torch.device) -> Teacher:
    """Load the teacher of a checkpoint of `wst fit`, with the settings it remembers.

    Raises:
        ModelError: If it is no such checkpoint, or belongs to another teacher than the given settings describe.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        weights = {
            k.removeprefix("teacher."): v for k, v in checkpoint["state_dict"].items() if k.startswith("teacher.")
        }
        remembered = checkpoint.get("hyper_parameters", {}).get("teacher")
    except Exception as error:
        raise ModelError(
            f"trained {str(path)!r}: not a checkpoint of `wst fit` that loads with weights_only "
            f"({type(error).__name__})"
        ) from error
    if isinstance(remembered, dict):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--teacher", type=Teacher)
        try:
            teacher: Teacher = parser.instantiate(parser.parse_object({"teacher": remembered})).teacher
        except ArgumentError as error:
            raise ModelError(f"trained {str(path)!r}: it remembers settings that no teacher has ({error})") from error
    elif settings is not None:
        teacher = settings.unloaded()
    else:
        raise ConfigError(f"trained {str(path)!r}: it does not remember its teacher's settings; give teacher")
    teacher.load(device)
    wanted = {name for name, parameter in teacher.named_parameters() if parameter.requires_grad}
    if wanted != set(weights):
        raise ModelError(
            f"trained {str(path)!r}: it is of another teacher ({len(wanted ^ set(weights))} weights differ)"
        )
    try:
        teacher.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelError(
            f"trained {str(path)!r}: it is of another teacher ({str(error).splitlines()[-1].strip()})"
        ) from error
    return teacher
