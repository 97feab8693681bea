"""Rows of Parquet files, Arrow files (save_to_disk) and `datasets`, as a JSON file would give them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from reward_model import InputError


def arrow_file_rows(content: BinaryIO, file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .parquet or .arrow file; raises InputError where it cannot be read."""
    import pyarrow.ipc
    import pyarrow.parquet

    is_parquet = file.suffix == ".parquet"
    try:
        read = pyarrow.parquet.ParquetFile if is_parquet else pyarrow.ipc.open_stream
        for batch in read(content).iter_batches(1024) if is_parquet else read(content):
            yield from _plain_rows(batch)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "a Parquet file" if is_parquet else "an Arrow stream, as save_to_disk writes it"
        raise InputError(f"{file}: not {kind}: {error}") from error


def dataset_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a `datasets` dataset, streamed or not."""
    for table in dataset.with_format("arrow").iter(1024):
        yield from _plain_rows(table)


def _plain_rows(batch: Any) -> Iterator[dict[str, Any]]:
    for row in batch.to_pylist():
        yield {field.name: _plain(row[field.name], field.type) for field in batch.schema}


def _plain(value: Any, kind: Any) -> Any:
    """Return a value of an Arrow type without the nulls that the type adds, and with JSON text (arrow.json) parsed.

    All structs of a column have the same keys: {"city": "Oslo"} beside {"unit": "C"} reads back as {"city": "Oslo",
    "unit": None}. A null that was there before looks the same and is removed too; only JSON text keeps it.
    """
    if isinstance(value, dict):
        return {part.name: _plain(value[part.name], part.type) for part in kind.fields if value[part.name] is not None}
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_plain(part, kind.value_type) for part in value]
    is_json = isinstance(value, str) and getattr(kind, "extension_name", "") == "arrow.json"
    return json.loads(value) if is_json else value
