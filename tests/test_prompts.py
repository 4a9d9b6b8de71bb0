"""Templates: what goes where, and that no value can reach beyond its own place."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wst.errors import ConfigError
from wst.prompts import Experience, Placement, StudentPrompt, TeacherPrompt, fill
from wst.types import Instruction, Message, Prompt, Query

QUERY = Query("q", "2 + 2 = ?")
HISTORY = (Message("user", "Hello"), Message("assistant", "Yes?"))
DIALOGUE = Query("d", "2 + 2 = ?", history=HISTORY)
NASTY = ["{query}", "{instruction}", "{0}", "{}", "{query.__class__}", "{", "}}", "%s", "\\1", "\\g<1>", "$query"]


def turns(prompt: Prompt) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in prompt.messages]


# --- fill


@pytest.mark.parametrize("value", NASTY)
def test_values_are_put_in_as_they_are(value: str) -> None:
    assert fill("<{instruction}|{query}>", instruction=value, query="Q") == f"<{value}|Q>"
    assert fill("<{instruction}|{query}>", instruction="I", query=value) == f"<I|{value}>"


@pytest.mark.parametrize("template", ["{0} {} {{}} {other} {x!r} {x:>9} }{ {query", '{"a": [1]}', "\\1 %s"])
def test_braces_that_name_no_value_stay(template: str) -> None:
    assert fill(template, query="Q") == template


def test_every_place_is_filled() -> None:
    assert fill("{a}{b}{a} {{a}}", a="1", b="2") == "121 {1}"


@given(st.lists(st.sampled_from(["{a}", "{b}", "{", "}", "text", "{c}"])), st.text(), st.text())
def test_fill_replaces_each_place_once(parts: list[str], a: str, b: str) -> None:
    template = "".join(parts)
    pieces = re.split(r"(\{a\}|\{b\})", template)
    assert fill(template, a=a, b=b) == "".join({"{a}": a, "{b}": b}.get(piece, piece) for piece in pieces)


# --- What the teacher reads


def test_the_teacher_reads_its_template_with_the_query() -> None:
    prompt = TeacherPrompt("Help with: {query}.")
    assert turns(prompt(QUERY)) == [("user", "Help with: 2 + 2 = ?.")]
    assert turns(TeacherPrompt("{query}", system="Be brief.")(QUERY)) == [
        ("system", "Be brief."),
        ("user", "2 + 2 = ?"),
    ]


def test_the_default_template_holds_the_query() -> None:
    ((role, content),) = turns(TeacherPrompt()(QUERY))
    assert role == "user"
    assert "\n\nRequest: 2 + 2 = ?\n\n" in content


def test_the_teacher_reads_earlier_turns_before_the_query() -> None:
    ((_, content),) = turns(TeacherPrompt("<{query}>")(DIALOGUE))
    assert content == "<user: Hello\n\nassistant: Yes?\n\n2 + 2 = ?>"


@pytest.mark.parametrize("text", NASTY)
def test_a_query_cannot_change_the_teachers_template(text: str) -> None:
    query = Query("q", text, history=(Message("user", text),))
    assert turns(TeacherPrompt("<{query}>")(query)) == [("user", f"<user: {text}\n\n{text}>")]


# --- What the student reads


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("system", [("system", "Add up."), ("user", "2 + 2 = ?")]),
        ("before", [("user", "Add up.\n\n2 + 2 = ?")]),
        ("after", [("user", "2 + 2 = ?\n\nAdd up.")]),
    ],
)
def test_the_instruction_stands_where_it_is_placed(placement: Placement, expected: list[tuple[str, str]]) -> None:
    assert turns(StudentPrompt(placement)(QUERY, Instruction("Add up."))) == expected


@pytest.mark.parametrize("placement", ["system", "before", "after"])
@pytest.mark.parametrize("instruction", [None, Instruction("")])
def test_without_an_instruction_the_student_reads_the_query_alone(
    placement: Placement, instruction: Instruction | None
) -> None:
    assert turns(StudentPrompt(placement)(QUERY, instruction)) == [("user", "2 + 2 = ?")]
    with_task = StudentPrompt(placement, query="Q: {query}\nA:", system="You calculate.")
    assert turns(with_task(QUERY, instruction)) == [("system", "You calculate."), ("user", "Q: 2 + 2 = ?\nA:")]


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("system", [("system", "You calculate. | Add up."), ("user", "Q: 2 + 2 = ?")]),
        ("before", [("system", "You calculate."), ("user", "Add up. | Q: 2 + 2 = ?")]),
        ("after", [("system", "You calculate."), ("user", "Q: 2 + 2 = ? | Add up.")]),
    ],
)
def test_pieces_of_a_turn_are_separated(placement: Placement, expected: list[tuple[str, str]]) -> None:
    prompt = StudentPrompt(placement, query="Q: {query}", system="You calculate.", separator=" | ")
    assert turns(prompt(QUERY, Instruction("Add up."))) == expected


@pytest.mark.parametrize("placement", ["system", "before", "after"])
def test_earlier_turns_stand_between_system_message_and_query(placement: Placement) -> None:
    prompt = StudentPrompt(placement, query="Q: {query}", system="You calculate.")
    messages = prompt(DIALOGUE, Instruction("Add up.")).messages
    assert messages[1:3] == HISTORY
    assert [message.role for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[-1] != Message("user", "Q: 2 + 2 = ?") or placement == "system"


@pytest.mark.parametrize("placement", ["system", "before", "after"])
@pytest.mark.parametrize("text", NASTY)
def test_neither_query_nor_instruction_can_change_the_students_prompt(placement: Placement, text: str) -> None:
    prompt = StudentPrompt(placement, query="<{query}>")
    contents = [content for _, content in turns(prompt(Query("q", text), Instruction(text)))]
    assert "\n\n".join(contents) == (f"<{text}>\n\n{text}" if placement == "after" else f"{text}\n\n<{text}>")


# --- Errors


@pytest.mark.parametrize("template", ["", "query", "{Query}", "{ query }", "{query", "{{instruction}}"])
def test_a_template_without_a_place_for_the_query_is_an_error(template: str) -> None:
    with pytest.raises(ConfigError, match=r"TeacherPrompt: template has no place for \{query\}; put \{query\} where"):
        TeacherPrompt(template)
    with pytest.raises(ConfigError, match=r"StudentPrompt: query has no place for \{query\}"):
        StudentPrompt(query=template)


def test_an_unknown_placement_is_an_error() -> None:
    with pytest.raises(ConfigError, match="StudentPrompt: placement must be system, before or after, got 'above'"):
        StudentPrompt(placement="above")  # type: ignore[arg-type]


def test_examples_are_earlier_turns_of_the_teachers_chat() -> None:
    prompt = TeacherPrompt("Review: {query}", system="Ask.", examples=(("Late {query}.", "Happy?"), ("Hot.", "Cold?")))
    turns = [(message.role, message.content) for message in prompt(Query("1", "Good.")).messages]
    assert turns == [
        ("system", "Ask."),
        ("user", "Review: Late {query}."),
        ("assistant", "Happy?"),
        ("user", "Review: Hot."),
        ("assistant", "Cold?"),
        ("user", "Review: Good."),
    ]
    assert TeacherPrompt(examples=[["a", "b"]]).examples == (("a", "b"),)  # type: ignore[arg-type]  # as JSON has it


@pytest.mark.parametrize("examples", [[["a"]], ["ab"], [["a", 1]], [["a", "b", "c"]]])
def test_an_example_that_is_no_pair_of_texts_is_refused(examples: Any) -> None:
    with pytest.raises(ConfigError, match=r"example 1 must be a pair of texts"):
        TeacherPrompt(examples=examples)


# --- experience


@pytest.mark.parametrize("setting", [{"capacity": 0}, {"good": 0}, {"bad": -1}, {"good": 1.5}], ids=str)
def test_impossible_settings_of_experience_are_refused(setting: Any) -> None:
    with pytest.raises(ConfigError, match=f"Experience: {next(iter(setting))} must be "):
        Experience(**setting)


def experienced(**settings: int) -> Experience:
    experience = Experience(**settings)
    experience.observe([("a", "Be  brief.", 1.0), ("b", "Be kind.", 0.5), ("c", "Sing.", 0.0)])
    experience.observe([("b", "Be brief.", 0.0), ("d", "Unknown.", float("nan")), ("d", "  ", 1.0)])
    return experience


def test_experience_is_of_other_queries_the_best_and_the_worst() -> None:
    good, bad = (
        "Instructions that worked well for other requests:",
        "Instructions that worked badly for other requests:",
    )
    assert experienced(good=1).text("x") == f"{good}\n- Be brief.\n{bad}\n- Sing."  # 0.5 as Be kind., and earlier
    assert experienced(good=1).text("a") == f"{good}\n- Be kind.\n{bad}\n- Be brief."  # b's alone, with 0.0
    assert experienced(good=5, bad=0).text("b") == f"{good}\n- Be brief.\n- Sing."
    assert Experience().text("x") == ""
    alone = Experience()
    alone.observe([("a", "Be brief.", 1.0)])
    assert alone.text("a") == ""


def test_the_oldest_experience_goes_and_the_rest_is_saved() -> None:
    experience = experienced(capacity=2)
    again = Experience(capacity=2)
    again.load_state_dict(experience.state_dict())
    assert again.state_dict() == {"rows": [["c", "Sing.", 0.0], ["b", "Be brief.", 0.0]]}
    assert again.text("x") == experience.text("x")


@pytest.mark.parametrize("value", NASTY)
def test_experience_is_put_in_as_it_is(value: str) -> None:
    prompt = TeacherPrompt("{experience}|{query}")
    assert prompt.has_experience
    assert turns(prompt(QUERY, value)) == [("user", f"{value}|2 + 2 = ?")]
    assert turns(prompt(QUERY)) == [("user", "|2 + 2 = ?")]
    exported = prompt.experienced(value)
    assert not exported.has_experience
    (_, text), *_ = turns(exported(QUERY))
    assert text == f"{value}|2 + 2 = ?".replace("{query}", "{ query }")
