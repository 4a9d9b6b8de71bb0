"""What the public benchmarks have in common: a source, two splits, and a count of what was dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from wst.data.datamodule import QueryDataModule, Split
from wst.data.jsonl import check_file
from wst.data.sources import Row, file_rows, listed, split_files
from wst.errors import ConfigError, DataError
from wst.types import Query


class Benchmark(QueryDataModule, ABC):
    """A public data set, taken from the hub unless files or a folder are named.

    It has a training and a test split. Validation queries are split off the training ones by `val_share` and
    `split_seed`; the test split is never touched for them. What was read, dropped and kept is said aloud.

    Args:
        source: Folder with the files of the hub's repository; None: the hub.
        train: File or files to train on (.jsonl, .jsonl.gz, .parquet) instead of the source's.
        test: File or files to test on, instead of the source's.
        val_share: Share of the training rows to validate on.
        split_seed: Chooses the rows to validate on, and those that the limits leave.
        batch_size: Queries a training step, in each process.
        eval_batch_size: Queries a batch in validation, test and prediction.
        shuffle: Whether to shuffle the training queries, anew for each epoch.
        shuffle_seed: Seed of the shuffling.
        limit_train: At most so many training queries.
        limit_val: At most so many validation queries.
        limit_test: At most so many test queries.
        resume_changed: Whether a run may go on with other training queries than it began with.

    Raises:
        ConfigError: If a setting is impossible.
        DataError: If a file or folder named is not there.
    """

    #: Names of the fields that a row must have, for messages.
    columns: str = ""

    def __init__(
        self,
        source: str | None = None,
        train: str | list[str] | None = None,
        test: str | list[str] | None = None,
        val_share: float = 0.05,
        split_seed: int = 0,
        batch_size: int = 8,
        eval_batch_size: int = 32,
        shuffle: bool = True,
        shuffle_seed: int = 0,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        resume_changed: bool = False,
    ) -> None:
        super().__init__(
            val_share=val_share,
            split_seed=split_seed,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            shuffle=shuffle,
            shuffle_seed=shuffle_seed,
            limit_train=limit_train,
            limit_val=limit_val,
            limit_test=limit_test,
            resume_changed=resume_changed,
        )
        if source is not None and not Path(source).is_dir():
            raise ConfigError(f"{type(self).__name__}: source {source!r} is no folder; name one, or null for the hub")
        self.source = source
        self.named: dict[str, list[str]] = {"train": listed(train), "test": listed(test)}
        for split, files in self.named.items():
            for file in files:
                check_file(file, option=split)
        #: Of each split that was loaded: rows in, rows dropped by reason, queries kept.
        self.counts: dict[str, dict[str, int]] = {}

    def load(self, split: Split) -> list[Query]:
        """Read a split and say what was dropped of it.

        Raises:
            DataError: If a row is not as it must be, two rows have the same id, or the data cannot be had.
        """
        if split not in ("train", "test"):
            return []  # validation queries are training queries; predictions are made for the test's
        dropped: Counter[str] = Counter()
        queries: list[Query] = []
        places: dict[str, str] = {}
        for row in self.rows(split):
            if row.id in places:
                raise DataError(
                    f"{row.place}: its id {row.id!r} was already given to {places[row.id]}; read each file once, and "
                    "let files of one name lie in folders of different names"
                )
            places[row.id] = row.place
            read = self.read(row, split)
            if isinstance(read, str):
                dropped[read] += 1
            else:
                queries.append(read)
        self.counts[split] = {"in": len(places), **dropped, "kept": len(queries)}
        reasons = "".join(f", {count} dropped ({reason})" for reason, count in sorted(dropped.items()))
        rank_zero_info(f"{type(self).__name__} {split}: {len(places)} rows in{reasons}, {len(queries)} kept")
        return queries

    def rows(self, split: str) -> Iterator[Row]:
        """Go through a split's rows: of the files named, else of the folder, else of the hub."""
        if self.named[split]:
            for file in self.named[split]:
                yield from file_rows(file)
        elif self.source is not None:
            for part in self.parts():
                for path in split_files(self.source, split, part):
                    yield from file_rows(path)
        else:
            yield from self.hub(split)

    def parts(self) -> list[str]:
        """Give the folders below the source to look into."""
        return [""]

    @property
    def remedy(self) -> str:
        """What to do without a hub."""
        return (
            f"put train.jsonl and test.jsonl (fields {self.columns}; .jsonl.gz and .parquet do as well) into a folder "
            "and name it in data.init_args.source, or name the files in data.init_args.train and test"
        )

    @abstractmethod
    def hub(self, split: str) -> Iterator[Row]:
        """Go through a split's rows on the hub."""

    @abstractmethod
    def read(self, row: Row, split: str) -> Query | str:
        """Make a query of a row, or say why the row is dropped.

        Raises:
            DataError: If the row is not as it must be.
        """
