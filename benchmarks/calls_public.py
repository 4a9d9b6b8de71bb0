"""The tasks of `calls.py` on public benchmarks: their prompts and limits are those of the project's CPU configs."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from calls_tasks import Task

import wst

CONFIGS = Path(__file__).parent.parent / "lightning_configs"


def gsm8k(options: Namespace) -> Task:
    """Return GSM8K in 128 answer tokens.

    Args:
        options: ``gsm8k`` is a folder with train.jsonl and test.jsonl.
    """
    settings = _read("parts/gsm8k_small_teacher.yaml")["init_args"]
    return Task(
        lambda common: wst.GSM8K(source=options.gsm8k, **common),
        wst.MathAnswer,
        _prompt(settings),
        wst.StudentPrompt("after"),
        (
            "Let's think step by step.",
            "Answer with the final number only.",
            "Reply in this form: equation; equation; #### number",
            "Reply in one sentence.",
        ),
        _read("parts/gsm8k_small_student.yaml")["init_args"]["max_new_tokens"],
        settings,
        {"leak_penalty": 1.0, "micro_batch_size": 12},
    )


def helpful(options: Namespace) -> Task:
    """Return the short requests of helpful-base in 64 answer tokens, scored by a preference model of one's own.

    Args:
        options: ``helpful`` are two files, to train on and to test on; ``preference`` is the model's folder.
    """
    config = _read("hh_rlhf_small.yaml")["model"]["init_args"]
    settings, scored = config["teacher"]["init_args"], config["reward"]["init_args"]
    reward = scored["reward"]["init_args"] | {"model": options.preference}
    train, test = options.helpful
    return Task(
        lambda common: wst.HHRLHF(train=train, test=test, max_turns=1, max_characters=160, val_share=0.2, **common),
        lambda: wst.Standardized(wst.RewardModel(**reward), queries=scored["queries"]),
        _prompt(settings),
        wst.StudentPrompt("before"),
        (
            "Answer with a list of steps.",
            "Answer in one short sentence.",
            "Answer with an example.",
            "Let's think step by step.",
        ),
        config["student"]["init_args"]["max_new_tokens"],
        settings,
        {},
    )


#: Each with the options that it needs.
PUBLIC: dict[str, tuple[Callable[[Namespace], Task], tuple[str, ...]]] = {
    "gsm8k": (gsm8k, ("gsm8k",)),
    "helpful": (helpful, ("helpful", "preference")),
}


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))


def _prompt(settings: dict[str, Any]) -> wst.TeacherPrompt:
    """Take the prompt out of a teacher's settings, and leave the model, which is an option, out of them."""
    del settings["model"]
    prompt = settings.pop("prompt")
    return wst.TeacherPrompt(**(prompt if isinstance(prompt, dict) else _read(prompt)))
