"""Several processes make the steps that one would make."""

import json
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import yaml
from endpoints import FakeServer, last_user_text
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.strategies import ModelParallelStrategy
from runs import write_config, wst
from safetensors.torch import load_file

from wst import Query
from wst.data.loader import Batches, QueryLoader
from wst.distributed import check_strategy, share
from wst.errors import ConfigError

RUN = Path("runs/tiny/version_0")
EXPORT = RUN / "teacher/last/adapter_model.safetensors"
FIT = ["fit", "--config", "config.yaml"]


def configure(folder: Path, model: str, processes: int, **changes: Any) -> None:
    """Ten steps over ten queries, by four in all: the last batch of an epoch holds two."""
    several = {"trainer.strategy": "ddp", "trainer.devices": processes} if processes > 1 else {}
    write_config(
        folder,
        model,
        **{
            "trainer.max_steps": 10,
            "trainer.val_check_interval": 5,
            "model.init_args.teacher.class_path": "toys.SeededTeacher",
            "model.init_args.student": {"class_path": "toys.Parrot"},
            "data.init_args.batch_size": 4 // processes,
            "trainer.callbacks": [
                {"class_path": "wst.InstructionSamples", "init_args": {"count": 12, "terminal": False}},
                {"class_path": "wst.TeacherExport"},
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"every_n_train_steps": 1, "save_top_k": 0, "save_last": True},
                },
            ],
        }
        | several
        | changes,
    )


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RUN / "instructions.jsonl").read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / RUN))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


SETTINGS: dict[str, dict[str, Any]] = {
    "leave one out": {},
    "moving average, whitened, with KL and entropy": {
        "model.init_args.baseline": {"class_path": "wst.MovingAverage"},
        "model.init_args.whiten_advantages": True,
        "model.init_args.kl_coef": 0.1,
        "model.init_args.entropy_coef": 0.01,
        "model.init_args.micro_batch_size": 2,
    },
    "mostly nothing to learn": {"model.init_args.reward": {"class_path": "toys.OneQuery"}},
    "unaided baseline, by sequence": {
        "model.init_args.baseline": {"class_path": "wst.Unaided"},
        "model.init_args.normalization": "sequences",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_two_and_four_processes_train_the_adapter_that_one_trains(
    tmp_path: Path, tiny_model: str, setting: str
) -> None:
    adapters, logged, written = {}, {}, {}
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        folder.mkdir()
        configure(folder, tiny_model, processes, **SETTINGS[setting])
        done = wst(FIT, folder, processes=processes)
        assert done.code == 0, done.err
        adapters[processes] = load_file(folder / EXPORT)
        logged[processes] = scalars(folder)
        written[processes] = samples(folder)
        assert len(list((folder / "runs/tiny").iterdir())) == 1
    assert any(float(value.abs().max()) > 0 for name, value in adapters[1].items() if "lora_B" in name)
    for rows in written.values():
        for first in (1, 4, 7):  # three steps are an epoch, the last of them with two queries
            epoch = [row["id"] for row in rows if row["stage"] == "train" and first <= row["step"] < first + 3]
            assert sorted(epoch) == sorted(f"q{i}" for i in range(10) for _ in range(3))
    for processes in (2, 4):
        assert adapters[processes].keys() == adapters[1].keys()
        for name, value in adapters[processes].items():
            torch.testing.assert_close(value, adapters[1][name], rtol=1e-5, atol=1e-5)
        told = [name for name in logged[1] if not name.startswith(("vitals/seconds", "vitals/tokens_per_second"))]
        assert set(logged[processes]) >= set(told)
        for name in told:
            steps, values = zip(*logged[processes][name], strict=True)
            expected_steps, expected = zip(*logged[1][name], strict=True)
            assert (name, steps) == (name, expected_steps)
            assert values == pytest.approx(expected, abs=1e-4, rel=1e-4), name
        assert [row["instruction"] for row in written[processes]] == [row["instruction"] for row in written[1]]


@pytest.mark.slow
def test_a_test_and_predictions_of_two_processes_are_those_of_one(tmp_path: Path, tiny_model: str) -> None:
    found = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        configure(folder, tiny_model, 1)
        assert wst(FIT, folder).code == 0
        # Ten rows in batches of three (of each process): with two, the last batch holds four.
        configure(folder, tiny_model, processes, **{"data.init_args.eval_batch_size": 3})
        for stage in ("test", "predict"):
            done = wst([stage, "--config", "config.yaml", "--ckpt_path", "last"], folder, processes=processes)
            assert done.code == 0, done.err
            assert "Traceback" not in done.err
        names = ("results.json", "rows.jsonl", "predictions.jsonl")
        results, rows, predictions = ((folder / RUN / name).read_text() for name in names)
        tests = sorted((json.loads(line) for line in rows.splitlines()), key=lambda row: (row["arm"], row["id"]))
        found[processes] = (json.loads(results), tests, [json.loads(line) for line in predictions.splitlines()])
    assert found[2] == found[1]
    assert len(found[1][1]) == 30
    assert [row["id"] for row in found[1][2]] == [f"q{i}" for i in range(10)]


@pytest.mark.slow
def test_processes_that_learn_nothing_take_part(tmp_path: Path, tiny_model: str) -> None:
    """Only process 1 can score anything: process 0 has no gradient, and gets that of the other."""
    configure(tmp_path, tiny_model, 2, **{"model.init_args.reward": {"class_path": "toys.ScoresOnlyInProcess1"}})
    done = wst(FIT, tmp_path, processes=2)
    assert done.code == 0, done.err
    adapter = load_file(tmp_path / EXPORT)
    assert any(float(value.abs().max()) > 0 for name, value in adapter.items() if "lora_B" in name)
    assert all(0.4 < value < 0.6 for _, value in scalars(tmp_path)["train/unscored"])


@pytest.mark.slow
def test_where_one_process_must_stop_all_do_and_the_run_goes_on_later(tmp_path: Path, tiny_model: str) -> None:
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    for folder in (plain, stopped):
        folder.mkdir()
        configure(folder, tiny_model, 2)
    assert wst(FIT, plain, processes=2).code == 0
    student = "--model.init_args.student=toys.StopsInProcess1"
    done = wst([*FIT, student], stopped, processes=2)
    assert done.code == 2
    assert done.err.count("wst: error:") == 1
    assert "process 1 was stopped: StudentStopped: the budget is spent" in done.err
    assert "Traceback" not in done.err
    assert "wst: error" not in (stopped / "run-1.err").read_text()
    assert torch.load(stopped / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    done = wst([*FIT, "--ckpt_path", "last"], stopped, processes=2)
    assert done.code == 0, done.err
    one, two = load_file(plain / EXPORT), load_file(stopped / EXPORT)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_what_one_process_lacks_memory_for_is_saved_by_all(tmp_path: Path, tiny_model: str) -> None:
    """Process 0, which writes the checkpoint, must know that it is one of the errors after which to save."""
    configure(tmp_path, tiny_model, 2)
    student = ["--model.init_args.student=toys.OutOfMemory", "--model.init_args.student.init_args.rank=1"]
    done = wst([*FIT, *student], tmp_path, processes=2)
    assert done.code == 2, done.err
    assert done.err.count("wst: error:") == 1
    assert "out of GPU memory in phase respond" in done.err
    assert torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["setup", "on_train_batch_end"])
def test_where_one_process_ends_alone_nobody_waits_for_it(tmp_path: Path, tiny_model: str, hook: str) -> None:
    configure(tmp_path, tiny_model, 2)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    config["trainer"]["callbacks"].append({"class_path": "toys.StopsAloneInProcess1", "init_args": {"hook": hook}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = wst(FIT, tmp_path, processes=2, timeout=60)
    assert done.code != 0
    assert "wst: error: process 1: only here" in (tmp_path / "run-1.err").read_text()


@pytest.mark.slow
def test_a_resume_with_other_data_in_one_process_ends_in_all(tmp_path: Path, tiny_model: str) -> None:
    configure(tmp_path, tiny_model, 2)
    assert wst([*FIT, "--trainer.max_steps=2"], tmp_path, processes=2).code == 0
    configure(tmp_path, tiny_model, 2, **{"data.class_path": "toys.OtherQueriesInProcess1"})
    done = wst([*FIT, "--ckpt_path", "last"], tmp_path, processes=2, timeout=60)
    assert done.code == 2, done.err
    assert "process 1 was stopped: DataError: checkpoint: it was made with other training queries" in done.err
    assert "wst: error" not in (tmp_path / "run-1.err").read_text()


@pytest.mark.slow
def test_two_processes_share_an_endpoint_with_its_cache_its_budget_and_its_accounts(
    tmp_path: Path, tiny_model: str
) -> None:
    with FakeServer(answer=last_user_text) as server:
        student = {"model": "fake", "base_url": server.url, "api_key_env": None, "budget": {"calls": 40}}
        endpoint = {
            "model.init_args.student": {"class_path": "wst.EndpointStudent", "init_args": student},
            "model.init_args.student_prompt": {"placement": "before"},
        }
        configure(tmp_path, tiny_model, 2, **endpoint)
        done = wst(FIT, tmp_path, processes=2)
        assert done.code == 2
        assert done.err.count("wst: error:") == 1
        assert "budget.calls" in done.err
        assert "Traceback" not in done.err
        assert len(server.requests) == 40
        more = "--model.init_args.student.init_args.budget.calls=1000"
        done = wst([*FIT, "--ckpt_path", "last", more], tmp_path, processes=2)
        assert done.code == 0, done.err
        asked = [json.dumps(request.body["messages"]) for request in server.requests]
    assert len(set(asked)) == len(asked)  # nothing is paid for twice, whoever asks
    figures = scalars(tmp_path)
    steps, calls = zip(*figures["vitals/student/calls"], strict=True)
    assert steps == tuple(range(1, 11))
    # What was asked for the step that the budget broke off was logged with no step.
    validated = sum(value for _, value in figures["vitals/val/student/calls"])
    assert 0 <= len(asked) - sum(calls) - validated <= 12


def pair(query: str, chosen: str) -> dict[str, str]:
    return {side: f"\n\nHuman: {query}\n\nAssistant: {text}" for side, text in (("chosen", chosen), ("rejected", "no"))}


@pytest.mark.slow
def test_a_preference_model_is_trained_by_two_as_by_one(tmp_path: Path, tiny_model: str) -> None:
    weights = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        # Seven pairs by four: the last batch holds three, of which process 1 gets one.
        pairs = [pair(f"{i}?", "yes " * i) for i in range(1, 8)]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        (folder / "held_out.jsonl").write_text(json.dumps(pair("x?", "yes")) + "\n")
        configure(folder, tiny_model, processes)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model"] = {"class_path": "wst.PreferenceModel", "init_args": {"model": tiny_model}}
        config["data"] = {
            "class_path": "wst.HHRLHF",
            "init_args": {
                "train": str(folder / "pairs.jsonl"),
                "test": str(folder / "held_out.jsonl"),
                "batch_size": 4 // processes,
                "val_share": 0.0,
            },
        }
        config["trainer"] |= {"callbacks": [{"class_path": "wst.PreferenceExport"}], "max_steps": 4}
        del config["trainer"]["val_check_interval"], config["trainer"]["check_val_every_n_epoch"]
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        done = wst(FIT, folder, processes=processes)
        assert done.code == 0, done.err
        weights[processes] = load_file(folder / RUN / "reward_model/last/model.safetensors")
    for name, value in weights[2].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-5, atol=1e-5)


@given(st.integers(0, 60), st.integers(1, 7), st.integers(1, 6), st.integers(0, 3))
def test_every_query_is_handed_out_once_an_epoch(count: int, batch_size: int, processes: int, epoch: int) -> None:
    queries = [Query(str(i), "?") for i in range(count)]
    handed: list[list[list[str]]] = []
    for rank in range(processes):
        training = QueryLoader(queries, batch_size, rank=rank, world_size=processes)
        training.set_epoch(epoch)
        handed.append([[query.id for query in batch] for batch in training])
        evaluating = Batches(queries, batch_size, rank, processes)
        assert len(training) == len(handed[-1]) == len(evaluating) == len(list(evaluating))
    assert len({len(batches) for batches in handed}) == 1  # as many steps for each, or one would wait for ever
    assert sorted(chain.from_iterable(chain.from_iterable(handed)), key=int) == [query.id for query in queries]
    assert all(len(batch) <= batch_size for batches in handed for batch in batches)
    whole = QueryLoader(queries, batch_size * processes)
    whole.set_epoch(epoch)
    together = [list(chain.from_iterable(step)) for step in zip(*handed, strict=True)]
    assert together == [[query.id for query in batch] for batch in whole]
    parts = [list(Batches(queries, batch_size, rank, processes)) for rank in range(processes)]
    in_order = [query for step in zip(*parts, strict=True) for part in step for query in part]
    assert in_order == queries


@given(st.lists(st.integers(), max_size=40), st.integers(1, 9))
def test_shares_are_whole_and_even(items: list[int], size: int) -> None:
    parts = [share(items, rank, size) for rank in range(size)]
    assert list(chain.from_iterable(parts)) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_strategy_that_shards_the_model_is_refused() -> None:
    trainer = Mock(strategy=Mock(spec=ModelParallelStrategy))
    with pytest.raises(ConfigError, match="a sharded teacher cannot sample; set strategy to ddp"):
        check_strategy(trainer)
