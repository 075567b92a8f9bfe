"""Raw embeddings as other tools left them: opened, their ids listed, their values read a few at a time.

=====================  =============================================================================================
``FILE.parquet``       a column of ids and one or more of lists of numbers (of lists of them: a row a residue)
``FILE.h5``            a dataset a protein, its name the id, or its attribute ``original_id`` where it has one
``FILE.npy``           a matrix with a row a protein; ids one a line (or FASTA) in ``FILE.ids.txt``, or a file named
``FOLDER``, ``X.pt``   a file a protein, as fair-esm's ``extract.py`` writes them: ``mean_representations``,
                       ``representations``, ``bos_representations``, each by layer
=====================  =============================================================================================

Nothing is unpickled but tensors in plain containers, and no file is read whole that holds more than one protein.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rd_hf.conversion.checks import id_of, reading, refuse_dtype, refuse_more_than_is_there
from rd_hf.conversion.h5 import H5File
from rd_hf.data.columns import ID_COLUMNS
from rd_hf.data.fasta import InputError, read_fasta
from rd_hf.data.records import readable
from rd_hf.data.streams import open_text
from rd_hf.data.values import as_list

H5_SUFFIXES = (".h5", ".hdf5", ".hdf")
# Rows of a Parquet file that are decoded together.
_BATCH_ROWS = 256


class Raw(Protocol):
    """Raw embeddings of one backbone in one place.

    Attributes:
        path: where they are, as messages name it.
        width: of each vector.
        ids: of its proteins, in its order.
    """

    path: str
    width: int
    ids: list[str]

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        """Values of the proteins at these places of ``ids``: (width,) or (residues, width) each, any float dtype."""
        ...


def open_raw(path: str, pooling: str, layers: dict[int, int], id_column: str | None, ids: str | None) -> list[Raw]:
    """Open one input; a Parquet file gives one source a column of embeddings.

    Args:
        path: file or folder.
        pooling: ``mean``, ``cls`` or ``residue``: which of a ``.pt`` file's representations is wanted.
        layers: number of layers of the backbone of each width, the layer to take from a ``.pt`` file.
        id_column: of Parquet files; by default the first usual one.
        ids: file with the ids of a ``.npy`` file.

    Raises:
        InputError: it is not there, in none of the formats, damaged, or holds nothing.
    """
    place = Path(path)
    suffix = place.suffix.lower()
    if place.is_dir():
        found = sorted(place.rglob("*.pt"))
        if not found:
            raise InputError(f"{path} holds no .pt file; name Parquet, h5 and .npy files themselves")
        return [PtFiles(place, found, pooling, layers)]
    if not place.is_file():
        raise InputError(f"{path}: no such file or folder; check the path (relative to {Path.cwd()})")
    if suffix == ".parquet":
        return _parquet(place, id_column)
    if suffix in H5_SUFFIXES:
        return [H5File(place)]
    if suffix == ".npy":
        return [NpyFile(place, ids)]
    if suffix == ".pt":
        return [PtFiles(place.parent, [place], pooling, layers)]
    raise InputError(f"{path} is no .parquet, {', '.join(H5_SUFFIXES)}, .npy or .pt file, nor a folder of .pt files")


class NpyFile:
    """A matrix, mapped and not read, and a list of ids."""

    def __init__(self, path: Path, ids: str | None) -> None:
        self.path = str(path)
        matrix = self._mapped()
        if matrix.dtype.kind != "f":
            refuse_dtype(str(path), matrix.dtype)
        if matrix.ndim != 2:
            raise InputError(f"{path} is of shape {matrix.shape}: one row a protein is wanted")
        usual = [path.with_suffix(ending) for ending in (".ids.txt", ".ids", ".txt")]
        usual.append(Path(f"{path}.ids.txt"))
        source = ids or next((str(one) for one in usual if one.is_file()), None)
        if source is None:
            raise InputError(
                f"{path} has no ids beside it: put them into {usual[0]}, one a line, or name them with --ids"
            )
        self.ids = _read_ids(source)
        if len(self.ids) != len(matrix):
            raise InputError(f"{path} has {len(matrix):,} rows, but {source} names {len(self.ids):,} ids")
        self.width = matrix.shape[1]

    def _mapped(self) -> np.ndarray:
        """Mapped anew each time: pages that were read would add up to the whole file in memory."""
        with reading(self.path, "readable .npy file of numbers"):
            return np.lib.format.open_memmap(self.path, mode="r")

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        matrix = self._mapped()
        return [np.array(matrix[place]) for place in places]


def _read_ids(path: str) -> list[str]:
    """Ids of a FASTA file, or the lines of any other."""
    with open_text(path) as handle:
        if handle.read(1) == ">":
            return [record.id for record in read_fasta(path)]
    with open_text(path) as handle:
        return [line.strip() for line in handle if line.strip()]


class PtFiles:
    """A file a protein, with representations by layer; the id is the label's first word, as FASTA has it."""

    def __init__(self, folder: Path, files: list[Path], pooling: str, layers: dict[int, int]) -> None:
        self._files, self._pooling = files, pooling
        self.path = str(folder if len(files) > 1 else files[0])
        # The label is a path where it has a slash in it, and that is where its writer put it.
        labels = [str(file.relative_to(folder).with_suffix("")) for file in files]
        self.ids = [readable(label.split(None, 1)[0] if label.split() else label) for label in labels]
        held = self._read(files[0])
        self.width = next(iter(held.values())).shape[-1]
        self._layer = layers.get(self.width, max(held))

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        values = []
        for place in places:
            held = self._read(self._files[place])
            if self._layer not in held:
                raise InputError(
                    f"{self._files[place]} holds layers {', '.join(map(str, held))}, and the bases take the last, "
                    f"{self._layer}: extract it with --repr_layers {self._layer}"
                )
            values.append(held[self._layer].float().numpy())
        return values

    def _read(self, file: Path) -> dict[int, Any]:
        """Tensors by layer."""
        import torch

        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # of many kinds, with advice to unpickle whatever it is
            raise InputError(
                f"{file} is no .pt file of plain tensors: it is damaged or of another kind, or holds objects, "
                f"which are not unpickled"
            ) from error
        wanted = {"mean": ("mean_representations", "representations"), "cls": ("bos_representations",)}
        names = wanted.get(self._pooling, ("representations",))
        for name in names:
            held = content.get(name) if isinstance(content, dict) else None
            if isinstance(held, dict) and held and all(isinstance(layer, int) for layer in held):
                return {layer: _plain(value, f"{file}: layer {layer}", file) for layer, value in held.items()}
        raise InputError(f"{file} has no {' or '.join(names)} by layer, as fair-esm's extract.py writes them")


def _plain(value: Any, what: str, file: Path) -> Any:
    """A tensor of floating-point numbers as it lies in the file, without what else torch may keep of it.

    Raises:
        InputError: it is something else, or sparse, quantised, or without numbers.
    """
    import torch

    if not isinstance(value, torch.Tensor):
        refuse_dtype(what, f"a {type(value).__name__}")
    odd = value.is_quantized or value.is_nested or value.layout != torch.strided or value.device.type != "cpu"
    if odd or not value.is_floating_point():
        sort = "a quantised" if value.is_quantized else f"a {str(value.layout).removeprefix('torch.')} tensor of"
        refuse_dtype(what, f"{sort} {str(value.dtype).removeprefix('torch.')}")
    if not value.ndim:
        raise InputError(f"{what} is a single number: a vector or rows of them are wanted")
    # A view may repeat what the file holds once.
    refuse_more_than_is_there(what, value.numel() * value.element_size(), file.stat().st_size)
    return value.detach().resolve_neg()


def _parquet(path: Path, id_column: str | None) -> list[Raw]:
    """One source a column of embeddings."""
    with reading(path, "readable Parquet file"), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise InputError(f"{path} has more than one column {twice[0]!r}: rename all but one")
        by_lower = {name.lower(): name for name in schema.names}
        column = id_column or next((by_lower[name] for name in ID_COLUMNS if name in by_lower), None)
        if column not in schema.names:
            raise InputError(
                f"{path} has no column {id_column or 'of ids'!r}; its columns are {', '.join(schema.names)}: name one "
                f"with --id-column"
            )
        vectors = [field.name for field in schema if _depth(field.type)]
        if not vectors or not file.metadata.num_rows:
            raise InputError(
                f"{path} has no rows of lists of floating-point numbers; its columns are "
                f"{', '.join(f'{field.name} ({field.type})' for field in schema)}"
            )
        _refuse_bomb(path, file.metadata)
        values = as_list(file.read(columns=[column])[column])
    ids = [id_of(value, number, path) for number, value in enumerate(values, start=1)]
    return [ParquetColumn(path, name, ids) for name in vectors]


def _refuse_bomb(path: Path, metadata: pq.FileMetaData) -> None:
    """Stop where repetition or packing makes far more numbers of the file than it has bytes."""
    groups = (metadata.row_group(index) for index in range(metadata.num_row_groups))
    claimed = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    refuse_more_than_is_there(str(path), 4 * claimed, path.stat().st_size)


def _depth(kind: pa.DataType) -> int:
    """1 for lists of floating-point numbers, 2 for lists of those, 0 for anything else."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if pa.types.is_floating(kind) and depth <= 2 else 0


class ParquetColumn:
    """A column of embeddings, read from where the last reading ended: once in all, where the levels share an order."""

    def __init__(self, path: Path, column: str, ids: list[str]) -> None:
        self.path, self.ids = f"{path} ({column})", ids
        self._source, self._column = path, column
        self._start = 0
        self._rows: pa.Array = pa.array([])
        self._batches: Iterator[pa.Array] = iter(())
        with reading(self._source, "readable Parquet file"):
            self._rewind()
            first = self._value(0)
        self.width = first.shape[-1]

    def _rewind(self) -> None:
        file = pq.ParquetFile(self._source)
        self._batches = (batch.column(0) for batch in file.iter_batches(_BATCH_ROWS, columns=[self._column]))
        self._start, self._rows = 0, next(self._batches)

    def _value(self, place: int) -> np.ndarray:
        if place < self._start:
            self._rewind()
        while place >= self._start + len(self._rows):
            self._start += len(self._rows)
            self._rows = next(self._batches)
        values = self._rows[place - self._start].values
        if values is None:
            raise InputError(f"{self.path}: {self.ids[place]} has no embedding")
        if not _depth(values.type):
            return np.array(values)
        widths = pc.list_value_length(values).unique()
        if len(widths) != 1 or widths.null_count:
            found = ", ".join("none" if width is None else str(width) for width in widths.to_pylist())
            raise InputError(
                f"{self.path}: {self.ids[place]} has residues of different widths ({found or 'no residue'}): each "
                f"must have the same"
            )
        return np.array(values.flatten()).reshape(len(values), -1)

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        with reading(self._source, "readable Parquet file"):
            found = {place: self._value(place) for place in sorted(set(places))}
        return [found[place] for place in places]


def in_chunks(count: int, size: int) -> Iterator[list[int]]:
    """Numbers below ``count``, ``size`` at a time."""
    numbers = iter(range(count))
    while chunk := list(islice(numbers, size)):
        yield chunk
