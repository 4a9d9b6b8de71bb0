"""Files of every form, and the data module that options of the command line make of them."""

import gzip
import json
from pathlib import Path
from typing import Any

import jsonargparse
import pyarrow
from pyarrow import parquet

from wst import QueryDataModule


def write(path: Path, content: Any) -> None:
    """Write a file in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.name.removesuffix(".gz")
    if plain.endswith(".parquet"):
        sink = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(content), sink)
        raw = sink.getvalue().to_pybytes()
    elif plain.endswith(".jsonl"):
        raw = "".join(json.dumps(row) + "\n" for row in content).encode()
    else:
        raw = (content if isinstance(content, str) else json.dumps(content, indent=1)).encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)


def module(*options: str) -> QueryDataModule:
    """Return the data module that these options of the command line make."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(QueryDataModule, "data")
    return parser.instantiate_classes(parser.parse_args([f"--data.{option}" for option in options])).data
