"""Every config in lightning_configs/ runs through the real command line, with its models replaced by tiny ones."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml
from endpoints import FakeServer
from runs import TESTS, wst
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from wst.cli.lightning import run

ROOT = TESTS.parent
CONFIGS = sorted((ROOT / "lightning_configs").glob("*.yaml"))
COMPARISONS = sorted((ROOT / "lightning_configs" / "compare").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert (ROOT / "lightning_configs" / "quickstart.yaml") in CONFIGS


def test_the_trainer_is_set_up_in_one_part_and_no_file_has_two_lines() -> None:
    files = sorted((ROOT / "lightning_configs").rglob("*.yaml"))
    assert [path.name for path in files if "num_sanity_val_steps" in path.read_text()] == ["run.yaml"]
    assert all(len(path.read_text().splitlines()) > 2 for path in files)


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few rows of each benchmark, in the form of the hub's files."""
    folder = tmp_path_factory.mktemp("benchmarks")
    rows = {
        "gsm8k": {"question": "What is {i} and 1?", "answer": "One more.\n#### {j}"},
        "math": {"problem": "What is ${i} + 1$?", "solution": "It is $\\boxed{{{j}}}$.", "level": "Level 1"},
        "helpful-base": {
            "chosen": "\n\nHuman: Say {i}{split}\n\nAssistant: {i}, gladly",
            "rejected": "\n\nHuman: Say {i}{split}\n\nAssistant: no",
        },
    }
    for name, row in rows.items():
        (folder / name).mkdir()
        for split in ("train", "test"):
            filled = ({k: v.format(i=i, j=i + 1, split=split) for k, v in row.items()} for i in range(24))
            if name == "math":  # the training rows must not be the test's
                filled = ({k: v.replace("What", f"In {split}, what") for k, v in line.items()} for line in filled)
            with gzip.open(folder / name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in filled)
    return folder


@pytest.fixture(scope="session")
def tiny_scorer(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    """The tiny model with a scalar head, as a sequence classifier."""
    folder = str(tmp_path_factory.mktemp("scorer"))
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def tiny_options(config: Path, tiny_model: str, tiny_scorer: str, benchmarks: Path) -> list[str]:
    """Options that put tiny models and a few rows in the place of a config's own."""
    options = ["--data.init_args.limit_val=4", "--data.init_args.limit_test=6", "--trainer.accelerator=cpu"]
    if "preference" in config.stem:
        options += [f"--model.init_args.model={tiny_model}", "--data.init_args.batch_size=4"]
        if config.stem.endswith("small"):
            options += ["--model.init_args.layers=1"]
    else:
        options += [
            f"--model.init_args.teacher.init_args.model={tiny_model}",
            f"--model.init_args.student.init_args.model={tiny_model}",
            "--model.init_args.teacher.init_args.max_new_tokens=4",
            "--model.init_args.student.init_args.max_new_tokens=4",
        ]
    if config.stem in ("hh_rlhf", "hh_rlhf_small"):
        options += [
            f"--model.init_args.reward.init_args.reward.init_args.model={tiny_scorer}",
            "--model.init_args.reward.init_args.queries=8",
        ]
    if config.stem not in ("quickstart", "messages"):
        folder = benchmarks if config.stem.startswith("hh_rlhf") else benchmarks / config.stem.removesuffix("_small")
        options += [f"--data.init_args.source={folder}", "--data.init_args.val_share=0.25"]
    return options


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_two_steps_and_a_test(
    config: Path, tmp_path: Path, tiny_model: str, tiny_scorer: str, benchmarks: Path
) -> None:
    tiny = tiny_options(config, tiny_model, tiny_scorer, benchmarks)
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    done = wst(["fit", "--config", str(config), *tiny, *short], tmp_path)
    assert done.code == 0, done.err
    done = wst(["test", "--config", str(config), *tiny, "--ckpt_path", "last"], tmp_path)
    assert done.code == 0, done.err
    (results,) = tmp_path.rglob("results.json")
    assert json.loads(results.read_text())["n"] == 6
    assert (results.parent / "config.yaml").is_file()


@pytest.mark.parametrize("overlay", ["gpu_12gb", "ungated_student"])
@pytest.mark.parametrize("config", ["gsm8k", "math", "hh_rlhf"])
def test_an_overlay_on_a_benchmark(config: str, overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "lightning_configs"
    with pytest.raises(SystemExit) as left:
        run(
            [
                "fit",
                f"--config={folder / config}.yaml",
                f"--config={folder / 'overlays' / overlay}.yaml",
                "--print_config",
            ]
        )
    assert left.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    wanted = yaml.safe_load((folder / "overlays" / f"{overlay}.yaml").read_text())["model"]["init_args"]
    assert model["student"]["init_args"].items() >= wanted["student"]["init_args"].items()
    assert model["student"]["init_args"]["quantization"] == "nf4"
    assert model["micro_batch_size"] == wanted.get("micro_batch_size", 8)


def test_the_overlay_that_allows_leaks_on_the_quickstart(capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "lightning_configs"
    configs = [f"--config={folder / 'quickstart.yaml'}", f"--config={folder / 'overlays' / 'leaks_allowed.yaml'}"]
    with pytest.raises(SystemExit) as left:
        run(["fit", *configs, "--print_config"])
    assert left.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    prompt = settings["model"]["init_args"]["teacher"]["init_args"]["prompt"]
    assert (prompt["system"], prompt["examples"]) == (None, [])
    assert settings["model"]["init_args"]["leak_penalty"] == 0


def test_the_warm_start_on_helpful_answers(capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "lightning_configs"
    overlay = folder / "overlays" / "hh_rlhf_warm_start.yaml"
    with pytest.raises(SystemExit) as left:
        run(["fit", f"--config={folder / 'hh_rlhf_small.yaml'}", f"--config={overlay}", "--print_config"])
    assert left.value.code == 0
    model = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    start = model["warm_start"]["init_args"]
    assert len(start["sentences"]) == 7
    assert (start["queries"], model["kl_coef"], model["samples_per_query"]) == (64, 0.0, 4)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["quickstart", "messages"])
def test_the_overlay_for_fewer_calls(tmp_path: Path, tiny_model: str, config: str) -> None:
    folder = ROOT / "lightning_configs"
    options = [
        f"--model.init_args.teacher.init_args.model={tiny_model}",
        "--model.init_args.teacher.init_args.max_new_tokens=4",
        f"--model.init_args.student.init_args.model={tiny_model}",
        "--data.init_args.limit_val=4",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
    ]
    configs = [f"--config={folder / config}.yaml", f"--config={folder / 'overlays' / 'fewer_calls'}.yaml"]
    done = wst(["fit", *configs, *options], tmp_path)
    assert done.code == 0, done.err
    assert "warm start: 64 answers for 16 queries" in " ".join(done.out.split())
    (saved,) = (tmp_path / "runs").rglob("last.ckpt")
    assert set(torch.load(saved, weights_only=True)["wst"]["memories"]) == {"replay", "warm_start"}


@pytest.mark.slow
def test_the_endpoint_overlay_on_the_quickstart(tmp_path: Path, tiny_model: str) -> None:
    overlay = ROOT / "lightning_configs" / "overlays" / "endpoint.yaml"
    configs = ["--config", str(ROOT / "lightning_configs" / "quickstart.yaml"), "--config", str(overlay)]
    with FakeServer(key="sk-test") as server:
        options = [
            f"--model.init_args.teacher.init_args.model={tiny_model}",
            "--model.init_args.teacher.init_args.max_new_tokens=4",
            f"--model.init_args.student.init_args.base_url={server.url}",
            "--data.init_args.limit_val=4",
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=2",
        ]
        done = wst(["fit", *configs, *options], tmp_path, environment={"OPENAI_API_KEY": "sk-test"})
        assert done.code == 0, done.err
        asked = [request.body for request in server.requests]
    assert {body["model"] for body in asked} == {"gpt-4o-mini"}
    assert next((tmp_path / "runs" / "endpoint").rglob("adapter_model.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("config", COMPARISONS, ids=lambda path: path.stem)
def test_a_comparison(config: Path, tmp_path: Path, tiny_model: str, tiny_scorer: str, benchmarks: Path) -> None:
    wanted = yaml.safe_load(config.read_text())
    tiny = {"class_path": "wst.LocalStudent", "init_args": {"model": tiny_model, "max_new_tokens": 4}}
    teacher = {"class_path": "wst.Teacher", "init_args": {"model": tiny_model, "max_new_tokens": 4}}
    overlay = tmp_path / "tiny.yaml"
    overlay.write_text(
        yaml.safe_dump(
            {
                "students": dict.fromkeys(wanted["students"], tiny),
                "asked": dict.fromkeys(wanted.get("asked", {}), tiny),
                "teacher": teacher,
                "trained": {},
                "run": None,
                "limit": 4,
                "resamples": 1000,
            }
        )
    )
    options = []
    if config.stem.startswith(("gsm8k", "math")):
        options = [f"--data.init_args.source={benchmarks / config.stem.removesuffix('_small')}"]
    if config.stem.startswith("hh_rlhf"):
        options = [f"--data.init_args.source={benchmarks}", "--reward.init_args.queries=4"]
        options += [f"--reward.init_args.reward.init_args.model={tiny_scorer}"]
    done = wst(["compare", "--config", str(config), "--config", str(overlay), *options], tmp_path)
    assert done.code == 0, done.err
    (results,) = tmp_path.rglob("results.json")
    assert set(json.loads(results.read_text())["students"]) == set(wanted["students"])
