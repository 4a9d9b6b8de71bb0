"""A preference model: resumed runs, mistakes, and the command line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from preferences import RUN, SOME, STEPS, Pairs, fit, load, make, pair, trained_weights, trainer
from runs import write_config, wst

from wst import LoRA, PreferenceExport, PreferenceModel
from wst.errors import ConfigError, ModelError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.slow
def test_a_resumed_run_ends_as_the_unbroken_one(tiny_model: str, tmp_path: Path) -> None:
    def run(steps: int, seed: int, ckpt_path: Path | None = None) -> PreferenceModel:
        torch.manual_seed(seed)  # draws the head, which a checkpoint brings along
        module = make(tiny_model)
        saver = ModelCheckpoint(tmp_path / "c", every_n_train_steps=1, save_top_k=0, save_last=True)
        runner = trainer(tmp_path, steps, enable_checkpointing=True, callbacks=[saver])
        runner.fit(module, Pairs(10, batch_size=4), ckpt_path=ckpt_path)
        return module

    unbroken = run(7, seed=3)
    assert run(4, seed=3).trained_steps == 4
    resumed = run(7, seed=4, ckpt_path=tmp_path / "c/last.ckpt")
    assert resumed.trained_steps == 7
    expected = trained_weights(unbroken)
    assert all(torch.equal(value, expected[name]) for name, value in trained_weights(resumed).items())
    other = trained_weights(run(7, seed=4))
    assert any(not torch.equal(value, expected[name]) for name, value in other.items())


def test_testing_what_was_not_trained_is_refused(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no trained preference model; give --ckpt_path") as caught:
        trainer(tmp_path).test(make(tiny_model), Pairs())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"quantization": "nf4", "lora": None}, "quantized weights cannot be trained; set lora"),
        ({"layers": 1, "lora": None}, "layers needs a lora"),
        ({"layers": 1}, "layers needs a lora whose target_modules are listed by name"),
    ],
)
def test_impossible_settings(tiny_model: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        make(tiny_model, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora": SOME, "layers": 3}, "layers is 3, but the model has 2"),
        ({"lora": LoRA(target_modules=["nowhere"])}, "lora does not fit model"),
    ],
)
def test_settings_that_the_model_does_not_fit(tiny_model: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        load(make(tiny_model, **settings))
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_found_before_any_is_loaded(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("wst.preference.load_classifier", refuse)
    with pytest.raises(ModelError, match=r"\./nowhere"):
        make("./nowhere")
    with pytest.raises(ModelError, match="nobody/no-such-model"):
        fit(make("nobody/no-such-model"), tmp_path)


def test_export_has_two_modes() -> None:
    with pytest.raises(ConfigError, match="PreferenceExport: mode must be one of 'max', 'min', got 'best'"):
        PreferenceExport(mode="best")


def write_dialogues(path: Path, numbers: range) -> str:
    rows = []
    for query in map(pair, numbers):
        turns = "".join(f"\n\n{'Human' if t.role == 'user' else 'Assistant'}: {t.content}" for t in query.history)
        head = f"\n\nHuman: {query.id}{turns}\n\nHuman: {query.text}" if turns else f"\n\nHuman: {query.text}"
        rows.append({side: f"{head}\n\nAssistant: {query.extra[side]}" for side in ("chosen", "rejected")})
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return str(path)


@pytest.mark.slow
def test_from_pairs_to_a_reward_through_the_command_line(tmp_path: Path, tiny_model: str) -> None:
    """Fit and test a preference model, then train a teacher with what was exported as its reward."""
    write_config(tmp_path, tiny_model)
    base = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config = {
        "seed_everything": 1,
        "trainer": base["trainer"]
        | {
            "max_steps": STEPS,
            "val_check_interval": 1.0,
            "check_val_every_n_epoch": 3,
            "callbacks": [base["trainer"]["callbacks"][0], {"class_path": "wst.PreferenceExport"}],
        },
        "model": {
            "class_path": "wst.PreferenceModel",
            "init_args": {
                "model": tiny_model,
                "dtype": "float32",
                "lora": {"r": 8, "alpha": 16},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            },
        },
        "data": {
            "class_path": "wst.HHRLHF",
            "init_args": {
                "train": write_dialogues(tmp_path / "train.jsonl.gz", range(40)),
                "test": write_dialogues(tmp_path / "test.jsonl.gz", range(100, 116)),
                "val_share": 0.2,
            },
        },
    }
    (tmp_path / "preference.yaml").write_text(yaml.safe_dump(config))
    done = wst(["fit", "--config", "preference.yaml"], tmp_path)
    assert done.code == 0, done.err
    assert "HHRLHF train: 40 rows in, 40 kept" in done.err
    done = wst(["test", "--config", "preference.yaml", "--ckpt_path", "last"], tmp_path)
    assert done.code == 0, done.err
    assert "Pairs ranked correctly, of 16" in done.out
    results = json.loads((tmp_path / RUN / "results.json").read_text())
    assert results["n"] == 16
    assert results["accuracy"]["model"]["mean"] > 0.9
    for figure in (*results["accuracy"].values(), *results["gain"].values()):
        assert figure["ci95"][0] <= figure["mean"] <= figure["ci95"][1]
    assert 0 < results["gain"]["model_vs_chance"]["p_value"] < 0.01
    assert 0 < results["gain"]["model_vs_length"]["p_value"] < 0.05
    exported = tmp_path / RUN / "reward_model/last"
    reward = {"class_path": "wst.RewardModel", "init_args": {"model": str(exported), "dtype": "float32"}}
    changes = {"model.init_args.reward": reward, "trainer.max_steps": 2, "trainer.logger.init_args.name": "taught"}
    write_config(tmp_path, tiny_model, **changes)
    done = wst(["fit", "--config", "config.yaml"], tmp_path)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "runs/taught/version_0/instructions.jsonl").open()]
    assert len({row["reward"] for row in rows if row["stage"] == "train"}) > 1
