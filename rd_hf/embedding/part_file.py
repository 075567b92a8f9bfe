"""One part of a folder as a Parquet file: how its columns are laid out, compressed and marked, and its footer read."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rd_hf.embedding.options import BLOCKS, BYTES, EmbeddingOptions
from rd_hf.embedding.storage import Column

# Rows are read back in groups of about this size.
_ROW_GROUP_BYTES = 16 << 20
# Of a smaller level alone a group holds at least this: a request over a network takes as long as a megabyte or more.
_RANGE_BYTES = 4 << 20
# The length of a footer and the format's name end a file.
_TAIL = 8


def write_part(
    handle: IO[bytes],
    columns: Mapping[str, pa.Array],
    vectors: Sequence[Column],
    options: EmbeddingOptions,
    about: Mapping[str, Any],
) -> None:
    """Write a part's file: equal columns give equal bytes.

    Args:
        handle: of the file, empty.
        columns: all of them, by name, in order.
        vectors: which of them hold embeddings.
        options: of the job.
        about: what the file says of itself, in its schema under ``rd_hf``.
    """
    blocks = options.layout == BLOCKS
    noted = {**about, "page_checksums": True} | ({"layout": options.layout} if blocks else {})
    table = pa.table(dict(columns)).replace_schema_metadata({"rd_hf": json.dumps(noted)})
    # Embeddings are as good as noise to a compressor: only text is worth its time.
    codecs = dict.fromkeys(("source", "id", "description"), "zstd")
    repeated = ["source"]
    if options.output_dtype in BYTES:
        # Parquet has no numbers of one byte: as places in a list of all 256 they take one. How the vectors are cut is
        # noted for each number, and is what a compressor finds.
        leaves = [column.name + ".list.element" * (1 if options.one_row else 2) for column in vectors]
        codecs |= dict.fromkeys(leaves, "zstd")
        repeated += leaves
    how: dict[str, Any] = {"compression": codecs, "use_dictionary": repeated, "write_page_checksum": True}
    group_rows = _rows_of(_ROW_GROUP_BYTES, table.nbytes, table.num_rows)
    if blocks:
        # Beside a narrow block, eight bytes a number would count.
        how["column_encoding"] = dict.fromkeys(("record", "length"), "DELTA_BINARY_PACKED")
        smallest = min(table[column.name].nbytes for column in vectors)
        group_rows = max(group_rows, _rows_of(_RANGE_BYTES, smallest, table.num_rows))
    with pq.ParquetWriter(handle, table.schema, **how) as writer:
        # A group without rows stops datasets, which reads in batches of its length.
        if table.num_rows:
            writer.write_table(table, row_group_size=group_rows)


def _rows_of(size: int, all_bytes: int, rows: int) -> int:
    """How many of so many rows have this size."""
    return max(1, size * rows // max(1, all_bytes))


def read_footer(file: IO[bytes]) -> pq.FileMetaData:
    """Read what an open file says of its columns, and no other byte of it; an ArrowException where it is none.

    pyarrow by itself reads 64 kB of every file, which for many files is more than a narrow column of them.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read(_TAIL)
    length = int.from_bytes(tail[:4], "little")
    file.seek(max(0, size - _TAIL - length))
    return pq.read_metadata(pa.BufferReader(file.read(length) + tail))


def open_part(file: str | Path | IO[bytes], metadata: pq.FileMetaData) -> pq.ParquetFile:
    """Open a file whose footer is known, mapped into memory where it lies here; its pages are verified as read."""
    mapped = isinstance(file, str | Path)
    return pq.ParquetFile(file, metadata=metadata, memory_map=mapped, page_checksum_verification=True)


def has_checksums(schema: Any) -> bool:
    """Whether the pages of a file carry checksums, by what its schema says."""
    return b'"page_checksums": true' in (schema.metadata or {}).get(b"rd_hf", b"")


def holds(wanted: np.ndarray, first: int, last: int) -> bool:
    """Whether any of the ascending records lies in a range, its ends included."""
    return bool(np.searchsorted(wanted, last, "right") > np.searchsorted(wanted, first, "left"))


def bytes_of(metadata: Any, groups: list[int], columns: list[str]) -> int:
    """How large columns are in row groups of a file."""
    paths = [f"{metadata.schema.column(leaf).path}." for leaf in range(metadata.num_columns)]
    # A level's name may have a point too, as what is within a column has.
    leaves = [leaf for leaf, path in enumerate(paths) if path.startswith(tuple(f"{name}." for name in columns))]
    return sum(metadata.row_group(group).column(leaf).total_compressed_size for group in groups for leaf in leaves)


def row_groups(file: Any, wanted: np.ndarray | None) -> list[int]:
    """Row groups that may hold one of the wanted records, by the statistics that each carries."""
    groups = list(range(file.metadata.num_row_groups))
    if wanted is None:
        return groups
    place = [file.metadata.schema.column(leaf).path for leaf in range(file.metadata.num_columns)].index("record")
    seen = {group: file.metadata.row_group(group).column(place).statistics for group in groups}
    return [group for group, range_ in seen.items() if range_ is None or holds(wanted, range_.min, range_.max)]
