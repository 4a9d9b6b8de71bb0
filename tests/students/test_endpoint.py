"""The endpoint student against an endpoint whose every answer is known, and one that breaks them."""

import time
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from aiolimiter import AsyncLimiter
from endpoints import FakeServer, Request, prompt

from wst import AnswerCache, Budget, EndpointStudent, Message, Prices, Prompt
from wst.errors import CacheError, ConfigError, StudentStopped

CPU = torch.device("cpu")


def test_answers_are_in_order_with_their_tokens(student: Any) -> None:
    answers = student().respond([prompt(f"say {word}") for word in "abcdefgh"])
    assert [answer.text for answer in answers] == [f"SAY {word}" for word in "ABCDEFGH"]
    assert {(answer.prompt_tokens, answer.tokens, answer.error) for answer in answers} == {(2, 2, None)}


def test_the_request_is_what_the_config_says(student: Any, server: FakeServer) -> None:
    student(temperature=0.5, top_p=0.9, max_new_tokens=7, stop=["\n"], extra_body={"seed": 3, "min_p": 0.1}).respond(
        [Prompt((Message("system", "be brief"), Message("user", "hello")))]
    )
    student(temperature=None, token_limit_field="max_completion_tokens").respond([prompt("hello")])
    first, second = (request.body for request in server.requests)
    assert first == {
        "model": "fake",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_tokens": 7,
        "stop": ["\n"],
        "seed": 3,
        "min_p": 0.1,
    }
    assert set(second) == {"model", "messages", "max_completion_tokens"}


def test_no_more_calls_than_allowed_at_once(student: Any, server: FakeServer) -> None:
    server.hold = lambda _: server.peak < 3
    student(concurrency=3).respond([prompt(f"{i}") for i in range(12)])
    assert server.peak == 3


def test_equal_prompts_are_one_call_and_draws_are_not(student: Any, server: FakeServer) -> None:
    greedy = student()
    assert len({answer.text for answer in greedy.respond([prompt("same", i) for i in range(5)])}) == 1
    assert len(server.requests) == 1
    student(temperature=1.0).respond([prompt("same", i) for i in (1, 2, 2, 3)])
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("marker", "text", "refused", "cut", "counted"),
    [
        ("[refuse]", "I cannot help with that.", True, False, "refused"),
        ("[filter]", "", True, False, "refused"),
        ("[null]", "", False, False, "empty"),
        ("[empty]", "", False, False, "empty"),
        ("[cut]", "SAY [CUT]", False, True, "cut"),
    ],
)
def test_no_answer_is_an_answer(student: Any, marker: str, text: str, refused: bool, cut: bool, counted: str) -> None:
    one = student()
    (answer,) = one.respond([prompt(f"say {marker}")])
    assert (answer.text, answer.refused, answer.truncated, answer.error) == (text, refused, cut, None)
    assert one.accounts.take()[counted] == 1


@pytest.mark.parametrize(
    ("marker", "tries", "reason"),
    [
        ("[status 408]", 3, "408"),
        ("[status 409]", 3, "409"),
        ("[status 425]", 3, "425"),
        ("[status 429]", 3, "429"),
        ("[status 500]", 3, "500"),
        ("[status 503]", 3, "503"),
        ("[status 400]", 1, "400"),
        ("[status 422]", 1, "422"),
    ],
)
def test_a_call_that_fails_for_good_is_unknown(
    student: Any, server: FakeServer, tmp_path: Path, marker: str, tries: int, reason: str
) -> None:
    one = student(cache=AnswerCache(str(tmp_path / "answers.sqlite")))
    bad, good = one.respond([prompt(marker), prompt("fine")])
    assert reason in bad.error
    assert good.text == "FINE"
    assert sum(marker in str(request.body) for request in server.requests) == tries
    taken = one.accounts.take()
    assert (taken["failed"], taken.get("retries", 0), taken["calls"]) == (1, tries - 1, tries + 1)
    one.respond([prompt(marker), prompt("fine")])  # what failed is asked again, what was answered is not
    assert sum(marker in str(request.body) for request in server.requests) == 2 * tries
    assert sum("fine" in str(request.body) for request in server.requests) == 1


def test_a_server_that_does_not_answer_is_given_up(student: Any, server: FakeServer) -> None:
    assert student(timeout=0.2, retries=1).respond([prompt("[hang]")])[0].error == "no answer within 0.2 s"
    assert len(server.requests) == 2


def test_no_server_is_a_failure_and_costs_nothing(student: Any) -> None:
    one = student(base_url="http://127.0.0.1:9/v1", prices=Prices(1e6, 1e6))
    (answer,) = one.respond([prompt("hello")])
    assert "Connect" in answer.error
    assert one.accounts.take()["cost"] == 0


def test_retry_after_is_honoured(student: Any, server: FakeServer) -> None:
    server.script, server.retry_after = [429], 0.4
    assert [answer.text for answer in student().respond([prompt("a")])] == ["A"]
    refused, answered = server.requests
    assert refused.finished is not None
    assert answered.arrived - refused.finished >= 0.4 - 0.01


@pytest.mark.parametrize(("status", "word", "calls"), [(401, "key", 1), (403, "access", 2), (404, "model", 2)])
def test_a_refused_key_or_model_ends_the_run(
    student: Any, server: FakeServer, status: int, word: str, calls: int
) -> None:
    server.status = status
    with pytest.raises(StudentStopped, match=word) as stop:
        student(concurrency=1).respond(
            [prompt("hello"), prompt("hello", sample=1), prompt("again"), prompt("and again")]
        )
    assert "\n" not in str(stop.value)
    assert len({str(request.body["messages"]) for request in server.requests}) == calls


@pytest.mark.parametrize(("status", "code"), [(429, "insufficient_quota"), (402, None)])
def test_a_spent_quota_is_not_waited_for(student: Any, server: FakeServer, status: int, code: str | None) -> None:
    server.status, server.code = status, code
    with pytest.raises(StudentStopped, match="quota"):
        student().respond([prompt("hello")])
    assert len(server.requests) == 1


def test_what_was_on_its_way_when_the_run_ends_is_kept(student: Any, server: FakeServer, tmp_path: Path) -> None:
    cache = AnswerCache(str(tmp_path / "answers.sqlite"))
    one = student(cache=cache, concurrency=2)

    def waits(request: Request) -> bool:
        """Let the refusal come while the first answer is still on its way."""
        return "paid" in str(request.body) and all(other.status != 401 for other in server.requests)

    server.hold = waits
    one.prefetch(prompt("paid"))
    while not server.requests:
        time.sleep(0.01)
    with pytest.raises(StudentStopped):
        one.respond([prompt("[status 401]"), prompt("paid"), *[prompt(f"later {i}") for i in range(6)]])
    assert len(server.requests) <= 3
    server.hold = lambda _: False
    server.requests.clear()
    again = student(cache=cache)
    assert again.respond([prompt("paid")])[0].text == "PAID"
    assert server.requests == []


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_after_an_answer_concerns_its_prompt_alone(
    student: Any, server: FakeServer, tmp_path: Path, status: int
) -> None:
    """Moderation of one prompt must not end the run, nor a resume: the ledger remembers that calls have succeeded."""
    for resume in range(2):
        one = student()
        one.accounts.open(tmp_path, "fit")
        if not resume:
            assert one.respond([prompt("fine")])[0].text == "FINE"
        (answer,) = one.respond([prompt(f"[status {status}]")])
        assert str(status) in answer.error
        assert one.accounts.take()["failed"] == 1
    assert len(server.requests) == 3


def test_a_refusal_waits_for_what_is_in_flight_before_it_ends_the_run(student: Any, server: FakeServer) -> None:
    server.hold = lambda request: "fine" in str(request.body) and all(other.status != 403 for other in server.requests)
    bad, good = student().respond([prompt("[status 403]"), prompt("fine")])
    assert ("403" in bad.error, good.text) == (True, "FINE")


def test_a_first_prompt_that_is_refused_does_not_end_the_run(student: Any) -> None:
    answers = student(concurrency=1).respond([prompt("[status 403]"), prompt("fine"), prompt("[status 404]")])
    assert [answer.error is None for answer in answers] == [False, True, False]


def test_two_students_on_one_cache_pay_once(
    student: Any, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims: list[bool] = []
    claim = AnswerCache.claim

    def watched(cache: AnswerCache, key: str) -> bool:
        claims.append(claim(cache, key))
        return claims[-1]

    monkeypatch.setattr(AnswerCache, "claim", watched)
    server.hold = lambda _: False not in claims  # no answer comes before the second has found that the first asks
    first, second = (student(cache=AnswerCache(str(tmp_path / "answers.sqlite")), timeout=60) for _ in range(2))
    for one in (first, second):
        one.prefetch(prompt("same"))
    assert first.respond([prompt("same")]) == second.respond([prompt("same")])
    assert len(server.requests) == 1
    assert claims[0]


def test_a_stopped_student_is_set_up_anew(student: Any, server: FakeServer) -> None:
    one = student()
    server.status = 401
    with pytest.raises(StudentStopped):
        one.respond([prompt("hello")])
    server.status = None
    one.setup(CPU)
    assert one.respond([prompt("hello")])[0].text == "HELLO"


def test_a_call_that_failed_early_is_made_again(student: Any, server: FakeServer) -> None:
    one = student(retries=0)
    server.status = 500
    one.prefetch(prompt("hello"))
    while not one._asked or not all(future.done() for future in one._asked.values()):
        time.sleep(0.01)
    server.status = None
    assert one.respond([prompt("hello")])[0].text == "HELLO"


def test_a_ledger_that_fails_ends_the_run_and_loses_no_answer(
    student: Any, server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AnswerCache(str(tmp_path / "answers.sqlite"))
    one = student(cache=cache, prices=Prices(1, 1), budget=Budget(cost=1))

    def full(*_: Any) -> None:
        raise CacheError("ledger: the disk is full")

    monkeypatch.setattr(one.accounts, "end", full)
    with pytest.raises(CacheError, match="full"):
        one.respond([prompt("hello")])
    assert student(cache=cache).respond([prompt("hello")])[0].text == "HELLO"
    assert len(server.requests) == 1


def test_the_key_is_sent_and_never_shown(
    student: Any, server: FakeServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret-1234")
    server.key = "another"
    caplog.set_level("DEBUG")
    with pytest.raises(StudentStopped) as stop:
        student(api_key_env="MY_KEY").respond([prompt("hello")])
    assert server.requests[0].key == "sk-very-secret-1234"
    assert "[key]" in str(stop.value)  # the server repeated it
    assert "sk-very" not in str(stop.value) + caplog.text + repr(stop.value.__context__)


def test_answers_begin_before_they_are_asked_for(student: Any, server: FakeServer) -> None:
    one = student()
    one.prefetch(prompt("early"))
    while not (server.requests and server.requests[0].sent):
        time.sleep(0.01)
    assert one.respond([prompt("early")])[0].text == "EARLY"
    assert len(server.requests) == 1


def test_requests_and_tokens_a_minute_are_limited(student: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[float, float]] = []

    async def acquire(limiter: AsyncLimiter, amount: float = 1) -> None:
        taken.append((limiter.max_rate / limiter.time_period, amount))

    monkeypatch.setattr(AsyncLimiter, "acquire", acquire)
    one = student(requests_per_minute=240, tokens_per_minute=6000, max_new_tokens=100)
    one.respond([prompt("four"), prompt("x" * 9000)])
    # A byte may be a token, each turn adds 8; what is more than a minute's share waits for a whole one.
    assert sorted(taken) == [(4, 1), (4, 1), (100, 100 + 4 + 8), (100, 6000)]


def test_progress_is_told(student: Any, server: FakeServer) -> None:
    told: list[tuple[int, int]] = []
    server.hold = lambda _: not told
    one = student(concurrency=2)
    one.on_progress = lambda done, total: told.append((done, total))
    one.respond([prompt(f"{i}") for i in range(4)])
    assert {total for _, total in told} == {4}
    assert told[0][0] < 4
    assert told[-1] == (4, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
        ({"base_url": "https://me:pass@host/v1"}, "password"),
        ({"base_url": "https://host/v1?key=1"}, "base_url"),
        ({"api_key_env": "sk-proj-123"}, "api_key_env"),
        ({"api_key_env": "gsk_abc123"}, "api_key_env"),
        ({"stop": [""]}, "stop"),
        ({"extra_body": {"n": 4}}, "extra_body must not hold n"),
        ({"extra_body": {"x": float("nan")}}, "extra_body cannot be sent as JSON"),
        ({"extra_body": {"x": date(2025, 1, 1)}}, "extra_body cannot be sent as JSON"),
        ({"extra_body": {"x": 1, 2: 3}}, "extra_body cannot be sent as JSON"),
        ({"top_p": float("nan")}, "top_p cannot be sent as JSON"),
        ({"base_url": "http://host:99999/v1"}, "is no address"),
        ({"base_url": "http://host:abc/v1"}, "is no address"),
        ({"base_url": "http://[::1/v1"}, "is no address"),
        ({"base_url": "http://\u2603.example/v1"}, "is no address"),
        ({"concurrency": 0}, "concurrency"),
        ({"timeout": 0}, "timeout"),
        ({"temperature": -1}, "temperature"),
        ({"budget": Budget(cost=1)}, "prices"),
    ],
)
def test_impossible_settings(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        EndpointStudent("fake", **options)
    assert "sk-proj" not in str(error.value)
    assert ":pass" not in str(error.value)


def test_a_missing_key_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        EndpointStudent("gpt").check()
