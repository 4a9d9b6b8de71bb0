"""TRL's RLOOTrainer on a task of `calls.py`: the same teacher, prompt, student, reward and number of calls."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback
from trl import RLOOConfig, RLOOTrainer

import wst
from wst.types import Instruction, Query


def train(
    module: wst.WeakToStrong, queries: Sequence[Query], rows: int, seed: int, after: Callable[[int], bool]
) -> None:
    """Train the module's teacher, which is loaded, until it is said to be enough.

    Samples a query, temperature, token limit, optimizer, schedule and leak penalty are those of the module; all else
    is TRL's default, but for the KL penalty, which is left out as in the module.

    Args:
        module: Teacher, environment and settings.
        queries: Training queries.
        rows: Instructions in a step.
        seed: Of the order of the queries and the samples.
        after: Called after each step with the number of steps; true to end the run.
    """
    teacher, environment = module.teacher, module.environment

    def reward(completions: Any, number: list[int], **_: Any) -> list[float]:  # noqa: ANN401
        written = [Instruction(completion[0]["content"].strip()) for completion in completions]
        rollouts = environment.respond([queries[n] for n in number], written)
        values, leaks = environment.score(rollouts).total, environment.leaks(rollouts)
        return [
            value - module.leak_penalty * (leak if leak == leak else 0.0)
            for value, leak in zip(values, leaks, strict=True)
        ]

    class Turns(TrainerCallback):
        def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:  # noqa: ANN401
            control.should_training_stop |= after(state.global_step)

    prompts = [[{"role": m.role, "content": m.content} for m in teacher.prompt(query).messages] for query in queries]
    optimizer = module.make_optimizer(module.trainable())
    scheduler = module.make_scheduler(optimizer)
    with tempfile.TemporaryDirectory() as folder:
        settings = RLOOConfig(
            output_dir=folder,
            max_steps=10**6,
            # Of all 32 at once the logits of the whole vocabulary took 11 GB.
            per_device_train_batch_size=math.gcd(rows, 8),
            gradient_accumulation_steps=rows // math.gcd(rows, 8),
            num_generations=module.samples_per_query,
            max_completion_length=teacher.max_new_tokens,
            temperature=teacher.temperature,
            beta=0.0,
            seed=seed,
            bf16=False,  # the weights are bfloat16; with True they would be cast once more
            gradient_checkpointing=False,
            logging_steps=10**9,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=teacher.policy.device.type == "cpu",
        )
        trainer = RLOOTrainer(
            model=teacher.policy,
            reward_funcs=reward,
            args=settings,
            train_dataset=Dataset.from_list([{"prompt": p, "number": n} for n, p in enumerate(prompts)]),
            processing_class=teacher.tokenizer,
            callbacks=[Turns()],
            optimizers=(optimizer, scheduler),
        )
        trainer.train()
