"""The student on this machine: order, batches, memory, limits; and the check that every student passes through."""

import sys
import warnings
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from wst.errors import ConfigError, ContractError, ModelError
from wst.students.base import Student, respond
from wst.students.local import LocalStudent
from wst.types import Message, Prompt, Response

CPU = torch.device("cpu")
LIMIT = 20
TEXTS = [
    "hi",
    "What is the capital of France, and of Spain?",
    "2 + 2 = ?",
    "Yes",
    "Say something.",
    "A" * 30,
    "ok",
    "?",
]


def ask(*texts: str) -> list[Prompt]:
    return [Prompt((Message("user", text),)) for text in texts]


def make(model: str, **settings: object) -> LocalStudent:
    defaults: dict[str, Any] = {"dtype": "float32", "max_new_tokens": LIMIT}
    student = LocalStudent(model, **defaults | settings)
    student.setup(CPU)
    return student


def loaded(student: LocalStudent) -> Any:
    assert student._model is not None
    return student._model


def spy(student: LocalStudent, monkeypatch: pytest.MonkeyPatch, most_rows: int = 10**6) -> list[tuple[Tensor, Tensor]]:
    """Record input mask and new tokens of each call of generate, which runs out of memory above ``most_rows``."""
    calls: list[tuple[Tensor, Tensor]] = []
    generate = loaded(student).generate

    def recording(input_ids: Tensor, attention_mask: Tensor, **options: object) -> Any:
        if len(input_ids) > most_rows:
            calls.append((attention_mask, torch.empty(0)))
            raise torch.OutOfMemoryError("CUDA out of memory")
        output = generate(input_ids=input_ids, attention_mask=attention_mask, **options)
        calls.append((attention_mask, output.sequences[:, input_ids.shape[1] :]))
        return output

    monkeypatch.setattr(loaded(student), "generate", recording)
    return calls


@pytest.fixture(scope="module")
def alone(tiny_model: str) -> list[Response]:
    """The answer to each text, asked by itself."""
    student = make(tiny_model)
    return [student.respond(ask(text))[0] for text in TEXTS]


# --- Answers


def test_answers_differ(alone: list[Response]) -> None:
    """What the tests below rely on."""
    assert len({response.text for response in alone}) == len(TEXTS)
    assert {response.truncated for response in alone} == {True, False}


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_answers_are_in_the_prompts_order_and_do_not_depend_on_the_batch(
    tiny_model: str, alone: list[Response], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make(tiny_model, batch_size=batch_size)
    calls = spy(student, monkeypatch)
    assert student.respond(ask(*TEXTS)) == alone
    lengths = [int(row.sum()) for mask, _ in calls for row in mask]
    assert lengths == sorted(lengths, reverse=True)
    assert max(len(mask) for mask, _ in calls) == min(batch_size, len(TEXTS))


def test_greedy_answers_are_the_naive_argmax(tiny_model: str) -> None:
    student = make(tiny_model)
    assert student.deterministic
    ids = student._encode(ask("hi")[0])
    tokens: list[int] = []
    with torch.no_grad():
        while len(tokens) < LIMIT and 3 not in tokens:
            tokens.append(int(loaded(student)(input_ids=torch.tensor([ids + tokens])).logits[0, -1].argmax()))
    _, tokenizer = student._loaded
    expected = Response(
        tokenizer.decode(tokens, skip_special_tokens=True).strip(), len(tokens), truncated=3 not in tokens
    )
    assert student.respond(ask("hi")) == [expected]


def test_truncated_says_whether_the_limit_cut_the_answer(
    tiny_model: str, alone: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make(tiny_model)
    calls = spy(student, monkeypatch)
    for text in TEXTS:
        (response,) = student.respond(ask(text))
        ((row,),) = [new.tolist() for _, new in calls[-1:]]
        assert response.truncated is (3 not in row)
        assert response.tokens == len(row)
        assert response.error is None
    (shorter,) = make(tiny_model, max_new_tokens=3).respond(ask(TEXTS[0]))
    assert (shorter.truncated, shorter.tokens) == (True, 3)
    assert alone[0].text.startswith(shorter.text)


@pytest.mark.slow
@pytest.mark.parametrize("plain", [False, True])
def test_stop_texts_end_the_answer_and_are_not_part_of_it(
    tiny_model: str, tiny_plain_model: str, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = make(tiny_plain_model if plain else tiny_model, max_new_tokens=30)
    calls = spy(free, monkeypatch)
    _, tokenizer = free._loaded
    unstopped = [free.respond(ask(text))[0] for text in TEXTS]
    stop = next(r.text[i : i + 2] for r in unstopped for i in range(2, 20) if r.text[i : i + 2].strip().isascii())
    stopped = make(tiny_plain_model if plain else tiny_model, max_new_tokens=30, stop=["never", stop]).respond(
        ask(*TEXTS)
    )
    met = 0
    for (_, new), before, after in zip(calls, unstopped, stopped, strict=True):
        tokens = new[0].tolist()
        heads = [tokenizer.decode(tokens[:count], skip_special_tokens=True) for count in range(len(tokens) + 1)]
        count = next((count for count, head in enumerate(heads) if stop in head), None)
        if count is None:
            assert after == before
        else:
            assert after == Response(heads[count].split(stop)[0].strip(), count, truncated=False)
            met += 1
    assert 0 < met < len(TEXTS)


def test_a_stop_text_that_is_a_special_token_ends_the_answer_before_the_limit(tiny_model: str) -> None:
    """Tokens of probability 1 in 200 or so; most of the answers meet one of them in 300 tokens."""
    student = make(tiny_model, max_new_tokens=300, temperature=3.0, stop=["<|im_start|>", "<|pad|>", "<|endoftext|>"])
    torch.manual_seed(0)
    answers = student.respond(ask(*map(str, range(12))))
    lengths = [answer.tokens for answer in answers]
    assert min(lengths) < 300
    assert [answer.truncated for answer in answers] == [length == 300 for length in lengths]
    _, tokenizer = student._loaded
    assert student.stop_ids() == [2, 0, 1]
    row = [*tokenizer("one")["input_ids"], 2]
    assert student._response(tokenizer, row, (3, *student.stop_ids())) == Response("one", 4, truncated=False)


@pytest.mark.parametrize("stop", [["wo", "two"], ["two", "wo"]])
def test_of_stop_texts_that_end_together_the_longest_is_cut_off(tiny_model: str, stop: list[str]) -> None:
    student = make(tiny_model, stop=stop)
    _, tokenizer = student._loaded
    row = tokenizer("one two")["input_ids"]
    assert student._response(tokenizer, row, (3,)) == Response("one", 7, truncated=False)


def test_an_end_token_that_is_ordinary_text_is_not_part_of_the_answer(tiny_model: str) -> None:
    student = make(tiny_model)
    _, tokenizer = student._loaded
    row = tokenizer("one;")["input_ids"]
    (end,) = tokenizer(";")["input_ids"]
    assert student._response(tokenizer, row, (3, end)) == Response("one", 4, truncated=False)


def test_a_prompt_that_is_too_long_is_cut_with_a_counted_warning(tiny_model: str) -> None:
    student = make(tiny_model, max_prompt_tokens=50)
    chat = Prompt((Message("system", "Be brief."), Message("user", "x" * 300)))
    with pytest.warns(UserWarning, match="a prompt was cut to fit max_prompt_tokens=50, and so will others; raise it"):
        ids = student._encode(chat)
    _, tokenizer = student._loaded
    text = tokenizer.decode(ids)
    assert len(ids) == 50
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        responses = student.respond([*ask("hi"), chat])
    assert [bool(response.text) for response in responses] == [True, True]
    assert student.encoder.shortened == 2


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_answering_leaves_the_weights_bit_identical(tiny_model: str, quantization: str) -> None:
    student = make(tiny_model, quantization=quantization)
    before = {name: value.clone() for name, value in loaded(student).state_dict().items()}
    student.respond(ask(*TEXTS))
    after = loaded(student).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(weight.requires_grad for weight in loaded(student).parameters())
    assert not loaded(student).training


def test_a_student_is_not_a_module() -> None:
    assert not issubclass(LocalStudent, torch.nn.Module)


# --- Sampling


def test_a_sampling_student_follows_the_seed_and_says_that_it_samples(tiny_model: str) -> None:
    student = make(tiny_model, temperature=1.0)
    assert not student.deterministic
    answers = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        answers.append(student.respond(ask(*TEXTS)))
    assert answers[0] == answers[1] != answers[2]


def test_a_cold_student_is_a_greedy_one(tiny_model: str, alone: list[Response]) -> None:
    assert make(tiny_model, temperature=1e-4).respond(ask(*TEXTS)) == alone


@pytest.mark.slow
def test_samples_are_as_frequent_as_they_are_probable(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = 3000
    student = make(tiny_model, temperature=1.5, max_new_tokens=1, batch_size=draws)
    calls = spy(student, monkeypatch)
    torch.manual_seed(0)
    student.respond(ask("hi") * draws)
    with torch.no_grad():
        logits = loaded(student)(input_ids=torch.tensor([student._encode(ask("hi")[0])])).logits[0, -1]
    probability = (logits / 1.5).softmax(dim=-1)
    frequency = torch.bincount(calls[0][1][:, 0], minlength=len(probability)) / draws
    bound = (2 * probability * (1 - probability) * 20 / draws).sqrt() + 2 * 20 / (3 * draws)
    assert ((frequency - probability).abs() <= bound).all()
    assert (frequency > 0).sum() > 60  # neither the model's own top-k of 2 nor transformers' of 50


# --- Memory


def test_out_of_memory_halves_the_batch_with_one_warning_a_halving(
    tiny_model: str, alone: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make(tiny_model, batch_size=7)
    calls = spy(student, monkeypatch, most_rows=3)
    # Memory can only be given back once the exception, whose traceback holds the batch, is gone.
    handled: list[BaseException | None] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handled.append(sys.exception()))
    with pytest.warns(UserWarning, match="out of memory with 7 prompts at once; going on with 3") as caught:
        assert student.respond(ask(*TEXTS)) == alone
    assert len(caught) == 1
    assert handled == [None]
    assert [len(mask) for mask, _ in calls] == [7, 3, 3, 2]
    assert student.batch_size == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert student.respond(ask(*TEXTS)) == alone


def test_out_of_memory_may_halve_again_and_counts_the_rows_it_had(
    tiny_model: str, alone: list[Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = make(tiny_model, batch_size=100)
    calls = spy(student, monkeypatch, most_rows=1)
    with pytest.warns(UserWarning, match="out of memory") as caught:
        assert student.respond(ask(*TEXTS)) == alone
    assert [len(mask) for mask, _ in calls] == [8, 4, 2] + [1] * 8
    assert len(caught) == 3


def test_out_of_memory_with_one_prompt_is_raised(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = make(tiny_model, batch_size=2)
    spy(student, monkeypatch, most_rows=0)
    with pytest.warns(UserWarning, match="going on with 1"), pytest.raises(torch.OutOfMemoryError):
        student.respond(ask("hi", "ho"))


def test_memory_is_that_of_the_weights_and_close_gives_it_back(tiny_model: str) -> None:
    student = make(tiny_model)
    weights = sum(weight.numel() for weight in loaded(student).parameters())
    assert weights * 4 <= student.memory_bytes < weights * 4.1
    model = loaded(student)
    student.setup(CPU)
    assert loaded(student) is model
    student.close()
    with pytest.raises(RuntimeError, match=r"call setup\(device\) first"):
        student.respond(ask("hi"))
    student.setup(CPU)
    assert student.respond(ask("hi"))[0].text


# --- Errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, r"LocalStudent: max_new_tokens must be at least 1, got 0"),
        ({"batch_size": 0}, r"LocalStudent: batch_size must be at least 1, got 0"),
        ({"max_prompt_tokens": -1}, r"LocalStudent: max_prompt_tokens must be at least 1, got -1"),
        ({"temperature": -0.5}, r"LocalStudent: temperature must not be below 0, got -0\.5"),
        ({"stop": ["\n", ""]}, r"LocalStudent: stop holds an empty text"),
    ],
)
def test_impossible_settings_are_errors_of_one_line(tiny_model: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        LocalStudent(tiny_model, **settings)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_is_an_error_before_anything_is_loaded() -> None:
    with pytest.raises(ModelError, match=r"model './no/such': no such folder"):
        LocalStudent("./no/such")
    with pytest.raises(ModelError, match=r"model 'no-one/nothing': not on the hub, or the hub cannot be reached"):
        LocalStudent("no-one/nothing").check()


# --- The check that every student passes through


class Fixed(Student):
    """Returns what it was made with."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def respond(self, prompts: Sequence[Prompt]) -> list[Response]:
        return cast("list[Response]", self.answer)


def test_responses_pass_through() -> None:
    answer = [Response("a"), Response("", error="timeout")]
    assert respond(Fixed(answer), ask("x", "y")) == answer
    assert Fixed(answer).deterministic is False


def test_a_student_with_nothing_to_answer_is_not_asked() -> None:
    assert respond(Fixed(None), []) == []


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([Response("a")], r"student Fixed: expected a list of 2 responses, one a prompt, got 1;"),
        ([Response("a")] * 3, r"student Fixed: expected a list of 2 responses, one a prompt, got 3;"),
        (None, r"student Fixed: expected a list of 2 responses, one a prompt, got a NoneType;"),
        ((Response("a"), Response("b")), r"student Fixed: expected a list of 2 responses, .* got a tuple;"),
        ([Response("a"), "b"], r"student Fixed: expected wst\.Response objects, got 'b';"),
        ([Response("a"), None], r"student Fixed: expected wst\.Response objects, got None;"),
    ],
)
def test_what_is_not_a_response_a_prompt_is_a_contract_error(answer: object, message: str) -> None:
    with pytest.raises(ContractError, match=message) as caught:
        respond(Fixed(answer), ask("x", "y"))
    assert "\n" not in str(caught.value)
