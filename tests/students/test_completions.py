"""How chat completions are read, what failures mean, and that keys are checked and redacted."""

import base64
import html
import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from wst.errors import ConfigError
from wst.students.completions import ChatClient, Failure, _checked, read_completion, retry_after
from wst.students.keys import ApiKey
from wst.types import Response


def body(message: Any, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return {"choices": [{"message": message, "finish_reason": finish, **more}], "usage": usage}


def text(content: Any, finish: str = "stop", **message: Any) -> Response:
    return read_completion(body({"role": "assistant", "content": content, **message}, finish))


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("yes", "yes"),
        ([THOUGHT, {"type": "text", "text": "po"}, {"type": "text", "text": "sitive"}], "positive"),
        (["po", "sitive"], "positive"),
        ([], ""),
        ("<think>2 + 2</think>\n\n4", "4"),
        ("2 + 2</think>4", "4"),
        ("<think>a</think>4 <think>b</think>apples", "4 apples"),
        ("<think>a</think>b</think>4", "4"),
        ("a \ud83d b", "a \ufffd b"),
        ("\ud83d\ude00", "😀"),
    ],
)
def test_the_text_of_an_answer(content: Any, said: str) -> None:
    assert text(content) == Response(said, tokens=2, prompt_tokens=3)


@pytest.mark.parametrize(
    ("content", "more"),
    [
        ("<think>and so on", {}),
        ("<think>done</think>", {}),
        (None, {"reasoning_content": "hm"}),
        ("", {"reasoning": "hm"}),
        ([THOUGHT], {}),
    ],
)
def test_reasoning_without_an_answer_is_cut(content: Any, more: dict[str, Any]) -> None:
    assert text(content, **more) == Response("", tokens=2, prompt_tokens=3, truncated=True)


def test_thinking_can_be_left_in() -> None:
    whole = body({"content": "<think>a</think>b"})
    assert read_completion(whole, strip_thinking=False).text == "<think>a</think>b"


def test_many_sections_are_read_in_linear_time() -> None:
    assert text("<think>" * 400_000).truncated


def test_a_stop_text_that_is_left_in_is_cut_off() -> None:
    assert read_completion(body({"content": "yes\nand no. more"}), [".", "\n"]).text == "yes"


@pytest.mark.parametrize(
    "odd",
    [
        None,
        [],
        {"choices": {}},
        {"choices": []},
        {"choices": ["text"]},
        body(None),
        body({"content": {"text": "yes"}}),
        body({"content": 5}),
        body({"content": [{"type": "image_url"}]}),
        body({"content": [{"type": "text", "text": 5}]}),
        body({"content": None, "tool_calls": [{}]}),
        body({"content": None, "function_call": {}, "tool_calls": [1]}),
        body({"content": None, "refusal": {"no": 1}}),
        body({"content": "ye"}, "error"),
        body({"content": "ye"}, "tool_calls"),
        body({"content": "ye"}, None),
        body({"content": "ye"}, ["stop"]),
        body({"content": "ye"}, error={"message": "overloaded"}),
        body({"content": "ye"}) | {"error": "overloaded"},
    ],
)
def test_what_is_not_surely_an_answer_is_none(odd: Any) -> None:
    with pytest.raises(Failure) as failure:
        read_completion(odd)
    assert failure.value.kind == "prompt"


@pytest.mark.parametrize("count", [1e30, -1, "7", True, None, 10**9, {"all": 3}, float("inf")])
def test_usage_that_cannot_be_is_none(count: Any) -> None:
    odd = body({"content": "yes"}) | {"usage": {"prompt_tokens": 3, "completion_tokens": count}}
    assert read_completion(odd) == Response("yes")


def error(status: int, said: Any) -> Failure:
    with pytest.raises(Failure) as failure:
        _checked(status, {}, json.dumps(said).encode())
    return failure.value


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (401, {}, "never"),
        (402, {}, "never"),
        (429, {"error": {"type": "insufficient_quota", "message": "pay"}}, "never"),
        (429, {"error": {"code": "insufficient_quota"}}, "never"),
        (200, {"error": {"code": 402, "message": "pay"}}, "never"),
        (403, {"error": {"message": "forbidden"}}, "access"),
        (403, {"error": {"message": "blocked by the policy of your organization"}}, "access"),
        (403, {"error": {"message": "Input was flagged", "metadata": {"reasons": ["harassment"]}}}, "prompt"),
        (403, {"error": {"code": "content_policy_violation"}}, "prompt"),
        (403, {"detail": "This request violates our usage policies."}, "prompt"),
        (404, {}, "access"),
        (302, {}, "access"),
        (200, {"error": {"code": 403, "message": "forbidden"}}, "access"),
        (200, {"error": {"code": 403, "message": "Moderation blocked it"}}, "prompt"),
        (408, {}, "passing"),
        (409, {}, "passing"),
        (425, {}, "passing"),
        (429, {}, "passing"),
        (500, {}, "passing"),
        (200, {"error": {"message": "overloaded"}}, "passing"),
        (200, {"error": "overloaded"}, "passing"),
        (200, {"error": {"code": 502, "message": "bad gateway"}}, "passing"),
        (400, {"error": {"code": "content_filter"}}, "filtered"),
        (400, {"error": {"message": "too long"}}, "prompt"),
        (422, {"detail": "no"}, "prompt"),
    ],
)
def test_what_a_failure_says_of_further_calls(status: int, said: Any, kind: str) -> None:
    assert error(status, said).kind == kind


@pytest.mark.parametrize(
    "said",
    [
        {"error": {"message": "the reason"}},
        {"error": "the reason"},
        [{"error": {"code": 400, "message": "the reason", "status": "INVALID_ARGUMENT"}}],
        {"detail": "the reason"},
        {"detail": [{"loc": ["body"], "msg": "the reason"}]},
        {"message": "the reason"},
        {"oops": ["the reason"]},
    ],
)
def test_the_reason_is_found_in_any_shape(said: Any) -> None:
    assert "the reason" in error(400, said).reason


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" * 200_000, "no JSON"),
        (b"<html>", "no JSON: <html>"),
        (b"", "no JSON"),
        (b'"' + b"x" * 5_000_000 + b'"', "more than"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "no JSON"),
    ],
)
def test_bodies_without_bounds_are_failures(data: bytes, words: str) -> None:
    with pytest.raises(Failure, match=words) as failure:
        _checked(200, {}, data)
    assert failure.value.kind == "prompt"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ({"retry-after": "3"}, 3),
        ({"retry-after-ms": "50"}, 0.05),
        ({"retry-after": "Fri, 31 Dec 999999 23:59:59 GMT"}, None),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "1e400"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-2"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after(header: dict[str, str], seconds: float | None) -> None:
    assert retry_after(header) == seconds


# The key.


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("", "is not set"),
        ("  ", "is not set"),
        ("sk-part1\nsk-part2", "more than one line"),
        ("sk-part1\n", "blanks or line breaks around"),
        (" sk-part1", "blanks or line breaks around"),
        ("sk-part1\x1bX", "control or non-ASCII"),
        ("sk-part1é", "control or non-ASCII"),
    ],
)
def test_a_key_is_checked_when_it_is_read(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match=words) as refused:
        ApiKey("MY_KEY", "http://host/v1").read()
    assert "MY_KEY" in str(refused.value)
    assert "part" not in repr(refused.value)


KEY = 'sk-"quote\\slash/plus+0123456789&'


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        repr(KEY),
        json.dumps(KEY),
        json.dumps(json.dumps(KEY)),
        json.dumps(KEY).replace("/", "\\/"),
        "".join(f"\\u{ord(char):04X}" for char in KEY),
        "".join(f"\\x{ord(char):02x}" for char in KEY),
        quote(KEY, safe=""),
        quote_plus(KEY).lower(),
        quote(quote(KEY), safe=""),
        html.escape(KEY),
        base64.b64encode(KEY.encode()).decode(),
        base64.b64encode(f"user:{KEY}".encode()).decode(),
        base64.b64encode(f"me:{KEY}\n".encode()).decode(),
        base64.urlsafe_b64encode(f"u:{KEY}:x".encode()).decode(),
    ],
)
def test_every_form_of_the_key_is_redacted(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    key = ApiKey("MY_KEY", "http://host/v1")
    key.read()
    redacted = key.redact(f"before {form} after")
    assert "[key]" in redacted
    assert len(redacted) <= len("before [key] after") + 24  # the user's name and what base64 mixes with the key
    assert redacted.startswith("before ")
    assert redacted.endswith(" after")
    assert "quote" not in redacted


def test_an_answer_keeps_addresses_and_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "1000 is EMPTY, see postgres://user:word@db/x"
    for placeholder in ("0", "EMPTY"):
        monkeypatch.setenv("MY_KEY", placeholder)
        key = ApiKey("MY_KEY", "http://host/v1")
        key.read()
        assert key.redact_answer(said) == said
        assert "word" not in key.redact(said)
    monkeypatch.setenv("MY_KEY", KEY)
    key.read()
    assert key.redact_answer(f"{said} {KEY}") == f"{said} [key]"


def test_only_openai_is_told_the_users_organisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    key = ApiKey(None, "")
    theirs = ChatClient("https://api.openai.com/v1", key, "m", None)
    other = ChatClient("https://openai.com.example.org/v1", key, "m", None)
    assert theirs._headers["OpenAI-Organization"] == "org-1"
    assert "org-1" not in str(other._headers)


@pytest.mark.parametrize(
    ("variable", "value"), [("HTTPS_PROXY", "foo://me:password@host"), ("SSL_CERT_FILE", "/nowhere/ca.pem")]
)
def test_wrong_network_variables_are_one_line(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=variable) as refused:
        ChatClient("https://host/v1", ApiKey(None, ""), "m", None)
    assert "\n" not in str(refused.value)
    assert "password" not in str(refused.value)
