"""Queries: read from files or the hub, split, and handed out in batches."""

from wst.data.benchmark import Benchmark
from wst.data.curriculum import Curriculum
from wst.data.datamodule import QueryDataModule
from wst.data.fields import FieldMap
from wst.data.gsm8k import GSM8K
from wst.data.hh_rlhf import HHRLHF
from wst.data.loader import QueryLoader
from wst.data.math import MATH

__all__ = ["GSM8K", "HHRLHF", "MATH", "Benchmark", "Curriculum", "FieldMap", "QueryDataModule", "QueryLoader"]
