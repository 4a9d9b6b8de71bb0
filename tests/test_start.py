"""What the command line answers before torch is imported: help, and mistakes that can be seen without it."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from endpoints import FakeServer
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from runs import TESTS

import wst
from wst import EndpointStudent
from wst.__main__ import COMMANDS, CONFIGURED
from wst.cli.early import TOP, check_options
from wst.cli.help import SHOWN, class_help, short_help
from wst.cli.help import run as run_help
from wst.cli.lightning import SETTINGS, WSTCommandLine
from wst.cli.parts import check_parts
from wst.cli.signatures import signature_of
from wst.errors import ConfigError

QUICKSTART = str(TESTS.parent / "lightning_configs" / "quickstart.yaml")
HEAVY = {"torch", "transformers", "lightning", "jsonargparse"}


def start(*args: str) -> tuple[int, str, str]:
    """Run ``wst`` in a process of its own; fail if it imports anything heavy."""
    command = [sys.executable, "-X", "importtime", "-m", "wst", *args]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    lines = done.stderr.splitlines()
    assert not HEAVY & {line.rsplit("|", 1)[-1].strip() for line in lines}
    return done.returncode, done.stdout, "\n".join(line for line in lines if not line.startswith("import time:"))


def test_version() -> None:
    code, out, _ = start("--version")
    assert code == 0
    assert re.fullmatch(r"wst \d+\.\d+\.\d+\n", out)


def test_help_lists_the_commands() -> None:
    code, out, _ = start("--help")
    assert code == 0
    assert all(re.search(rf"^  {name} +\w", out, flags=re.MULTILINE) for name in COMMANDS)


MISTAKES = {
    "model: {class_path: wst.WeakToStrong, init_args: {samples_per_qery: 3}}": "WeakToStrong has no option",
    "config: [wst:quickstart, wst:parts/run]": "own.yaml: config must name one file, got ['wst:quickst",
    "trainer: {callbacks: [{class_path: wst.EarlyStopp}]}": "no class wst.EarlyStopp; did you mean wst.EarlyStop?",
    "modle: {class_path: wst.WeakToStrong}": "the command has no option 'modle'; did you mean model?",
    "config: wst:parts/rum": "'wst:parts/rum' does not come with wst; did you mean wst:parts/run?",
    "model.init_args.reward: my_reward.Right": "no my_reward.py in the current folder; did you mean my_rewards?",
    "model.init_args.reward: my_rewards.Wrong": "my_rewards.py has no 'Wrong'; it has Right",
    "model.init_args.reward: broken.Right": "broken.py:1: expected an indented block",
    "model.init_args.reward.init_args.labels: [positive, positive]": "LabelMatch: ",
    "model.init_args.student_prompt.query: none": "StudentPrompt: query has no place for {query}",
    "model.init_args.teacher.init_args.prompt.template: none": "TeacherPrompt: template has no place for {query}",
    "model.init_args.teacher.init_args.model: ./none": "model './none': no such folder",
    "data.init_args.train: none.csv": "train: none.csv does not exist",
    "data.init_args.train: rows.csv": "rows.csv:2: field 'text' is missing (there are 'body', 'label')",
    "data.init_args: {train: rows.csv, fields: {query: body, id: null}}": "val is still wst:data/reviews/val.jsonl",
    "model.init_args.student: {class_path: wst.EndpointStudent, init_args: {model: m}}": "OPENAI_API_KEY is not set",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_in_a_config_is_one_line_before_torch(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS.parent))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(line)
    Path("my_rewards.py").write_text("class Right: ...\n")
    Path("broken.py").write_text("class Right:\n")
    Path("rows.csv").write_text("body,label\nx,positive\n")
    code, out, err = start("fit", "--config", "wst:quickstart", "--config", "own.yaml")
    assert (code, out) == (2, "")
    assert MISTAKES[line] in err
    assert len(err.splitlines()) == 1


def test_what_the_command_line_has_asked_is_booked_by_the_run(tmp_path: Path) -> None:
    with FakeServer() as server:
        settings = check_options(
            [
                *("--config", "wst:quickstart", "--model.init_args.student", "wst.EndpointStudent"),
                *("--model.init_args.student.base_url", server.url, "--model.init_args.student.model", "alias"),
                "--model.init_args.student.api_key_env=null",
            ]
        )
        check_parts(settings)
        student = EndpointStudent("alias", server.url, None)
        student.accounts.open(tmp_path, "fit")
        student.check()
        assert len(server.requests) == 1
        assert student.accounts.run()["fit"]["answered"] == 1


@pytest.mark.parametrize(("name", "words"), [("LabelMatch", "labels: list[str]"), ("wst.Teacher", "lora: LoRA | None")])
def test_help_of_a_class_is_read_from_its_source(name: str, words: str) -> None:
    code, out, _ = start("help", name)
    assert code == 0
    assert f"\n  {words}\n" in out
    assert "(required)" in out


@pytest.mark.parametrize("name", ["JamesStein", "LeaveOneOut", "RewardLogging"])
def test_help_of_a_class_without_options_says_what_it_is(name: str) -> None:
    found = class_help(name)
    assert found.startswith(f"wst.{name}\n\n")
    assert found.endswith("It has no options.")
    assert len(found) > 100


def test_help_of_a_stranger_does_not_steer_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "strange.py").write_text('class Brief:\n    """Nice \x1b]0;owned\x07\x1b[31mred.  Two."""\n')
    monkeypatch.chdir(tmp_path)
    assert run_help(["strange.Brief"]) == 0
    said = capsys.readouterr().out
    assert "Nice \\x1b]0;owned\\x07\\x1b[31mred.  Two." in said
    assert "\x1b" not in said


def test_help_of_a_class_that_only_its_library_knows(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--val_share" in class_help("wst.GSM8K")
    assert "weight_decay" in class_help("torch.optim.AdamW")
    with pytest.raises(ConfigError, match=r"help: no class 'nowhere\.Nothing'"):
        class_help("nowhere.Nothing")


@pytest.mark.parametrize(
    ("files", "name", "words"),
    [
        ({"broken_a": "class X(:"}, "broken_a.X", r"broken_a.py is no Python"),
        ({"broken_b": "raise OSError('no')"}, "broken_b.X", r"broken_b cannot be imported \(OSError: no\)"),
        ({"broken_c": "import sys; sys.exit(3)"}, "broken_c.X", "broken_c cannot be imported"),
        ({"broken_d": "import none_such\nclass X(none_such.Y): ..."}, "broken_d.X", "needs none_such"),
        ({"ring_a": "from ring_b import X", "ring_b": "from ring_a import X"}, "ring_a.X", "no class 'ring_a.X'"),
    ],
)
def test_help_of_a_file_that_cannot_be_read_is_one_line(
    files: dict[str, str], name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for stem, text in files.items():
        (tmp_path / f"{stem}.py").write_text(text)
    with pytest.raises(ConfigError, match=words):
        class_help(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GSM8K", "wst.GSM8K", "torch.optim.AdamW", "LabelMatch"])
def test_help_runs_no_file_that_has_the_name_of_another_module(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for module in ("torch", "numpy", "yaml", "random", "GSM8K", "LabelMatch"):
        Path(f"{module}.py").write_text("raise SystemExit('it was run')")
    code = "import sys; from wst.cli.help import run; sys.exit(run(sys.argv[1:]))"
    # Safe mode (-P): as with the installed command, the current folder is not on the path by itself.
    command = [sys.executable, "-P", "-c", code, name]
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
    assert (done.returncode, "it was run" in done.stderr) == (0, False), done.stderr


def test_help_imports_a_file_only_where_its_source_does_not_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("help_read.py").write_text("print('run')\nclass X:\n    def __init__(self, a: int = 3): ...\n")
    Path("help_run.py").write_text("print('run')\nfrom help_read import X\nclass Y(X): ...\n")
    assert "  a: int" in class_help("help_read.X")
    assert capsys.readouterr().out == ""
    assert "--a" in class_help("help_run.Y")
    assert capsys.readouterr().out == "run\n" * 2


def test_help_of_a_command_fits_two_screens() -> None:
    lines = short_help("fit").splitlines()
    assert len(lines) < 120
    assert max(map(len, lines)) <= 120
    assert lines.index("wst.WeakToStrong: --model.init_args.NAME VALUE") < 8


@pytest.mark.parametrize("name", ["fit", "check"])
def test_help_of_a_command_lists_the_main_options(name: str) -> None:
    code, out, _ = start(name, "--config", "absent.yaml", "--help")
    assert code == 0
    assert f"wst {name} --help=all" in out
    for class_path, option in SHOWN.items():
        section = out.partition(f"{class_path}: {option}.NAME")[2].partition("\nwst.")[0]
        for argument in inspect.signature(getattr(wst, class_path.removeprefix("wst."))).parameters.values():
            row = re.search(rf"^  {argument.name} .*?(?=^  \w|\Z)", section, flags=re.MULTILINE | re.DOTALL)
            assert row is not None, argument.name
            plain = re.sub(r"\s+", " ", row[0])
            if argument.default is argument.empty:
                assert "(required)" in plain
            elif argument.default is None or isinstance(argument.default, bool | int | float | str):
                assert f"(default: {json.dumps(argument.default)})" in plain


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fitt"], "no command 'fitt'; did you mean fit?"),
        (["dance"], "no command 'dance'; the commands are " + ", ".join(COMMANDS)),
        ([], "no command given"),
        (["fit", "--config", "absent.yaml"], "config: no such file: 'absent.yaml'"),
        (["test", "-c", QUICKSTART, "--config=absent.yaml"], "config: no such file: 'absent.yaml'"),
        (["compare", "--config", "absent.yaml"], "config: no such file: 'absent.yaml'"),
        (["fit", "--no_such_flag"], "option --no_such_flag: the command has no option 'no_such_flag'"),
        (["fit", "--trainer.max_step", "3"], "Trainer has no option 'max_step'; did you mean max_steps?"),
        (
            ["fit", "-c", QUICKSTART, "--model.init_args.samples_per_qery=3"],
            "WeakToStrong has no option 'samples_per_qery'; did you mean samples_per_query?",
        ),
        (
            ["check", "--config", QUICKSTART, "--model.student.max_tokens", "3"],
            "LocalStudent has no option 'max_tokens'; did you mean max_new_tokens?",
        ),
        (
            ["fit", "--config", QUICKSTART, "--model.init_args.reward=wst.Judge", "--model.init_args.reward.rubrik=x"],
            "Judge has no option 'rubrik'; did you mean rubric?",
        ),
        (
            ["fit", "-c", QUICKSTART, "--data.init_args.fields.qery=x"],
            "FieldMap has no option 'qery'; did you mean query?",
        ),
        (
            ["fit", "-c", QUICKSTART, "--model.init_args.reward=wst.LabelMach"],
            "no class wst.LabelMach; did you mean wst.La",
        ),
        (["fit", "-c", QUICKSTART, "--trainer.max_steps", "ten"], "max_steps: expected a number (int), got 'ten'"),
        (["fit", "-c", "quickstart.yaml"], "config: no such file: 'quickstart.yaml'; did you mean wst:quickstart?"),
        (["help", "LabelMach"], "no class 'wst.LabelMach'; did you mean wst.LabelMatch?"),
        (["serve", "folder", "--upstream", "http://x/v1", "--prot", "80"], "--prot 80; did you mean --port?"),
    ],
)
def test_a_mistake_that_can_be_seen_early_is_one_line(args: list[str], said: str) -> None:
    code, out, err = start(*args)
    assert code == 2
    assert out == ""
    assert err.startswith("wst: error: ")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--model.init_args.student=toys.Parrot", "--model.init_args.student.init_args.anything=3"],
        ["--model=other.Model", "--model.anything=3", "--data=other.Data", "--data.init_args.anything", "3"],
        ["--trainer.callbacks+=toys.KillAt", "--trainer.callbacks.init_args.step=3"],
        ["--model.init_args.student", "wst.EndpointStudent", "--model.init_args.student.init_args.base_url=http://x"],
        ["--model.help", "wst.WeakToStrong", "--print_config", "--help=all"],
        ["--config", "model: {class_path: other.Model}", "--model.anything=3"],
    ],
)
def test_what_may_be_right_is_left_to_the_parser(options: list[str]) -> None:
    check_options(["--config", QUICKSTART, *options])


def test_a_config_without_an_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("one.yaml").write_text("config: two.yaml")
    Path("two.yaml").write_text("config: one.yaml")
    with pytest.raises(ConfigError, match=r"one.yaml' includes itself; take it out of two.yaml"):
        check_options(["--config", "one.yaml"])
    Path("three.yaml").write_text("model: &m {init_args: {teacher: *m, student: &s [*s, *m]}}")
    with pytest.raises(ConfigError, match=r"three.yaml': \*m stands inside itself"):
        check_options(["--config", "three.yaml"])


def test_of_two_classes_the_later_one_counts(tmp_path: Path) -> None:
    config = tmp_path / "parrot.yaml"
    config.write_text("model: {init_args: {student: toys.Parrot}}")
    check_options(["--config", QUICKSTART, "--config", str(config), "--model.student.anything=3"])
    with pytest.raises(ConfigError, match="LocalStudent has no option"):
        check_options(["--config", str(config), "--config", QUICKSTART, "--model.student.anything=3"])


@pytest.mark.parametrize("stage", [name for name in CONFIGURED if name != "check"])
def test_the_early_check_knows_every_option_of_the_parser(stage: str) -> None:
    class Parsers(WSTCommandLine):
        def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
            raise InterruptedError(*{action.dest.split(".")[0] for action in self._subcommand_parsers[stage]._actions})

    with pytest.raises(InterruptedError) as stopped:
        Parsers(LightningModule, None, save_config_callback=None, args=[stage], **SETTINGS)
    assert set(stopped.value.args) <= {*TOP, "trainer", "model", "data"}


def test_signatures_are_read_from_the_source_as_python_has_them() -> None:
    classes = {f"wst.{name}": getattr(wst, name) for name in wst.__all__ if name[0].isupper()}
    classes["lightning.pytorch.trainer.trainer.Trainer"] = Trainer
    read = 0
    for class_path, cls in classes.items():
        signature = signature_of(class_path)
        if signature is None:
            continue
        read += 1
        real = inspect.signature(cls).parameters
        assert list(signature.defaults) == list(real), class_path
        for name, default in signature.defaults.items():
            assert (default is None) == (real[name].default is inspect.Parameter.empty), f"{class_path}.{name}"
    assert read > 20
    assert all(signature_of(class_path) is not None for class_path in SHOWN)
    assert signature_of("wst.models.Nothing") is None
    assert signature_of("toys.Parrot") is None
    old = signature_of("wst.baselines.MovingAverage")  # under the module's former name
    assert old is not None
    assert old == signature_of("wst.MovingAverage")
