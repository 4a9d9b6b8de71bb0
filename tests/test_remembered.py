"""What a checkpoint's settings may fill in, also when the checkpoint is hostile."""

import json
from typing import Any

import pytest
import torch

from wst.errors import ConfigError
from wst.training.remembered import HARMLESS, flat, harmless, listed, nested, settings_in, withheld

EVIL = {
    "_class_path": "evil.Model",
    "_instantiator": "os.system",
    "teacher": {
        "class_path": "evil.Teacher",
        "init_args": {
            "model": "./evil",
            "revision": "main",
            "adapter": "/etc/passwd",
            "trust_remote_code": True,
            "chat_template_options": {"chat_template": "{{ evil }}"},
            "max_new_tokens": 9,
            "temperature": 0.5,
            "prompt": {"template": "Hint for {query}", "system": None},
            "lora": {"r": 2, "alpha": 4, "target_modules": ["q_proj"]},
        },
    },
    "student": {
        "class_path": "wst.EndpointStudent",
        "init_args": {
            "base_url": "http://evil.example/v1",
            "api_key_env": "AWS_SECRET_ACCESS_KEY",
            "model": "m",
            "max_new_tokens": 7,
        },
    },
    "reward": {"class_path": "subprocess.run", "init_args": {"args": ["id"]}},
    "optimizer": {"class_path": "os.system"},
    "student_prompt": {"placement": "before", "query": "{query}", "system": None, "separator": " "},
    "samples_per_query": 5,
}
TAKEN = {
    "teacher.max_new_tokens": 9,
    "teacher.temperature": 0.5,
    "teacher.prompt.template": "Hint for {query}",
    "teacher.prompt.system": None,
    "teacher.lora.r": 2,
    "teacher.lora.alpha": 4,
    "teacher.lora.target_modules": ["q_proj"],
    "student_prompt.placement": "before",
    "student_prompt.query": "{query}",
    "student_prompt.system": None,
    "student_prompt.separator": " ",
    "samples_per_query": 5,
}


def test_only_harmless_settings_are_taken() -> None:
    settings = settings_in({"hyper_parameters": EVIL, "state_dict": {}})
    assert harmless(settings) == TAKEN
    left = withheld(settings, {}, TAKEN)
    assert left["class_path"] == "evil.Model"
    assert left["student.base_url"] == "http://evil.example/v1"
    assert left["student.api_key_env"] == "AWS_SECRET_ACCESS_KEY"
    assert left["teacher.trust_remote_code"] is True
    assert not left.keys() & TAKEN.keys()
    assert nested(TAKEN)["teacher"]["lora"] == {"r": 2, "alpha": 4, "target_modules": ["q_proj"]}


def test_the_list_names_nothing_that_reaches_out() -> None:
    assert all(name.split(".")[0] in ("teacher", "student_prompt", "samples_per_query") for name in HARMLESS)
    dangerous = {"model", "adapter", "revision", "trust_remote_code", "class_path", "base_url", "api_key_env"}
    assert not dangerous & {part for name in HARMLESS for part in name.split(".")}


@pytest.mark.parametrize(
    ("said", "gone"),
    [
        ({"teacher.max_new_tokens": 3}, {"teacher.max_new_tokens"}),
        ({"teacher.lora": None}, {"teacher.lora.r", "teacher.lora.alpha", "teacher.lora.target_modules"}),
        ({"teacher.class_path": "wst.Teacher"}, {name for name in TAKEN if name.startswith("teacher.")}),
        ({"class_path": "wst.PreferenceModel"}, set(TAKEN)),
    ],
)
def test_what_the_user_says_wins(said: dict[str, Any], gone: set[str]) -> None:
    settings = settings_in({"hyper_parameters": EVIL})
    assert harmless(settings, said) == {name: value for name, value in TAKEN.items() if name not in gone}


def test_full_fine_tuning_is_taken_unless_the_user_gives_a_shape() -> None:
    settings = {"class_path": "wst.WeakToStrong", "teacher.lora": None}
    assert harmless(settings) == {"teacher.lora": None}
    assert harmless(settings, {"teacher.lora.r": 8}) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher.max_new_tokens", 10**12),
        ("teacher.max_new_tokens", True),
        ("teacher.max_new_tokens", "os.system"),
        ("teacher.max_new_tokens", {"class_path": "os.system"}),
        ("teacher.temperature", float("nan")),
        ("teacher.temperature", float("inf")),
        ("teacher.temperature", -1),
        ("teacher.prompt.template", "x" * 1_000_000),
        ("teacher.prompt.template", {"class_path": "os.system"}),
        ("teacher.prompt", "./evil.yaml"),
        ("teacher.prompt", {"class_path": "evil.Prompt"}),
        ("teacher.lora", "./evil.yaml"),
        ("teacher.lora.target_modules", ["a", 3]),
        ("teacher.lora.target_modules", ["a"] * 100_000),
        ("teacher.lora.r", torch.ones(2)),
        ("student_prompt", {"class_path": "evil.Prompt", "init_args": {"query": 3}}),
        ("teacher", "./evil.yaml"),
        ("teacher", ["evil"]),
    ],
)
def test_a_value_of_another_kind_is_not_taken(name: str, value: Any) -> None:
    settings = {"_class_path": "wst.WeakToStrong"} | nested({name: value})
    assert harmless(settings_in({"hyper_parameters": settings})) == {}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "checkpoint",
    [
        None,
        [1],
        {"hyper_parameters": [1]},
        {"hyper_parameters": "text"},
        {"hyper_parameters": {"_class_path": "a.B", "teacher": deep(100)}},
        {"hyper_parameters": {"_class_path": "a.B", "teacher": deep(100_000)}},
        {"hyper_parameters": {"_class_path": "a.B", (1, 2): 3}},
        {"hyper_parameters": {"_class_path": "a.B", "teacher": {str(i): i for i in range(10_000)}}},
    ],
    ids=["none", "list", "settings-list", "settings-text", "deep", "very-deep", "key", "many"],
)
def test_what_no_run_saved_is_refused_in_one_line(checkpoint: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_in(checkpoint)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_a_class_path_has_no_settings() -> None:
    assert settings_in({"state_dict": {}}) == {}
    assert settings_in({"hyper_parameters": {"samples_per_query": 3}}) == {}


def test_a_dot_in_a_key_does_not_reach_into_another_part() -> None:
    settings = {"_class_path": "wst.WeakToStrong", "teacher.max_new_tokens": 3, "teacher": {"lora": None, "lora.r": 2}}
    assert harmless(settings_in({"hyper_parameters": settings})) == {"teacher.lora": None}


def test_what_would_have_been_set_is_one_printable_line() -> None:
    values = flat({"note": "\x1b[31m\n" * 50, "student": {"init_args": {"base_url": "http://evil"}}})
    text = listed(values | {str(i): i for i in range(1000)})
    assert text.startswith('student.base_url="http://evil"')
    assert text.isprintable()
    assert len(text) < 450
    assert text.endswith("(1002 settings)")
    assert json.loads(listed({"a": "é\x1b"}).partition("=")[2]) == "é\x1b"
