"""Artefacts on the Hugging Face hub: upload, download, and what one may name as its base there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from wst.errors import ModelError, first_line
from wst.inference.artefact import FILE, Artefact
from wst.inference.card import CARD, model_card

_ADAPTER = "adapter_config.json"
#: What an artefact consists of, and all that is ever uploaded or downloaded: no code, no pickles, and nothing that
#: somebody laid beside it.
_PATTERNS = [
    *(FILE, "*.safetensors", "*.safetensors.index.json", _ADAPTER, "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "*.model"),
]


def download(name: str, revision: str | None) -> Path:
    """Return the folder with an artefact's files of the hub, or of its local cache where the hub is switched off.

    Raises:
        ModelError: If they cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's client has many of its own
        raise ModelError(f"teacher {name!r}: cannot be had from the hub ({first_line(error):.200})") from error


def upload(
    artefact: Artefact,
    repo: str,
    *,
    base: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    message: str = "Upload teacher",
) -> str:
    """Upload the artefact to the hub, where ``Instructor.from_pretrained(repo)`` finds it.

    Args:
        artefact: What is uploaded.
        repo: Hub id (user/name); the repository is created if need be.
        base: How a reader finds the base model, where the artefact names a path of this machine: a hub id,
            ``hub:ORG/NAME/FILE.gguf``, or ``package:NAME/FILE``.
        private: Whether a new repository is private; None: as the account says.
        token: Token of the hub; None: the one that ``hf auth login`` stored.
        message: Of the commit.

    Returns:
        The commit's URL.

    Raises:
        ModelError: If no reader could load the base, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    model = artefact.base["model"] if base is None else base
    if model is not None and artefact.base["model"] is not None and not portable(model):
        raise ModelError(
            f"{artefact.folder}: its base {model!r:.200} is a path of this machine; give base as readers can load it: "
            "a hub id (org/name), hub:ORG/NAME/FILE.gguf, or package:NAME/FILE"
        )
    if base is not None and artefact.base["model"] is not None:
        artefact = replace(artefact, base={**artefact.base, "model": base, "revision": None})
    artefact = replace(artefact, about=_public(artefact.about))
    files: dict[str, Any] = {
        path.name: path
        for pattern in _PATTERNS
        for path in sorted(artefact.folder.glob(pattern))
        if not path.name.startswith(".")
    }
    if _ADAPTER in files:
        try:
            config = dict(json.loads(files[_ADAPTER].read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ModelError(f"{files[_ADAPTER]}: no JSON object ({error}); export the teacher again") from None
        files[_ADAPTER] = json.dumps(config | {"base_model_name_or_path": model}, indent=2).encode()
    files[FILE] = artefact.to_json().encode()
    files[CARD] = model_card(artefact, repo).encode()
    api = HfApi(token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in files.items()]
        # What is left of an earlier export would be read as part of this one.
        old = [name for name in api.list_repo_files(repo) if name not in files and "/" not in name]
        operations += [CommitOperationDelete(n) for n in old if any(fnmatchcase(n, pattern) for pattern in _PATTERNS)]
        return str(api.create_commit(repo, operations, commit_message=message).commit_url)
    except Exception as error:  # the hub's client has many of its own
        raise ModelError(f"teacher {repo!r}: cannot be uploaded to the hub ({first_line(error):.200})") from error


def _public(about: Any) -> Any:  # noqa: ANN401 - JSON values
    """Return what is told of a teacher's origin with the names alone of files that lie on this machine."""
    if isinstance(about, Mapping):
        return {name: _public(value) for name, value in about.items()}
    return re.sub(r"(?<![\w:/])~?/[^\s,()]*/", "", about) if isinstance(about, str) else about


def portable(model: str) -> bool:
    """Return whether a base is found on other machines too: on the hub or in an installed package, not at a path."""
    if model.startswith(("package:", "hub:")):
        return ".." not in model.split("/")
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) is not None and not Path(model).exists()
