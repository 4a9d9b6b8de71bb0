"""Runs of the real command line against an endpoint: nothing is paid for twice, nothing is lost, nothing is told."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from endpoints import FakeServer, last_user_text
from runs import start, write_config, wst
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import Lowercase

from wst import EndpointStudent, Instruction, LoRA, Query, StudentPrompt, Teacher, TeacherPrompt, WeakToStrong

RUN = Path("runs/tiny/version_0")
FIT = ["fit", "--config", "config.yaml"]
RESUME = [*FIT, "--ckpt_path", "last"]
KEY = "sk-secret-0123456789abcdef"


def write_endpoint_config(
    folder: Path, model: str, server: FakeServer, changes: dict[str, Any] | None = None, **student: Any
) -> Path:
    """Write a config whose student is the server."""
    options = {"model": "fake", "base_url": server.url, "api_key_env": None, "backoff": 0.02, **student}
    config = {
        "model.init_args.student": {"class_path": "wst.EndpointStudent", "init_args": options},
        "model.init_args.student_prompt": {"placement": "before"},
    }
    return write_config(folder, model, **config | (changes or {}))


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / RUN / "teacher/last/adapter_model.safetensors")


def scalars(folder: Path, name: str) -> list[float]:
    log = EventAccumulator(str(folder / RUN))
    log.Reload()
    return [event.value for event in log.Scalars(name)]


@pytest.mark.slow
def test_accounts_in_the_log_and_in_the_results(tmp_path: Path, tiny_model: str) -> None:
    with FakeServer(answer=last_user_text) as server:
        shown = {"trainer.enable_progress_bar": True}
        write_endpoint_config(tmp_path, tiny_model, server, shown, prices={"prompt": 1.0, "completion": 2.0})
        done = wst([*FIT, "--trainer.num_sanity_val_steps=1"], tmp_path)
        assert done.code == 0, done.err
        fitted = len(server.requests)
        done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], tmp_path)
        assert done.code == 0, done.err
        tested = len(server.requests) - fitted
        assert wst(["predict", *FIT[1:], "--ckpt_path", "last"], tmp_path).code == 0
        assert len(server.requests) == fitted + tested  # the test has asked all that already
    calls, validated = scalars(tmp_path, "vitals/student/calls"), scalars(tmp_path, "vitals/val/student/calls")
    assert len(calls) == 6
    assert sum(calls) + sum(validated) == fitted
    assert scalars(tmp_path, "vitals/student/failed") == [0] * 6
    assert min(scalars(tmp_path, "vitals/student/cost")) > 0
    assert min(scalars(tmp_path, "vitals/student/seconds_p95")) > 0
    results = json.loads((tmp_path / RUN / "results.json").read_text())
    assert results["accounts"]["student"]["test"]["calls"] == tested
    assert results["accounts"]["student"]["test"]["cache_hits"] >= 4  # the four of validation were asked unaided before
    run = results["accounts"]["student"]["run"]
    assert run["fit"]["calls"] == fitted
    assert run["test"]["calls"] == tested
    tokens = run["fit"]["prompt_tokens"] + 2 * run["fit"]["completion_tokens"]
    assert run["fit"]["cost"] == pytest.approx(tokens / 1e6)


@pytest.mark.slow
def test_the_key_stands_nowhere(tmp_path: Path, tiny_model: str) -> None:
    """Not in configs, checkpoints, hparams, TensorBoard, cache, ledger, samples, results, or on the terminal."""
    environment = {"MY_KEY": KEY, "OPENAI_LOG": "debug"}
    with FakeServer(key=KEY, answer=lambda body: f"{last_user_text(body)} {KEY}") as server:  # it even repeats it
        write_endpoint_config(tmp_path, tiny_model, server, api_key_env="MY_KEY")
        for args in (FIT, *([stage, *FIT[1:], "--ckpt_path", "last"] for stage in ("test", "predict"))):
            done = wst(args, tmp_path, environment=environment)
            assert done.code == 0, done.err
            assert KEY not in done.out + done.err
        assert server.requests[0].key == KEY
        server.key = "another"
        config = tmp_path / "config.yaml"
        config.write_text(config.read_text().replace("name: tiny", "name: refused"))
        done = wst([*FIT, "--model.init_args.student.init_args.revision=new"], tmp_path, environment=environment)
        assert done.code == 2
        assert "MY_KEY" in done.err
        assert KEY not in done.out + done.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.name.split(".")[0] for path in files} | {path.suffix for path in files}
    assert {"last", "answers", "calls", "config", "hparams", "instructions", "predictions", "results"} <= kinds
    assert [str(path) for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.slow
def test_a_refused_key_stops_after_a_checkpoint(tmp_path: Path, tiny_model: str) -> None:
    with FakeServer(answer=last_user_text) as server:
        write_endpoint_config(tmp_path, tiny_model, server, {"trainer.val_check_interval": 100})
        assert wst(FIT, tmp_path).code == 0
        whole, asked = adapter(tmp_path), len(server.requests)
        (tmp_path / "again").mkdir()
        again = tmp_path / "again"
        changes = {"trainer.val_check_interval": 100, "trainer.callbacks": [{"class_path": "wst.TeacherExport"}]}
        write_endpoint_config(again, tiny_model, server, changes, budget={"calls": asked // 2})
        done = wst(FIT, again)
        assert done.code == 2
        assert [line for line in done.err.splitlines() if "budget.calls" in line and line.startswith("wst: error:")]
        assert "Traceback" not in done.err
        last = torch.load(again / RUN / "checkpoints/last.ckpt", weights_only=True)
        assert 0 < last["global_step"] < 6
        paid = len(server.requests) - asked
        assert paid == asked // 2
        # the step that was interrupted is made after all, and nothing of it is paid for again
        done = wst([*RESUME, f"--model.init_args.student.init_args.budget.calls={asked}"], again)
        assert done.code == 0, done.err
        assert len(server.requests) == 2 * asked
    resumed = adapter(again)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.slow
def test_too_many_failures_make_no_update(tmp_path: Path, tiny_model: str) -> None:
    with FakeServer() as server:
        server.status = 500
        write_endpoint_config(tmp_path, tiny_model, server, {"model.init_args.max_skips": 3}, retries=1)
        done = wst(FIT, tmp_path)
    assert done.code == 2
    assert "12 of 12 answers failed" in done.err
    assert "makes no update" in done.err
    assert "3 in a row" in done.err.splitlines()[-1]
    assert scalars(tmp_path, "vitals/skipped") == [1, 1]
    assert scalars(tmp_path, "vitals/student/failed")[0] == 12
    last = torch.load(tmp_path / RUN / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.long)])
def test_nothing_is_paid_for_twice_however_often_it_is_killed(tmp_path: Path, tiny_model: str, kills: int) -> None:
    chance = random.Random(kills)
    with FakeServer(delay=0.1, answer=last_user_text) as server:
        # A teacher that hardly learns: one that repeats itself would soon ask for nothing that is not cached.
        changes = {"trainer.max_steps": 4 * kills, "trainer.val_check_interval": 3}
        changes["model.init_args.optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1e-9}}
        write_endpoint_config(tmp_path, tiny_model, server, changes, concurrency=4)
        killed: list[int] = []  # requests by then
        while len(killed) < kills:
            before = len(server.requests)
            resumable = any(tmp_path.glob("runs/*/version_*/checkpoints/last.ckpt"))
            process = start(RESUME if resumable else FIT, tmp_path)
            while process.is_alive() and len(server.requests) == before:
                time.sleep(0.01)
            process.join(chance.uniform(0.0, 1.0))
            process.kill()
            killed.append(len(server.requests))
            process.join()
            assert process.exitcode == -signal.SIGKILL  # or it ended too early to be killed: raise max_steps
        resumable = any(tmp_path.glob("runs/*/version_*/checkpoints/last.ckpt"))
        done = wst(RESUME if resumable else FIT, tmp_path)
        assert done.code == 0, done.err
        requests = list(server.requests)
    # A request that came when the client was already dead has no body.
    asked = [str(request.body.get("messages")) for request in requests]
    answered = Counter(words for words, request in zip(asked, requests, strict=True) if request.sent)
    assert len(answered) > 10 * kills
    # Whoever was killed may have had so many calls in flight: answered by the server's count, not yet by its own.
    first, twice = 0, 0
    for end in killed:
        again = set(asked[end:])
        lost = [requests[i] for i in range(first, end) if requests[i].sent and asked[i] in again]
        assert len(lost) <= 4
        first, twice = end, twice + len(lost)
    assert sum(answered.values()) - len(answered) == twice
    print(f"\n{kills} kills: {len(answered)} answers, {twice} of them in flight at a kill and answered again")


class WatchedTeacher(Teacher):
    """A teacher that waits, when a quarter of its instructions are sampled, until the student was asked."""

    server: FakeServer

    def sample(
        self,
        queries: Sequence[Query],
        samples: int = 1,
        greedy: bool = False,
        on_done: Callable[[int, Instruction], None] | None = None,
    ) -> list[Instruction]:
        told: list[int] = []

        def done(place: int, instruction: Instruction) -> None:
            assert on_done is not None
            on_done(place, instruction)
            told.append(place)
            deadline = time.monotonic() + 60  # only ever reached if nothing is asked meanwhile
            while len(told) == 4 and not self.server.requests and time.monotonic() < deadline:
                time.sleep(0.002)

        return super().sample(queries, samples, greedy, done)


def test_sampling_and_answering_overlap(tiny_model: str) -> None:
    """The first answers are asked for while the teacher samples, and it does not wait for them."""
    queries = [Query(f"q{i}", f"query {i}") for i in range(4)]
    teacher = WatchedTeacher(tiny_model, TeacherPrompt("{query}"), LoRA(4), max_new_tokens=8, sample_batch_size=1)
    with FakeServer(answer=last_user_text) as server:
        teacher.server = server
        asked: list[int] = []
        server.hold = lambda _: not asked  # no answer comes before all is sampled
        student = EndpointStudent("fake", server.url, None, cache=False)
        prompt = StudentPrompt("before")
        module = WeakToStrong(teacher, student, Lowercase(), student_prompt=prompt, samples_per_query=4)
        teacher.load(torch.device("cpu"))
        student.setup(torch.device("cpu"))
        instructions = module.instruct(queries, 4)
        asked.append(len(server.requests))
        module.environment.respond([query for query in queries for _ in range(4)], instructions, module._draws(4, 4))
        student.close()
    assert asked[0] > 0
