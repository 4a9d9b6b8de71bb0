"""The artefact and the `Instructor`: what was trained writes the same elsewhere."""

import asyncio
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from wst import Instruction, Query, StudentPrompt, Teacher, TeacherPrompt
from wst.cli.errors import guarded
from wst.cli.instruct import run
from wst.errors import ConfigError, DataError, ModelError
from wst.inference import Artefact, Instructor
from wst.inference.artefact import FILE

QUERIES = [f"query number {i}" for i in range(7)]
PROMPT = TeacherPrompt("Help with: {query}", system="Be brief.")  # the conftest's


def change(folder: Path, **changes: Any) -> None:
    path = folder / FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_written_is_read_again(folder: Path) -> None:
    read = Artefact.read(folder)
    assert (read.prompt, read.student_prompt) == (PROMPT, StudentPrompt("after", system="You answer."))
    assert (read.max_new_tokens, read.max_prompt_tokens, read.temperature) == (9, 1024, 1.0)
    assert read.about == {"seed": 0, "steps": 3}
    before = (folder / FILE).read_text()
    read.write()
    assert (folder / FILE).read_text() == before


def test_the_same_instructions_as_in_training(folder: Path, trained: Teacher) -> None:
    queries = [Query(str(i), text) for i, text in enumerate(QUERIES)]
    wanted = [written.text for written in trained.sample(queries, greedy=True)]
    with trained.untrained():
        assert [written.text for written in trained.sample(queries, greedy=True)] != wanted
    instructor = Instructor.from_pretrained(str(folder), "cpu")
    assert instructor(QUERIES) == wanted
    assert instructor(QUERIES[0]) == wanted[0]
    assert Instructor.from_pretrained(str(folder), "cpu", batch_size=2)(QUERIES) == wanted


def test_messages_have_the_instruction_where_training_put_it(folder: Path) -> None:
    instructor = Instructor.from_pretrained(str(folder), "cpu")
    history = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    instruction = instructor("2 + 2", history=history)
    asked = {"role": "user", "content": f"2 + 2\n\n{instruction}"}
    assert instructor.messages("2 + 2", history=history) == [
        {"role": "system", "content": "You answer."},
        *history,
        asked,
    ]
    own = instructor.messages("2 + 2", "Mine.", history=history)
    assert own[0] == {"role": "system", "content": "Mine."}


def test_threads_and_asyncio_share_one_instructor(folder: Path) -> None:
    instructor = Instructor.from_pretrained(str(folder), "cpu")
    wanted = instructor(QUERIES)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(instructor, QUERIES)) == wanted

    async def every() -> list[Any]:
        return await asyncio.gather(*(instructor.instruct(text) for text in QUERIES))

    assert asyncio.run(every()) == wanted


def test_a_base_that_lies_elsewhere(folder: Path, tiny_model: str, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    wanted = Instructor.from_pretrained(str(folder), "cpu")(QUERIES)
    change(folder, base={"model": str(tmp_path / "gone"), "revision": None, "dtype": "float32", "quantization": None})
    with pytest.raises(ModelError, match="no such folder"):
        Instructor.from_pretrained(str(folder), "cpu")("x")
    assert Instructor.from_pretrained(str(folder), "cpu", base=str(moved))(QUERIES) == wanted


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": "wst.teacher/2"}, "upgrade wst"),
        ({"base": []}, "base is not an object"),
        ({"base": {"model": 5}}, "base.model must be text"),
        ({"teacher": {"prompt": {"template": "{query}"}, "max_new_tokens": True}}, "max_new_tokens must be an integer"),
        ({"student_prompt": {"placement": "aside"}}, "placement"),
        ({"student_prompt": {"placement": ["after"]}}, "not text"),
        ({"student_prompt": {"shout": "yes"}}, "shout"),
        ({"files": {"../x": "0"}}, "is missing"),
        ({"files": {}}, "does not name"),
        ({"files": {"adapter_model.safetensors": "0" * 64}}, "SHA-256"),
        ({"gate": 3}, "gate is not an object"),
    ],
)
def test_a_folder_that_is_not_as_it_was_exported(folder: Path, changes: dict[str, Any], says: str) -> None:
    change(folder, **changes)
    with pytest.raises(ModelError, match=says) as caught:
        Artefact.read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000, '"' + "x" * 1_100_000 + '"'])
def test_a_file_that_is_none(folder: Path, content: str) -> None:
    (folder / FILE).write_text(content)
    with pytest.raises(ModelError, match="cannot be read"):
        Artefact.read(folder)


def test_what_is_no_teacher_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no wst\.json there"):
        Instructor.from_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match="no such folder"):
        Instructor.from_pretrained(str(tmp_path / "missing"))


def test_an_artefact_of_the_hub_names_no_path_of_this_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ModelError, match="give base"):
        Instructor.from_pretrained("them/theirs", "cpu")
    base = Artefact.read(folder).base["model"]
    assert Instructor.from_pretrained("them/theirs", "cpu", base=base, revision="v1")("query")
    assert asked == [("them/theirs", None), ("them/theirs", "v1")]


@pytest.mark.parametrize("query", ["", "  ", 5, None])
def test_a_query_must_be_text(folder: Path, query: Any) -> None:
    with pytest.raises(DataError, match="query 2"):
        Instructor.from_pretrained(str(folder), "cpu")(["fine", query])


@pytest.mark.parametrize("query", [None, 5, {"a": 1}])
def test_a_query_that_is_neither_text_nor_a_list_is_named(folder: Path, query: Any) -> None:
    with pytest.raises(DataError, match="query: expected text or a list of texts"):
        Instructor.from_pretrained(str(folder), "cpu")(query)
    with pytest.raises(DataError, match="history: expected a list of messages"):
        Instructor.from_pretrained(str(folder), "cpu")("x", history=query)


def test_a_column_of_a_frame_is_a_list_of_texts(folder: Path) -> None:
    instructor = Instructor.from_pretrained(str(folder), "cpu")
    texts = ["two plus two", "ü"]
    assert instructor(pytest.importorskip("pandas").Series(texts)) == instructor(texts)


@pytest.mark.parametrize("option", [["--server_model", "mine"], ["--server_key_env", "NAME"], ["--revision", "v1"]])
def test_an_option_that_would_do_nothing_is_refused(folder: Path, option: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--server|revision"):
        run([str(folder), *option, "text"])


def test_a_home_that_is_none_is_one_line() -> None:
    with pytest.raises(ConfigError, match="there is no such user"):
        Instructor.from_pretrained("~nosuchuser/teacher")


def test_settings_are_checked(folder: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        Instructor.from_pretrained(str(folder), batch_size=0)
    with pytest.raises(ConfigError, match="device"):
        Instructor.from_pretrained(str(folder), "gpu").load()


# ------------------------------------------------------------ wst instruct


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_the_command_writes_one_instruction_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Instructor.from_pretrained(str(folder), "cpu")(QUERIES)
    shown = [" ".join(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", " ", text).split()) for text in wanted]
    assert run([str(folder), *QUERIES]) == 0
    assert capsys.readouterr().out.splitlines() == shown
    feed(monkeypatch, "\n".join(QUERIES).encode() + b"\n\n")
    assert run([str(folder), "--batch_size", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == shown
    feed(monkeypatch, "".join(json.dumps({"id": i, "text": q}) + "\n" for i, q in enumerate(QUERIES)).encode())
    assert run([str(folder), "--jsonl", "--field", "text"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows == [
        {"id": i, "text": q, "instruction": z} for i, (q, z) in enumerate(zip(QUERIES, wanted, strict=True))
    ]


def test_what_a_terminal_would_obey_is_not_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Instructor, "write", lambda *_: [Instruction("a\x1b[2J\nb\u2028\u202ec")])
    assert run([str(folder), "x"]) == 0
    assert capsys.readouterr().out == "a [2J b c\n"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe", "line 1: it is not UTF-8"),
        (b'{"query": "a"}\n{', "line 2"),
        (b'{"query": 5}', "field 'query'"),
        (b'{"query": "a"}\n\n{"query": " "}', "line 3: the text in field 'query' is blank"),
        (b'\n{"query": "a", "score": NaN}', "line 2: it is not JSON .NaN"),
        (b'\n{"query": "a", "score": 1e400}', "line 2: it is not JSON .1e400"),
    ],
)
def test_a_broken_line_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, says: str) -> None:
    feed(monkeypatch, content)
    with pytest.raises(DataError, match=says):
        run([str(folder), "--jsonl"])


def test_a_blank_text_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="text 3 is blank"):
        run([str(folder), "--batch_size", "1", "a", "b", " "])


def test_no_text_and_no_standard_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="standard input is closed"):
        run([str(folder)])


def test_ctrl_c_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupting(io.BytesIO):
        def __next__(self) -> bytes:
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Interrupting()))
    assert guarded(lambda: run([str(folder)])) == 130
    assert capsys.readouterr().err == "wst: ended by SIGINT\n"


# ---------------------------------------------------------------- the gate


def test_a_gate_lets_through_what_the_teacher_is_sure_of(folder: Path, trained: Teacher) -> None:
    queries = [Query(str(i), text) for i, text in enumerate(QUERIES)]
    written = trained.sample(queries, greedy=True)
    found = trained.log_probs(written)
    sure = (found.values.sum(dim=1) / found.mask.sum(dim=1)).tolist()
    threshold = sorted(sure)[3]
    numbers = dict.fromkeys(("harm", "delta", "instructed", "harmed", "gain", "gain_without"), 0.5)
    change(folder, gate={"threshold": threshold, "rows": 9, "confidence": "mean_log_prob", **numbers})
    instructor = Instructor.from_pretrained(str(folder), "cpu")
    wanted = [z.text if confidence >= threshold else "" for z, confidence in zip(written, sure, strict=True)]
    shut = next(i for i, confidence in enumerate(sure) if confidence < threshold)
    assert any(wanted)
    assert written[shut].text
    assert instructor(QUERIES) == wanted
    assert instructor.messages(QUERIES[shut])[-1] == {"role": "user", "content": QUERIES[shut]}
    change(folder, gate={"threshold": "low"})
    with pytest.raises(ModelError, match="gate"):
        Instructor.from_pretrained(str(folder), "cpu")
