"""The data module: its options, splits and limits, and what the trainer gets from it."""

import gzip
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jsonargparse
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from wst.data import FieldMap, QueryDataModule, QueryLoader, datamodule
from wst.data.datamodule import Split
from wst.data.fields import Row
from wst.data.sources import file_rows
from wst.errors import ConfigError, DataError
from wst.types import Query

REVIEWS = Path(__file__).parents[2] / "data" / "reviews"
VAL = ["k11", "k13", "k2"]

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def write(path: Path, numbers: Iterable[int], **extra: Any) -> str:
    rows = [json.dumps({"key": f"k{n}", "text": f"t{n}", "label": n, **extra}) for n in numbers]
    path.write_text("\n".join(rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def train(tmp_path: Path) -> str:
    return write(tmp_path / "train.jsonl", range(20))


def ids(queries: Iterable[Query]) -> list[str]:
    return [query.id for query in queries]


def keyed(**options: Any) -> QueryDataModule:
    return QueryDataModule(fields=FieldMap(id="key"), **options)


def message(caught: pytest.ExceptionInfo[Exception]) -> str:
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


# --- Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, ["batch_size", "at least 1"]),
        ({"batch_size": 2.0}, ["batch_size", "2.0"]),
        ({"batch_size": True}, ["batch_size", "True"]),
        ({"eval_batch_size": -1}, ["eval_batch_size", "at least 1"]),
        ({"split_seed": -1}, ["split_seed", "at least 0"]),
        ({"shuffle_seed": 0.5}, ["shuffle_seed", "0.5"]),
        ({"limit_train": 0}, ["limit_train", "at least 1"]),
        ({"limit_val": 0}, ["limit_val", "at least 1"]),
        ({"limit_test": -2}, ["limit_test", "at least 1"]),
        ({"val_share": 1.0}, ["val_share", "1.0", "0"]),
        ({"test_share": -0.1}, ["test_share", "-0.1"]),
        ({"val_share": float("nan")}, ["val_share", "nan"]),
        ({"val_share": 0.5, "test_share": 0.5}, ["val_share 0.5", "test_share 0.5", "lower"]),
        ({"val_share": 0.1, "val": "TRAIN"}, ["val and val_share", "keep one"]),
        ({"test_share": 0.1, "test": "TRAIN"}, ["test and test_share", "keep one"]),
        ({"val_share": 0.1, "train": None}, ["val_share", "without train"]),
        ({"test_share": 0.1, "train": None}, ["test_share", "without train"]),
    ],
)
def test_impossible_options(train: str, options: dict[str, Any], words: list[str]) -> None:
    given: dict[str, Any] = {
        name: train if value == "TRAIN" else value for name, value in {"train": train, **options}.items()
    }
    with pytest.raises(ConfigError) as caught:
        QueryDataModule(**given)
    for word in words:
        assert word in message(caught)


@pytest.mark.parametrize("option", ["train", "val", "test", "predict"])
def test_files_are_looked_for_at_once(tmp_path: Path, option: str) -> None:
    for path, words in ((tmp_path / "x.jsonl", "x.jsonl does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(DataError) as caught:
            keyed(**{option: str(path)})
        assert message(caught).startswith(f"{option}: ")
        assert words in message(caught)


def test_the_packages_rows_do_not_validate_own_ones(train: str) -> None:
    reviews = {split: f"wst:data/reviews/{split}.jsonl" for split in ("train", "val", "test")}
    with pytest.raises(
        ConfigError, match=r"^val is still wst:data/reviews/val\.jsonl, .*set val to a file, or val: null"
    ):
        QueryDataModule(**reviews | {"train": train})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^test is still wst:data/reviews/test\.jsonl, .*and test_share$"):
        QueryDataModule(**reviews | {"train": train, "val": train})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^train is still wst:data/reviews/train\.jsonl, .* not of test's data"):
        QueryDataModule(**reviews | {"test": train})  # type: ignore[arg-type]
    for fitting in (
        {"train": train, "val": None, "val_share": 0.2, "test": train},
        {"train": [train, reviews["train"]]},
        {"train": None, "test": train},
        {"predict": train},
    ):
        QueryDataModule(**reviews | fitting)  # type: ignore[arg-type]


def test_options_can_be_parsed(train: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(QueryDataModule, "data")
    config = parser.parse_args([f"--data.train={train}", "--data.fields.target=null", "--data.fields.id=key"])
    data = parser.instantiate_classes(config).data
    assert data.fields == FieldMap(target=None, id="key")
    assert data.queries("train")[3] == Query("k3", "t3", None, extra={"label": 3})
    for bad in ("--data.batch_size=x", "--data.fields.nothing=1"):
        with pytest.raises(jsonargparse.ArgumentError):
            parser.parse_args([bad])


# --- Stages


@pytest.mark.parametrize(
    ("stage", "words"), [("fit", "train"), ("validate", "val_share"), ("test", "test_share"), ("predict", "predict")]
)
def test_a_stage_without_data(tmp_path: Path, stage: str, words: str) -> None:
    others = {"fit": "val", "validate": "train", "test": "predict", "predict": "train"}
    data = keyed(**{others[stage]: write(tmp_path / "x.jsonl", range(3))})
    with pytest.raises(ConfigError) as caught:
        data.setup(stage)
    assert message(caught).startswith(f"there are no data for {stage}; give ")
    assert words in message(caught).split("; ")[1]


def test_only_what_the_stage_needs_is_read_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def spy(path: str, *options: Any) -> Iterator[Row]:
        read.append(Path(path).stem)
        return file_rows(path, *options)

    monkeypatch.setattr(datamodule, "file_rows", spy)
    files = {name: write(tmp_path / f"{name}.jsonl", range(5)) for name in ("train", "test")}
    data = keyed(**files, val_share=0.4)
    assert read == []
    for stage, after in (
        ("fit", ["train"]),
        ("fit", ["train"]),
        ("validate", ["train"]),
        ("predict", ["train", "test"]),
        ("test", ["train", "test"]),
    ):
        data.setup(stage)
        list(data.train_dataloader())
        assert read == after, stage


def test_a_bad_row_is_found_in_setup(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "a"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:2: field 'label' is missing"):
        QueryDataModule(train=str(path)).setup("fit")


def test_prediction_takes_the_test_data_unless_it_has_its_own(tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", range(6))
    unlabelled = tmp_path / "new.jsonl"
    unlabelled.write_text('{"text": "a", "key": "n"}')
    assert ids(keyed(test=test, limit_test=4).queries("predict")) == ids(keyed(test=test, limit_test=4).queries("test"))
    assert list(keyed(test=test, predict=str(unlabelled)).queries("predict")) == [Query("n", "a")]
    # To test on, it must be labelled.
    with pytest.raises(DataError, match="field 'label' is missing"):
        keyed(test=str(unlabelled)).setup("test")


# --- Splits and limits


def test_shares_are_exact_disjoint_and_leave_the_order(train: str) -> None:
    data = keyed(train=train, val_share=0.15, test_share=0.25)
    parts = [ids(data.queries(split)) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [12, 3, 5]
    whole = ids(keyed(train=train).queries("train"))
    assert sorted(sum(parts, [])) == sorted(whole)  # noqa: RUF017
    assert all(part == sorted(part, key=whole.index) for part in parts)


def test_shares_depend_on_the_ids_and_the_seed_alone(tmp_path: Path, train: str) -> None:
    def split(path: str, **options: Any) -> dict[str, str]:
        data = keyed(train=path, test_share=0.25, **{"val_share": 0.15, **options})
        return {query.id: name for name in ("train", "val", "test") for query in data.queries(name)}

    torch.manual_seed(1)
    first = split(train)
    torch.manual_seed(2)
    assert split(write(tmp_path / "other.jsonl", reversed(range(20)), topic="new")) == first
    assert len({tuple(sorted(split(train, split_seed=seed).items())) for seed in range(5)}) == 5
    # Written down, so that a split which changes between runs or releases is noticed.
    assert sorted(key for key, name in first.items() if name == "val") == VAL
    # The test rows stay what they are when another share of them is validated on, and so do the validation rows.
    more = split(train, val_share=0.4)
    assert {key for key in first if first[key] == "test"} == {key for key in more if more[key] == "test"}
    assert {key for key in first if first[key] == "val"} < {key for key in more if more[key] == "val"}


def test_a_share_may_stand_beside_a_file(tmp_path: Path, train: str) -> None:
    data = keyed(train=train, val=write(tmp_path / "val.jsonl", range(100, 103)), test_share=0.1)
    assert [len(data.queries(split)) for split in ("train", "val", "test")] == [18, 3, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_share": 0.01}, "val_share 0.01 of 20 rows is none"),
        ({"val_share": 0.49, "test_share": 0.505}, "leave none"),
    ],
)
def test_shares_that_leave_a_split_empty(train: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        QueryDataModule(train=train, **options).setup("fit")
    assert words in message(caught)


def test_limits_keep_some_of_each_split(tmp_path: Path, train: str) -> None:
    files = {name: write(tmp_path / f"{name}.jsonl", range(20)) for name in ("val", "test")}
    whole = ids(keyed(train=train).queries("train"))
    for split in ("train", "val", "test"):
        few, more, all_ = (
            ids(keyed(train=train, **files, **{f"limit_{split}": limit}).queries(split)) for limit in (5, 9, 99)
        )
        assert (len(few), len(more), all_) == (5, 9, whole)
        assert set(few) < set(more)
        assert few not in (whole[:5], whole[-5:])
        assert few == sorted(few, key=whole.index)
    assert ids(keyed(train=train, limit_train=5).queries("train")) == few
    assert ids(keyed(train=train, limit_train=5, split_seed=1).queries("train")) != few


def test_limits_apply_after_the_shares(train: str) -> None:
    free, limited = (keyed(train=train, val_share=0.4, limit_train=limit, limit_val=limit) for limit in (None, 3))
    for split in ("train", "val"):
        assert set(ids(limited.queries(split))) < set(ids(free.queries(split)))
        assert len(limited.queries(split)) == 3


# --- Loaders


def test_training_order_follows_its_own_seed(train: str) -> None:
    def epoch(**options: Any) -> list[str]:
        torch.manual_seed(options.pop("seed", 0))
        return [id_ for batch in keyed(train=train, **options).train_dataloader() for id_ in ids(batch)]

    assert epoch(seed=1) == epoch(seed=2) == epoch(batch_size=3)
    assert epoch() != epoch(shuffle_seed=1)
    assert sorted(epoch()) == sorted(epoch(shuffle=False))
    assert epoch(shuffle=False) == [f"k{number}" for number in range(20)]


def test_loaders_hand_out_lists_of_queries(train: str) -> None:
    data = keyed(train=train, val=train, test=train, batch_size=6, eval_batch_size=15)
    assert isinstance(data.train_dataloader(), QueryLoader)
    loaders = [data.train_dataloader(), *data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    before = torch.get_rng_state()
    for loader, sizes in zip(loaders, [[6, 6, 6, 2], *[[15, 5]] * 3], strict=True):
        batches = list(loader)
        assert [len(batch) for batch in batches] == sizes
        assert all(type(batch) is list and isinstance(batch[0], Query) for batch in batches)
    # Validating in between must not change what is sampled in training.
    assert torch.equal(torch.get_rng_state(), before)
    assert ids(query for batch in data.val_dataloader()[0] for query in batch) == [f"k{n}" for n in range(20)]


def test_a_batch_is_not_moved() -> None:
    batch = [Query("a", "b")]
    assert QueryDataModule().transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch


class Module(LightningModule):
    """Writes down what it is given at each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[str]] = {"train": [], "val": [], "test": [], "predict": []}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: list[Query], batch_idx: int) -> None:
        self.seen["train"] += ids(batch)

    def validation_step(self, batch: list[Query], batch_idx: int) -> None:
        if not self.trainer.sanity_checking:
            self.seen["val"] += ids(batch)

    def test_step(self, batch: list[Query], batch_idx: int) -> None:
        self.seen["test"] += ids(batch)

    def predict_step(self, batch: list[Query], batch_idx: int) -> list[str]:
        self.seen["predict"] += ids(batch)
        return ids(batch)


def trainer(**options: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            **options,
        }
    )


def test_all_stages_under_a_trainer(tmp_path: Path, train: str) -> None:
    whole = [f"k{number}" for number in range(20)]
    packed = tmp_path / "test.gz"
    packed.write_bytes(gzip.compress(Path(train).read_bytes()))
    data = keyed(train=train, val=train, test=str(packed), eval_batch_size=8)
    module, runner = Module(), trainer()
    runner.fit(module, data)
    assert sorted(module.seen["train"]) == sorted(whole)
    assert module.seen["val"] == whole
    runner.validate(module, data, verbose=False)
    assert module.seen["val"] == whole * 2
    runner.test(module, data, verbose=False)
    assert module.seen["test"] == whole
    assert runner.predict(module, data) == [whole[:8], whole[8:16], whole[16:]]


def test_fit_without_validation(train: str) -> None:
    module = Module()
    # With the progress bar and the sanity check, which look at the validation data too.
    trainer(enable_progress_bar=True, num_sanity_val_steps=2, max_epochs=2).fit(module, keyed(train=train))
    assert len(module.seen["train"]) == 40
    assert module.seen["val"] == []
    assert keyed(train=train).val_dataloader() == []


def test_a_precision_that_would_convert_batches_is_refused(train: str) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer(precision="bf16-true").fit(Module(), keyed(train=train))
    assert "precision bf16-true" in message(caught)
    trainer(precision="bf16-mixed").fit(Module(), keyed(train=train))


# --- Other data sets


class Numbers(QueryDataModule):
    """A data set that comes from no file."""

    def load(self, split: Split) -> list[Query]:
        return [Query(str(number), "?") for number in range(10)] if split == "train" else []


def test_a_subclass_overrides_load_alone() -> None:
    data = Numbers(val_share=0.2, limit_train=5)
    data.setup("fit")
    assert [len(data.queries(split)) for split in ("train", "val", "test")] == [5, 2, 0]
    with pytest.raises(ConfigError, match="there are no data for test"):
        data.setup("test")


def test_the_reviews_can_be_read() -> None:
    files: dict[str, Any] = {name: str(REVIEWS / f"{name}.jsonl") for name in ("train", "val", "test")}
    data = QueryDataModule(**files, fields=FieldMap(id="id"))
    for stage in ("fit", "test"):
        data.setup(stage)
    assert [len(data.queries(split)) for split in ("train", "val", "test", "predict")] == [420, 104, 220, 220]
    first = data.queries("train")[0]
    assert (first.id, first.target, set(first.extra)) == ("train-0001", "negative", {"topic"})
