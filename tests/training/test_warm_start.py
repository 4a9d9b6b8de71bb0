"""Warm start: the best of what was tried is learned, once, before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from toys import Lowercase, Parrot, PoisonedTeacher, SixQueries, small_module
from trainers import quiet_trainer

from wst import Instruction, Reward, Rollout, WarmStart, WeakToStrong
from wst.errors import ConfigError, Diverged
from wst.modeling.logprobs import LogProbs


class Starts(Reward):
    """Whether the instruction begins with the query's last digit: which sentence is best depends on the query."""

    def score(self, rollouts: Any) -> list[float]:
        return [float(text(r).startswith(str(len(r.query.text) % 2))) for r in rollouts]


class Parity(Starts):
    """Whether it is the first of two sentences for queries of even length, the second for the others."""

    def __init__(self, sentences: list[str]) -> None:
        self.sentences = sentences

    def score(self, rollouts: Any) -> list[float]:
        return [float(text(r) == self.sentences[len(r.query.text) % 2]) for r in rollouts]


def text(rollout: Rollout) -> str:
    return rollout.instruction.text if rollout.instruction is not None else ""


def start(model: str, folder: Path, warm_start: WarmStart, reward: Any, steps: int = 0, **settings: Any) -> Any:
    student = Parrot()
    module = small_module(model, student, reward, warm_start=warm_start, **settings)
    quiet_trainer(folder, max_steps=steps or 1, limit_train_batches=steps or 1).fit(module, SixQueries(batch_size=2))
    return module, student


def watched(warm_start: WarmStart) -> list[Any]:
    """The instructions that will be learned."""
    chosen: list[Any] = []
    learn = warm_start._learn

    def keep(module: WeakToStrong, best: Any) -> int:
        chosen.extend(best)
        return learn(module, best)

    warm_start._learn = keep  # type: ignore[method-assign]
    return chosen


def log_prob(module: WeakToStrong, sentence: str, query: int) -> float:
    prompt = module.teacher.encode(module.trainer.datamodule.queries("train")[query])  # type: ignore[attr-defined]
    tokens = (*module.teacher.tokenizer(sentence)["input_ids"], module.teacher.end_ids[0])
    with torch.no_grad():
        return float(module.teacher.log_probs([Instruction(sentence, prompt, tokens)]).values.sum())


@pytest.mark.slow
def test_the_best_sentence_of_each_query_is_learned(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences = ["0a", "1b"]
    warm = WarmStart(sentences, queries=6, samples=0, epochs=20, batch_size=4)
    best_of = watched(warm)
    module, student = start(tiny_model, tmp_path, warm, Starts(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.02))
    asked = [prompt for prompt in student.asked if prompt.sample >= 2**30]
    assert len(asked) == 12
    chosen = {int(one.query.removeprefix("train")): one.instruction.text for one in best_of}
    for query in range(6):  # "train 1", "train 10", ...: their lengths are odd and even by turns
        best = (len("train 1") + query) % 2
        chance = log_prob(module, sentences[best], query)
        assert chosen[query] == sentences[best]
        with module.teacher.untrained():
            assert log_prob(module, sentences[best], query) < chance - 5
    assert (
        "warm start: 12 answers for 6 queries, mean 0.500; 6 instructions with a mean of 1.000 learned in 40 steps"
        in (" ".join(capsys.readouterr().out.split()))
    )


class Alone(Reward):
    """1.0 for the student without an instruction."""

    def score(self, rollouts: Any) -> list[float]:
        return [float(text(rollout) == "") for rollout in rollouts]


def test_a_teacher_learns_to_write_nothing_where_nothing_helps(tiny_model: str, tmp_path: Path) -> None:
    warm = WarmStart(["0a", ""], queries=6, samples=0, epochs=40, batch_size=6)
    module, student = start(tiny_model, tmp_path, warm, Alone(), optimizer=lambda p: torch.optim.AdamW(p, lr=0.02))
    queries = module.trainer.datamodule.queries("train")
    assert [z.text for z in module.teacher.sample(queries, greedy=True)] == [""] * 6
    unaided = {module.environment.prompt(query, None).messages for query in queries}
    assert sum(prompt.messages in unaided for prompt in student.asked if prompt.sample >= 2**30) == 6


def test_own_samples_below_the_mean_are_not_learned(tiny_model: str, tmp_path: Path) -> None:
    warm = WarmStart(queries=4, samples=3)
    chosen = watched(warm)
    _, student = start(tiny_model, tmp_path, warm, Lowercase())
    assert len([prompt for prompt in student.asked if prompt.sample >= 2**30]) == 12
    assert 1 <= len(chosen) <= 4
    assert len({one.query for one in chosen}) == len(chosen)
    assert all(one.value > 0 and one.sentence == -1 for one in chosen)


def test_it_is_made_once(tiny_model: str, tmp_path: Path) -> None:
    module, _ = start(tiny_model, tmp_path, WarmStart(queries=2, samples=2), Lowercase())
    path = tmp_path / "one.ckpt"
    module.trainer.save_checkpoint(path)
    again = WarmStart(queries=2, samples=2)
    student = Parrot()
    resumed = small_module(tiny_model, student, Lowercase(), warm_start=again)
    quiet_trainer(tmp_path, max_steps=2).fit(resumed, SixQueries(batch_size=2), ckpt_path=path)
    assert again.done
    assert resumed.trained_steps == 2
    assert all(prompt.sample < 2**30 for prompt in student.asked)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"samples": 1}, "leave nothing to choose from"),
        ({"sentences": ["", " "], "samples": 0}, "nothing to choose from"),
        ({"queries": 0}, "queries must be"),
    ],
    ids=str,
)
def test_impossible_settings_are_errors(setting: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"WarmStart: .*{words}"):
        WarmStart(**setting)


def test_a_sentence_that_the_teacher_may_not_write_is_an_error(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than the teacher's max_new_tokens=4"):
        start(tiny_model, tmp_path, WarmStart(["abcd"]), Lowercase())


@pytest.mark.parametrize(("sentences", "steps"), [(["a", "b"], 1), (["a", "c"], 0)])
def test_a_gradient_that_is_not_a_number_moves_nothing(
    tiny_model: str, tmp_path: Path, sentences: list[str], steps: int
) -> None:
    """`PoisonedTeacher` cannot tell how probable "a" and "c" are."""

    class FromTheFirst(PoisonedTeacher):
        poisoned = True

        def log_probs(self, *args: Any, **options: Any) -> LogProbs:
            self.poisoned = not warm.done
            return super().log_probs(*args, **options)

    warm = WarmStart(sentences, queries=6, samples=0, epochs=1, batch_size=6 if steps == 0 else 1)
    module = small_module(tiny_model, reward=Parity(sentences), teacher=FromTheFirst, warm_start=warm)
    trainer = quiet_trainer(tmp_path, max_steps=1)
    if steps:
        with pytest.warns(UserWarning, match="loss or gradient is not a number in 3 of 6 steps; they make no update"):
            trainer.fit(module, SixQueries(batch_size=2))
        assert warm.done
    else:
        with pytest.raises(Diverged, match="not a number in 1 of 1 steps; lower the learning rate"):
            trainer.fit(module, SixQueries(batch_size=2))
        assert not warm.done
        assert all(float(p.abs().max()) == 0 for name, p in module.named_parameters() if "lora_B" in name)
    assert all(bool(parameter.isfinite().all()) for parameter in module.trainable())
