"""A teacher in float32 on a tiny model, and naive references for what it computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from wst.prompts import TeacherPrompt
from wst.teacher import LoRA, Teacher
from wst.training.objective import policy_loss
from wst.types import Instruction, Message, Query

CPU = torch.device("cpu")
TEMPERATURE = 0.7
QUERIES = [
    Query("short", "hi"),
    Query("long", "Say in a few words what this is all about, and mind the commas, please."),
    Query("middle", "2 + 2 = ?", history=(Message("user", "Hello"), Message("assistant", "Yes?"))),
]


def make(model: str, **settings: object) -> Teacher:
    """Load a teacher in float32 whose adapter, if it is new, does something."""
    defaults: dict[str, Any] = {
        "prompt": TeacherPrompt("Instruct: {query}"),
        "lora": LoRA(r=2, alpha=4),
        "dtype": "float32",
        "temperature": TEMPERATURE,
        "max_new_tokens": 12,
    }
    teacher = Teacher(model, **defaults | settings)
    torch.manual_seed(0)
    teacher.load(CPU)
    if teacher.lora is not None and teacher.adapter is None:
        move(teacher)
    return teacher


def move(teacher: Teacher, by: float = 0.05, seed: int = 1) -> None:
    """Change the trained weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainable(teacher):
            weight.add_(by * torch.randn(weight.shape, generator=generator))


def trainable(teacher: Teacher) -> list[nn.Parameter]:
    return [weight for weight in teacher.parameters() if weight.requires_grad]


def base_weights(teacher: Teacher) -> dict[str, Tensor]:
    network = teacher.network
    base = network.get_base_model() if isinstance(network, PeftModel) else network
    assert base is not None
    return {name: weight.clone() for name, weight in base.state_dict().items() if "lora_" not in name}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def sample(teacher: Teacher, samples: int = 3, seed: int = 0, queries: Sequence[Query] = QUERIES) -> list[Instruction]:
    torch.manual_seed(seed)
    return teacher.sample(queries, samples)


def naive_logits(network: Callable[..., Any], instruction: Instruction) -> Tensor:
    """Logits [tokens, vocabulary] that the tokens were sampled from: one row, one plain forward pass."""
    ids = torch.tensor([[*instruction.prompt_ids, *instruction.token_ids]])
    logits: Tensor = network(input_ids=ids).logits[0]
    return logits[len(instruction.prompt_ids) - 1 : -1]


def naive(network: Callable[..., Any], instruction: Instruction) -> Tensor:
    log_probs = (naive_logits(network, instruction) / TEMPERATURE).log_softmax(dim=-1)
    return log_probs[torch.arange(len(instruction.token_ids)), torch.tensor(instruction.token_ids)]


def naive_sums(network: Callable[..., Any], instructions: Sequence[Instruction]) -> Tensor:
    with torch.no_grad():
        return torch.stack([naive(network, instruction).sum() for instruction in instructions])


def sums(teacher: Teacher, instructions: Sequence[Instruction]) -> Tensor:
    """Log-probability of each whole instruction."""
    with torch.no_grad():
        z = teacher.log_probs(instructions)
    return (z.values * z.mask).sum(dim=1)


def gradients(teacher: Teacher, loss: Tensor) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, trainable(teacher))])


def step(teacher: Teacher, instructions: Sequence[Instruction]) -> None:
    """Make one gradient step on the instructions' log-probability."""
    optimizer = torch.optim.SGD(trainable(teacher), lr=0.02)
    z = teacher.log_probs(instructions)
    policy_loss(z.values, z.mask, torch.ones(len(instructions)), torch.tensor(1.0)).backward()
    nn.utils.clip_grad_norm_(trainable(teacher), 1.0)
    optimizer.step()
    optimizer.zero_grad()
