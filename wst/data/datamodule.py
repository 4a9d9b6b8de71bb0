"""Queries from files, as a Lightning data module."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from lightning.pytorch import LightningDataModule

from wst.data.curriculum import Curriculum
from wst.data.fields import FieldMap, Row, kind
from wst.data.loader import Batches, QueryLoader
from wst.data.queries import Queries
from wst.data.sources import as_list, check_origin, file_rows, find_files, hub_rows, records_of
from wst.distributed import collective_errors
from wst.errors import ConfigError, DataError
from wst.settings import check_arguments, check_counts
from wst.training.lightning_internals import count_epoch_start, skip_finished_epoch
from wst.types import Query

Split = Literal["train", "val", "test", "predict"]

_SPLITS_OF_STAGE: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}
_OPTIONS: dict[Split, str] = {
    "train": "train",
    "val": "val (or train and val_share)",
    "test": "test (or train and test_share)",
    "predict": "predict or test (or train and test_share)",
}


class QueryDataModule(LightningDataModule):
    """Read queries from files, the hub or objects in memory, and hand them out in batches, ``list[Query]``.

    Files are .csv, .tsv, .json, .parquet, and else JSON Lines, each also gzipped. The paths are checked when the module
    is created; a file is read once, when a stage first needs it. Relative paths are relative to the current directory.
    Objects in memory are given to `from_records`.

    For another kind of data set give a ``loader``, or subclass this and override `load`; splits, limits, order and
    batches stay as they are.

    Args:
        train: File to train on, or several, or a glob pattern, or ``wst:data/...`` for what comes with wst; with
            ``hub``, the name of a split instead.
        val: File to validate on; without one, `fit` runs without validation unless `val_share` is given.
        test: File to test on.
        predict: File to write instructions for; its rows may lack the target. Default: the test queries.
        fields: Which fields of a row make up the query.
        records: Dotted path of the records in the object of a .json file, such as ``examples``.
        hub: Data set on the hub, or a local folder with its files, which ``train``, ``val``, ... name the splits of.
        hub_config: Configuration of the data set on the hub, or subfolder.
        hub_revision: Its version: a branch, a tag or a commit.
        loader: Function that returns the records (or queries) of a split, given its name (train, val, test, predict);
            None if there are none. See `from_records` for their kinds.
        val_share: Share of the training rows to validate on instead of `val`, rounded to whole rows.
        test_share: Share of the training rows to test on instead of `test`, rounded to whole rows.
        split_seed: Seed for choosing the rows of the shares and limits. The choice depends on this seed and the
            rows' ids alone, and a larger share or limit of a split keeps the rows of a smaller one.
        batch_size: Queries per training step on each rank.
        eval_batch_size: Queries per batch in validation, test and prediction on each rank.
        shuffle: Whether to shuffle the training queries, in a new order each epoch.
        shuffle_seed: Seed of the shuffling.
        limit_train: Maximum number of training queries, chosen by `split_seed` after the shares are split off.
        limit_val: Maximum number of validation queries, chosen in the same way.
        limit_test: Maximum number of test queries, chosen in the same way.
        resume_changed: Whether a run may be resumed with other training queries than it began with.
        curriculum: Draws the training queries by the rewards so far, whatever `shuffle` says; None: each query once an
            epoch.

    Raises:
        ConfigError: If a setting is impossible, or does not fit the others, or own files are mixed with the package's.
        DataError: If a named file does not exist.
    """

    def __init__(
        self,
        train: str | list[str] | None = None,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        fields: FieldMap = FieldMap(),  # noqa: B008 - frozen
        records: str | None = None,
        hub: str | None = None,
        hub_config: str | None = None,
        hub_revision: str | None = None,
        loader: Callable[[str], Any] | None = None,
        val_share: float = 0.0,
        test_share: float = 0.0,
        split_seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        shuffle: bool = True,
        shuffle_seed: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        resume_changed: bool = False,
        curriculum: Curriculum | None = None,
    ) -> None:
        super().__init__()
        named: dict[Split, str | list[str] | None] = {"train": train, "val": val, "test": test, "predict": predict}
        self.files = {split: as_list(files, option=split) for split, files in named.items()}
        check_arguments(QueryDataModule, locals())
        self.fields = fields
        self.records = records
        self.hub_name = hub
        self.hub_options = {"name": hub_config, "revision": hub_revision}
        self.loader = loader
        self.shares: dict[Split, float] = {"test": test_share, "val": val_share}
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.shuffle = shuffle
        self.shuffle_seed = shuffle_seed
        self.limits: dict[Split, int | None] = {"train": limit_train, "val": limit_val, "test": limit_test}
        self.resume_changed = resume_changed
        self.curriculum = curriculum
        self._loaded: dict[Split, Sequence[Query]] = {}
        self._queries: dict[Split, Sequence[Query]] = {}
        self._check()

    def _check(self) -> None:
        owner = type(self).__name__
        limits = {f"limit_{split}": limit for split, limit in self.limits.items()}
        check_counts(owner, batch_size=self.batch_size, eval_batch_size=self.eval_batch_size, **limits)
        check_counts(owner, 0, split_seed=self.split_seed, shuffle_seed=self.shuffle_seed)
        for split, share in self.shares.items():
            if not (isinstance(share, int | float) and 0 <= share < 1):
                raise ConfigError(f"{split}_share must be at least 0 and below 1, got {share!r:.60}")
            if share and self.files[split]:
                raise ConfigError(f"{split} and {split}_share are both given; keep one of them")
            # A loader or a subclass may have training queries without a file.
            if share and not (self.files["train"] or self.loader) and type(self).load is QueryDataModule.load:
                raise ConfigError(f"{split}_share is given without train; name the file to split in train")
        if not sum(self.shares.values()) < 1:
            raise ConfigError(
                f"val_share {self.shares['val']} and test_share {self.shares['test']} leave nothing to train on; "
                "lower them so that their sum is below 1"
            )
        if self.loader is not None and not callable(self.loader):
            raise ConfigError(f"loader must be a function of the split's name, got {self.loader!r:.60}")
        given: list[str] = [option for option, value in self.files.items() if value]
        if self.loader is not None and (given or self.hub_name):
            raise ConfigError(f"loader and {(given or ['hub'])[0]} are both given; keep one of them")
        if self.hub_name is None and any(self.hub_options.values()):
            raise ConfigError("hub_config and hub_revision are given without hub; name the data set in hub")
        if self.hub_name is None:
            self.files = {split: find_files(files, option=split) for split, files in self.files.items()}
        check_origin(self.files)

    @classmethod
    def from_records(
        cls,
        train: Any = None,  # noqa: ANN401 - libraries need not be installed to be named
        *,
        val: Any = None,  # noqa: ANN401
        test: Any = None,  # noqa: ANN401
        predict: Any = None,  # noqa: ANN401
        **options: Any,  # noqa: ANN401
    ) -> Self:
        """Return a data module of objects in memory.

        Each may be a list of dicts or queries, a dict of columns, a frame of pandas or polars, or a
        ``datasets.Dataset``.

        Args:
            train: Records to train on.
            val: Records to validate on.
            test: Records to test on.
            predict: Records to write instructions for; they may lack the target.
            options: The other options of the class, such as ``fields`` and ``val_share``.

        Raises:
            ConfigError: If an object is of another kind, or an option is impossible.

        Examples:
            >>> rows = [{"text": "2 + 3 = ?", "label": 5}, {"text": "1 + 1 = ?", "label": 2.0}]
            >>> [query.target for query in QueryDataModule.from_records(rows).queries("train")]
            ['5', '2']
        """
        given = {"train": train, "val": val, "test": test, "predict": predict}
        for split, data in given.items():
            if data is not None:
                records_of(data, split)
            if data is not None and options.get(f"{split}_share"):
                raise ConfigError(f"{split} and {split}_share are both given; keep one of them")
        return cls(loader=given.get, **options)

    def load(self, split: Split) -> Sequence[Query]:
        """Read a whole split in its own order; called at most once per split.

        Override it for another kind of data set. Ids must be unique, and the same in every run.

        Args:
            split: The split to read.

        Returns:
            Its queries; empty if the data set has no such split.

        Raises:
            DataError: If the file cannot be read as asked.
        """
        if self.loader is not None:
            data = self.loader(split)
            return [] if data is None else Queries(self._placed(data, split))
        rows = (row for name in self.files[split] for row in self._rows(name, split))
        return Queries((row.place, self.fields.read(row, split != "predict")) for row in rows)

    def _rows(self, name: str, split: Split) -> Iterator[Row]:
        """Iterate over the rows of a file, or of a split on the hub."""
        if self.hub_name is not None:
            options = {option: value for option, value in self.hub_options.items() if value is not None}
            remedy = f"check hub, hub_config and {split}, or download its files and name their folder in hub"
            return hub_rows(self.hub_name, name, needs=remedy, **options)
        names = [Path(file).name for file in self.files[split]]
        return file_rows(name, self.records, Path(name).name if len(set(names)) == len(names) else None)

    def _placed(self, data: Any, split: Split) -> Iterator[tuple[str, Query]]:  # noqa: ANN401
        """Yield the queries of objects in memory, each after its place."""
        for number, record in enumerate(records_of(data, split)):
            place = f"{split}: row {number}"
            if isinstance(record, Query):
                yield place, record
            elif isinstance(record, Mapping):
                yield place, self.fields.read(Row(place, f"{split}:{number}", record), split != "predict")
            else:
                raise DataError(f"{place} is {kind(record)}, not a dict or a wst.Query; fix it, or remove it")

    def queries(self, split: Split) -> Sequence[Query]:
        """Return a split as the loaders see it, after shares and limits.

        Args:
            split: The split to return.

        Returns:
            Its queries in the order of the data; empty if there is no such split.

        Raises:
            ConfigError: If a share amounts to no rows, or the shares leave none to train on.
            DataError: If the file cannot be read as asked.
        """
        if split not in self._queries:
            if split == "train" or self.shares.get(split):
                queries = self._split_train()[split]
            elif split == "predict":
                queries = self._load("predict") or self.queries("test")
            else:
                queries = self._load(split)
            limit = self.limits.get(split)
            self._queries[split] = queries if limit is None else _select(queries, self._ranked(queries)[:limit])
        return self._queries[split]

    def _load(self, split: Split) -> Sequence[Query]:
        if split not in self._loaded:
            self._loaded[split] = self.load(split)
        return self._loaded[split]

    def _ranked(self, queries: Sequence[Query]) -> list[int]:
        """Return the indices in an order that depends on the seed and the ids, and not on the order of the rows."""
        seed = f"{self.split_seed} "
        digests = [hashlib.sha256((seed + query.id).encode()).digest() for query in queries]
        return sorted(range(len(queries)), key=digests.__getitem__)

    def _split_train(self) -> dict[Split, Sequence[Query]]:
        """Divide the training rows by the shares."""
        rows = self._load("train")
        if not any(self.shares.values()):
            return {"train": rows}
        ranked = self._ranked(rows)
        parts: dict[Split, Sequence[Query]] = {}
        for split, share in self.shares.items():
            count = round(share * len(rows))
            if share and not count:
                raise ConfigError(f"{split}_share {share} of {len(rows)} rows is none; raise it")
            parts[split], ranked = _select(rows, ranked[:count]), ranked[count:]
        if not ranked:
            raise ConfigError(f"val_share and test_share leave none of {len(rows)} rows to train on; lower them")
        parts["train"] = _select(rows, ranked)
        return parts

    def setup(self, stage: str) -> None:
        """Read what the stage needs, unless it was read before.

        Raises:
            ConfigError: If there are no data for the stage, or the trainer cannot work with queries.
            DataError: If a file cannot be read as asked.
        """
        with collective_errors():
            self._check_precision()
            for split in _SPLITS_OF_STAGE[stage]:
                # `fit` may run without validation.
                if not self.queries(split) and (stage, split) != ("fit", "val"):
                    raise ConfigError(f"there are no data for {stage}; give {_OPTIONS[split]}")

    def _check_precision(self) -> None:
        if self.trainer is None:
            return
        # The "true" precisions search a batch for tensors before any hook of ours, and fail on a frozen dataclass.
        try:
            self.trainer.precision_plugin.convert_input([Query("", "")])
        except ValueError as error:
            raise ConfigError(
                f"trainer: precision {self.trainer.precision} would convert the batches, and queries cannot be "
                "converted; use 32-true or a mixed precision, and give the model itself its dtype"
            ) from error

    def train_dataloader(self) -> QueryLoader:
        """Return the training batches, in an order that a checkpoint can resume."""
        trainer = self.trainer
        if trainer is not None and trainer.training:
            skip_finished_epoch(trainer)
        overfit = bool(getattr(trainer, "overfit_batches", 0))  # the first batches, every epoch
        return QueryLoader(
            self.queries("train"),
            self.batch_size,
            *self._rank_and_world_size,
            shuffle=self.shuffle and not overfit,
            seed=self.shuffle_seed,
            resume_changed=self.resume_changed,
            curriculum=None if overfit else self.curriculum,
        )

    @property
    def _rank_and_world_size(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> list[Batches[Query]]:
        """Return the validation batches; no loader if there is nothing to validate on."""
        return [self._eval_loader("val")] if self.queries("val") else []

    def test_dataloader(self) -> Batches[Query]:
        """Return the test batches."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Batches[Query]:
        """Return the batches to write instructions for."""
        return self._eval_loader("predict")

    def _eval_loader(self, split: Split) -> Batches[Query]:
        return Batches(self.queries(split), self.eval_batch_size, *self._rank_and_world_size)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Return the batch as it is, and correct the trainer's count of epochs."""
        if self.trainer is not None and self.trainer.training:
            count_epoch_start(self.trainer)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Return the batch as it is: queries hold no tensors, and frozen dataclasses cannot be moved."""
        return batch


def _select(queries: Sequence[Query], indices: list[int]) -> Sequence[Query]:
    """Return the queries at the given indices, in the order of the data."""
    indices = sorted(indices)
    return queries.select(indices) if isinstance(queries, Queries) else [queries[index] for index in indices]
