"""``wst init``: write a project of one's own, by options or by asking. Imports no torch."""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from wst.cli.errors import Parser
from wst.data.fields import FieldMap, Row
from wst.data.sources import file_rows
from wst.errors import ConfigError, StorageError
from wst.files import SHIPPED, shipped, write_whole
from wst.modeling.spec import locate
from wst.prompts import SMALL_PROMPT, SMALL_SAMPLING, SMOLLM2
from wst.rewards import LabelMatch
from wst.rewards.labels import fold
from wst.students import EndpointStudent
from wst.terminal import printable
from wst.types import Query

_QUERY = ("text", "query", "question", "prompt", "input", "request", "message", "body", "content", "problem")
_TARGET = (
    "label",
    "target",
    "answer",
    "output",
    "category",
    "class",
    "queue",
    "intent",
    "gold",
    "expected",
    "solution",
)
_SHARE = 0.2  #: of the rows, to validate and to test on
_ROWS = 1_000_000  #: of a file that are looked at
_MOST_LABELS, _LONGEST_LABEL = 20, 60
_NONE = "null"  #: the name that stands for no column
_COPIED = 100 * 2**20  #: bytes; a larger file stays where it is

_CONFIG = """\
# {name}: the teacher learns to write, for each row, the instruction under which the student answers best.
#   wst check --config config.yaml                     # try everything before it costs anything
#   wst fit --config config.yaml
#   wst test --config config.yaml --ckpt_path best     # or last
# `wst help WeakToStrong` explains the options, and so does `wst help` with any other class.
"""
_REWARD = '"""Which answers are right. Change it as you like."""\n\n'
_REWARDS = {
    "label": '''\
from wst import LabelMatch

LABELS = {labels}


class Right(LabelMatch):
    """The answer names the label of its row, and no other."""

    def __init__(self) -> None:
        super().__init__(LABELS)
''',
    "number": '''\
from wst import LastNumber


class Right(LastNumber):
    """The last number in the answer is the number of its row."""
''',
    "text": '''\
from wst import Reward


class Right(Reward):
    """The share of the target's words that stand in the answer: a start, until you know what makes an answer good."""

    def score(self, rollouts):  # one number each; float("nan"): cannot be scored
        return [max(_share(r.response.text, target) for target in r.query.targets) for r in rollouts]


def _share(answer, target):
    words = set(target.lower().split())
    return len(words & set(answer.lower().split())) / len(words)
''',
    "none": '''\
from wst import Reward


class Right(Reward):
    """1 for at most 30 words, less for a longer answer: a start, until you write what makes an answer good."""

    def score(self, rollouts):  # one number each; float("nan"): cannot be scored
        return [_brief(len(rollout.response.text.split())) for rollout in rollouts]


def _brief(words):
    return min(1.0, 30 / words) if words else 0.0
''',
}
_README = """\
# {name}

Weak-to-Strong Transfer: a small teacher learns to write the instruction under which a frozen student answers best.

```bash
wst check --config config.yaml                     # gold answers, and a few queries all the way
wst fit   --config config.yaml
wst test  --config config.yaml --ckpt_path best    # or last
wst instruct runs/{name}/version_0/teacher/best "a new text"
```

- `config.yaml`: models, prompts, data, training. What a run can be told: `wst fit --help`, `wst list`.
- `my_reward.py`: which answers are right.
- `data/`: the rows; {target}
"""


class _Task(NamedTuple):
    """What the rows ask for.

    Attributes:
        kind: Of the answers: "label", "number", "text", or "none" if the rows have none.
        asked: What the assistant must do, in the teacher's words.
        form: What the student is told of the form of an answer.
        labels: The labels, if they are labels.
    """

    kind: str
    asked: str
    form: str
    labels: list[str]


def run(args: list[str]) -> int:
    """Write the project, and say what to do next.

    Raises:
        WSTError: If an option is impossible, a file cannot be read, or something would be overwritten.
    """
    options = _parser().parse_args(args)
    asking = sys.stdin is not None and sys.stdin.isatty()
    if asking and options.data is None:
        options.data = _ask("file with your rows (.csv, .jsonl, .parquet, ...; empty: reviews as an example)", "")
    given = {"train": options.data, "val": options.val, "test": options.test}
    if not options.data:
        given = {split: str(shipped(f"wst:data/reviews/{split}.jsonl")) for split in given}
    files = {split: Path(shipped(file) if file.startswith(SHIPPED) else file) for split, file in given.items() if file}
    rows = [row for file in files.values() for row in islice(file_rows(file), _ROWS)]
    asking &= bool(options.data)  # of the example all is known
    query = _column("query", options.query, _QUERY, rows[0], asking)
    column = _column("target", options.target, _TARGET, rows[0], asking, otherwise=_NONE)
    target = None if column == _NONE else column
    task = _task([FieldMap(query, target).read(row) for row in rows])
    _check_shares(files)
    if asking and options.student is None:
        options.student = _ask("student: local, endpoint, or a model (hub id, folder, .gguf file)", "local")

    folder = Path(options.folder)
    name = re.sub(r"\W+", "_", folder.resolve().name).strip("_") or "project"
    places = {split: _place(file, folder) for split, file in files.items()}
    settings = _settings(name, options, task, {**places, "fields": {"query": query, "target": target}})
    texts = {
        "config.yaml": _CONFIG.format(name=name) + yaml.dump(settings, **_YAML),
        "my_reward.py": _REWARD + _REWARDS[task.kind].format(labels=json.dumps(task.labels, ensure_ascii=False)),
        "README.md": _README.format(name=name, target=_told(target)),
    }
    copies = {place: files[split] for split, place in places.items() if not _is_same(files[split], folder / place)}
    if len(set(places.values())) < len(places):
        raise ConfigError(f"init: two files would be {max(places.values(), key=[*places.values()].count)}; rename one")
    for written in (*texts, *copies):
        if (folder / written).exists():
            raise ConfigError(f"init: {str(folder / written)!r} exists; name another folder, or move it away")
    try:
        for place, file in copies.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / place)
        for written, text in texts.items():
            write_whole(folder / written, text)
    except (OSError, StorageError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"init: {str(folder)!r} cannot be written ({reason}); name another folder") from error
    kinds = {"label": f"{len(task.labels)} labels", "none": "no right answers"}
    what = kinds.get(task.kind, f"each answer is a {task.kind}")
    print(f"{printable(name)}: {len(rows)} rows, {what}; wrote {printable(', '.join([*texts, *copies]))}")
    print(f"next: cd {printable(shlex.quote(str(folder)))} && wst check --config config.yaml")
    return 0


def _is_same(file: Path, other: Path) -> bool:
    return file.resolve() == other.resolve()


def _place(file: Path, folder: Path) -> str:
    """Return where the project has a file: where it is if it is in the folder already or large, else in data/."""
    if file.resolve().is_relative_to(folder.resolve()):
        return file.resolve().relative_to(folder.resolve()).as_posix()
    return str(file.resolve()) if file.stat().st_size > _COPIED else f"data/{file.name}"


def _told(target: str | None) -> str:
    """Return what the README says of the column of the right answers."""
    if target is None:
        return "no column holds a right answer."
    return "the column `{}` holds the right answer.".format(printable(target).replace("`", "'"))


def _column(
    option: str, given: str | None, usual: Sequence[str], row: Row, asking: bool, otherwise: str | None = None
) -> str:
    """Return the name of a column: the one given, else what one asked says, else the first of the usual names.

    Args:
        option: What it is for.
        given: Its name, if one is given.
        usual: Usual names, in lower case.
        row: A row of the data.
        asking: Whether there is somebody to ask.
        otherwise: What to say if there is no such column, if that is possible.

    Raises:
        ConfigError: If there is none of the usual names, and nobody to ask.
    """
    names = {name.lower(): name for name in row.values}
    found = next((names[name] for name in usual if name in names), None)
    if given is None and asking:
        names_none = f"; {otherwise}: none" if otherwise else ""
        question = f"column with the {option} (of {', '.join(map(printable, row.values))}{names_none})"
        given = _ask(question, found or otherwise or "")
    if given or found:
        return given or str(found)
    if len(row.values) == 1 and ";" in next(iter(row.values)):
        raise ConfigError("init: the cells are separated by ';'; save the file with commas, or as .tsv with tabs")
    raise ConfigError(
        f"init: which column is the {option}? Name it with --{option} (of {', '.join(map(repr, row.values)):.300})"
        + (f", or give --{option} {otherwise} if there is none" if otherwise else "")
    )


def _check_shares(files: dict[str, Path]) -> None:
    """Check that the rows can be split.

    Raises:
        ConfigError: If a share of them would be no row.
    """
    split_off = [split for split in ("val", "test") if split not in files]
    count = sum(1 for _ in islice(file_rows(files["train"]), 3))
    if split_off and round(_SHARE * count) == 0:
        raise ConfigError(
            f"init: {count} row{'s' * (count > 1)}, of which none can be held out to validate and test on; add rows, "
            f"or give {' and '.join(f'--{split}' for split in split_off)}"
        )


def _task(queries: Sequence[Query]) -> _Task:
    answers = Counter(answer for query in queries for answer in query.targets)
    if not answers:
        return _Task("none", "answer the following request", "", [])
    try:
        numbers = all(math.isfinite(float(answer.replace(",", ""))) for answer in answers)
    except ValueError:
        numbers = False
    if numbers:
        return _Task("number", "answer the following question", "Give the answer as a number at the end.", [])
    short = all(len(answer) <= _LONGEST_LABEL for answer in answers)
    if len(answers) <= _MOST_LABELS and 2 * len(answers) <= len(queries) and short:
        labels = sorted({fold(answer): answer for answer in sorted(answers)}.values())
        if len(labels) == 1:
            raise ConfigError(f"init: all rows have the answer {labels[0]!r:.80}; there is nothing to learn from")
        if odd := [label for label in labels if not label.isprintable()]:
            raise ConfigError(f"init: label {odd[0]!r:.80} has line breaks or control characters; clean its column")
        LabelMatch(labels)  # refuses what cannot be told apart
        listed = ("; " if any("," in label for label in labels) else ", ").join(labels)
        return _Task("label", "classify the following text", f"Answer with one of: {listed}.", labels)
    return _Task("text", "answer the following request", "", [])


def _settings(name: str, options: argparse.Namespace, task: _Task, data: dict[str, Any]) -> dict[str, Any]:
    """Return the config.

    Raises:
        WSTError: If a model is not there.
    """
    teacher, student = options.teacher or SMOLLM2, options.student or "local"
    arguments: dict[str, Any] = {"max_new_tokens": 256 if task.kind in ("text", "none") else 64}
    if student == "endpoint":
        key = None if options.api_key_env == "null" else options.api_key_env
        arguments |= {"model": options.model, "base_url": options.base_url, "api_key_env": key}
        EndpointStudent(**arguments, cache=False)  # refuses what is impossible
        arguments |= {"budget": {"calls": 5000}}
    else:
        arguments |= {"model": SMOLLM2 if student == "local" else student, "batch_size": 32}
        arguments["model"] = _whole_path(str(arguments["model"]))
        locate(arguments["model"])
    teacher = _whole_path(teacher)
    locate(teacher)
    kind = "Endpoint" if student == "endpoint" else "Local"
    template = (
        f"Write one short instruction for an assistant who must {task.asked}. Say how to go about it, and do not give "
        "the answer.\n\n{query}\n\nInstruction:"
    )
    writing: dict[str, Any] = {"prompt": {"template": template}, "max_new_tokens": 32}
    if teacher == SMOLLM2:  # too small for a template that asks; examples show it what an instruction is
        examples = [list(pair) for pair in SMALL_PROMPT.examples]
        writing = {"prompt": {"template": SMALL_PROMPT.template, "examples": examples}, **SMALL_SAMPLING}
    model = {
        "teacher": {"class_path": "wst.Teacher", "init_args": {"model": teacher, **writing}},
        "student": {"class_path": f"wst.{kind}Student", "init_args": arguments},
        "student_prompt": {"placement": "before", "query": "\n\n".join(filter(None, ["{query}", task.form]))},
        "reward": "my_reward.Right",
        # With 1, an instruction that gives the answer away earns nothing.
        "leak_penalty": float(task.kind != "none"),
        "baseline": "wst.JamesStein",
        "samples_per_query": 2,
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4}},
    }
    shares = {f"{split}_share": _SHARE for split in ("val", "test") if split not in data}
    return {
        "config": "wst:parts/run",
        "trainer.max_steps": 60,
        "trainer.val_check_interval": 10,
        "trainer.logger.init_args.name": name,
        "model": {"class_path": "wst.WeakToStrong", "init_args": model},
        "data": {
            "class_path": "wst.QueryDataModule",
            "init_args": data | shares | {"batch_size": 16, "eval_batch_size": 32, "limit_val": 32},
        },
    }


def _whole_path(model: str) -> str:
    """Return a model's name, or the whole path of a folder or file: the config is used from another folder."""
    return str(Path(model).resolve()) if Path(model).exists() else model


def _ask(question: str, default: str) -> str:
    """Ask at the terminal.

    Raises:
        ConfigError: If there is no answer.
    """
    try:
        return input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
    except (EOFError, KeyboardInterrupt):
        raise ConfigError("init: no answer; nothing was written") from None


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    number = re.fullmatch(r"[-+.\d_]+[eE][-+]?\d+", text)  # the command line would read one
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else "'" if number else None
    )


_Dumper.add_representer(str, _lines)
_YAML: dict[str, Any] = {"Dumper": _Dumper, "sort_keys": False, "allow_unicode": True, "width": 110}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="wst init", description="Write a project: config.yaml, my_reward.py, data, README.md.")
    add = parser.add_argument
    add("folder", nargs="?", default=".", help="where it goes (the current folder)")
    add("--data", help="file with your rows: .csv, .tsv, .json, .jsonl, .parquet (reviews, as an example)")
    add("--val", help="file to validate on (a fifth of the rows)")
    add("--test", help="file to test on (a fifth of the rows)")
    add("--query", help="column with the text, or a template: '{subject} {body}' (a usual name)")
    add("--target", help="column with the right answer; null: none (a usual name)")
    add("--student", help="local, endpoint, or a model: hub id, folder, .gguf file (local: SmolLM2-135M)")
    add("--model", default="gpt-4o-mini", help="name of the model at the endpoint (gpt-4o-mini)")
    add("--base_url", default="https://api.openai.com/v1", help="the endpoint's address (OpenAI's)")
    add("--api_key_env", default="OPENAI_API_KEY", help="variable with its key; null: none (OPENAI_API_KEY)")
    add("--teacher", help="model of the teacher (SmolLM2-135M)")
    return parser
