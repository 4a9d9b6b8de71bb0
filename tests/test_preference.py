"""A preference model: its loss, what moves, and what a checkpoint and an export hold."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from preferences import (
    SOME,
    STEPS,
    Pairs,
    exported_margins,
    fit,
    load,
    make,
    margins,
    pair,
    scrambled,
    trained_weights,
    trainer,
    weights,
)
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from wst import LoRA, Message, PreferenceExport, PreferenceModel, Query
from wst.errors import DataError, Diverged, ModelError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_loss_is_that_of_bradley_and_terry(tiny_model: str, tmp_path: Path) -> None:
    module = make(tiny_model)
    losses: list[Tensor] = []
    original = module.training_step

    def keep(queries: list[Query], batch_idx: int) -> Tensor:
        with torch.no_grad():
            losses.append(bradley_terry(module, queries))
        losses.append(original(queries, batch_idx))
        return losses[-1]

    module.training_step = keep  # type: ignore[method-assign]
    fit(module, tmp_path, steps=3)
    assert len(losses) == 6
    for reference, loss in zip(losses[::2], losses[1::2], strict=True):
        torch.testing.assert_close(loss.detach(), reference, atol=1e-5, rtol=0)


def bradley_terry(module: PreferenceModel, queries: list[Query]) -> Tensor:
    losses = []
    for query in queries:
        chat = [{"role": turn.role, "content": turn.content} for turn in (*query.history, Message("user", query.text))]
        turns = [[*chat, {"role": "assistant", "content": query.extra[side]}] for side in ("chosen", "rejected")]
        ids = [module._tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in turns]
        chosen, rejected = (module.network(input_ids=torch.tensor([row])).logits[0, 0] for row in ids)
        losses.append(torch.log(1 + torch.exp(rejected - chosen)))
    return torch.stack(losses).mean()


def test_margins_depend_neither_on_the_batch_nor_on_the_order(tiny_model: str) -> None:
    module = scrambled(load(make(tiny_model)))
    queries = [pair(number) for number in range(7)]
    whole = margins(module, queries)
    assert whole.shape == (7,)
    assert whole.abs().min() > 1e-3
    for batch_size in (1, 3, 100):
        module.batch_size = batch_size
        torch.testing.assert_close(margins(module, queries), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(margins(module, queries[::-1]), whole.flip(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(margins(module, queries[2:3]), whole[2:3], atol=1e-5, rtol=0)


def test_of_a_long_dialogue_the_last_tokens_count(tiny_model: str) -> None:
    module = load(make(tiny_model, max_tokens=30))
    query = Query("q", "x" * 100, extra={"chosen": "yes", "rejected": "no"})
    other = Query("q", "y" * 50 + "x" * 50, extra=query.extra)
    assert torch.equal(margins(module, [query]), margins(module, [other]))
    module.encoder.limit = 200
    assert not torch.equal(margins(module, [query]), margins(module, [other]))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_query_without_a_pair_is_refused(tiny_model: str, side: str) -> None:
    module = load(make(tiny_model))
    extra = {name: answer for name, answer in pair(0).extra.items() if name != side}
    with pytest.raises(DataError, match=rf"query 'lonely': it has no '{side}' answer.*HHRLHF") as caught:
        module.margins([pair(1), Query("lonely", "?", extra=extra)])
    assert "\n" not in str(caught.value)


def test_scores_that_are_no_numbers_end_the_run(tiny_model: str, tmp_path: Path) -> None:
    module = load(make(tiny_model))
    next(iter(module.trainable())).data.fill_(math.nan)
    with pytest.raises(Diverged, match="not numbers after 0 steps; lower the learning rate"):
        trainer(tmp_path, 1).fit(module, Pairs())
    module.trained_steps = 1
    with pytest.raises(ModelError, match=r"preference model: weight .* is not finite"):
        trainer(tmp_path, 1).test(module, Pairs(), verbose=False)


@dataclass
class Learnt:
    """A run that was trained for a while, with a validation half way and at the end."""

    module: PreferenceModel
    before: dict[str, Tensor]
    folder: Path
    figures: dict[str, float]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Learnt:
    folder = tmp_path_factory.mktemp("learnt")
    torch.manual_seed(0)
    module = load(make(tiny_model))
    before = weights(module)
    runner = trainer(
        folder,
        STEPS,
        limit_val_batches=1,
        check_val_every_n_epoch=3,
        enable_checkpointing=True,
        callbacks=[
            ModelCheckpoint(folder / "checkpoints", every_n_train_steps=1, save_top_k=0, save_last=True),
            PreferenceExport(),
        ],
    )
    runner.fit(module, Pairs())
    return Learnt(module, before, folder, {name: float(value) for name, value in runner.callback_metrics.items()})


def test_it_learns_what_tells_the_answers_apart(learnt: Learnt) -> None:
    assert learnt.module.trained_steps == STEPS
    assert learnt.figures["val/accuracy"] == 1.0
    assert learnt.figures["val/loss"] < 0.1 < math.log(2)
    assert learnt.figures["train/accuracy"] == 1.0


def test_a_test_compares_with_length_alone(learnt: Learnt, capsys: pytest.CaptureFixture[str]) -> None:
    tester = trainer(learnt.folder)
    fresh = make(learnt.module.source)
    tester.test(fresh, Pairs(), ckpt_path=str(learnt.folder / "checkpoints/last.ckpt"), verbose=False)
    results = json.loads((learnt.folder / "test/results.json").read_text())  # there is no logger
    assert results == json.loads(json.dumps(fresh.results()))
    assert results["n"] == 16
    wilson = 16 / (16 + NormalDist().inv_cdf(0.975) ** 2)  # the lower end where all of 16 are right
    assert results["accuracy"]["model"] == {"mean": 1.0, "ci95": [pytest.approx(wilson), 1.0]}
    # of four pairs the preferred answer is longer in one and as long in another
    lengths = [len(pair(n).extra["chosen"]) - len(pair(n).extra["rejected"]) for n in range(100, 116)]
    assert [sum(d > 0 for d in lengths), sum(d == 0 for d in lengths)] == [4, 4]
    assert results["accuracy"]["length"]["mean"] == (4 + 4 / 2) / 16
    assert set(results["accuracy"]) == {"model", "length"}
    assert results["gain"]["model_vs_chance"]["mean"] == 0.5
    assert results["gain"]["model_vs_chance"]["p_value"] == pytest.approx(2 / 2**16, abs=2e-4)
    assert results["gain"]["model_vs_length"]["mean"] == 1 - 6 / 16
    assert results["gain"]["model_vs_length"]["p_value"] < 0.01
    assert {name: float(value) for name, value in tester.callback_metrics.items()} == {
        "test/accuracy/model": 1.0,
        "test/accuracy/length": 0.375,
        "step": STEPS,
    }
    assert "Pairs ranked correctly, of 16" in capsys.readouterr().out


def test_only_adapter_and_head_move(learnt: Learnt) -> None:
    after = weights(learnt.module)
    moved = {name for name in after if not torch.equal(after[name], learnt.before[name])}
    assert moved == set(trained_weights(learnt.module))
    assert all("lora" in name or "score.modules_to_save" in name for name in moved)
    assert sum("score" in name for name in moved) == 1


def test_a_checkpoint_holds_the_trained_weights_alone(learnt: Learnt) -> None:
    path = learnt.folder / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    trained = trained_weights(learnt.module)
    assert checkpoint["state_dict"].keys() == trained.keys()
    assert all(torch.equal(checkpoint["state_dict"][name], value) for name, value in trained.items())
    assert checkpoint["wst"] == {"trained_steps": STEPS}
    # weights and AdamW's two moments; some kilobytes are names
    assert path.stat().st_size < 3 * sum(value.numel() * 4 for value in trained.values()) + 100_000
    assert checkpoint["hyper_parameters"]["model"] == learnt.module.source


@pytest.mark.parametrize("name", ["last", "best"])
def test_an_export_is_an_ordinary_sequence_classifier(learnt: Learnt, name: str) -> None:
    folder = learnt.folder / "version_0/reward_model" / name
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_labels == 1
    assert AutoTokenizer.from_pretrained(folder).pad_token_id == model.config.pad_token_id
    assert not list(folder.glob("adapter*"))
    if name == "last":
        queries = [pair(number) for number in range(200, 208)]
        torch.testing.assert_close(
            exported_margins(folder, queries), margins(learnt.module, queries), atol=1e-4, rtol=1e-4
        )


def test_the_network_that_is_exported_stays_as_it_is(tiny_model: str, tmp_path: Path) -> None:
    module = scrambled(load(make(tiny_model)))
    before, queries = weights(module), [pair(0), pair(1)]
    said = margins(module, queries)
    module.save(tmp_path / "x")
    assert all(torch.equal(value, before[name]) for name, value in weights(module).items())
    assert torch.equal(margins(module, queries), said)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantized_base_is_exported_in_full_precision(tiny_model: str, tmp_path: Path, quantization: str) -> None:
    module = scrambled(fit(make(tiny_model, quantization=quantization), tmp_path, steps=1))
    module.save(tmp_path / "x")
    assert "quantization_config" not in json.loads((tmp_path / "x/config.json").read_text())
    plain = load(make(tiny_model))
    plain.load_state_dict(trained_weights(module))
    queries = [pair(number) for number in range(6)]
    exported = exported_margins(tmp_path / "x", queries)
    torch.testing.assert_close(exported, margins(plain, queries), atol=1e-4, rtol=1e-4)
    assert (exported - margins(module, queries)).abs().max() > 1e-3  # rounding the base does make a difference


def test_adapter_and_head_are_float32_on_a_base_that_is_not(tiny_model: str, tmp_path: Path) -> None:
    module = load(make(tiny_model, dtype="bfloat16", optimizer=lambda params: torch.optim.SGD(params, lr=1e-4)))
    assert {value.dtype for value in module.trainable()} == {torch.float32}
    assert {value.dtype for value in module.parameters() if not value.requires_grad} == {torch.bfloat16}
    before = trained_weights(module)
    fit(module, tmp_path, steps=1)  # a step so small that bfloat16 would round much of it away
    head = next(name for name in before if "score" in name)
    assert (trained_weights(module)[head] != before[head]).float().mean() > 0.9
    module.save(tmp_path / "x")
    assert exported_margins(tmp_path / "x", [pair(0)]).isfinite().all()


def test_all_weights_can_be_trained(tiny_model: str, tmp_path: Path) -> None:
    module = load(make(tiny_model, lora=None))
    before = weights(module)
    fit(module, tmp_path, steps=1)
    after = weights(module)
    assert all(not torch.equal(after[name], before[name]) for name in after)
    module.save(tmp_path / "x")
    queries = [pair(number) for number in range(4)]
    torch.testing.assert_close(
        exported_margins(tmp_path / "x", queries), margins(module, queries), atol=1e-4, rtol=1e-4
    )


def test_layers_gives_adapters_to_the_top_alone(tiny_model: str, tmp_path: Path) -> None:
    module = fit(make(tiny_model, lora=SOME, layers=1), tmp_path, steps=1)
    adapted = {name for name in trained_weights(module) if "lora" in name}
    assert adapted
    assert all(".layers.1." in name for name in adapted)
    every = trained_weights(load(make(tiny_model, lora=SOME)))
    assert {name for name in every if "lora" in name and ".layers.1." in name} == adapted
    assert any(".layers.0." in name for name in every)


def test_the_scheduler_moves_once_a_step(tiny_model: str, tmp_path: Path) -> None:
    module = make(
        tiny_model,
        optimizer=lambda params: torch.optim.SGD(params, lr=1.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
    )
    fit(module, tmp_path, steps=3)
    assert module.trainer.optimizers[0].param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize("settings", [{"lora": LoRA(r=4)}, {"lora": SOME, "layers": 1}, {"lora": None}])
def test_a_checkpoint_of_another_preference_model_is_refused(
    learnt: Learnt, tmp_path: Path, settings: dict[str, Any]
) -> None:
    path = str(learnt.folder / "checkpoints/last.ckpt")
    with pytest.raises(ModelError, match="of another preference model"):
        trainer(tmp_path).test(make(learnt.module.source, **settings), Pairs(), ckpt_path=path)
