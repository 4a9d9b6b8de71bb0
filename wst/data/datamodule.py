"""Queries from files, as a Lightning data module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loops.progress import _ProcessedTracker, _Progress

from wst.data.jsonl import FieldMap, QueryFile, check_file
from wst.data.loader import Batches, QueryLoader
from wst.data.queries import chosen, ids
from wst.distributed import collective_errors
from wst.errors import ConfigError
from wst.types import Query

Split = Literal["train", "val", "test", "predict"]

# Which splits a stage of the trainer reads.
_STAGES: dict[str, tuple[Split, ...]] = {
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
    """Reads queries from JSON Lines files (.jsonl, .jsonl.gz) and hands them out in batches, ``list[Query]``.

    The files are looked for when the module is made, and read once, when a stage first needs them. Relative paths
    are relative to the current directory.

    For another kind of data set, subclass it and override `load`; splits, limits, order and batches stay as they are.

    Args:
        train: File to train on.
        val: File to validate on; without one, `fit` runs without validation unless `val_share` is given.
        test: File to test on.
        predict: File to write instructions for; its rows may lack the target. Default: what is tested on.
        fields: Which fields of a row make up the query.
        val_share: Share of the train file's rows to validate on instead of `val`, rounded to whole rows.
        test_share: Share of the train file's rows to test on instead of `test`, rounded to whole rows.
        split_seed: Chooses the rows for the shares and the limits. The choice depends on this and the rows' ids
            alone, and a larger share of one split or a larger limit keeps the rows of a smaller one.
        batch_size: Queries a training step, in each process.
        eval_batch_size: Queries a batch in validation, test and prediction.
        shuffle: Whether to shuffle the training queries, anew for each epoch.
        shuffle_seed: Seed of the shuffling.
        limit_train: At most so many training queries, chosen by `split_seed` after the shares are split off.
        limit_val: At most so many validation queries, chosen alike.
        limit_test: At most so many test queries, chosen alike.
        resume_changed: Whether a run may go on with other training queries than it began with.

    Raises:
        ConfigError: If a setting is impossible, or does not fit the others.
        DataError: If a named file does not exist.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        fields: FieldMap = FieldMap(),  # noqa: B008 - frozen
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
    ) -> None:
        super().__init__()
        self.files: dict[Split, str | None] = {"train": train, "val": val, "test": test, "predict": predict}
        self.fields = fields
        self.shares: dict[Split, float] = {"test": test_share, "val": val_share}
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.shuffle = shuffle
        self.shuffle_seed = shuffle_seed
        self.limits: dict[Split, int | None] = {"train": limit_train, "val": limit_val, "test": limit_test}
        self.resume_changed = resume_changed
        self._loaded: dict[Split, Sequence[Query]] = {}
        self._queries: dict[Split, Sequence[Query]] = {}
        self._check()

    def _check(self) -> None:
        _whole("batch_size", self.batch_size, 1)
        _whole("eval_batch_size", self.eval_batch_size, 1)
        _whole("split_seed", self.split_seed, 0)
        _whole("shuffle_seed", self.shuffle_seed, 0)
        for split, limit in self.limits.items():
            if limit is not None:
                _whole(f"limit_{split}", limit, 1)
        for split, share in self.shares.items():
            if not 0 <= share < 1:
                raise ConfigError(f"{split}_share must be from 0 up to, but not including, 1; got {share}")
            if share and self.files[split] is not None:
                raise ConfigError(f"{split} and {split}_share are both given; keep one of them")
            # A subclass may have training queries without a file.
            if share and self.files["train"] is None and type(self).load is QueryDataModule.load:
                raise ConfigError(f"{split}_share is given without train; name the file to split in train")
        if not sum(self.shares.values()) < 1:
            raise ConfigError(
                f"val_share {self.shares['val']} and test_share {self.shares['test']} leave nothing to train on; "
                "lower them so that their sum is below 1"
            )
        for split, path in self.files.items():
            if path is not None:
                check_file(path, option=split)

    def load(self, split: Split) -> Sequence[Query]:
        """Read a split as it is given, whole and in its own order; called at most once each.

        Override it for another kind of data set. Ids must be unique, and the same in every run.

        Args:
            split: Which split.

        Returns:
            Its queries; none where the data set has no such split.

        Raises:
            DataError: If the file cannot be read as asked.
        """
        path = self.files[split]
        return [] if path is None else QueryFile(path, self.fields, need_target=split != "predict")

    def queries(self, split: Split) -> Sequence[Query]:
        """Give a split as the loaders see it, after shares and limits.

        Args:
            split: Which split.

        Returns:
            Its queries in the order of the data; none where there is no such split.

        Raises:
            ConfigError: If a share is no row at all, or leaves none to train on.
            DataError: If the file cannot be read as asked.
        """
        if split not in self._queries:
            if split == "train" or self.shares.get(split):
                queries = self._parts()[split]
            elif split == "predict":
                queries = self._load("predict") or self.queries("test")
            else:
                queries = self._load(split)
            limit = self.limits.get(split)
            self._queries[split] = queries if limit is None else chosen(queries, self._ranked(queries)[:limit])
        return self._queries[split]

    def _load(self, split: Split) -> Sequence[Query]:
        if split not in self._loaded:
            self._loaded[split] = self.load(split)
        return self._loaded[split]

    def _ranked(self, queries: Sequence[Query]) -> list[int]:
        """Give the places in an order that is random in the seed and does not depend on that of the rows."""
        seed = f"{self.split_seed} "
        digests = [hashlib.sha256((seed + id_).encode()).digest() for id_ in ids(queries)]
        return sorted(range(len(queries)), key=digests.__getitem__)

    def _parts(self) -> dict[Split, Sequence[Query]]:
        """Split the training queries by the shares."""
        rows = self._load("train")
        if not any(self.shares.values()):
            return {"train": rows}
        ranked = self._ranked(rows)
        parts: dict[Split, Sequence[Query]] = {}
        for split, share in self.shares.items():
            count = round(share * len(rows))
            if share and not count:
                raise ConfigError(f"{split}_share {share} of {len(rows)} rows is none; raise it")
            parts[split], ranked = chosen(rows, ranked[:count]), ranked[count:]
        if rows and not ranked:
            raise ConfigError(f"val_share and test_share leave none of {len(rows)} rows to train on; lower them")
        parts["train"] = chosen(rows, ranked)
        return parts

    def setup(self, stage: str) -> None:
        """Read what the stage needs, unless that was done before.

        Raises:
            ConfigError: If there are no data for the stage, or the trainer cannot work with queries.
            DataError: If a file cannot be read as asked.
        """
        with collective_errors():
            self._check_trainer()
            for split in _STAGES[stage]:
                # Validation is optional in a fit.
                if not self.queries(split) and (stage, split) != ("fit", "val"):
                    raise ConfigError(f"there are no data for {stage}; give {_OPTIONS[split]}")

    def _check_trainer(self) -> None:
        trainer = self.trainer
        if trainer is None:
            return
        # Before any hook of ours, the "true" precisions go through a batch for tensors and choke on a frozen dataclass.
        try:
            trainer.precision_plugin.convert_input([Query("", "")])
        except ValueError as error:
            raise ConfigError(
                f"trainer: precision {trainer.precision} would convert the batches, and queries cannot be converted; "
                "use 32-true or a mixed precision, and give the model itself its dtype"
            ) from error

    def train_dataloader(self) -> QueryLoader:
        """Give the training batches, in an order that a checkpoint can take up again."""
        # Resumed with max_steps from a checkpoint that was made between two epochs, Lightning 2.6 would run the
        # finished epoch again, with no batches, and count it, so that the next one's order would never be seen.
        if self.trainer is not None and self.trainer.training:
            loop = self.trainer.fit_loop
            if loop.restarting and loop.epoch_progress.current.ready == _processed(loop.epoch_progress) > 0:
                loop._restarting = False
                loop.epoch_loop.restarting = False
        return QueryLoader(
            self.queries("train"),
            batch_size=self.batch_size,
            shuffle=self.shuffle,
            seed=self.shuffle_seed,
            rank=self._rank,
            processes=self._processes,
            resume_changed=self.resume_changed,
        )

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _processes(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def val_dataloader(self) -> list[Batches[Query]]:
        """Give the validation batches; no loader where there is nothing to validate on."""
        return [self._eval_loader("val")] if self.queries("val") else []

    def test_dataloader(self) -> Batches[Query]:
        """Give the test batches."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> Batches[Query]:
        """Give the batches to write instructions for."""
        return self._eval_loader("predict")

    def _eval_loader(self, split: Split) -> Batches[Query]:
        return Batches(self.queries(split), self.eval_batch_size, self._rank, self._processes)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Leave the batch as it is, and make good a slip in the trainer's count of epochs."""
        # Resumed from a checkpoint of an epoch's last step, Lightning 2.6 goes on to the next epoch without counting
        # its start. A later checkpoint in the midst of an epoch is then taken for one at its end: the trainer would
        # not restore the loader's state from it, and begin that epoch anew.
        if self.trainer is not None and self.trainer.training:
            progress = self.trainer.fit_loop.epoch_progress
            if progress.current.ready == _processed(progress):
                progress.increment_ready()
                progress.increment_started()
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Leave the batch as it is: queries hold no tensors, and frozen dataclasses cannot be moved."""
        return batch


def _processed(progress: _Progress) -> int:
    return cast("_ProcessedTracker", progress.current).processed


def _whole(option: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{option} must be a whole number of at least {least}, got {value!r}")
