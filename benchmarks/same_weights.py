"""Check that a change of the code leaves the training results bit for bit as they are.

Trains a tiny Llama for three steps under each of several settings and writes the SHA-256 of the trained weights
(names, shapes and bytes) to a JSON file. The code under test is the `wst` that Python finds first, so run it once for
each commit and compare:

    PYTHONPATH=OLD python benchmarks/same_weights.py --out old.json
    PYTHONPATH=NEW python benchmarks/same_weights.py --out new.json
    python benchmarks/same_weights.py --compare old.json new.json

Only the public interface (`wst.X`) and Lightning are used, so the script runs unchanged on either commit. The digests
depend on the machine and on the versions of torch and transformers: compare files from the same machine alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import socket
import string
import subprocess
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

import wst

STEPS = 3
SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_models(folder: Path) -> None:
    """Write a byte-level Llama of 83,000 float32 weights to ``folder/lm`` and a classifier to ``folder/classifier``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    end = vocabulary["<|im_end|>"]
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=0,
        dtype="float32",
    )
    torch.manual_seed(0)
    lm = LlamaForCausalLM(config)
    with torch.no_grad():
        # The first feature is constant and raises the logits of ASCII and of the end token (about 5% a token).
        lm.model.embed_tokens.weight.mul_(5.0)
        lm.model.embed_tokens.weight[:, 0] = 4.0
        for layer in lm.model.layers:
            layer.self_attn.o_proj.weight[0] = 0.0
            layer.mlp.down_proj.weight[0] = 0.0
        lm.lm_head.weight[:, 0] = torch.tensor([1.5 * (token in string.printable) for token in vocabulary])
        lm.lm_head.weight[end] = 0.0
        lm.lm_head.weight[end, 0] = 4.05
    lm.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0)
    config.num_labels = 1
    classifier = LlamaForSequenceClassification(config)
    for name, model in (("lm", lm), ("classifier", classifier)):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


class Echo(wst.Student):
    """Answer with all that was said, in a way that depends on every character and on the place of each turn."""

    deterministic = True

    def respond(self, prompts: Sequence[wst.Prompt]) -> list[wst.Response]:
        """Return one response a prompt."""
        texts = ["|".join(f"{message.role}:{message.content}" for message in prompt.messages) for prompt in prompts]
        return [wst.Response(text, tokens=len(text)) for text in texts]


class Failing(Echo):
    """Fail for about a third of the prompts, always the same ones."""

    def respond(self, prompts: Sequence[wst.Prompt]) -> list[wst.Response]:
        """Return one response a prompt."""
        return [
            wst.Response("", error="timeout") if zlib.crc32(response.text.encode()) % 3 == 0 else response
            for response in super().respond(prompts)
        ]


class Checksum(wst.Reward):
    """Score the response by its checksum and its share of lower-case letters."""

    def score(self, rollouts: Sequence[wst.Rollout]) -> list[float]:
        """Return one number a rollout."""
        texts = [rollout.response.text for rollout in rollouts]
        return [zlib.crc32(t.encode()) % 97 / 97 + sum(map(str.islower, t)) / max(len(t), 1) for t in texts]


class Queries(wst.QueryDataModule):
    """Ten queries, half of them with a dialogue before them. The targets are single letters, which leak often."""

    def __init__(self, history: bool = False, batch_size: int = 4) -> None:
        super().__init__(batch_size=batch_size)
        self.history = history

    def load(self, split: str) -> list[wst.Query]:
        """Return the training queries; there are no others."""
        if split != "train":
            return []
        turns = (wst.Message("user", "Hello"), wst.Message("assistant", "Yes?"))
        return [
            wst.Query(
                f"q{i}", f"query number {i}, {'x' * i}", target="aeiou"[i % 5], history=turns * (self.history and i % 2)
            )
            for i in range(10)
        ]


class Pairs(LightningDataModule):
    """Pairs of a preferred and a rejected answer."""

    def train_dataloader(self) -> DataLoader[Any]:
        """Return batches of four pairs."""
        rows = [
            wst.Query(f"p{i}", f"question {i}", extra={"chosen": "yes " * (i % 4 + 1), "rejected": "no " * (i % 3 + 1)})
            for i in range(12)
        ]
        return DataLoader(rows, batch_size=4, collate_fn=list)  # type: ignore[arg-type]


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Return the SHA-256 of names, shapes, formats and bytes."""
    summed = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        plain = weight.detach().cpu().contiguous()
        summed.update(f"{name} {list(plain.shape)} {plain.dtype}".encode())
        summed.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return summed.hexdigest()


def trainer(folder: Path, steps: int = STEPS, **options: Any) -> Trainer:  # noqa: ANN401
    """Return a quiet Trainer on the CPU that saves ``last.ckpt`` after each step."""
    callback = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=0, save_last=True)
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": steps,
            "logger": False,
            "callbacks": [callback],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "deterministic": True,
            **options,
        }
    )


def build(folder: Path, teacher: dict[str, Any] | None = None, **options: Any) -> wst.WeakToStrong:  # noqa: ANN401
    """Return the module with the tiny teacher and the toy student and reward, other ``options`` on top."""
    defaults: dict[str, Any] = {
        "prompt": wst.TeacherPrompt("Instruct: {query}"),
        "lora": wst.LoRA(r=4, alpha=8),
        "dtype": "float32",
        "max_new_tokens": 12,
    }
    return wst.WeakToStrong(
        **{
            "teacher": wst.Teacher(str(folder / "lm"), **defaults | (teacher or {})),
            "student": Echo(),
            "reward": Checksum(),
            "samples_per_query": 3,
            "optimizer": lambda params: torch.optim.AdamW(params, lr=0.01),
            **options,
        }
    )


def trained(module: wst.WeakToStrong, folder: Path) -> str:
    """Return the digest of the teacher that training left."""
    module.teacher.save(folder / "teacher")
    return digest({k: v for file in (folder / "teacher").glob("*.safetensors") for k, v in load_file(file).items()})


def train(
    models: Path,
    folder: Path,
    options: Callable[[Path], dict[str, Any]] = lambda _: {},
    history: bool = False,
    **of_trainer: Any,  # noqa: ANN401
) -> str:
    """Train for three steps; return the digest."""
    seed_everything(7, verbose=False)
    module = build(models, **options(models))
    trainer(folder, **of_trainer).fit(module, datamodule=Queries(history))
    return trained(module, folder)


def resumed(models: Path, folder: Path) -> str:
    """Stop after two steps, then resume from ``last.ckpt`` in new objects; return the digest."""
    seed_everything(7, verbose=False)
    trainer(folder, steps=2).fit(build(models), datamodule=Queries())
    seed_everything(8, verbose=False)
    module = build(models)
    trainer(folder).fit(module, datamodule=Queries(), ckpt_path=str(folder / "last.ckpt"), weights_only=True)
    return trained(module, folder)


def from_adapter(models: Path, folder: Path) -> str:
    """Train an adapter, then train on from it with a KL to it; return the digest."""
    train(models, folder / "first")
    adapter = str(folder / "first" / "teacher")
    return train(models, folder, lambda _: {"teacher": {"adapter": adapter}, "kl_coef": 0.1})


def preference(models: Path, folder: Path, **options: Any) -> str:  # noqa: ANN401
    """Train a preference model for three steps; return the digest of the classifier it exports."""
    seed_everything(7, verbose=False)
    module = wst.PreferenceModel(
        str(models / "lm"),
        **{"lora": wst.LoRA(r=4, target_modules=["q_proj", "down_proj"]), "dtype": "float32"} | options,
    )
    trainer(folder).fit(module, datamodule=Pairs())
    module.save(folder / "saved")
    return digest({k: v for file in (folder / "saved").glob("*.safetensors") for k, v in load_file(file).items()})


def two_processes(models: Path, folder: Path) -> str:
    """Train in two processes with gloo; return the digest of the first one's weights.

    Raises:
        RuntimeError: If a process fails, or the two end with different weights.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "same"}
    group |= {"GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, __file__, "--rank-of", str(models), str(folder)]
    processes = [
        subprocess.Popen(
            command, env=os.environ | group | {"RANK": str(i), "LOCAL_RANK": str(i)}, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    found = [process.communicate()[0].strip().rpartition("\n")[2] for process in processes]
    if any(process.returncode for process in processes) or found[0] != found[1]:
        raise RuntimeError(f"two processes ended with {[p.returncode for p in processes]} and {found}")
    return found[0]


def _rank(models: Path, folder: Path) -> str:
    folder = folder / os.environ["RANK"]
    return train(models, folder, strategy="ddp", devices=2)


def _local(models: Path, **options: Any) -> wst.LocalStudent:  # noqa: ANN401
    defaults = {"dtype": "float32", "max_new_tokens": 16, "batch_size": 5, "cache": False, "stop": ["th", "e."]}
    return wst.LocalStudent(str(models / "lm"), **{**defaults, **options})


def _method(**options: Any) -> Callable[[Path, Path], str]:  # noqa: ANN401 - of WeakToStrong
    return partial(train, options=lambda _: options)


def _reward(models: Path) -> wst.RewardModel:
    return wst.RewardModel(str(models / "classifier"), dtype="float32", max_tokens=60)


SETTINGS: dict[str, Callable[[Path, Path], str]] = {
    "leave one out": _method(),
    "group mean": _method(baseline=wst.GroupMean()),
    "moving average": _method(baseline=wst.MovingAverage(), samples_per_query=1),
    "unaided": _method(baseline=wst.Unaided()),
    "kl": _method(kl_coef=0.1),
    "whitening": _method(whiten_advantages=True),
    "entropy": _method(entropy_coef=0.05),
    "micro-batches": _method(micro_batch_size=5, kl_coef=0.1),
    "leak penalty": _method(leak_penalty=1.0),
    "sequences, no clipping, schedule": _method(
        normalization="sequences", gradient_clip=None, lr_scheduler=lambda o: wst.WarmupLinear(o, 2, 10)
    ),
    "full fine-tuning": _method(teacher={"lora": None}, kl_coef=0.1),
    "nf4 base": _method(teacher={"quantization": "nf4"}),
    "short prompts": _method(teacher={"max_prompt_tokens": 60, "sample_batch_size": 2}, kl_coef=0.1),
    "standardized": _method(reward=wst.Standardized(Checksum(), queries=6)),
    "weighted sum": _method(reward=wst.WeightedSum({"a": Checksum(), "b": wst.Length(20)}, {"a": 1.0, "b": 0.5})),
    "failing student": _method(student=Failing(), max_failed=0.9, kl_coef=0.1),
    "history, before": partial(
        train, options=lambda _: {"student_prompt": wst.StudentPrompt("before", system="Task.")}, history=True
    ),
    "history, after": partial(train, options=lambda _: {"student_prompt": wst.StudentPrompt("after")}, history=True),
    "greedy local student": partial(train, options=lambda m: {"student": _local(m)}, history=True),
    "sampled local student": partial(
        train, options=lambda m: {"student": _local(m, temperature=0.8, max_prompt_tokens=70)}, history=True
    ),
    "nf4 local student": partial(train, options=lambda m: {"student": _local(m, quantization="nf4")}),
    "reward model": partial(train, options=lambda m: {"reward": _reward(m)}, history=True),
    "resumed": resumed,
    "from an adapter": from_adapter,
    "preference model": preference,
    "preference model, top layer": partial(preference, layers=1, max_tokens=20, batch_size=3),
    "preference model, full": partial(preference, lora=None),
    "two processes": two_processes,
}


def measure(only: Sequence[str]) -> dict[str, str]:
    """Return the digest of each setting; one whose name is asked for, or all."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch) / "models"
        write_models(models)
        for i, (name, run) in enumerate(SETTINGS.items()):
            if not only or name in only:
                found[name] = run(models, Path(scratch) / str(i))
                print(f"{found[name][:16]}  {name}", flush=True)
    return found


def compare(first: Path, second: Path) -> int:
    """Print both files side by side; return 1 where a setting differs or is only in one of them."""
    before, after = (json.loads(path.read_text(encoding="utf-8"))["digests"] for path in (first, second))
    names = list(before | after)
    different = [name for name in names if before.get(name) != after.get(name)]
    print(f"{'setting':34} {'first':18} {'second':18}")
    for name in names:
        mark = "DIFFERENT" if name in different else "equal"
        print(f"{name:34} {before.get(name, '-')[:16]:18} {after.get(name, '-')[:16]:18} {mark}")
    print(f"{len(names) - len(different)} of {len(names)} equal")
    return int(bool(different))


def main() -> int:
    """Run the settings, or compare two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="where the digests go")
    parser.add_argument("--only", nargs="*", default=[], choices=list(SETTINGS), help="settings to run; default: all")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("FIRST", "SECOND"))
    parser.add_argument("--rank-of", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        return compare(*arguments.compare)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    if arguments.rank_of:
        print(_rank(*arguments.rank_of))
        return 0
    digests = measure(arguments.only)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"wst": str(Path(wst.__file__).parent), "torch": torch.__version__, "digests": digests}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
