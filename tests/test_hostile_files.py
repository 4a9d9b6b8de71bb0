"""Files from strangers, drawn at random: each is read, or refused in one line, and nothing in it is run."""

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning import Trainer
from strategies import lines, places

from wst import LoRA, StudentPrompt, Teacher
from wst.cli.early import check_configs, check_options
from wst.cli.lightning import run
from wst.cli.trust import as_config, load_settings
from wst.data.jsonl import check_file, read_rows
from wst.errors import WSTError
from wst.inference.artefact import FILE, Artefact
from wst.modeling.adapters import check_adapter
from wst.terminal import printable
from wst.training.checkpoint import AtomicCheckpointIO
from wst.training.remembered import flat, harmless, listed, withheld

COUNTS = [100, pytest.param(3000, marks=pytest.mark.long)]
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pty.spawn")

seen: list[str] | None = None  #: what was run or connected to, while it is watched


def watch(event: str, arguments: Any) -> None:
    if seen is not None and event.startswith(WATCHED):
        seen.append(f"{event}: {arguments!r:.200}")


sys.addaudithook(watch)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    global seen
    (tmp_path / "trap.py").write_text("open('sprung', 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    seen = []
    yield
    found, seen = seen, None
    assert not found
    assert not (tmp_path / "sprung").exists()


def drawn(count: int, check: Callable[[Any], None], *strategies: st.SearchStrategy[Any]) -> None:
    """Call a check with ``count`` examples."""
    given(*strategies)(settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))(check))()


def is_one_line(text: str) -> bool:
    """Return whether a text is one short line that a terminal shows and does not obey."""
    return 0 < len(text) < 2000 and len(text.splitlines()) == 1 and printable(text) == " ".join(text.split())


def taken_or_one_line(action: Callable[[], object]) -> None:
    said = "taken"
    try:
        action()
    except WSTError as error:
        said = str(error)
    assert is_one_line(said), repr(said)


ODD = [
    "",
    "\x00",
    "\x1b[2J",
    "a\nb",
    "\u202e",
    "\ud800",
    "../../etc/passwd",
    "trap",
    "os.system",
    "trap.run",
    "a.b",
    "x" * 999,
]
TEXTS = st.sampled_from(ODD) | st.text(max_size=8)
NUMBERS = st.integers() | st.floats() | st.sampled_from([-1, 0, 10**12, 10**400])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """Return a copy in which one thing is another; ``...`` removes it."""
    whole = pickle.loads(pickle.dumps(value))
    *path, last = place
    inner = whole
    for key in path:
        inner = inner[key]
    if new is ...:
        del inner[last]
    else:
        inner[last] = new
    return whole


def damaged(sound: bytes) -> st.SearchStrategy[bytes]:
    """Sound content with something cut out and something put in."""
    where = st.integers(0, len(sound))
    return st.tuples(where, where, st.binary(max_size=8)).map(
        lambda cut: sound[: min(cut[:2])] + cut[2] + sound[max(cut[:2]) :]
    )


# --- Configs

PIECES = [
    b"model:\n", b"  class_path: wst.WeakToStrong\n", b"  init_args:\n", b"    teacher: {class_path: trap.Teacher}\n",
    b"data: trap.Data\n", b"trainer:\n", b"  max_steps: .nan\n", b"  callbacks: [{class_path: os.system}]\n", b"- ",
    b": ", b"? ", b"&a [*a, *a]\n", b"a: &b [1]\nc: *b\n", b"<<: *b\n", b"!!binary x\n", b"!!python/module:trap\n",
    b"!!python/object/apply:os.system ['touch sprung']\n", b"--- \n", b"...\n", b"%YAML 9.9\n", b"{", b"}", b"[" * 100,
    b"'", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"\x00", b"\x1b[2J", b"\xed\xa0\x80", b"\t", b"\n",
    b"model.init_args.student: x.yaml\n", b"ckpt_path: http://127.0.0.1:9/x\n", b"seed_everything: -1\n",
    b"config: config.yaml\n",
]  # fmt: skip
CONFIGS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=8).map(b"".join)


@pytest.mark.parametrize("count", COUNTS)
def test_configs(tmp_path: Path, count: int) -> None:
    path = tmp_path / "config.yaml"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        arguments = ["--config", str(path), "--model.init_args.student=trap.Student"]
        taken_or_one_line(lambda: (check_configs(arguments), check_options(arguments)))

    drawn(count, check, CONFIGS)


@pytest.mark.long
def test_configs_by_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            code: object = run(["fit", "--config", str(path)])
        except SystemExit as stop:
            code = stop.code
        said = capfd.readouterr().err
        assert code in (0, 2)
        assert "Traceback" not in said
        assert code == 0 or said.count("wst: error: ") == 1, said

    drawn(100, check, CONFIGS.filter(lambda content: b"trap." not in content))  # a class that is named is imported


# --- Rows


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("count", COUNTS)
def test_rows(tmp_path: Path, name: str, count: int) -> None:
    path = tmp_path / name
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame({"text": ["a", "b"], "label": ["x", None]}).to_parquet(tmp_path / "sound.parquet")
    sound = {
        "rows.jsonl": b'{"text": "a", "label": "x"}\n{"text": "b", "label": 5}\n',
        "rows.jsonl.gz": b"",
        "rows.parquet": (tmp_path / "sound.parquet").read_bytes(),
    }[name]
    if name.endswith("gz"):
        import gzip

        sound = gzip.compress(b'{"text": "a"}\n' * 20)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        taken_or_one_line(lambda: (check_file(str(path), option="train"), list(read_rows(path))))

    drawn(count, check, damaged(sound) | st.lists(lines(), max_size=3).map(b"\n".join) | st.binary(max_size=40))


# --- Checkpoints

HYPER = {
    "_class_path": "wst.WeakToStrong",
    "samples_per_query": 4,
    "teacher": {"class_path": "wst.Teacher", "init_args": {"model": "m", "lora": {"r": 4}, "temperature": 0.5}},
    "student": {
        "class_path": "wst.EndpointStudent",
        "init_args": {"base_url": "http://127.0.0.1:9", "api_key_env": "K"},
    },
    "reward": {"class_path": "wst.ExactMatch"},
}


class Bomb:
    """Runs something when it is unpickled."""

    def __reduce__(self) -> Any:
        return (open, ("sprung", "w"))


def written(checkpoint: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("count", COUNTS)
def test_settings_in_checkpoints(tmp_path: Path, count: int) -> None:
    path = tmp_path / "theirs.ckpt"

    def read() -> None:
        found = load_settings(path)
        as_config(harmless(found))
        line = listed(withheld(found, flat({"samples_per_query": 2}), {}))
        assert not line or is_one_line(line), repr(line)

    def check(place: tuple[Any, ...], value: Any) -> None:
        path.write_bytes(written({"hyper_parameters": changed(HYPER, place, value), "state_dict": {}}))
        taken_or_one_line(read)

    drawn(count, check, st.sampled_from([*places(HYPER), ("new",), ("a.b",)]), VALUES | st.builds(Bomb))


@pytest.mark.parametrize("count", COUNTS)
def test_checkpoints_that_are_none(tmp_path: Path, count: int) -> None:
    path = tmp_path / "theirs.ckpt"
    sound = [written({"hyper_parameters": HYPER, "state_dict": {"w": torch.ones(2)}}), pickle.dumps({"a": Bomb()})]

    def check(content: bytes) -> None:
        path.write_bytes(content)
        taken_or_one_line(lambda: load_settings(path))
        taken_or_one_line(lambda: AtomicCheckpointIO().load_checkpoint(path))

    whole = st.sampled_from([*sound, written([Bomb()])])
    drawn(count, check, whole | damaged(sound[0]) | damaged(sound[1]) | st.binary(max_size=40))


# --- Exported teachers, and adapters


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    teacher = Teacher(tiny_model, dtype="float32", lora=LoRA(r=4))
    teacher.load(torch.device("cpu"))
    teacher.save(folder)
    Artefact.of(folder, teacher, StudentPrompt(), {"seed": 0}).write()
    return folder


@pytest.mark.parametrize("file", [FILE, "adapter_config.json"])
@pytest.mark.parametrize("count", COUNTS)
def test_settings_of_exported_teachers(exported: Path, tmp_path: Path, file: str, count: int) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "theirs"))
    sound = json.loads((folder / file).read_text())

    def read() -> object:
        if file == FILE:
            return Artefact.read(folder)
        return check_adapter(str(folder))

    def check(place: tuple[Any, ...], value: Any, content: bytes | None) -> None:
        made = json.dumps(changed(sound, place, value)).encode() if content is None else content
        (folder / file).write_bytes(made)
        taken_or_one_line(read)

    one = st.sampled_from([*places(sound), ("new",), *[(key, "a\nb") for key in sound if isinstance(sound[key], dict)]])
    drawn(count, check, one, VALUES, st.none() | damaged((folder / file).read_bytes()))
