"""What the public benchmarks have in common: a source, two splits, and a count of the rows dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from wst.data.datamodule import QueryDataModule, Split
from wst.data.fields import FieldMap, Row
from wst.data.sources import file_rows, find_files, split_files
from wst.errors import ConfigError, DataError
from wst.settings import check_arguments
from wst.types import Query


class Benchmark(QueryDataModule, ABC):
    """A public data set, loaded from the hub unless files or a folder are named.

    It has a training and a test split. Validation queries are split off the training ones by `val_share` and
    `split_seed`; the test split is never used for them. How many rows were read, dropped and kept is logged.

    Args:
        source: Folder with the files of the hub's repository; None: the hub.
        train: File or files to train on, of any format of `QueryDataModule`, instead of the source's.
        test: File or files to test on, instead of the source's.
        val_share: Share of the training rows to validate on.
        options: The other options of `QueryDataModule`, except its own files, fields and test share.

    Raises:
        ConfigError: If a setting is impossible.
        DataError: If a named file or folder does not exist.
    """

    #: Names of the fields that a row must have, for messages.
    columns: str = ""

    def __init__(
        self,
        source: str | None = None,
        train: str | list[str] | None = None,
        test: str | list[str] | None = None,
        val_share: float = 0.05,
        **options: Any,  # noqa: ANN401 - the command line takes names and types from QueryDataModule
    ) -> None:
        check_arguments(Benchmark, locals())
        super().__init__(
            train=None,
            val=None,
            test=None,
            predict=None,
            fields=FieldMap(),
            records=None,
            hub=None,
            hub_config=None,
            hub_revision=None,
            loader=None,
            val_share=val_share,
            test_share=0.0,
            **options,
        )
        if source is not None and not Path(source).is_dir():
            raise ConfigError(f"{type(self).__name__}: source {source!r} is no folder; name one, or null for the hub")
        self.source = source
        self.named_files = {
            split: find_files(files, option=split) for split, files in (("train", train), ("test", test))
        }
        #: For each split that was loaded: rows in, rows dropped by reason, queries kept.
        self.counts: dict[str, dict[str, int]] = {}

    def load(self, split: Split) -> list[Query]:
        """Read a split and log what was dropped.

        Raises:
            DataError: If a row is invalid, two rows have the same id, or the data cannot be loaded.
        """
        if split not in ("train", "test"):
            return []  # validation queries are training queries; predictions are made for the test queries
        dropped: Counter[str] = Counter()
        queries: list[Query] = []
        places: dict[str, str] = {}
        for row in self.rows(split):
            if row.id in places:
                raise DataError(
                    f"{row.place}: its id {row.id!r} was already given to {places[row.id]}; name each file once, and "
                    "put files of the same name into folders of different names"
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
        """Iterate over a split's rows: of the named files, else of the folder, else of the hub."""
        if self.named_files[split]:
            for file in self.named_files[split]:
                yield from file_rows(file)
        elif self.source is not None:
            for part in self.parts():
                for path in split_files(self.source, split, part):
                    yield from file_rows(path)
        else:
            yield from self.hub(split)

    def parts(self) -> list[str]:
        """Return the subfolders of the source to search."""
        return [""]

    @property
    def remedy(self) -> str:
        """What to do without a hub."""
        return (
            f"put train.jsonl and test.jsonl (fields {self.columns}; .jsonl.gz and .parquet work as well) into a "
            "folder and name it in data.init_args.source, or name the files in data.init_args.train and test"
        )

    @abstractmethod
    def hub(self, split: str) -> Iterator[Row]:
        """Iterate over a split's rows on the hub."""

    @abstractmethod
    def read(self, row: Row, split: str) -> Query | str:
        """Return a row as a query, or the reason why it is dropped.

        Raises:
            DataError: If the row is invalid.
        """
