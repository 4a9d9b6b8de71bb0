"""The arms of a comparison: who writes the instruction."""

from __future__ import annotations

import hashlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wst.errors import ConfigError, ModelError
from wst.evaluation.rows import NONE
from wst.files import sha256_of
from wst.modeling.allocator import release_memory
from wst.modeling.loading import first_nonfinite
from wst.prompts import TeacherPrompt
from wst.settings import identity_of
from wst.students.base import Student, respond
from wst.teacher import LoRA, Teacher
from wst.terminal import printable
from wst.training.checkpoint import AtomicCheckpointIO
from wst.training.remembered import harmless, settings_in
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

    Model, number format and the permission to run code are always those of ``teacher``: neither an adapter nor a
    checkpoint can name another model. Prompt, limits and LoRA shape are those of a checkpoint, if it remembers them.

    Args:
        name: Name of the arm.
        teacher: Provides the settings; a copy of it is loaded.
        trained: Adapter folder, folder of a fully fine-tuned model, or checkpoint; None for the untrained teacher.
    """

    def __init__(self, name: str, teacher: Teacher, trained: str | None = None) -> None:
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
        return [self.kind, identity_of(self._settings), None if self.trained is None else _checksum(self.trained)]

    def setup(self, device: torch.device) -> None:
        """Load the base and the trained weights.

        Raises:
            ModelError: If the weights are missing, do not fit, or are not finite.
        """
        if self.trained is None:
            self._teacher = self._settings.unloaded(adapter=None)
        elif Path(self.trained).is_file():
            self._teacher = _from_checkpoint(self.trained, self._settings, device)
        elif self._settings.experience is not None:
            raise ConfigError(
                f"trained {self.name!r}: the teacher's {{experience}} is not in the config; copy the prompt from "
                f"{self.trained}/wst.json into teacher, or give a checkpoint of the run"
            )
        elif _is_adapter(self.trained):
            self._teacher = self._settings.unloaded(adapter=self.trained)
            _warn_of_another_base(self.trained, self._settings.spec.model)
        else:
            self._teacher = self._settings.unloaded(source=self.trained, adapter=None)
        self._teacher.load(device)
        check_finite(self._teacher, self.name)

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
        release_memory()


class AskedStudent(Arm):
    """Any student, asked with the teacher's prompt to write the instruction."""

    kind = "asked"

    def __init__(self, name: str, student: Student, prompt: TeacherPrompt) -> None:
        super().__init__(name)
        self.student = student
        self.prompt = prompt

    def identity(self) -> Any:  # noqa: ANN401
        """Return the arm's name, the student's settings and the prompt."""
        return [self.kind, self.name, identity_of(self.student), identity_of(self.prompt)]

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


def check_finite(model: Teacher | nn.Module, name: str) -> None:
    """Check that no weight is NaN or infinite: such a model would write or score something all the same.

    Raises:
        ModelError: If one is.
    """
    if broken := first_nonfinite(model.named_parameters()):
        raise ModelError(f"{name}: weight {broken} is not finite; give weights of a training that did not diverge")


def _is_adapter(folder: str) -> bool:
    """Return whether a folder holds an adapter rather than a whole model.

    Raises:
        ModelError: If it holds neither.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(
            f"trained {folder!r}: no such adapter folder or checkpoint; give one that `wst fit` wrote, "
            "or --trained null for none"
        )
    if not any((path / name).is_file() for name in ("adapter_config.json", "config.json")):
        raise ModelError(f"trained {folder!r}: neither adapter_config.json nor config.json is in it")
    return (path / "adapter_config.json").is_file()


def _warn_of_another_base(folder: str, model: str) -> None:
    base = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    if base != model:
        said = printable(str(base), 80)
        warnings.warn(f"trained {folder!r}: it names {said!r} as its base; it is put on {model!r}", stacklevel=2)


def _checksum(trained: str) -> str:
    path = Path(trained)
    if not path.is_file():
        _is_adapter(trained)
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*config.json")])
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of(file)) for file in files)).hexdigest()


def _from_checkpoint(path: str, settings: Teacher, device: torch.device) -> Teacher:
    """Load the teacher of a checkpoint of `wst fit`.

    Raises:
        ModelError: If it is no such checkpoint, or belongs to another teacher than the settings describe.
    """
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, "cpu")
    weights = {k.removeprefix("teacher."): v for k, v in checkpoint["state_dict"].items() if k.startswith("teacher.")}
    try:
        remembered = harmless(settings_in(checkpoint))
    except ConfigError as error:
        raise ModelError(f"trained {path!r}: {error}") from error
    teacher = _with_remembered(settings, remembered)
    teacher.load(device)
    wanted = {name for name, parameter in teacher.named_parameters() if parameter.requires_grad}
    different = f"{len(wanted ^ set(weights))} weights differ" if wanted != set(weights) else None
    try:
        teacher.load_state_dict({} if different else weights, strict=False)
        if teacher.experience is not None:
            teacher.experience.load_state_dict(checkpoint["wst"]["memories"]["experience"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        different = str(error).splitlines()[-1].strip()
    if different:
        raise ModelError(f"trained {path!r}: it belongs to another teacher ({different}); give teacher its settings")
    return teacher


def _with_remembered(settings: Teacher, remembered: dict[str, Any]) -> Teacher:
    """Return a teacher on the model of the settings, with the prompt, limits and LoRA shape that are remembered.

    Args:
        settings: The user's.
        remembered: Harmless settings of a checkpoint by dotted name.

    Raises:
        ConfigError: If a remembered setting is impossible.
    """

    def part(name: str, kind: type[Any], default: Any) -> Any:  # noqa: ANN401
        prefix = f"teacher.{name}."
        given = {key.removeprefix(prefix): value for key, value in remembered.items() if key.startswith(prefix)}
        return kind(**given) if given else None if f"teacher.{name}" in remembered else default

    limits = ("temperature", "max_new_tokens", "max_prompt_tokens")
    return Teacher(
        **asdict(settings.spec),
        prompt=part("prompt", TeacherPrompt, settings.prompt),
        lora=part("lora", LoRA, settings.lora),
        adapter=settings.adapter,
        sample_batch_size=settings.sample_batch_size,
        chat_template_options=settings.chat_template_options,
        **{name: remembered.get(f"teacher.{name}", getattr(settings, name)) for name in limits},
    )
