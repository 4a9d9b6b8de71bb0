"""The reward of a sequence classifier: against a direct pass of the model, whatever it is scored together with."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from wst import RewardModel, WeightedSum
from wst.errors import ConfigError, ModelError
from wst.modeling import classifiers
from wst.modeling.spec import ModelSpec
from wst.rewards.base import Reward, score
from wst.types import Instruction, Message, Query, Response, Rollout

CPU = torch.device("cpu")


def write_classifier(source: str, folder: Path, labels: int = 1) -> str:
    """Write a classifier on top of a tiny model, with a head drawn at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=labels)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    return write_classifier(tiny_model, tmp_path_factory.mktemp("scorers") / "chat")


@pytest.fixture(scope="module")
def plain_classifier(tmp_path_factory: pytest.TempPathFactory, tiny_plain_model: str) -> str:
    """A classifier with neither a chat template nor a padding token."""
    return write_classifier(tiny_plain_model, tmp_path_factory.mktemp("scorers") / "plain")


@pytest.fixture(scope="module")
def direct(classifier: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(classifier)
    return model.eval()


@pytest.fixture
def reward(classifier: str) -> Iterator[RewardModel]:
    made = RewardModel(classifier, dtype="float32")
    made.setup(CPU)
    yield made
    made.close()


def rollout(answer: str, text: str = "What is it?", **settings: Any) -> Rollout:
    instruction = settings.pop("instruction", None)
    return Rollout(Query("q", text, **settings), instruction, Response(answer))


HISTORY = (Message("user", "Hello."), Message("assistant", "Hi, how can I help?"))
ROLLOUTS = [
    rollout("It is red."),
    rollout("It is a rather long answer, which goes on and on."),
    rollout(""),
    rollout("It is red.", history=HISTORY),
    rollout("Blue", text="And the sky? " * 5),
]


def test_it_is_what_the_model_says_of_the_dialogue(
    reward: RewardModel, classifier: str, direct: PreTrainedModel
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    expected = []
    for one in ROLLOUTS:
        turns = [*one.query.history, Message("user", one.query.text), Message("assistant", one.response.text)]
        chat = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            expected.append(float(direct(input_ids=ids).logits[0, 0]))
    assert reward.score(ROLLOUTS) == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(ROLLOUTS)


def test_the_instruction_is_not_read(reward: RewardModel) -> None:
    alone, told = rollout("Red."), rollout("Red.", instruction=Instruction("Say it in a word."))
    assert reward.score([alone]) == reward.score([told])


def test_the_history_is_read(reward: RewardModel) -> None:
    alone, later = reward.score([rollout("Red."), rollout("Red.", history=HISTORY)])
    assert alone != pytest.approx(later, abs=1e-3)


def test_a_reward_does_not_depend_on_what_it_is_scored_together_with(reward: RewardModel) -> None:
    together = reward.score(ROLLOUTS)
    assert [reward.score([one])[0] for one in ROLLOUTS] == pytest.approx(together, abs=1e-5)
    assert reward.score(ROLLOUTS[::-1]) == pytest.approx(together[::-1], abs=1e-5)
    for batch_size in (1, 2, 100):
        reward.batch_size = batch_size
        assert reward.score(ROLLOUTS) == pytest.approx(together, abs=1e-5)


def test_equal_dialogues_are_scored_once(reward: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    original = classifiers.score_rows

    def count(network: Any, rows: Any, pad_id: int) -> Any:
        batches.append(len(rows))
        return original(network, rows, pad_id)

    monkeypatch.setattr(classifiers, "score_rows", count)
    reward.batch_size = 2
    same = rollout("Red.", instruction=Instruction("Be brief."))
    rewards = reward.score([rollout("Red."), rollout("Blue."), same, rollout("Green or so."), rollout("Red.")])
    assert batches == [2, 1]
    assert rewards[0] == rewards[2] == rewards[4]
    assert len(set(rewards)) == 3


def test_of_too_long_a_dialogue_the_last_tokens_are_read(reward: RewardModel) -> None:
    reward.encoder.limit = 40
    with pytest.warns(UserWarning, match=r"1 of 1 dialogues were cut to fit max_tokens=40"):
        one = reward.score([rollout("Red.", text="x" * 100)])
    other = reward.score([rollout("Red.", text="y" * 60 + "x" * 40)])
    assert one == other
    assert reward.encoder.shortened == 2
    reward.encoder.limit = 1024
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reward.score([rollout("Red.", text="x" * 100)]) != one


def test_failed_answers_do_not_reach_it(reward: RewardModel) -> None:
    failed = Rollout(Query("f", "?"), None, Response("", error="timeout"))
    rewards = score(reward, [failed, ROLLOUTS[0]]).total
    assert math.isnan(rewards[0])
    assert rewards[1:] == reward.score(ROLLOUTS[:1])


def test_a_tokenizer_without_a_chat_template_and_padding_token(plain_classifier: str) -> None:
    reward = RewardModel(plain_classifier, dtype="float32")
    reward.setup(CPU)
    model = AutoModelForSequenceClassification.from_pretrained(plain_classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(plain_classifier)
    assert tokenizer.chat_template is None
    assert tokenizer.pad_token_id is None
    expected = []
    for one in ROLLOUTS[:2] + ROLLOUTS[3:]:
        turns = [*(turn.content for turn in one.query.history), one.query.text, one.response.text]
        with torch.no_grad():
            ids = tokenizer("\n\n".join(turns), return_tensors="pt").input_ids
            expected.append(float(model(input_ids=ids).logits[0, 0]))
    assert reward.score(ROLLOUTS[:2] + ROLLOUTS[3:]) == pytest.approx(expected, abs=1e-5)


def test_a_quantized_classifier_says_about_the_same(reward: RewardModel, classifier: str) -> None:
    rounded = RewardModel(classifier, quantization="nf4", dtype="float32")
    rounded.setup(CPU)
    exact, rough = torch.tensor(reward.score(ROLLOUTS)), torch.tensor(rounded.score(ROLLOUTS))
    assert not torch.equal(exact, rough)
    assert (exact - rough).abs().mean() < exact.std()


# ---------------------------------------------------------------------------------------------- loading and mistakes


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_language_model_without_a_trained_head_is_refused(tiny_model: str) -> None:
    reward = RewardModel(tiny_model)
    reward.check()  # its configuration is there
    with pytest.raises(ModelError, match=r"weights are missing, score\.weight among them.*reward model") as caught:
        reward.setup(CPU)
    assert tiny_model in one_line(caught)


def test_a_classifier_with_more_outputs_is_refused(tiny_model: str, tmp_path: Path) -> None:
    reward = RewardModel(write_classifier(tiny_model, tmp_path / "two", labels=2))
    with pytest.raises(ModelError, match="it has 2 outputs; one with 1 is needed") as caught:
        reward.setup(CPU)
    one_line(caught)


def test_a_damaged_classifier_is_refused(classifier: str, tmp_path: Path) -> None:
    for path in Path(classifier).iterdir():
        (tmp_path / path.name).write_bytes(b"no weights" if path.suffix == ".safetensors" else path.read_bytes())
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        RewardModel(str(tmp_path)).setup(CPU)
    one_line(caught)


def test_a_missing_model_is_found_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("wst.modeling.classifiers.load_classifier", refuse)
    with pytest.raises(ModelError, match=r"\./nowhere"):
        RewardModel("./nowhere")
    absent = RewardModel("nobody/no-such-model")
    for reward in (absent, WeightedSum({"model": absent})):
        with pytest.raises(ModelError, match="nobody/no-such-model") as caught:
            reward.check()
        one_line(caught)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_tokens": -2}, "max_tokens must be at least 1"),
    ],
)
def test_impossible_settings(classifier: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        RewardModel(classifier, **settings)


def test_it_is_loaded_once_and_again_after_it_was_closed(classifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    original = classifiers.load_classifier

    def count(spec: ModelSpec, **settings: Any) -> Any:
        loads.append(spec.model)
        return original(spec, **settings)

    monkeypatch.setattr(classifiers, "load_classifier", count)
    reward = RewardModel(classifier, dtype="float32")
    with pytest.raises(RuntimeError, match=r"call setup\(device\) first"):
        reward.score(ROLLOUTS)
    reward.setup(CPU)
    first = reward.score(ROLLOUTS)
    reward.setup(CPU)
    assert len(loads) == 1
    reward.close()
    reward.close()
    with pytest.raises(RuntimeError):
        reward.score(ROLLOUTS)
    reward.setup(CPU)
    assert len(loads) == 2
    assert reward.score(ROLLOUTS) == first


def test_no_instruction_can_hold_an_answer(classifier: str) -> None:
    reward: Reward = RewardModel(classifier)
    told = rollout("42", target="42", instruction=Instruction("The answer is 42."))
    assert all(map(math.isnan, reward.leaks([told, rollout("42")])))
