"""Load models and their tokenizers from wherever a `ModelSpec` says they are."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wst.errors import ConfigError, ModelError, WSTError, first_line
from wst.files import cache_dir, follow_umask, sha256_of
from wst.modeling.spec import FORMS, DType, Located, ModelSpec, hub_gguf


@contextmanager
def one_line_errors(fault: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever the libraries raise over files that are damaged, odd or not theirs into a `ModelError`.

    Errors of this project, and of memory that is short, stay as they are.
    """
    try:
        yield
    except (WSTError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"{fault} ({first_line(error)}){remedy}") from error


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """Return the number format of the frozen weights.

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
    model: str | ModelSpec,
    *,
    device: torch.device,
    **options: Any,  # noqa: ANN401 - those of ModelSpec
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model, frozen and in eval mode, and its tokenizer, which pads on the left.

    The model's own sampling defaults (top-k, repetition penalty, ...) are removed, so that decoding does only what the
    caller asks for. Its end tokens stay.

    Args:
        model: Name of the model, or its whole `ModelSpec`.
        device: Where the weights go.
        options: With a name: the other fields of `ModelSpec`.

    Raises:
        ModelError: If the model cannot be found or loaded.
    """
    spec = model if isinstance(model, ModelSpec) else ModelSpec(model, **options)
    network, tokenizer, missing = read_pretrained(spec, AutoModelForCausalLM, device, {"padding_side": "left"})
    if missing:
        reason = f"{len(missing)} of its weights are missing, {missing[0]} among them"
        raise ModelError(f"model {spec.model!r}: cannot be loaded ({reason}); {FORMS}")
    ends = _end_token_ids(network, tokenizer)
    if not ends:
        raise ModelError(f"model {spec.model!r}: neither it nor its tokenizer has an end token; set eos_token_id")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = ends[0]  # never read: every pass carries its attention mask
    network.generation_config = GenerationConfig(
        eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
    )
    network.requires_grad_(False)
    if (head := network.get_output_embeddings()) is not None:
        head.register_forward_pre_hook(_contiguous)
    return network.eval(), tokenizer


def read_pretrained(
    spec: ModelSpec,
    auto_class: Any,  # noqa: ANN401 - one of transformers' AutoModel classes
    device: torch.device,
    tokenizer_options: dict[str, Any],
    kind: str = "model",
    **options: Any,  # noqa: ANN401 - transformers' own
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Read a model and its tokenizer as transformers gives them.

    Args:
        spec: What to load.
        auto_class: The class that reads it.
        device: Where the weights go.
        tokenizer_options: Further arguments for the tokenizer.
        kind: What errors call the model.
        options: Further arguments for the model.

    Returns:
        Model, tokenizer, and the sorted names of weights that were not in the files, so that transformers made them up.

    Raises:
        ModelError: If it cannot be found or read.
    """
    folder = weights_folder(spec.located, spec.revision)
    dtype = resolve_dtype(spec.dtype, device)
    hub = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    with one_line_errors(f"{kind} {spec.model!r}: cannot be loaded", f"; {FORMS}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options, **hub)
        model, info = auto_class.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype,
            device_map={"": device},
            quantization_config=_quantization_config(spec.quantization, dtype),
            **options,
            **hub,
        )
    if broken := first_nonfinite(model.named_parameters()):
        raise ModelError(f"{kind} {spec.model!r}: its weights {broken} are not numbers (NaN or infinite); take another")
    return model, tokenizer, sorted(info["missing_keys"])


def resolve_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first GPU, if there is one.

    Raises:
        ConfigError: If there is no such device.
    """
    try:
        return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is unknown; give auto, cpu, cuda or cuda:N") from error


@torch.no_grad()
def first_nonfinite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first weights that hold NaN or an infinity, or None."""
    for name, weight in weights:
        # Minimum and maximum take no memory, unlike a mask of all elements; a NaN makes both NaN.
        if weight.is_floating_point() and weight.numel() and not all(end.isfinite() for end in weight.aminmax()):
            return name
    return None


def _quantization_config(quantization: str | None, dtype: torch.dtype) -> BitsAndBytesConfig | None:
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


def _end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    known = [i for i in [*ids, tokenizer.eos_token_id] if i is not None]
    if odd := [i for i in known if type(i) is not int]:
        raise ModelError(
            f"model {model.name_or_path!r:.100}: its end token id is {odd[0]!r:.60}, no integer; set eos_token_id in "
            "its generation_config.json"
        )
    return tuple(dict.fromkeys(known))


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Make the lm_head's input contiguous; for a slice, torch would copy the weights once for each row.

    Compares all strides, also those of the only row there is, which `Tensor.contiguous` ignores.
    """
    states = cast(Tensor, inputs[0])
    if states.stride() != torch.empty(states.shape, device="meta").stride():
        states = states.clone(memory_format=torch.contiguous_format)
    return (states, *inputs[1:])


def weights_folder(located: Located, revision: str | None = None) -> str:
    """Return the hub id or folder that transformers can read; a GGUF file is converted first."""
    if located.kind == "hub-gguf":
        return str(_converted_gguf(hub_gguf(located, revision)))
    return str(_converted_gguf(Path(located.path))) if located.kind == "gguf" else located.path


def _converted_gguf(path: Path) -> Path:
    """Return the folder with a GGUF file's weights as safetensors, converting it at the first call.

    De-quantizing takes much longer than reading the result, so the result is kept in `cache_dir`, under a
    name that holds the hash of the file.
    """
    folder = cache_dir() / "gguf" / f"{path.stem}-{sha256_of(path)[:16]}"
    if folder.is_dir():
        return folder
    scratch = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    scratch.mkdir(parents=True)
    try:
        with one_line_errors(f"model {str(path)!r}: the GGUF file cannot be read"):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
            read: Any = partial(AutoModelForCausalLM.from_pretrained, path.parent, trust_remote_code=False)
            model, info = read(gguf_file=path.name, dtype=torch.float32, output_loading_info=True)
            if missing := sorted(info["missing_keys"]):
                raise ValueError(f"{len(missing)} of its weights are missing, {missing[0]} among them")
            # The weights are plain float32 by now; save_pretrained refuses as long as these two say otherwise.
            model.hf_quantizer = None
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
            follow_umask(scratch)
            try:
                scratch.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another process was faster, and its copy is as good
                    raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
