"""The teaching file: it runs, and its gradient is the product's."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wst import LeaveOneOut, LoRA, Query, Teacher, TeacherPrompt
from wst.training.objective import denominator, policy_loss

MINIMAL = Path(__file__).parent.parent / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", MINIMAL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_imports_nothing_of_the_product() -> None:
    text = MINIMAL.read_text()
    assert len(text.splitlines()) < 150
    assert "import wst" not in text
    assert "from wst" not in text


def test_it_trains_and_evaluates(
    minimal: ModuleType, tiny_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rewarded = iter([0.0] * 2 + [1.0, 0.0, 1.0, 1.0] * 2 + [1.0] * 2)  # before, two steps of 2 queries x 2, after
    before: list[torch.Tensor] = []
    original = torch.optim.AdamW

    def adam(weights: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        before.extend(weight.detach().clone() for weight in weights)
        adam.weights = weights  # type: ignore[attr-defined]
        return original(weights, lr=lr)

    monkeypatch.setattr(torch.optim, "AdamW", adam)
    monkeypatch.setattr(
        minimal, "rewards_of", lambda student, rows, instructions: torch.tensor([next(rewarded) for _ in instructions])
    )
    figures = minimal.main(
        ["--model", tiny_model, "--steps", "2", "--queries", "2", "--samples", "2", "--tokens", "4", "--held-out", "2"]
    )
    assert figures == [0.0, 1.0]
    assert "held-out reward: 0.000 before, 1.000 after" in capsys.readouterr().out
    moved = [not torch.equal(a, b) for a, b in zip(before, adam.weights, strict=True)]  # type: ignore[attr-defined]
    assert any(moved)


def test_a_review_is_answered_and_rewarded(minimal: ModuleType, tiny_model: str) -> None:
    student = minimal.Model(tiny_model)
    student.text = lambda rows: ["It is Positive.", "positive or negative", "neither", "negative"]
    rows = [{"text": "fine {x}", "label": "positive"}] * 3 + [{"text": "bad", "label": "positive"}]
    assert minimal.rewards_of(student, rows, ["z"] * 4).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_its_gradient_is_that_of_the_product(minimal: ModuleType, tiny_model: str) -> None:
    """For the same rollouts: those of the product's own sampling, in a batch of prompts of different lengths."""
    teacher = Teacher(
        tiny_model,
        TeacherPrompt(minimal.TEACHER_PROMPT),
        LoRA(r=4),
        dtype="float32",
        temperature=0.9,
        max_new_tokens=40,
    )
    torch.manual_seed(0)
    teacher.load(torch.device("cpu"))
    weights = [weight for weight in teacher.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in weights:
            weight.add_(0.05 * torch.randn_like(weight))
    texts = ["good", "A long and very bad one, with commas.", "so-so"]
    instructions = teacher.sample([Query(text, text) for text in texts], samples=3)
    rewards = torch.rand(3, 3)

    plain = minimal.Model(tiny_model)
    plain.network = teacher.policy
    rows = [{"text": text} for text in texts for _ in range(3)]
    prompts = plain.encode(minimal.teacher_prompts(rows))
    assert [tuple(prompt) for prompt in prompts] == [z.prompt_ids for z in instructions]

    z = teacher.log_probs(instructions)
    counts = torch.tensor([len(z.token_ids) for z in instructions])
    assert counts.min() < counts.max()
    advantages = LeaveOneOut()(rewards, None)
    expected = policy_loss(z.values, z.mask, advantages.flatten(), denominator(counts, "tokens"))
    wanted = torch.autograd.grad(expected, weights)
    own = minimal.leave_one_out(rewards)
    found = minimal.loss(plain, prompts, [list(z.token_ids) for z in instructions], own, teacher.temperature)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    got = torch.autograd.grad(found, weights)
    assert max(float(gradient.abs().max()) for gradient in wanted) > 1e-3
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
