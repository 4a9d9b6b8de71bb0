"""What comes with the package: configs and data by name, from a folder that holds nothing."""

import re
from pathlib import Path

import pytest
import yaml
from runs import TESTS
from test_start import start

from wst.cli.lightning import run
from wst.data.sources import file_rows, find_files
from wst.errors import ConfigError
from wst.files import shipped, shipped_files

CONFIGS = TESTS.parent / "lightning_configs"


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, dict[str, object]]:
    with pytest.raises(SystemExit) as left:
        run(["fit", *args, "--print_config"])
    assert left.value.code == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


def test_every_config_has_a_name() -> None:
    files = {path for path in shipped_files().values() if path.suffix == ".yaml"}
    assert files == set(CONFIGS.rglob("*.yaml"))
    assert shipped("wst:overlays/endpoint.yaml") == CONFIGS / "overlays/endpoint.yaml"


@pytest.mark.parametrize("name", ["wst:quickstrat", "wst:../../pyproject", "wst:data/reviews/README.md", "wst:"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"does not come with wst; (did you mean wst:|`wst list`)"):
        shipped(name)


def test_data_that_come_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "wst:data/reviews/val.jsonl"
    assert find_files(name, "val") == [name]
    rows = list(file_rows(name))
    assert (len(rows), rows[0].id) == (104, "reviews/val.jsonl:1")
    with pytest.raises(ConfigError, match=r"did you mean wst:data/reviews/val\.jsonl"):
        find_files("wst:data/reviews/valid.jsonl", "val")


def test_a_config_of_ones_own_builds_on_those_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text(
        "config: wst:quickstart\n"
        "trainer.max_steps: 3\n"
        "model.init_args.teacher: wst:parts/smollm2_teacher.yaml\n"
        "model.init_args.teacher.init_args.max_new_tokens: 5\n"
    )
    settings = printed(capsys, "--config", "own.yaml", "--config", "wst:overlays/endpoint")
    student = settings["model"]["init_args"]["student"]  # type: ignore[index]
    assert student["class_path"].endswith("EndpointStudent")
    assert settings["model"]["init_args"]["teacher"]["init_args"]["max_new_tokens"] == 5  # type: ignore[index]
    assert settings["trainer"]["max_steps"] == 3
    assert settings["data"]["init_args"]["train"] == "wst:data/reviews/train.jsonl"  # type: ignore[index]


def test_another_data_class_begins_with_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", "toys.SixQueries", "--data.init_args.batch_size", "5"]
    data = printed(capsys, "--config", "wst:quickstart", *options)["data"]
    assert data["class_path"] == "toys.SixQueries"
    assert data["init_args"]["batch_size"] == 5  # type: ignore[index]
    assert data["init_args"]["train"] is None  # type: ignore[index]
    assert data["init_args"]["limit_val"] is None  # type: ignore[index]


@pytest.mark.slow
def test_list_names_everything_with_a_line_and_no_torch() -> None:
    code, out, _ = start("list")
    assert code == 0
    kinds = dict(re.findall(r"^(\w+) \(.*\)\n((?:  .*\n)+)", out, flags=re.MULTILINE))
    named = {kind: re.findall(r"^  (\S+) +\S", rows, flags=re.MULTILINE) for kind, rows in kinds.items()}
    assert {"wst:quickstart", "wst:gsm8k", "wst:overlays/endpoint", "wst:compare/quickstart"} <= set(named["configs"])
    assert {"wst.LabelMatch", "wst.Judge", "wst.WeightedSum", "wst.RewardModel"} <= set(named["rewards"])
    assert set(named["students"]) == {f"wst.{kind}Student" for kind in ("Endpoint", "Function", "Local", "VLLM")}
    assert set(named["data"]) == {"wst.GSM8K", "wst.HHRLHF", "wst.MATH", "wst.QueryDataModule"}
    assert {"wst.LeaveOneOut", "wst.Unaided", "wst.QueryTracker"} <= set(named["baselines"])
    assert {"wst.EarlyStop", "wst.TeacherExport"} <= set(named["callbacks"])
    assert not {"wst.Reward", "wst.Student", "wst.Baseline", "wst.Budget"} & {
        n for rows in named.values() for n in rows
    }


def test_list_of_an_unknown_kind_is_refused() -> None:
    code, _, err = start("list", "reward")
    assert (code, err) == (2, "wst: error: list: no kind 'reward'; did you mean rewards?")
