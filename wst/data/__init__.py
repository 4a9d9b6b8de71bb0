"""Queries: read from files, split, and handed out in batches."""

from wst.data.datamodule import QueryDataModule
from wst.data.jsonl import FieldMap
from wst.data.loader import QueryLoader

__all__ = ["FieldMap", "QueryDataModule", "QueryLoader"]
