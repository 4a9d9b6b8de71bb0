"""What is mended in jsonargparse, and how configs are read."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentError, ArgumentParser
from runs import write_config, wst

from wst.cli.early import check_configs, read_config
from wst.cli.parser import mend
from wst.errors import ConfigError


@dataclasses.dataclass
class Fields:
    id: str | None = "a"


class Inner:
    def __init__(
        self,
        fields: Fields = Fields(),  # noqa: B008
        adapter: str | None = "b",
        count: int | None = 1,
        names: list[str | None] | None = None,
    ) -> None: ...


class Untyped:
    def __init__(self, limit, other=None) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


class Outer:
    def __init__(self, inner: Inner, revision: str | None = "c") -> None: ...


def parser() -> ArgumentParser:
    mend()
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(Outer, "outer")
    return made


BASE = [f"--outer={__name__}.Outer", f"--outer.init_args.inner={__name__}.Inner"]
INNER = "outer.init_args.inner.init_args"


@pytest.mark.parametrize("option", ["outer.init_args.revision", *(f"{INNER}.{n}" for n in ("adapter", "count"))])
def test_null_is_none_at_any_depth(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parser().parse_args([*BASE, f"--{option}=null"])[option] is None


def test_an_argument_with_neither_type_nor_default_is_required() -> None:
    mend()
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(Untyped, "it", fail_untyped=False)
    with pytest.raises(ArgumentError, match="limit"):
        made.parse_args([f"--it={__name__}.Untyped"])
    given = made.parse_args([f"--it={__name__}.Untyped", "--it.init_args.limit=[1, x]"]).it.init_args
    assert (given.limit, given.other) == ([1, "x"], None)


def test_null_within_a_value_and_below_a_dataclass() -> None:
    assert parser().parse_args([*BASE, f"--{INNER}.fields.id=null"])[f"{INNER}.fields.id"] is None
    assert parser().parse_args([*BASE, f'--{INNER}.fields={{"id": null}}'])[f"{INNER}.fields.id"] is None
    assert parser().parse_args([*BASE, f'--{INNER}.names=["x", null]'])[f"{INNER}.names"] == ["x", None]


@pytest.mark.parametrize("text", ["7435e1", "1e5", "0x10", "1_000", "012", "true", "2026-01-01", "a: b", "é"])
def test_text_is_saved_so_that_it_loads_as_the_same_text(text: str) -> None:
    config = parser().parse_args(BASE)
    config.outer.init_args.revision = text
    config.outer.init_args.inner.init_args.adapter = text
    again = parser().parse_string(parser().dump(config))
    assert again.outer.init_args.revision == text
    assert again.outer.init_args.inner.init_args.adapter == text


def deep_yaml(levels: int) -> str:
    return "[" * levels + "]" * levels


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("model: é".encode("utf-16"), "is not UTF-8"),
        ("model: é".encode("latin-1"), "is not UTF-8 (byte 7)"),
        (deep_yaml(200).encode(), "levels deep"),
        (deep_yaml(100_000).encode(), "deep"),
        (("x: " + "{a: " * 100_000).encode(), "deep"),
        (BOMB.encode(), "YAML aliases"),
        (b"a: [1, 2", "is not YAML"),
        (b"a: \x00", "is not YAML"),
        (b"x" * 20_000_000, "larger than"),
    ],
    ids=["utf-16", "latin-1", "deep", "very-deep", "open", "bomb", "broken", "zero", "large"],
)
def test_a_config_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config '.*config.yaml'") as caught:
        check_configs(["--config", str(path)])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_config(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_config(tmp_path / "c.yaml") == "a: 1"


@pytest.mark.slow
def test_a_config_is_utf_8_in_any_locale(tmp_path: Path, tiny_model: str) -> None:
    template: dict[str, Any] = {"model.init_args.teacher.init_args.prompt": {"template": "Réponds: {query}"}}
    path = write_config(tmp_path, tiny_model, **template)
    path.write_text(path.read_text().replace("\\xE9", "é"), encoding="utf-8")
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "wst", "fit", "--config", "config.yaml", "--trainer.max_steps=1"]
    environment = os.environ | locale | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = (tmp_path / "runs/tiny/version_0/config.yaml").read_text("utf-8")
    assert "Réponds" in saved


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--seed_everything=-1", "seed"),
        ("--model.init_args.leak_penalty=.nan", "leak_penalty"),
        ("--seed_everything=4294967296", "seed"),
        ("--trainer.val_check_interval=.inf", "val_check_interval"),
    ],
)
def test_a_value_that_is_no_number_is_one_line(tmp_path: Path, tiny_model: str, option: str, said: str) -> None:
    write_config(tmp_path, tiny_model)
    done = wst(["fit", "--config", "config.yaml", option, "--trainer.max_steps=1"], tmp_path)
    assert "Traceback" not in done.err
    assert done.code == 2
    assert said in done.err.splitlines()[-1]
