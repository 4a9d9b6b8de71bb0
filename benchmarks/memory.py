"""GPU memory of a run by part, computed from the shapes of its models; nothing is loaded and no GPU is needed.

    python benchmarks/memory.py lightning_configs/gsm8k.yaml [further configs on top] [--prompt 300]

The parts are upper bounds where a limit of the config decides (answers and instructions as long as they may be), and
take ``--prompt`` tokens for the prompts. Activations are those of one backward pass without recomputation: what each
layer keeps in the number format of the base, and what the float32 adapters keep of their inputs. The context of CUDA
and the allocator's slack (together 1 to 2 GB) are not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from dataclasses import dataclass
from typing import Any

import yaml

from wst.cli.lightning import run
from wst.modeling import logprobs

GB = 1e9
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: 4 bits, an 8-bit scale for 64, a float32 for 256 of these


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder with gated MLPs and grouped-query attention."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    tied: bool

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of a layer's linear maps."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        h, i = self.hidden, self.inner
        return [(h, q), (h, kv), (h, kv), (q, h), (h, i), (h, i), (i, h)]

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' linear maps."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def embedding_weights(self) -> int:
        """Weights of the embedding and the head."""
        return self.hidden * self.vocabulary * (1 if self.tied else 2)

    def cache_bytes(self, rows: int, tokens: int) -> float:
        """Keys and values in 16 bits."""
        return rows * tokens * self.layers * 2 * self.kv_heads * self.head * 2

    def activation_bytes(self, rows: int, tokens: int) -> float:
        """What the backward pass needs of a forward pass in 16 bits with float32 adapters."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        kept = 2 * (5 * self.hidden + 2 * q + 2 * kv + 4 * self.inner)
        adapters = 4 * (2 * self.hidden + q + self.inner)
        return rows * tokens * self.layers * (kept + adapters)


SHAPES = {
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(896, 24, 14, 2, 64, 4864, 151936, True),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(4096, 32, 32, 8, 128, 14336, 128256, False),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 28, 28, 4, 128, 18944, 152064, False),
}


def parts(settings: dict[str, Any], prompt: int) -> dict[str, float]:
    """Bytes by part of a run with these settings."""
    model, queries = settings["model"]["init_args"], settings["data"]["init_args"]["batch_size"]
    teacher, student = model["teacher"]["init_args"], model["student"]["init_args"]
    t, s = SHAPES[teacher["model"]], SHAPES[student["model"]]
    rows = queries * model["samples_per_query"]
    micro = min(model["micro_batch_size"] or rows, rows)
    at_once = min(student["batch_size"], rows)
    new = teacher["max_new_tokens"]
    rank = teacher["lora"]["r"]
    adapter = 4 * t.layers * sum(rank * (a + b) for a, b in t.linears)
    sampled = min(teacher["sample_batch_size"] or queries, queries) * model["samples_per_query"]
    per_weight = NF4 if student["quantization"] == "nf4" else 2
    return {
        "student: weights": per_weight * s.linear_weights + 2 * s.embedding_weights,
        "student: keys and values": s.cache_bytes(at_once, prompt + new + student["max_new_tokens"]),
        "teacher: weights": 2 * (t.linear_weights + t.embedding_weights),
        "teacher: adapter and its gradient": 2 * adapter,
        "teacher: AdamW's moments": 2 * adapter,
        "teacher: keys and values": t.cache_bytes(sampled, prompt + new),
        "teacher: activations": t.activation_bytes(micro, prompt + new),
        # So many logits at a time: in bfloat16 twice, in float32 twice.
        "teacher: logits": 12.0 * min(logprobs._MAX_LOGITS, micro * new * t.vocabulary),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--prompt", type=int, default=300, help="tokens of a prompt")
    asked = parser.parse_args()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        run(["fit", *(f"--config={config}" for config in asked.configs), "--print_config"])
    found = parts(yaml.safe_load(printed.getvalue()), asked.prompt)
    during = {
        "answering": [name for name in found if name not in list(found)[5:]],
        "update": [name for name in found if name not in ("student: keys and values", "teacher: keys and values")],
    }
    print("| part | GB |\n|---|---:|")
    for name, size in found.items():
        print(f"| {name} | {size / GB:.2f} |")
    for phase, names in during.items():
        print(f"| **at once, {phase}** | **{sum(found[name] for name in names) / GB:.1f}** |")


if __name__ == "__main__":
    main()
