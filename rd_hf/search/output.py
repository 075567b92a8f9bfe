"""Hits to a file, as they come in: Parquet or text, whole or not at all."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from rd_hf.embedding.folder import explained


class TableWriter(AbstractContextManager["TableWriter"]):
    """Writes tables of one schema to a file, which appears when all are written.

    Lists become text with ``;`` between their items where the file is text.

    Args:
        path: ends in ``.parquet``, ``.tsv`` or ``.csv``.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        self._writer: Any = None

    def write(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            JobError: the disk is full or the folder cannot be written to.
        """
        with explained(self.path.parent):
            if self.path.suffix == ".parquet":
                self._writer = self._writer or pq.ParquetWriter(self._temporary, table.schema)
                self._writer.write_table(table)
                return
            for place, field in enumerate(table.schema):
                if pa.types.is_list(field.type):
                    text = [";".join(items) for items in table.column(place).to_pylist()]
                    table = table.set_column(place, field.name, pa.array(text, pa.string()))
            if self._writer is None:
                options = pa.csv.WriteOptions(
                    delimiter="\t" if self.path.suffix == ".tsv" else ",", quoting_style="needed"
                )
                self._writer = pa.csv.CSVWriter(str(self._temporary), table.schema, write_options=options)
            self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with explained(self.path.parent):
            if self._writer is not None:
                self._writer.close()
            if kind is None:
                with self._temporary.open("rb") as handle:
                    os.fsync(handle.fileno())
                os.replace(self._temporary, self.path)
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
