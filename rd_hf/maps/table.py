"""What a map draws as a table: a row for each protein and level, with its place and its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rd_hf.maps.neighbours import Neighbours
from rd_hf.maps.projection import Projection
from rd_hf.maps.proteins import Proteins
from rd_hf.tables import table_writer


def level_table(proteins: Proteins, projection: Projection, near: Neighbours | None) -> pa.Table:
    """Return the rows of one level, in input order.

    Columns are ``record`` and ``id`` of the protein, ``level``, its coordinates ``x`` and ``y`` (float64, no units:
    the root mean square distance to the centre is one) and, where there are neighbours, lists of their
    ``neighbour_records``, ``neighbour_ids`` and ``similarities`` (cosine), nearest first.
    """
    columns: dict[str, Any] = {
        "record": pa.array(proteins.records),
        "id": pa.array(proteins.ids, pa.string()),
        "level": pa.repeat(pa.scalar(projection.level), len(proteins.ids)),
        "x": pa.array(projection.points[:, 0]),
        "y": pa.array(projection.points[:, 1]),
    }
    if near is not None:
        count, k = near.indices.shape
        places = near.indices.ravel()
        ends = pa.array(np.arange(0, count * k + 1, k), pa.int32())
        values = {
            "neighbour_records": pa.array(proteins.records[places]),
            "neighbour_ids": columns["id"].take(pa.array(places)),
            "similarities": pa.array(near.similarities.ravel()),
        }
        columns |= {name: pa.ListArray.from_arrays(ends, one) for name, one in values.items()}
    return pa.table(columns)


def write_table(
    path: Path, proteins: Proteins, projections: Sequence[Projection], neighbours: Mapping[str, Neighbours]
) -> None:
    """Write the rows of all levels, smallest first, as ``.parquet``, ``.tsv`` or ``.csv``; FolderError if it cannot be.

    Lists are joined by ``;`` where it is text.
    """
    with table_writer(path) as write:
        for projection in projections:
            write(level_table(proteins, projection, neighbours.get(projection.level)))
