"""The model card, and an artefact's way to the hub and back, with the hub switched off."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from runs import wst
from safetensors.torch import load_file, save_file

from wst import Instructor, Teacher
from wst.errors import ModelError
from wst.inference import Artefact
from wst.inference.card import model_card
from wst.modeling.spec import ModelSpec, locate

QUERIES = ["two plus two", "The kettle leaks."]


class FakeHub:
    """Puts commits into a local cache of the hub, in its own format, where downloads look first."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.asked: list[tuple[str, Any]] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(self.cache))
        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", self.create_commit)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", self.files)

    def create_repo(self, repo: str, private: bool | None, exist_ok: bool) -> None:
        self.asked.append((repo, private))
        assert exist_ok

    def create_commit(self, repo: str, operations: list[Any], commit_message: str) -> Any:
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                (self.place(repo) / operation.path_in_repo).unlink()
        added = [one for one in operations if isinstance(one, huggingface_hub.CommitOperationAdd)]
        files = {operation.path_in_repo: operation.path_or_fileobj for operation in added}
        self.put(repo, {name: f if isinstance(f, bytes) else Path(f).read_bytes() for name, f in files.items()})
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")

    def place(self, repo: str) -> Path:
        return self.cache / f"models--{repo.replace('/', '--')}" / "snapshots" / ("1" * 40)

    def files(self, repo: str) -> list[str]:
        return [path.name for path in self.place(repo).glob("*")]

    def put(self, repo: str, files: dict[str, bytes]) -> Path:
        snapshot = self.place(repo)
        snapshot.mkdir(parents=True, exist_ok=True)
        refs = snapshot.parent.parent / "refs"
        refs.mkdir(exist_ok=True)
        (refs / "main").write_text("1" * 40)
        for name, content in files.items():
            (snapshot / name).write_bytes(content)
        return snapshot


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "hub")
    made.install(monkeypatch)
    return made


def test_a_teacher_pushed_to_the_hub_is_read_from_there(folder: Path, tiny_model: str, hub: FakeHub) -> None:
    about = {"data": "QueryDataModule (/home/me/rows.jsonl)", "student": {"class": "LocalStudent", "model": "/m/big"}}
    replace(Artefact.read(folder), about=about).write()
    mine = Instructor.from_pretrained(str(folder), "cpu")
    with pytest.raises(ModelError, match="a path of this machine; give base"):
        mine.push_to_hub("me/teacher")
    assert hub.asked == []
    for name in ("script.py", "keys.json", "notes.txt"):  # what somebody laid beside it stays at home
        (folder / name).write_text("mine")
    hub.put("them/base", {path.name: path.read_bytes() for path in Path(tiny_model).iterdir()})
    before = (folder / "wst.json").read_text()
    assert mine.push_to_hub("me/teacher", base="them/base", private=True) == "https://hub/me/teacher/commit/1"
    assert (folder / "wst.json").read_text() == before
    assert hub.asked == [("me/teacher", True)]
    theirs = Instructor.from_pretrained("me/teacher", "cpu")
    assert theirs.artefact.base["model"] == "them/base"
    assert theirs(QUERIES) == mine(QUERIES)
    place = theirs.artefact.folder
    assert json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"] == "them/base"
    card = (place / "README.md").read_text()
    assert "\nbase_model: them/base\n" in f"\n{card}"
    assert 'from_pretrained("me/teacher")' in card
    assert tiny_model not in "".join(path.read_text() for path in place.iterdir() if path.suffix in (".json", ".md"))
    assert theirs.artefact.about["data"] == "QueryDataModule (rows.jsonl)"
    assert "LocalStudent (big)" in card
    assert not {"script.py", "keys.json", "notes.txt"} & {path.name for path in place.iterdir()}


def test_an_export_takes_the_place_of_an_earlier_one(folder: Path, tiny_model: str, hub: FakeHub) -> None:
    hub.put("them/base", {path.name: path.read_bytes() for path in Path(tiny_model).iterdir()})
    hub.put("me/teacher", {"model.safetensors": b"of another export", "vocab.txt": b"", "notes.md": b"kept"})
    Instructor.from_pretrained(str(folder), "cpu").push_to_hub("me/teacher", base="them/base")
    assert {"model.safetensors", "vocab.txt", "notes.md"} & set(hub.files("me/teacher")) == {"notes.md"}
    assert Instructor.from_pretrained("me/teacher", "cpu")(QUERIES)


def test_a_hub_that_refuses_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(ModelError, match=r"'me/teacher': cannot be uploaded to the hub \(403 Forbidden\)"):
        Instructor.from_pretrained(str(folder)).push_to_hub("me/teacher", base="them/base")
    with pytest.raises(ModelError, match="cannot be had from the hub"):
        Instructor.from_pretrained("nobody/nothing")


def test_a_broken_adapter_config_is_one_line(folder: Path, hub: FakeHub) -> None:
    mine = Instructor.from_pretrained(str(folder), "cpu")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json: no JSON object"):
        mine.push_to_hub("me/teacher", base="them/base")
    assert hub.asked == []


@pytest.mark.parametrize("base", ["package:json/../../x.gguf", "hub:a/../b.gguf", "/tmp/base", "./base", "base"])
def test_no_path_of_a_machine_is_pushed_or_read(folder: Path, hub: FakeHub, base: str) -> None:
    with pytest.raises(ModelError, match="path of this machine"):
        Instructor.from_pretrained(str(folder)).push_to_hub("me/teacher", base=base)
    content = json.loads((folder / "wst.json").read_text())
    content["base"]["model"] = base
    (folder / "wst.json").write_text(json.dumps(content))
    hub.put("them/teacher", {path.name: path.read_bytes() for path in folder.iterdir()})
    with pytest.raises(ModelError, match="give base"):
        Instructor.from_pretrained("them/teacher")


def test_a_gguf_file_on_the_hub_is_a_base(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> None:
    hub.put("them/weights", {"small.Q4_1.gguf": b"GGUF"})
    asked: list[Path] = []

    def convert(path: Path) -> Path:
        asked.append(path)
        return Path(tiny_model)

    monkeypatch.setattr("wst.modeling.loading._converted_gguf", convert)
    name = "hub:them/weights/small.Q4_1.gguf"
    teacher = Teacher(name, dtype="float32")
    teacher.check()
    teacher.load(torch.device("cpu"))
    assert [path.read_bytes() for path in asked] == [b"GGUF"]
    assert ModelSpec(name).fingerprint(portable=True) == ["them/weights/small.Q4_1.gguf", None]
    with pytest.raises(ModelError, match="not on the hub, or the hub cannot be reached"):
        Teacher("hub:them/weights/other.gguf").check()
    for wrong in ("hub:them/small.gguf", "hub:them/weights/small.bin", "hub:../weights/x.gguf", "hub:a/b/../c.gguf"):
        with pytest.raises(ModelError, match="not the form of a GGUF file on the hub"):
            locate(wrong)


# ----------------------------------------------------------------- the card


def snippet(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return str(code)


def test_the_snippet_of_a_model_card_prints_an_instruction(
    fitted: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fitted / "runs/tiny/version_0/teacher/best"
    monkeypatch.chdir(folder)
    exec(snippet((folder / "README.md").read_text()), {})
    instruction = capsys.readouterr().out.removesuffix("\n")
    assert instruction == Instructor.from_pretrained(str(folder))("The text of a query")


@pytest.mark.slow
def test_card_and_artefact_show_validation_and_test(fitted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(fitted, tmp_path / "run"))
    exports = folder / "runs/tiny/version_0/teacher"
    config = (folder / "config.yaml").read_text().replace(str(fitted), str(folder))
    (folder / "config.yaml").write_text(config)
    before = Artefact.read(exports / "last")
    assert "test" not in before.about["figures"]
    card = (exports / "last/README.md").read_text()
    assert "| seed | 7 |" in card
    assert re.search(
        r"\| mean reward with the teacher's instructions \| -?\d\.\d{3} \(-?\d\.\d{3} to -?\d\.\d{3}\) \| - \|", card
    )
    weights = load_file(exports / "last/adapter_model.safetensors")
    (exports / "best/adapter_model.safetensors").write_bytes(b"damaged")
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], folder)
    assert done.code == 0, done.err
    assert "the export has not got the test's figures" in done.err
    save_file({name: weight + 1 for name, weight in weights.items()}, exports / "best/adapter_model.safetensors")
    replace(before, folder=exports / "best").write()
    done = wst(["test", "--config", "config.yaml", "--ckpt_path", "last"], folder)
    assert done.code == 0, done.err
    about = Artefact.read(exports / "last").about
    assert {**about, "figures": about["figures"] | {"test": None}} == {
        **before.about,
        "figures": before.about["figures"] | {"test": None},
    }
    results = json.loads(next(folder.rglob("results.json")).read_text())
    cells = results["students"]["student"]["arms"]
    trained, tested = cells["trained teacher"], about["figures"]["test"]
    for name, cell in (
        ("reward", trained),
        ("unaided", cells["no instruction"]),
        ("untrained", cells["untrained teacher"]),
    ):
        assert tested[name] == {key: cell[key] for key in ("mean", "ci95")}
    assert tested["gain"] == {key: trained["vs_unaided"][key] for key in ("mean", "ci95")}
    assert {key: tested[key] for key in ("help", "harm", "leak", "n")} == {
        key: trained[key] for key in ("help", "harm", "leak", "n")
    }
    card = (exports / "last/README.md").read_text()
    for said in ("mean reward with", "gain over no instruction", "harm: share of queries made worse"):
        assert re.search(rf"^\| {said}[^|]*\| -?\d[^|]*\| -?\d[^|]*\|$", card, flags=re.MULTILINE), said
    assert "test" not in Artefact.read(exports / "best").about["figures"]  # other weights


@pytest.mark.parametrize(
    "odd",
    [
        {"student": "gpt"},
        {"figures": [1]},
        {"figures": {"validation": 3}},
        {"figures": {"validation": {"reward": {"mean": 1, "ci95": 5}}}},
        {"gate": {}},
    ],
)
def test_a_card_of_what_no_export_wrote_is_one_line(folder: Path, odd: dict[str, Any]) -> None:
    content = json.loads((folder / "wst.json").read_text()) | odd
    (folder / "wst.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"cannot be read; export the teacher again"):
        model_card(Artefact.read(folder))
