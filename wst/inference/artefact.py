"""The artefact: a folder with everything that a trained teacher needs to write instructions elsewhere.

Beside the adapter (or the whole model), the tokenizer and the model card it holds ``wst.json``:

- ``schema``: ``"wst.teacher/1"``; a reader refuses any other.
- ``wst``: version of the package that wrote it.
- ``base``: ``model`` (as the user named it), ``revision``, ``dtype``, ``quantization``; for a fully fine-tuned teacher
  ``model`` is null, since the folder holds the weights.
- ``teacher``: ``prompt``, ``chat_template_options``, ``max_new_tokens``, ``max_prompt_tokens``, ``temperature``.
- ``student_prompt``: ``placement``, ``query``, ``system``, ``separator``.
- ``files``: SHA-256 of each weights file in the folder.
- ``student``, ``reward``, ``baseline``, ``data``, ``seed``, ``steps``: where the teacher comes from, for the card.
- ``figures``: ``validation`` and, once `wst test` has run, ``test``: ``reward``, ``unaided``, ``gain`` (each with
  ``mean`` and ``ci95``), ``help``, ``harm``, ``leak``, ``n``, for the card.
- ``gate``: null, or the rule by which no instruction is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wst.errors import ConfigError, ModelError
from wst.files import expanded, sha256_of, write_whole
from wst.prompts import StudentPrompt, TeacherPrompt

if TYPE_CHECKING:
    from wst.teacher import Teacher

FILE = "wst.json"
SCHEMA = "wst.teacher/1"
_WEIGHTS = "*.safetensors"
_MAX_BYTES = 1_000_000  # a card's worth of settings; more is not ours
_LIMITS = ("max_new_tokens", "max_prompt_tokens")


@dataclass(frozen=True)
class Artefact:
    """The content of ``wst.json``.

    Attributes:
        folder: Where it lies.
        base: Model, revision, dtype and quantization of the base; its model is None if the folder holds all weights.
        prompt: What the teacher reads.
        student_prompt: How the student's prompt is built.
        max_new_tokens: Length limit of an instruction, in tokens.
        max_prompt_tokens: Length limit of the teacher's prompt, in tokens.
        temperature: Sampling temperature of training.
        chat_template_options: Further arguments of the tokenizer's chat template.
        about: Student, reward, data, seed, steps and figures of the training run.
        gate: The rule by which no instruction is given, or None.
    """

    folder: Path
    base: Mapping[str, Any]
    prompt: TeacherPrompt
    student_prompt: StudentPrompt
    max_new_tokens: int
    max_prompt_tokens: int
    temperature: float
    chat_template_options: dict[str, Any] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, folder: Path, teacher: Teacher, student_prompt: StudentPrompt, about: Mapping[str, Any]) -> Artefact:
        """Describe a teacher that was saved in a folder."""
        whole, spec = teacher.full_finetuning, teacher.spec
        base = {"model": None if whole else spec.model, "revision": None if whole else spec.revision}
        prompt = teacher.prompt.experienced(teacher.experience.text()) if teacher.experience else teacher.prompt
        return cls(
            folder,
            base | {"dtype": spec.dtype, "quantization": spec.quantization},
            prompt,
            student_prompt,
            teacher.max_new_tokens,
            teacher.max_prompt_tokens,
            teacher.temperature,
            teacher.chat_template_options,
            about,
        )

    def write(self) -> None:
        """Write ``wst.json`` into the folder, with a SHA-256 of each weights file there."""
        write_whole(self.folder / FILE, self.to_json())

    def to_json(self) -> str:
        """Return the content of ``wst.json``."""
        from wst import __version__

        content = {
            "schema": SCHEMA,
            "wst": __version__,
            "base": dict(self.base),
            "teacher": {
                "prompt": asdict(self.prompt),
                "chat_template_options": self.chat_template_options,
                "max_new_tokens": self.max_new_tokens,
                "max_prompt_tokens": self.max_prompt_tokens,
                "temperature": self.temperature,
            },
            "student_prompt": asdict(self.student_prompt),
            "files": weights_hashes(self.folder),
            **self.about,
            "gate": self.gate,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, folder: str | Path) -> Artefact:
        """Read a folder's ``wst.json`` and check the weights beside it.

        Raises:
            ModelError: If the file is missing, of another schema, incomplete, or the weights are not those it names.
        """
        folder = expanded(folder)
        path = folder / FILE
        content = _parsed(path)
        if content.get("schema") != SCHEMA:
            raise ModelError(
                f"{path}: its schema is {content.get('schema')!r:.60}, this version reads {SCHEMA!r}; upgrade wst, or "
                "export the teacher again"
            )
        for name, digest in _mapping(path, content, "files").items():
            file = folder / name
            if Path(name).name != name or not file.is_file():
                raise ModelError(
                    f"{path}: the file {name!r:.100} that it names is missing; copy the whole folder again"
                )
            if sha256_of(file) != digest:
                raise ModelError(f"{file}: its SHA-256 is not the one in {FILE}; copy the whole folder again")
        if strays := {file.name for file in folder.glob(_WEIGHTS)} - set(content["files"]):
            raise ModelError(f"{folder}: {FILE} does not name {sorted(strays)[0]!r:.100}; copy the whole folder again")
        teacher, base = _mapping(path, content, "teacher"), _mapping(path, content, "base")
        for limit in _LIMITS:
            if type(teacher.get(limit)) is not int or teacher[limit] < 1:
                raise ModelError(f"{path}: teacher.{limit} must be an integer of at least 1; export the teacher again")
        temperature = teacher.get("temperature")
        # Compared before it is converted: JSON's integers may be too large for a float.
        if not isinstance(temperature, int | float) or not 0 < temperature <= sys.float_info.max or temperature is True:
            raise ModelError(f"{path}: teacher.temperature must be a number above 0; export the teacher again")
        options = teacher.get("chat_template_options")
        if options is not None and not isinstance(options, dict):
            raise ModelError(f"{path}: teacher.chat_template_options must be an object or null; export it again")
        known = {"schema", "wst", "base", "teacher", "student_prompt", "files", "gate"}
        return cls(
            folder,
            {name: _text(path, base, name) for name in ("model", "revision", "dtype", "quantization")},
            _built(path, "teacher.prompt", TeacherPrompt, _mapping(path, teacher, "prompt")),
            _built(path, "student_prompt", StudentPrompt, _mapping(path, content, "student_prompt")),
            teacher["max_new_tokens"],
            teacher["max_prompt_tokens"],
            float(temperature),
            options,
            {name: value for name, value in content.items() if name not in known},
            None if content.get("gate") is None else _mapping(path, content, "gate"),
        )


def weights_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each weights file in a folder, by name."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob(_WEIGHTS))}


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelError(
            f"{path.parent}: no {FILE} there; give a teacher that `wst fit` exported (teacher/best or teacher/last). A "
            "folder exported by an earlier version works in a config: model.init_args.teacher.init_args.adapter"
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{path}: cannot be read ({error!s:.200}); export the teacher again") from error
    return content


def _mapping(path: Path, content: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(content.get(name), dict):
        raise ModelError(f"{path}: {name} is not an object; export the teacher again")
    return dict(content[name])


def _text(path: Path, base: Mapping[str, Any], name: str) -> str | None:
    if base.get(name) is not None and not isinstance(base[name], str):
        raise ModelError(f"{path}: base.{name} must be text or null; export the teacher again")
    return base.get(name)


def _built(path: Path, name: str, kind: Any, values: dict[str, Any]) -> Any:  # noqa: ANN401 - a prompt class
    if not all(value is None or isinstance(value, str) or name == "examples" for name, value in values.items()):
        raise ModelError(f"{path}: {name} holds something that is not text; export the teacher again")
    if unknown := values.keys() - {entry.name for entry in fields(kind)}:
        raise ModelError(f"{path}: {name} has an unknown field {min(unknown)!r:.60}; upgrade wst, or export it again")
    try:
        return kind(**values)
    except (TypeError, ConfigError) as error:
        raise ModelError(f"{path}: {name} cannot be used ({error}); export the teacher again") from error
