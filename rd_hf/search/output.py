"""Hits to a file, as they come in: Parquet or text, whole or not at all."""

from __future__ import annotations

import csv
import os
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rd_hf.files import explain_errors, replacing


class TableWriter(AbstractContextManager["TableWriter"]):
    """Writes tables of one schema to a file, which appears when all are written.

    Lists become text with ``;`` between their items where the file is text.

    Args:
        path: ends in ``.parquet``, ``.tsv`` or ``.csv``.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._opened = ExitStack()
        self._writer: Any = None

    def __enter__(self) -> TableWriter:
        self._temporary = self._opened.enter_context(replacing(self.path))
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows.

        Raises:
            FolderError: the disk is full or the folder cannot be written to.
        """
        with explain_errors(self.path.parent):
            if self.path.suffix == ".parquet":
                if self._writer is None:
                    self._writer = self._opened.enter_context(pq.ParquetWriter(self._temporary, table.schema))
                self._writer.write_table(table)
                return
            if self._writer is None:
                text = self._opened.enter_context(self._temporary.open("w", encoding="utf-8", newline=""))
                dialect = "excel-tab" if self.path.suffix == ".tsv" else "excel"
                self._writer = csv.writer(text, dialect=dialect, lineterminator="\n")
                self._writer.writerow(table.column_names)
            self._writer.writerows(zip(*map(_as_text, table.columns), strict=True))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)


def _as_text(column: pa.ChunkedArray) -> list[str]:
    """Cells as text; Arrow writes a float32 with the digits that it has."""
    if pa.types.is_list(column.type):
        return [";".join(items or ()) for items in column.to_pylist()]
    return pc.cast(column, pa.string()).to_pylist()
