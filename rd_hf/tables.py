"""Tables that commands write: Parquet or text by the file's suffix, whole or not at all.

pyarrow is imported when a table is written, so that settings can name the formats at no cost.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd_hf.files import explain_errors, replacing

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".parquet", ".tsv", ".csv")


@contextmanager
def table_writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Write tables of one schema to a file, which appears when all are written; yields what appends one.

    The path ends in one of ``FORMATS``. In text, lists have ``;`` between their items.
    """
    import pyarrow.parquet as pq

    writer: Any = None
    with ExitStack() as opened:
        temporary = opened.enter_context(replacing(path))

        def write(table: pa.Table) -> None:
            """Append rows; FolderError if the disk is full or the folder cannot be written to."""
            nonlocal writer
            with explain_errors(path.parent):
                if path.suffix == ".parquet":
                    writer = writer or opened.enter_context(pq.ParquetWriter(temporary, table.schema))
                    writer.write_table(table)
                    return
                if writer is None:
                    text = opened.enter_context(temporary.open("w", encoding="utf-8", newline=""))
                    dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
                    writer = csv.writer(text, dialect=dialect, lineterminator="\n")
                    writer.writerow(table.column_names)
                writer.writerows(zip(*map(_as_text, table.columns), strict=True))

        yield write


def _as_text(column: pa.ChunkedArray) -> list[str]:
    """Cells as text; Arrow writes a float32 with the digits that it has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type):
        items = pc.cast(column, pa.list_(pa.string())).to_pylist()
        return [";".join(cells or ()) for cells in items]
    return pc.cast(column, pa.string()).to_pylist()
