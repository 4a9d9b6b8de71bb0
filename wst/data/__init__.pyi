# The names of this package, each once: type checkers read this file, and so does __init__.py, which imports on demand.
from wst.data.benchmark import Benchmark as Benchmark
from wst.data.curriculum import Curriculum as Curriculum
from wst.data.datamodule import QueryDataModule as QueryDataModule
from wst.data.fields import FieldMap as FieldMap
from wst.data.gsm8k import GSM8K as GSM8K
from wst.data.hh_rlhf import HHRLHF as HHRLHF
from wst.data.loader import QueryLoader as QueryLoader
from wst.data.math import MATH as MATH
