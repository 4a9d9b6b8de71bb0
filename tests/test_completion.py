"""`wst completion`: bash completes with the script, and every shell's script names the options."""

import subprocess
from pathlib import Path

import pytest

from wst.cli.completion import run
from wst.errors import ConfigError

pytest.importorskip("shtab")

ASK = """\
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_wst_joined wst "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
COMPLETIONS = {
    "fi": "fit",
    "fit --model.init_args.sam": "--model.init_args.samples_per_query",
    "fit --model.init_args.student.init_args.base": "--model.init_args.student.init_args.base_url",
    "fit --model.init_args.reward wst.La": "wst.LabelMatch wst.LastNumber",
    "fit --trainer.max_s": "--trainer.max_steps",
    "check --que": "--queries",
    # bash hands over a name with a colon as three words, and wants what follows the colon.
    "fit --config wst : quick": "quickstart",
    "test --config wst : overlays/end": "overlays/endpoint",
    "fit --config wst:quick": "wst:quickstart",
    "fit --config own": "own.yaml",
    "compare --config wst : compare/q": "compare/quickstart",
    "fit --config wst : quickstart --trainer.max_s": "--trainer.max_steps",
    "help Lab": "LabelMatch",
    "list bas": "baselines",
    "serve --ups": "--upstream",
    "compare --tea": "--teacher",
    "init --base": "--base_url",
}


@pytest.mark.slow
def test_bash_completes_commands_options_and_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bash"]) == 0
    (tmp_path / "own.yaml").touch()
    script = tmp_path / "wst.bash"
    script.write_text(capsys.readouterr().out)
    for words, wanted in COMPLETIONS.items():
        command = ["bash", "-c", ASK, "bash", str(script), "wst", *words.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert done.stdout.split() == wanted.split(), words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([shell]) == 0
    script = capsys.readouterr().out
    assert "samples_per_query" in script
    assert "wst.LabelMatch" in script
    assert "wst:quickstart" in script


def test_an_unknown_shell_is_refused() -> None:
    with pytest.raises(ConfigError, match="invalid choice: 'cmd'"):
        run(["cmd"])
