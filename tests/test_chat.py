"""Chat templates and tokenizers that are unlike others: the prompt holds the text, or there is one line."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from wst import LocalStudent, Message, Prompt, Query, Teacher, TeacherPrompt
from wst.errors import ConfigError, DataError
from wst.modeling import chat
from wst.modeling.chat import ChatEncoder, encode_chat, encode_truncated

CPU = torch.device("cpu")
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate\nuser/assistant') }}{% endif %}{{ m.content }}|{% endfor %}"
)
CHAT = [Message("system", "Brief."), Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye")]


@pytest.fixture
def tokenizer(tiny_model: str) -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_model)
    return loaded


def test_a_chat_is_encoded_up_to_where_the_model_goes_on(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = encode_chat(tokenizer, CHAT)
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(2) == 5  # special tokens are single tokens


REFUSING = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
IGNORING = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}|{% endfor %}"


@pytest.mark.parametrize("template", [REFUSING + IGNORING, IGNORING], ids=["refuses", "ignores"])
def test_a_system_text_goes_to_the_first_turn_where_the_template_knows_no_system_turn(
    tokenizer: PreTrainedTokenizerBase, template: str
) -> None:
    tokenizer.chat_template = template
    text = "user: Brief.\n\nHi|assistant: Hello.|user: Bye|"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == text
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == text
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[:1])) == "user: Brief.|"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[1:2])) == "user: Hi|"
    greeted = [CHAT[0], Message("assistant", "Welcome."), *CHAT[1:]]
    assert tokenizer.decode(encode_chat(tokenizer, greeted)) == f"assistant: Welcome.|{text}"


def test_without_a_template_the_turns_are_joined_by_blank_lines(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == "Brief.\n\nHi\n\nHello.\n\nBye\n\n"


def test_options_reach_the_template(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}{% if think %} (think){% endif %}"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[1:2], {"think": True})) == "Hi (think)"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT[1:2])) == "Hi"


@pytest.mark.parametrize(
    ("text", "limit", "expected", "cut"),
    [
        ("0123456789", 14, "<<0123456789>>", False),
        ("0123456789", 13, "<<012345678>>", True),
        ("0123456789", 5, "<<0>>", True),
        ("0123456789", 4, "<<>>", True),
        ("0123456789", 3, "<>>", True),
        ("0123456789", 1, ">", True),
        ("", 4, "<<>>", False),
        ("", 2, ">>", True),
    ],
)
def test_a_prompts_text_is_cut_at_its_end_to_fit(
    tokenizer: PreTrainedTokenizerBase, text: str, limit: int, expected: str, cut: bool
) -> None:
    def encode(words: str) -> list[int]:
        return list(tokenizer(f"<<{words}>>")["input_ids"])

    ids, was_cut = encode_truncated(tokenizer, encode, text, limit)
    assert (tokenizer.decode(ids), was_cut) == (expected, cut)


@cache
def load_once(folder: str) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@given(text=st.text(max_size=60), limit=st.integers(1, 80))
def test_no_text_is_too_strange_to_be_cut(tiny_model: str, text: str, limit: int) -> None:
    tokenizer = load_once(tiny_model)

    def encode(words: str) -> list[int]:
        return list(tokenizer(f"[{words}]")["input_ids"])

    ids, cut = encode_truncated(tokenizer, encode, text, limit)
    assert 0 < len(ids) <= limit
    assert cut is (len(encode(text)) > limit)
    assert tokenizer.decode(ids).endswith("]")


def test_a_template_that_reads_parts_is_given_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = encode_chat(tokenizer, CHAT)
    tokenizer.chat_template = PARTS
    assert encode_chat(tokenizer, CHAT) == plain


def test_a_template_that_drops_the_text_is_one_line(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.words }}|{% endfor %}"
    with pytest.raises(DataError, match=r"^the model's chat template leaves out the user turn 'Bye'.*chat_template"):
        encode_chat(tokenizer, CHAT)


def test_a_template_may_trim_a_text(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | trim }}|{% endfor %}"
    assert tokenizer.decode(encode_chat(tokenizer, [Message("user", "  Hi \n")])) == "Hi|"
    assert tokenizer.decode(encode_chat(tokenizer, [Message("user", "  ")])) == "|"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ALTERNATING, "roles must alternate"),
        ("{{ messages[0].content }}{{ messages[0].content + 3 }}", "can only concatenate"),
        ("{{ messages.nothing.more }}", "has no attribute"),
        ("{% for", "Unexpected end|unexpected|Expected"),
    ],
)
def test_turns_that_a_template_refuses_are_one_line_that_names_the_query(
    tiny_model: str, template: str, reason: str
) -> None:
    teacher = Teacher(tiny_model, dtype="float32")
    teacher.load(CPU)
    student = LocalStudent(tiny_model, dtype="float32", cache=False)
    student.setup(CPU)
    teacher.tokenizer.chat_template = student.tokenizer.chat_template = template
    asked = Prompt((Message("user", "one"), Message("user", "two")))
    if template != ALTERNATING:
        with pytest.raises(DataError, match=rf"^query 'q7': the model's chat template refuses .*({reason})") as caught:
            teacher.encode(Query("q7", "x"))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=rf"^student '.*': a prompt.*turns user, user \(.*({reason})") as caught:
        student.respond([asked])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m.content }}|{% endfor %}"])
def test_a_tokenizer_that_appends_its_end_token_does_not_end_the_prompt(
    tokenizer: PreTrainedTokenizerBase, template: str | None
) -> None:
    tokenizer.chat_template = template
    plain = encode_chat(tokenizer, CHAT)
    backend: Any = tokenizer
    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|> <|im_end|>", special_tokens=[("<|im_start|>", 2), ("<|im_end|>", 3)]
    )
    beginning = [2] if template is None else []
    assert encode_chat(tokenizer, CHAT) == [*beginning, *plain]


def test_half_a_surrogate_is_a_question_mark(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(encode_chat(tokenizer, [Message("user", "a\ud800b")])).startswith("<|im_start|>user\na?b")
    encoder = ChatEncoder(40, "limit")
    with pytest.warns(UserWarning, match="q was cut"):
        ids = encoder.prompt(tokenizer, lambda text, _: [Message("user", text)], "\udfff" * 500, "q")
    assert len(ids) == 40


# ------------------------------------------------------------------------------------------------------------- length


@pytest.mark.parametrize("length", [30, 31, 100, 400, 5000])
def test_a_long_text_is_cut_to_the_same_tokens_whether_or_not_it_is_tokenized_whole(
    tokenizer: PreTrainedTokenizerBase, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))

    def ids() -> tuple[list[int], bool]:
        return encode_truncated(tokenizer, lambda words: list(tokenizer(f"<{words}>")["input_ids"]), text, 32)

    short = ids()
    monkeypatch.setattr(chat, "_CHARACTERS", 10**6)
    assert ids() == short
    assert short[1] is (length > 30)


def test_a_dialogue_of_megabytes_has_the_same_last_tokens(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = [Message("user", "x" * 900 + "end"), Message("assistant", "y" * 700 + "z")]
    encoder = ChatEncoder(64, "limit")
    (row,) = encoder.dialogues(tokenizer, [turns])
    monkeypatch.setattr(chat, "_CHARACTERS", 10**6)
    assert encoder.dialogues(tokenizer, [turns]) == [row]
    assert (len(row), encoder.shortened) == (64, 2)


def test_a_prompt_that_leaves_no_room_for_a_query_is_refused(tiny_model: str) -> None:
    examples = (("word " * 50, "Think."), ("word " * 50, "Think."))
    teacher = Teacher(tiny_model, TeacherPrompt("{query}", examples=examples), dtype="float32", max_prompt_tokens=60)
    with pytest.raises(ConfigError, match=r"max_prompt_tokens=60 leaves no room for a query: .* take \d+ tokens"):
        teacher.load(CPU)


def test_a_long_chat_keeps_its_query_and_last_turns(tiny_model: str) -> None:
    turns = tuple(Message(("user", "assistant")[n % 2], f"turn {n} of many") for n in range(30))
    teacher = Teacher(tiny_model, TeacherPrompt("{query}\nWrite."), dtype="float32", max_prompt_tokens=120)
    teacher.load(CPU)
    with pytest.warns(UserWarning, match="query 'q' was cut to fit"):
        ids = teacher.encode(Query("q", "my question", history=turns))
    text = teacher.tokenizer.decode(ids)
    assert "my question\nWrite." in text
    kept = [n for n in range(30) if f"turn {n} of many" in text]
    assert kept == list(range(30 - len(kept), 30))
    assert kept
    assert len(ids) <= 120 < len(ids) + len("assistant: turn 10 of many\n\n")  # a byte is a token


def test_a_student_reads_the_last_turns_and_the_whole_question(tiny_model: str) -> None:
    turns = [Message(("user", "assistant")[n % 2], f"turn {n} of many") for n in range(30)]
    student = LocalStudent(tiny_model, dtype="float32", max_prompt_tokens=150, cache=False)
    student.setup(CPU)
    asked = Prompt((Message("system", "be brief"), *turns, Message("user", "my question")))
    with pytest.warns(UserWarning, match="was cut to fit"):
        text = student.tokenizer.decode(student._encode(asked))
    assert "be brief" in text
    assert "my question" in text
    kept = [n for n in range(30) if f"turn {n} of many" in text]
    assert kept == list(range(30 - len(kept), 30))
    assert kept[0] % 2 == 0


def test_a_prompt_that_fits_is_encoded_once(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(tiny_model, TeacherPrompt("{query}"), dtype="float32")
    teacher.load(CPU)
    student = LocalStudent(tiny_model, dtype="float32", cache=False)
    student.setup(CPU)
    times = []
    monkeypatch.setattr(chat, "encode_chat", lambda *given, **named: times.append(1) or encode_chat(*given, **named))
    turns = (Message("user", "a"), Message("assistant", "b"))
    for history in ((), turns):
        teacher.encode(Query("q", "x", history=history))
        student._encode(Prompt((*history, Message("user", "x"))))
    assert len(times) == 4


@pytest.mark.parametrize("place", ["query", "history"])
def test_a_query_of_megabytes_is_not_tokenized_whole(
    tiny_model: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Count the characters that reach the tokenizer."""
    teacher = Teacher(tiny_model, TeacherPrompt("{query}"), dtype="float32", max_prompt_tokens=100)
    teacher.load(CPU)
    teacher.encode(Query("q", "x"))
    kind: Any = type(teacher.tokenizer)
    original = kind._encode_plus
    seen: list[int] = []

    def count(self: Any, text: Any, *args: Any, **options: Any) -> Any:
        seen.append(len(text))
        return original(self, text, *args, **options)

    monkeypatch.setattr(kind, "_encode_plus", count)
    big = "word " * 400_000
    query = Query("q", big) if place == "query" else Query("q", "x", history=(Message("user", big),))
    with pytest.warns(UserWarning, match="was cut"):
        assert len(teacher.encode(query)) == (100 if place == "query" else len(teacher.encode(Query("q", "x"))))
    assert max(seen) < 10_000
    assert len(seen) < 50
