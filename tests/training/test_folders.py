"""Each run has a folder of its own, for itself alone, and what is written there is whole."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from trainers import quiet_trainer

from wst import files
from wst.errors import ConfigError
from wst.training.folders import FolderLock, log_folder, run_folder


class ServerLogger(Logger):
    """Gives a run its number when the run begins, as W&B and MLflow do."""

    runs = 0

    def __init__(self, save_dir: Path | None, known: str | None = None) -> None:
        super().__init__()
        self._save_dir, self._version = save_dir, known

    @property
    def save_dir(self) -> Any:
        return self._save_dir

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str | None:
        return self._version

    @property
    def experiment(self) -> Any:
        if self._version is None:
            type(self).runs += 1
            self._version = f"run{self.runs}"
        return self

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def test_runs_of_any_logger_have_folders_of_their_own(tmp_path: Path) -> None:
    loggers = [ServerLogger(tmp_path), ServerLogger(tmp_path), ServerLogger(None), ServerLogger(tmp_path, "mine")]
    folders = [run_folder(logger, tmp_path / "root") for logger in loggers]
    assert len(set(folders)) == 4
    assert all(folder.parent.name == "project" for folder in folders)
    assert folders[0].parent.parent == tmp_path
    assert folders[2].parent.parent == tmp_path / "root"
    assert folders[3].name == "mine"


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger, ServerLogger])
def test_the_folder_is_the_one_that_checkpoints_go_to(tmp_path: Path, kind: Any) -> None:
    trainer = quiet_trainer(tmp_path, max_steps=1, logger=kind(tmp_path), enable_checkpointing=True)
    trainer.fit(BoringModel())
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert checkpoint.parent.parent == log_folder(trainer)


def test_without_a_logger_it_is_the_root_folder(tmp_path: Path) -> None:
    assert log_folder(quiet_trainer(tmp_path)) == tmp_path
    assert log_folder(quiet_trainer(tmp_path, logger=CSVLogger(tmp_path), fast_dev_run=True)) == tmp_path


@pytest.mark.slow
def test_a_folder_is_trained_in_once_at_a_time(tmp_path: Path) -> None:
    script = (
        "import sys; from wst.training.folders import *; FolderLock(Path(sys.argv[1])); print('has it', flush=True)"
    )
    wait = "; import time; time.sleep(60)"
    command = [sys.executable, "-c", script + wait, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"has it\n"
        with pytest.raises(ConfigError, match="another process is training") as caught:
            FolderLock(tmp_path)
        assert "\n" not in str(caught.value)
        other.kill()
    first = FolderLock(tmp_path)  # a killed process holds nothing
    first.release()
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        files.write_whole(tmp_path / "file", "x")
        files.write_folder(tmp_path / "folder", lambda folder: (folder / "inside").write_text("x") and None)
    finally:
        os.umask(before)
    for path, mode in ((tmp_path / "file", 0o666), (tmp_path / "folder", 0o777), (tmp_path / "folder/inside", 0o666)):
        assert stat.S_IMODE(path.stat().st_mode) == mode & ~mask, path


def test_half_surrogates_are_written_as_json_escapes_them(tmp_path: Path) -> None:
    files.append_lines(tmp_path / "rows.jsonl", [{"text": "half \ud83d"}])
    assert (tmp_path / "rows.jsonl").read_text() == '{"text": "half \\ud83d"}\n'


KILLED = """
import os, signal, sys
from pathlib import Path
from wst import files
place, moment = Path(sys.argv[1]), sys.argv[2]
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
if moment == "before":
    files._exchange = kill
elif moment == "after":
    files.sync_folder = kill
files.write_folder(place, lambda folder: (folder / "x").write_text("new") and None)
"""


@pytest.mark.parametrize(("moment", "left"), [("before", "old"), ("after", "new")])
def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path: Path, moment: str, left: str) -> None:
    place = tmp_path / "last"
    files.write_folder(place, lambda folder: (folder / "x").write_text("old") and None)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", KILLED, str(place), moment], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (place / "x").read_text() == left
    files.restore_folder(place)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_where_names_cannot_be_exchanged_the_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for text in ("old", "new"):
        files.write_folder(tmp_path / "last", lambda folder, text=text: (folder / "x").write_text(text) and None)  # type: ignore[misc]
    assert (tmp_path / "last/x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
