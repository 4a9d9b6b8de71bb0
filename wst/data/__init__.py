"""Queries: read from files or the hub, split, and handed out in batches. Importing this package loads no torch."""

from typing import TYPE_CHECKING

from wst._moved import lazy_attributes
from wst.data.fields import FieldMap

if TYPE_CHECKING:
    from wst.data.benchmark import Benchmark
    from wst.data.curriculum import Curriculum
    from wst.data.datamodule import QueryDataModule
    from wst.data.gsm8k import GSM8K
    from wst.data.hh_rlhf import HHRLHF
    from wst.data.loader import QueryLoader
    from wst.data.math import MATH

__all__ = ["GSM8K", "HHRLHF", "MATH", "Benchmark", "Curriculum", "FieldMap", "QueryDataModule", "QueryLoader"]

__getattr__ = lazy_attributes(
    __name__,
    {
        "GSM8K": "wst.data.gsm8k",
        "HHRLHF": "wst.data.hh_rlhf",
        "MATH": "wst.data.math",
        "Benchmark": "wst.data.benchmark",
        "Curriculum": "wst.data.curriculum",
        "QueryDataModule": "wst.data.datamodule",
        "QueryLoader": "wst.data.loader",
    },
)
