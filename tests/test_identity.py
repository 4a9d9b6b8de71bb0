"""Identities, which tell students and teachers apart in caches and checkpoints."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
import torch
import transformers
from endpoints import FakeServer
from toys import Parrot

import wst
from wst import EndpointStudent, LocalStudent, LoRA, Message, Prompt, Teacher, TeacherPrompt
from wst.settings import identity_of


def tiny_teacher(model: str) -> Teacher:
    return Teacher(model, TeacherPrompt("{query}"), max_new_tokens=5, dtype="float32", lora=LoRA(r=4, alpha=8))


def test_identity_is_of_settings_alone(tiny_model: str) -> None:
    one = LocalStudent(tiny_model, max_new_tokens=5)
    two = LocalStudent(tiny_model, max_new_tokens=5, batch_size=2)
    assert identity_of(one) == identity_of(two)
    assert identity_of(one) != identity_of(LocalStudent(tiny_model, max_new_tokens=6))
    assert identity_of(one) != identity_of(LocalStudent(tiny_model, max_new_tokens=5, quantization="nf4"))
    assert identity_of(tiny_teacher(tiny_model)) == identity_of(tiny_teacher(tiny_model))
    json.dumps(identity_of(tiny_teacher(tiny_model)))


def test_identity_does_not_change_with_use() -> None:
    with FakeServer() as server:
        student = EndpointStudent("fake", base_url=server.url, api_key_env=None, cache=False)
        before = identity_of(student)
        student.setup(torch.device("cpu"))
        student.respond([Prompt((Message("user", "x"),))])
        assert identity_of(student) == before
        student.close()
        other = EndpointStudent("fake", base_url=server.url, api_key_env=None, cache=False, temperature=0.5)
        assert identity_of(other) != before


def test_settings_are_told_apart_and_logs_are_not() -> None:
    class Named(Parrot):
        def __init__(self, style: str) -> None:
            super().__init__()
            self.style = style

    class Renamed(Parrot):
        def __init__(self, style: str) -> None:
            super().__init__()
            self.manner = style

    used = Named("a")
    used.respond([Prompt((Message("user", "x"),))])
    assert identity_of(used) == identity_of(Named("a")) != identity_of(Named("b"))
    assert identity_of(Renamed("a")) != identity_of(Renamed("b"))


def test_settings_of_other_kinds_count_too() -> None:
    class Odd(Parrot):
        def __init__(self, place: object) -> None:
            super().__init__()
            self.place = place

    kinds = [Path("a"), Path("b"), Decimal("1.5"), re.compile("x"), re.compile("y"), Parrot, Odd]
    told = [json.dumps(identity_of(Odd(kind))) for kind in kinds]
    assert len(set(told)) == len(kinds)
    assert told == [json.dumps(identity_of(Odd(kind))) for kind in kinds]


def test_identities_are_those_of_the_first_release(tiny_model: str) -> None:
    """Written down, because answers that were paid for are cached under them."""
    libraries = [str(torch.__version__), transformers.__version__]
    assert identity_of(LocalStudent("org/model", max_new_tokens=5, quantization="nf4", revision="main")) == [
        "wst.students.local.LocalStudent",
        {
            "libraries": libraries,
            "limits": [5, 2048],
            "loading": {"dtype": "auto", "quantization": "nf4", "revision": "main", "trust_remote_code": False},
            "local": ["org/model", None],
            "sampling": 0.0,
            "stop": [],
            "template": None,
        },
    ]
    assert identity_of(EndpointStudent("model", base_url="http://localhost/v1", api_key_env=None)) == [
        "wst.students.endpoint.EndpointStudent",
        {
            "azure_api_version": None,
            "endpoint": "http://localhost/v1",
            "request": {"extra_body": {}, "max_tokens": 256, "model": "model", "temperature": 0.0},
            "revision": None,
        },
    ]
    assert identity_of(Teacher("org/model", TeacherPrompt("{query}"))) == [
        "wst.teacher.Teacher",
        {
            "adapter": None,
            "chat_template_options": None,
            "dtype": "auto",
            "max_new_tokens": 48,
            "max_prompt_tokens": 1024,
            "model": ["org/model", None],
            "prompt": ["wst.prompts.TeacherPrompt", {"system": None, "template": "{query}"}],
            "quantization": "none",
            "revision": None,
            "temperature": 1.0,
            "trust_remote_code": False,
        },
    ]


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("wst.baselines", ["GroupMean", "LeaveOneOut", "MovingAverage", "Unaided"]),
        ("wst.data.datamodule", ["QueryDataModule"]),
        ("wst.prompts", ["StudentPrompt", "TeacherPrompt"]),
        ("wst.rewards.math", ["MathAnswer"]),
        ("wst.rewards.text", ["ExactMatch", "LabelMatch", "LastNumber", "Length"]),
        ("wst.rollout", ["Instruction", "Message", "Prompt", "Query", "Response", "Rollout"]),
        ("wst.schedule", ["WarmupLinear"]),
        ("wst.students.accounts", ["Budget", "Prices"]),
        ("wst.students.base", ["Student"]),
        ("wst.teacher", ["LoRA", "Teacher"]),
    ],
)
def test_a_class_that_moves_keeps_its_name_in_identities(module: str, names: list[str]) -> None:
    assert [identity_of(getattr(wst, name)) for name in names] == [f"{module}.{name}" for name in names]
