"""What each measure that makes a step fast is worth: seconds with it and without it, taking turns in one process.

python benchmarks/measures.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from arms import DATA, TEACHER, write_student
from transformers import CompileConfig, GenerationConfig

import wst
from wst.modeling import generation, logprobs, prefix
from wst.modeling.allocator import keep_freed_blocks

Work = Callable[[], object]


@contextmanager
def rows_apart() -> Iterator[None]:
    """Read every row by itself."""

    def begin(network: Any, rows: Any, pad_id: int, device: torch.device) -> Any:  # noqa: ANN401
        return *prefix.pad_left(rows, pad_id, device), None

    with patch.object(generation, "prefill_prompts", begin):
        yield


@contextmanager
def sampling_by_multinomial() -> Iterator[None]:
    """Let transformers sample."""
    config = cast(Any, generation.Decoding.config).fget

    def sampled(self: generation.Decoding) -> Any:  # noqa: ANN401
        settings = config(self)
        settings.do_sample, settings.top_k, settings.temperature = True, 0, self.temperature
        return settings

    off: Any = patch.object(generation, "LogitsProcessorList", lambda processors: [])
    with patch.object(generation.Decoding, "config", property(sampled)), off:
        yield


@contextmanager
def slices(student: wst.LocalStudent) -> Iterator[None]:
    """Pass the last tokens' states to the lm_head as a slice."""
    head = student._loaded[0].get_output_embeddings()
    hooks = dict(head._forward_pre_hooks)
    head._forward_pre_hooks.clear()
    yield
    head._forward_pre_hooks.update(hooks)


def plain_log_probs(teacher: wst.Teacher, written: list[wst.Instruction]) -> torch.Tensor:
    """Read prompt and instruction of each row, with logits of all instruction tokens."""
    rows = [(*z.prompt_ids, *z.token_ids) for z in written]
    ids, mask = prefix.pad_left(rows, 0, teacher.policy.device)
    keep = max(len(z.token_ids) for z in written) + 1
    logits = teacher.policy(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits[:, :-1].float()
    return logits.log_softmax(dim=-1).gather(-1, ids[:, -keep + 1 :, None]).squeeze(-1)


class Measures:
    """The work that is timed, each in two ways."""

    def __init__(self, folder: Path) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        data = wst.QueryDataModule(train=str(DATA), fields=wst.FieldMap(target=None), shuffle_seed=0)
        self.queries = list(data.queries("train")[:8])
        self.teacher = wst.Teacher(TEACHER, dtype="bfloat16", max_new_tokens=24)
        self.teacher.load(device)
        self.large = wst.LocalStudent(write_student(folder), dtype="bfloat16", max_new_tokens=24, cache=False)
        self.small = wst.LocalStudent(TEACHER, dtype="bfloat16", max_new_tokens=128, cache=False)
        for student in (self.large, self.small):
            student.setup(device)
        self.written = self.teacher.sample(self.queries, 4)
        prompt = wst.StudentPrompt(placement="after")
        per_sample = [query for query in self.queries for _ in range(4)]
        self.prompts = [prompt(query, z) for query, z in zip(per_sample, self.written, strict=True)]

    def sample(self) -> object:
        """Write instructions."""
        return self.teacher.sample(self.queries, 4)

    def answer(self) -> object:
        """Answer 24 tokens each."""
        return self.large.respond(self.prompts)

    def answer_long(self) -> object:
        """Answer up to 128 tokens, until each ends."""
        return self.small.respond(self.prompts)

    def update(self) -> object:
        """Log-probabilities and their gradient."""
        values = self.teacher.log_probs(self.written).values.sum()
        values.backward()
        return values

    def plain_update(self) -> object:
        """The same with every row read by itself."""
        values = plain_log_probs(self.teacher, self.written).sum()
        values.backward()
        return values

    def penalised(self, shared: bool) -> object:
        """KL, then the gradient, from one pass of the policy or from two."""
        with torch.set_grad_enabled(shared):
            z = self.teacher.log_probs(self.written)
        self.teacher.reference_log_probs(self.written)
        z = z if shared else self.teacher.log_probs(self.written)
        z.values.sum().backward()
        return z

    def half(self) -> object:
        """The gradient of half of the rows, as where the other half has advantage 0."""
        values = self.teacher.log_probs(self.written[::2]).values.sum()
        values.backward()
        return values

    def continuous(self) -> object:
        """Answer long by transformers' continuous batching."""
        model, tokenizer = cast(Any, self.small._loaded)
        rows = [self.small._encode(prompt) for prompt in self.prompts]
        settings = GenerationConfig(
            max_new_tokens=128,
            do_sample=False,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        return model.generate_batch(inputs=rows, generation_config=settings, progress_bar=False)

    def static(self, compile_config: CompileConfig | None = None) -> object:
        """Answer with a cache of fixed size."""
        model, tokenizer = cast(Any, self.large._loaded)
        ids, mask = prefix.pad_left([self.large._encode(prompt) for prompt in self.prompts], 0, model.device)
        settings = GenerationConfig(
            max_new_tokens=24,
            do_sample=False,
            cache_implementation="static",
            disable_compile=compile_config is None,
            compile_config=compile_config,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.no_grad():
            return model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)

    def compiled(self) -> object:
        """The same with the passes of one token compiled, which the first call pays for."""
        config = CompileConfig(mode="default", fullgraph=False)
        cast(Any, config)._compile_all_devices = True
        return self.static(config)

    def pairs(self) -> dict[str, tuple[Work, Work, Any]]:
        """Name, work with the measure, work without it, and what takes it away meanwhile."""
        whole = patch.object(logprobs, "split_backbone_and_head", lambda network: None)
        return {
            "teacher's prompts are read once a query": (self.sample, self.sample, rows_apart),
            "tokens are drawn with one random number a row": (self.sample, self.sample, sampling_by_multinomial),
            "heads get contiguous states (0.5B student)": (self.answer, self.answer, lambda: slices(self.large)),
            "student's prompts are read once a query (0.5B, query first)": (self.answer, self.answer, rows_apart),
            "equal prompts are answered once (each there twice)": (
                lambda: self.large.respond(self.prompts[::2] * 2),
                lambda: self.large.respond(self.prompts[::2] * 2),
                lambda: patch.object(self.large, "deterministic", False),
            ),
            "what is only read goes without the head (teacher)": (
                self.sample,
                self.sample,
                lambda: patch.object(prefix, "split_backbone_and_head", lambda network: None),
            ),
            "rows that have ended leave (up to 128 tokens)": (
                self.answer_long,
                self.answer_long,
                lambda: patch.object(generation, "_ENDED_SHARE", 2.0),
            ),
            "gradient: prompts are read once a query": (self.update, self.plain_update, nullcontext),
            "gradient: no logits of all tokens": (self.update, self.update, lambda: whole),
            "gradient: chunks of 2**24 logits instead of 2**20": (
                self.update,
                self.update,
                lambda: patch.object(logprobs, "_MAX_LOGITS", 2**20),
            ),
            "KL: one pass of the policy": (
                lambda: self.penalised(True),
                lambda: self.penalised(False),
                nullcontext,
            ),
            "rows without advantage are left out (half of them)": (self.half, self.update, nullcontext),
            "against transformers' static cache (0.5B, 24 tokens)": (self.answer, self.static, nullcontext),
            "against a static cache and torch.compile": (self.answer, self.compiled, nullcontext),
            "against transformers' continuous batching (up to 128 tokens)": (
                self.answer_long,
                self.continuous,
                nullcontext,
            ),
        }


def timed(work: Work) -> float:
    """Seconds that work takes."""
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of the names of the measures that are wanted")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each, after one to warm up")
    options = parser.parse_args()
    keep_freed_blocks()  # as the command line does
    with tempfile.TemporaryDirectory() as folder:
        measures = Measures(Path(folder))
        print("| measure | with, s | without, s | without / with (range) | first time, s |\n|---|---:|---:|---|---|")
        for name, (with_it, without_it, off) in measures.pairs().items():
            if options.only not in name:
                continue
            found = []
            for _ in range(options.repeats + 1):
                fast = timed(with_it)
                with off():
                    found.append((fast, timed(without_it)))
            ratios = [slow / fast for fast, slow in found[1:]]
            one, other = (statistics.median(column) for column in zip(*found[1:], strict=True))
            middle = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"| {name} | {one:.2f} | {other:.2f} | {middle} | {found[0][0]:.1f}, {found[0][1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
