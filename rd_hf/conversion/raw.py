"""Raw embeddings as other tools left them: opened, their ids listed, their values read a few at a time.

=====================  =============================================================================================
``FILE.parquet``       a column of ids and one or more of lists of numbers (of lists of them: a row per residue)
``FILE.h5``            a dataset per protein, its name the id, or its attribute ``original_id`` where it has one
``FILE.npy``           a matrix with a row per protein; ids one per line (or FASTA) in ``FILE.ids.txt``, or a file named
``FOLDER``, ``X.pt``   a file per protein, as fair-esm's ``extract.py`` writes them: ``mean_representations``,
                       ``representations``, ``bos_representations``, each by layer
=====================  =============================================================================================

:data:`FORMATS` is the place where a format is added. Nothing is unpickled but tensors in plain containers, and no file
is read whole that holds more than one protein.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rd_hf.data.columns import ID_COLUMNS
from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError, readable
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.streams import open_text
from rd_hf.data.values import as_list, id_text

# Rows of a Parquet file that are decoded together.
_BATCH_ROWS = 256
# Deflate packs a thousand bytes into one at most, and hidden states hardly at all: a file that says it holds more than
# this is damaged, or was made to fill the memory. What is small is harmless whatever it says.
_MOST_PACKED, _HARMLESS = 1100, 64 << 20


class Raw(ABC):
    """Raw embeddings of one backbone in one place, ``path`` as messages name it; all vectors are ``width`` wide."""

    path: str
    width: int
    ids: list[str]

    @abstractmethod
    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        """Return the values at these places of ``ids``: (width,) or (residues, width) each, any float dtype."""


@contextmanager
def _reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a library says of a file that is not of its kind into one sentence, an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each library raises many kinds, for damage of many kinds
        message = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
        raise InputError(f"{path} is no readable {kind}: {message}") from error


def _refuse_dtype(what: str, dtype: object) -> NoReturn:
    raise InputError(
        f"{what} holds {dtype} where hidden states are wanted, which are floating-point numbers (float16, float32 or "
        f"float64): take it out of the input, or write it in one of these"
    )


def refuse_more_than_is_there(what: str, claimed: int, held: int) -> None:
    """Stop before memory is asked for that a file cannot fill: ``claimed`` bytes of numbers in ``held`` bytes of it."""
    if claimed > _HARMLESS + _MOST_PACKED * held:
        raise InputError(
            f"{what} says that it holds {claimed / 2**30:,.1f} GB of numbers in {held:,} bytes: it is damaged; make it "
            f"anew"
        )


def _id_of(value: Any, number: int, where: str | Path) -> str:
    """The id in a cell or an attribute of any library as text, the record's number where there is none."""
    try:
        text = id_text(value)
    except RejectedSequenceError as error:
        raise InputError(f"{where}, record {number:,}: {error}: give each protein an id") from error
    return readable(str(number) if text is None else text)


class H5File(Raw):
    """A dataset per protein, at the root or in groups; none is followed to another file."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path, self.ids = str(path), []
        self._names: list[str] = []
        with _reading(path, "h5 file"):
            self._file = h5py.File(path, "r")
            # Links, not objects: a dataset under two names is two proteins. All are judged before one is followed: a
            # soft link may lead through another that leaves the file.
            links: list[tuple[str, Any]] = []
            self._file.visititems_links(lambda name, link: links.append((name, link)))
            for name, link in links:
                if not isinstance(link, h5py.HardLink | h5py.SoftLink):
                    raise InputError(
                        f"{path}: {readable(name)} is a link to another file, which is not followed: copy the datasets "
                        f"into one file"
                    )
            for name, _ in links:
                self._add(name)
            if not self._names:
                raise InputError(
                    f"{path} holds no dataset: a protein's embedding is a dataset of its own, named by its id"
                )
            self.width = int(self._file[self._names[0]].shape[-1])

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        with _reading(self.path, "h5 file"):
            return [np.asarray(self._file[self._names[place]]) for place in places]

    def _add(self, name: str) -> None:
        """Note a dataset, once it is known to hold its numbers itself."""
        import h5py

        what, item = f"{self.path}: {readable(name)}", self._file.get(name)
        if item is None:
            raise InputError(f"{what} is a link to nothing: take it out of the file")
        if not isinstance(item, h5py.Dataset):
            return
        if item.is_virtual or item.external:
            raise InputError(f"{what} keeps its numbers in another file, which is not read: write them into this one")
        if item.dtype.kind != "f":
            _refuse_dtype(what, item.dtype)
        if not item.shape or not item.size:
            raise InputError(f"{what} is of shape {item.shape or ()}: one or more rows of numbers are wanted")
        # What was never written reads as the fill value, for ever if the shape says so.
        if item.id.get_space_status() != h5py.h5d.SPACE_STATUS_ALLOCATED:
            raise InputError(f"{what} is of shape {item.shape}, and not all of it was written: make the file anew")
        refuse_more_than_is_there(what, item.nbytes, item.id.get_storage_size())
        self._names.append(name)
        value = item.attrs.get("original_id", name)
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        self.ids.append(_id_of(None if isinstance(value, h5py.Empty) else value, len(self._names), self.path))


class NpyFile(Raw):
    """A matrix, mapped and not read, and a list of ids."""

    def __init__(self, path: Path, ids: str | None) -> None:
        self.path = str(path)
        matrix = self._mapped()
        if matrix.dtype.kind != "f":
            _refuse_dtype(str(path), matrix.dtype)
        if matrix.ndim != 2:
            raise InputError(f"{path} is of shape {matrix.shape}: one row a protein is wanted")
        usual = [path.with_suffix(ending) for ending in (".ids.txt", ".ids", ".txt")] + [Path(f"{path}.ids.txt")]
        source = ids or next((str(one) for one in usual if one.is_file()), None)
        if source is None:
            raise InputError(
                f"{path} has no ids beside it: put them into {usual[0]}, one a line, or name them with --ids"
            )
        self.ids, self.width = _read_ids(source), matrix.shape[1]
        if len(self.ids) != len(matrix):
            raise InputError(f"{path} has {len(matrix):,} rows, but {source} names {len(self.ids):,} ids")

    def _mapped(self) -> np.ndarray:
        """Mapped anew each time: pages that were read would add up to the whole file in memory."""
        with _reading(self.path, ".npy file of numbers"):
            return np.lib.format.open_memmap(self.path, mode="r")

    def take(self, places: Sequence[int]) -> list[np.ndarray]:
        matrix = self._mapped()
        return [np.array(matrix[place]) for place in places]


def _read_ids(path: str) -> list[str]:
    """Ids of a FASTA file, or the lines of any other."""
    with open_text(path) as handle:
        first = next(handle, "")
        if not first.startswith(">"):
            return [line.strip() for line in chain([first], handle) if line.strip()]
    return [record.id for record in read_fasta(path)]


class PtFiles(Raw):
    """A file per protein, with representations by layer; the id is the label's first word, as FASTA has it."""

    def __init__(self, folder: Path, files: list[Path], pooling: str, layers: dict[int, int]) -> None:
        if not files:
            raise InputError(f"{folder} holds no .pt file; name Parquet, h5 and .npy files themselves")
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
    """A tensor of floating-point numbers as it lies in the file, without what else torch may keep of it."""
    import torch

    if not isinstance(value, torch.Tensor):
        _refuse_dtype(what, f"a {type(value).__name__}")
    odd = value.is_quantized or value.is_nested or value.layout != torch.strided or value.device.type != "cpu"
    if odd or not value.is_floating_point():
        sort = "a quantised" if value.is_quantized else f"a {str(value.layout).removeprefix('torch.')} tensor of"
        _refuse_dtype(what, f"{sort} {str(value.dtype).removeprefix('torch.')}")
    if not value.ndim:
        raise InputError(f"{what} is a single number: a vector or rows of them are wanted")
    # A view may repeat what the file holds once.
    refuse_more_than_is_there(what, value.numel() * value.element_size(), file.stat().st_size)
    return value.detach().resolve_neg()


def _parquet(path: Path, id_column: str | None) -> list[Raw]:
    """One source per column of embeddings."""
    with _reading(path, "Parquet file"), pq.ParquetFile(path) as file:
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
        # Repetition or packing may make far more numbers of the file than it has bytes.
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        claimed = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
        refuse_more_than_is_there(str(path), 4 * claimed, path.stat().st_size)
        values = as_list(file.read(columns=[column])[column])
    ids = [_id_of(value, number, path) for number, value in enumerate(values, start=1)]
    return [ParquetColumn(path, name, ids) for name in vectors]


def _depth(kind: pa.DataType) -> int:
    """1 for lists of floating-point numbers, 2 for lists of those, 0 for anything else."""
    depth = 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth if pa.types.is_floating(kind) and depth <= 2 else 0


class ParquetColumn(Raw):
    """A column of embeddings, read from where the last reading ended: once in all, where the levels share an order."""

    def __init__(self, path: Path, column: str, ids: list[str]) -> None:
        self.path, self.ids = f"{path} ({column})", ids
        self._source, self._column = path, column
        with _reading(path, "Parquet file"):
            self._rewind()
            self.width = self._value(0).shape[-1]

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
        with _reading(self._source, "Parquet file"):
            found = {place: self._value(place) for place in sorted(set(places))}
        return [found[place] for place in places]


# The formats by the suffix of a file's name ("" is a folder): each opens a path, with what :func:`open_raw` is given.
FORMATS: dict[str, Callable[..., list[Raw]]] = {
    ".parquet": lambda path, id_column, **_: _parquet(path, id_column),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), lambda path, **_: [H5File(path)]),
    ".npy": lambda path, ids, **_: [NpyFile(path, ids)],
    ".pt": lambda path, pooling, layers, **_: [PtFiles(path.parent, [path], pooling, layers)],
    "": lambda path, pooling, layers, **_: [PtFiles(path, sorted(path.rglob("*.pt")), pooling, layers)],
}


def open_raw(path: str, pooling: str, layers: dict[int, int], id_column: str | None, ids: str | None) -> list[Raw]:
    """Open one input, a file or folder; a Parquet file gives one source per column of embeddings.

    Args:
        pooling: ``mean``, ``cls`` or ``residue``: which of a ``.pt`` file's representations is wanted.
        layers: the layer to take from a ``.pt`` file, by the width of its backbone.
        id_column, ids: of Parquet files, by default the first usual one; file with the ids of a ``.npy`` file.

    Raises:
        InputError: it is not there, in none of the formats, damaged, or holds nothing.
    """
    place = Path(path)
    if not place.exists():
        raise InputError(f"{path}: no such file or folder; check the path (relative to {Path.cwd()})")
    suffix = "" if place.is_dir() else place.suffix.lower() or "a file without a suffix"
    if suffix not in FORMATS:
        known = ", ".join(filter(None, FORMATS))
        raise InputError(f"{path} is no {known} file, nor a folder of .pt files")
    return FORMATS[suffix](place, pooling=pooling, layers=layers, id_column=id_column, ids=ids)
