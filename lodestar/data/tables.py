"""Parquet and Arrow files, by pyarrow (an extra: it has 45 MB, and most runs need none of it)."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lodestar.errors import DataError

BATCH_ROWS = 1024
"""Rows in memory at once as Python objects."""


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its number, from 1; empty cells are absent.

    Raises:
        DataError: pyarrow is not installed, or the file is missing or broken.
    """
    try:
        import pyarrow as pa
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(path, "needs pyarrow: pip install 'pyarrow>=17'") from error
    if not path.is_file():
        raise DataError(path, "no such file")
    number = 0
    try:
        for batch in _batches(path, pa):
            for row in batch.to_pylist():
                number += 1
                yield number, {name: _value(value) for name, value in row.items() if value is not None}
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, f"cannot be read as {path.suffix[1:]}: {str(error).splitlines()[0]}") from error


def _batches(path: Path, pa: Any) -> Iterator[Any]:
    if path.suffix.lower() == ".parquet":
        with pa.parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=BATCH_ROWS)
        return
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:  # the stream form, in which the datasets library keeps its cache
            yield from pa.ipc.open_stream(source)
            return
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)


def _value(value: Any) -> Any:
    """As JSON would have it: no times, decimals or bytes; NaN, which pandas writes for an empty cell, is absent."""
    if isinstance(value, dict):
        return {name: _value(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [_value(one) for one in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if isinstance(value, float) and math.isnan(value) else value
