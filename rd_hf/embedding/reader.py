"""The one reader of a finished folder of embeddings: its manifest, its rows, the sequences that they were made of.

Searches, maps, exports and extensions read through :class:`EmbeddingFolder`. What they read is what was written: pages
carry checksums; files of versions without them are hashed where all of their rows are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from rd_hf.data.records import FastaRecord, InputError, readable
from rd_hf.data.remote import RemoteFolder, is_remote
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.finished import finished_manifest, stored_options
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.options import BYTES, INT8
from rd_hf.embedding.parts import cut_parts, read_all
from rd_hf.embedding.quantization import dequantize, read_grid, stored_type, stored_width
from rd_hf.embedding.settings import COLUMNS, LIMITS, JobSettings
from rd_hf.embedding.storage import covering, read_columns
from rd_hf.files import stream_sha256

# Rows that are read together.
_ROWS = 4096
# Footers that are kept: some kilobytes each.
_FOOTERS = 1024
_TEXT, _WHOLE = ("string",), ("int64", "int32")
_KINDS = {"record": _WHOLE, "length": _WHOLE, "source": _TEXT, "id": _TEXT, "description": _TEXT}


class EmbeddingFolder:
    """A finished folder of embeddings, read.

    Args:
        path: the folder, or the address of one that was published: then ranges of its files are read, and kept.
        with_journal: hold every part against the journal's entry too, as :meth:`records` needs.

    Attributes:
        manifest: all that readers rely on is in it, in the types that a job writes.
        model, options: that made it; what the manifest does not say is as by default.
        parts: of the manifest, one object per file.
        rows: number of rows.
        level, width: the widest that it holds.
        levels: width of each level that its rows hold, smallest first; the largest may be cut.
        columns: of embeddings, in either layout.
        bytes_read: of columns, so far, by :meth:`batches`.
        grid: (2, width) float32, centre and step of each dimension where they are stored as int8, else None.

    Raises:
        InputError: no such folder, its job is not finished, or its manifest is not as a job writes it. What reads
            rows raises it where a file is not as it was written.
        JobError: ``with_journal``, and there is none.
    """

    def __init__(self, path: str | os.PathLike, with_journal: bool = False) -> None:
        self._remote = RemoteFolder(str(path)) if is_remote(path) else None
        self.path = Path(path) if self._remote is None else self._remote.place
        self._folder = OutputFolder(self.path)
        self.manifest = finished_manifest(self._folder)
        job, columns = self.manifest["job"], self.manifest["columns"]
        model = self.manifest["model"]
        self.model = Checkpoint(**{one.name: model[one.name] for one in fields(Checkpoint) if one.name in model})
        self.options = stored_options(job)
        self.parts: list[dict[str, Any]] = self.manifest["parts"]
        self.rows = sum(part["written"] for part in self.parts)
        self.inputs = tuple(job["inputs"])
        self.input_columns = tuple(job[name] for name in COLUMNS)
        self.columns = read_columns(columns, self.options.layout)
        widest = max(self.columns, key=lambda column: column.stop)
        self.level, self.width = widest.level, widest.stop
        self.levels = self.model.held(self.width)
        self.grid = read_grid(self.manifest) if self.options.output_dtype == INT8 else None
        self._footers: OrderedDict[str, Any] = OrderedDict()
        self.bytes_read = 0
        self._with_journal = with_journal
        self._verified: set[int] = set()
        if with_journal and self._remote is not None:
            raise JobError(f"{path} was published without its journal: give the folder that it was published from")
        if with_journal and not self._folder.noted_parts():
            raise JobError(f"{path} has lost its journal (the folder .job): copy the folder whole")
        if with_journal and (absent := [name for name in LIMITS if name not in job]):
            raise JobError(f"{path} does not say how its input was cut ({absent[0]}): embed its input again")

    @property
    def digest(self) -> str:
        """Changes whenever one of its files does."""
        return hashlib.sha256("".join(part["sha256"] for part in self.parts).encode()).hexdigest()

    @property
    def is_converted(self) -> bool:
        """Whether it was made of stored embeddings, so that its sequences are not known."""
        return "converted" in self.manifest["job"]

    @property
    def rejects_path(self) -> Path:
        """File of the records that were not embedded."""
        return self._folder.rejects_path

    def width_of(self, level: str | None = None) -> tuple[int, str]:
        """Return how many dimensions a level has here, and its name, by default the widest; a JobError without it."""
        if level is None:
            return self.width, self.level
        for column in self.columns:
            if column.level == level:
                return column.stop, level
        width = self.model.nested_dims.get(level)
        if width is None or width > self.width:
            raise JobError(f"{self.path} holds level {self.level}, which does not have level {level} within it")
        if self.options.normalize:
            raise JobError(
                f"{self.path} holds level {self.level} normalised: embed with --level {level} {self.level} to "
                f"have level {level} normalised for itself"
            )
        return width, level

    def columns_for(self, width: int | None = None) -> list[str]:
        """Return the columns that hold the first dimensions of all embeddings, by default all dimensions."""
        return [column.name for column in covering(self.columns, width or self.width)]

    def vectors(self, batch: Any, width: int | None = None, as_stored: bool = False) -> np.ndarray:
        """Join the columns of a batch of rows, read by :meth:`columns_for` with the same width.

        Args:
            batch: with those columns.
            width: a number of dimensions, by default all.
            as_stored: not as floats, where bytes are stored.

        Returns:
            (rows, width), or with several rows a record all of them below each other; of the stored dtype, which is a
            float. A view where one column holds them.
        """
        dtype = self.options.output_dtype
        width = width or self.width
        pieces = []
        for column in covering(self.columns, width):
            values = batch.column(column.name)
            values = values if self.options.one_row else values.flatten()
            rows = np.asarray(values.flatten()).reshape(len(values), values.type.list_size)
            pieces.append(rows[:, : stored_width(width - column.first, dtype)])
        joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
        return joined if as_stored else dequantize(joined, self.grid)

    def check_files(self, columns: Iterable[str]) -> None:
        """Raise an InputError unless every file is as large as it was written, of as many rows, with these columns."""
        import pyarrow as pa

        for part in self.parts:
            path = self.path / part["file"]
            try:
                metadata = self._footer(part)
                # The size of what lies elsewhere was seen with its footer.
                as_written = self._remote is not None or path.stat().st_size == part["bytes"]
                as_written = as_written and metadata.num_rows == part["written"]
                as_written = as_written and self._is_part(metadata.schema.to_arrow_schema(), columns)
            except (pa.ArrowException, OSError):
                as_written = False
            if not as_written:
                if self._remote is not None:
                    raise self._damaged(part)
                raise InputError(f"{path} is missing or not as it was written: give the embed command again")

    def verify(self, on_bytes: Callable[[int], object] = lambda count: None) -> None:
        """Hash all files; raise an InputError at the first that is not as it was written."""
        for part in self.parts:
            try:
                as_written = self._sha256(part) == part["sha256"]
            except OSError:
                as_written = False
            if not as_written:
                raise self._damaged(part)
            on_bytes(part["bytes"])

    def batches(
        self, columns: list[str], size: int = _ROWS, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[Path, Any]]:
        """Stream columns of all rows, in order, as Arrow record batches with the file of each.

        Args:
            columns: their names.
            size: rows of a batch at most.
            wanted: ascending records; what cannot hold any of them is not read. Batches still hold others too.
        """
        import pyarrow as pa

        from rd_hf.embedding.part_file import bytes_of, holds, open_part, row_groups

        for index, part in enumerate(self.parts):
            path = self.path / part["file"]
            first, beyond = part["first_record"], part["first_record"] + part["records"]
            if not part["written"] or (wanted is not None and not holds(wanted, first, beyond - 1)):
                continue
            try:
                with open_part(self._bytes(part), self._footer(part)) as file:
                    self._verify(index, file.schema_arrow, columns, wanted is None)
                    groups = row_groups(file, wanted)
                    self.bytes_read += bytes_of(file.metadata, groups, columns)
                    for batch in file.iter_batches(size, row_groups=groups, columns=columns):
                        if any(batch[name].null_count for name in {"record", *self.manifest["columns"]} & {*columns}):
                            raise self._damaged(part)
                        if batch.num_rows:
                            yield path, batch
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(part) from error

    def all_rows(
        self, width: int | None = None, wanted: np.ndarray | None = None
    ) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """Yield ``record`` and ``id`` of every row, in order, with the first dimensions; see :meth:`batches`."""
        for _, batch in self.batches(["record", "id", *self.columns_for(width)], wanted=wanted):
            vectors = self.vectors(batch, width)
            offsets = self.offsets(batch)
            arrays = vectors if offsets is None else [vectors[start:stop] for start, stop in pairwise(offsets)]
            yield from zip(batch.select(["record", "id"]).to_pylist(), arrays, strict=True)

    def offsets(self, batch: Any) -> np.ndarray | None:
        """Where the vectors of each record of a batch begin and the last ones end, from 0; None for one a record."""
        if self.options.one_row:
            return None
        held = next(column.name for column in self.columns if column.name in batch.schema.names)
        offsets: np.ndarray = batch.column(held).offsets.to_numpy()
        return offsets - offsets[0]

    def whole_part(self, index: int) -> tuple[PartEntry, Any, dict[str, Any]]:
        """Read all of a part: its journal's entry, its rows as one batch, and what its file says of itself."""
        import pyarrow as pa

        from rd_hf.embedding.part_file import open_part

        part, entry = self.parts[index], self._folder.entry(index)
        try:
            with open_part(self._bytes(part), self._footer(part)) as file:
                self._verify(index, file.schema_arrow, [], whole=True)
                table = file.read().combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(part) from error
        if entry is None or table.num_rows != entry.written:
            raise self._damaged(part)
        arrays = [column.chunk(0) if column.num_chunks else pa.nulls(0, column.type) for column in table.columns]
        batch = pa.RecordBatch.from_arrays(arrays, schema=table.schema)
        return entry, batch, json.loads((table.schema.metadata or {}).get(b"rd_hf", b"{}"))

    def rows_of(self, first: int, count: int) -> dict[int, np.ndarray]:
        """Return the widest embeddings of those of ``count`` records from ``first`` on that were written, by number."""
        wanted = range(first, first + count)
        rows = self.all_rows(wanted=np.asarray(wanted))
        return {row["record"]: value for row, value in rows if row["record"] in wanted}

    def ids(self) -> Iterator[str]:
        """Yield the ids of all rows, in order."""
        for _, batch in self.batches(["id"]):
            yield from batch["id"].to_pylist()

    def records(
        self,
        inputs: tuple[str, ...] = (),
        called: tuple[str, ...] = (),
        on_read: Callable[[int], None] = lambda count: None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[str, FastaRecord]]:
        """Yield the records of the inputs, each once it was found to be what the folder was made of.

        Args:
            inputs: where they lie now, by default where they lay then.
            called: what they are called now, by default as they are given.
            on_read: called with the number of bytes each time some are read.
            say: called with a sentence that a user should know of an input.

        Raises:
            JobError: they are not the same, or not known.
        """
        path, inputs = self.path, inputs or self.inputs
        if self.is_converted:
            raise JobError(f"{path} was converted from stored embeddings, so that its sequences are not known")
        if len(inputs) != len(self.inputs):
            raise JobError(
                f"{path} was made of {len(self.inputs)} inputs ({', '.join(self.inputs)}), not of "
                f"{len(inputs)}: give the same, in the same order"
            )
        job = self.manifest["job"]
        settings = JobSettings(
            model=self.model.name,
            inputs=self.inputs,
            output=str(path),
            options=replace(self.options, levels=()),
            **{name: job[name] for name in (*LIMITS, *COLUMNS)},
        )
        # What was embedded is known by the names that its inputs had then.
        sources: deque[str] = deque()

        def renamed() -> Iterator[tuple[str, FastaRecord]]:
            for name, source, now in zip(self.inputs, inputs, called or inputs, strict=True):
                for _, record in read_all(replace(settings, inputs=(source,)), on_read, say):
                    sources.append(readable(now))
                    yield readable(name), record

        changed, mend = f"the input is not what {path} was made of: it", "give the same input, or embed it from scratch"
        count = 0
        for part in cut_parts(renamed(), settings, {self.level: self.width}):
            entry = self._folder.entry(part.index) if part.index < len(self.parts) else None
            if entry is None or entry.digest != part.digest:
                raise JobError(f"{changed} differs from record number {part.first_record:,} on; {mend}")
            for _, record in part.records:
                yield sources.popleft(), record
            count += 1
        if count < len(self.parts):
            raise JobError(f"{changed} ends before record number {self.parts[count]['first_record']:,}; {mend}")

    def _is_part(self, schema: Any, columns: Iterable[str]) -> bool:
        """Whether a file has columns once each, of types that hold what they should, and all embeddings."""
        import pyarrow as pa

        def holds(name: str) -> bool:
            if schema.names.count(name) != 1:
                return False
            kind = schema.field(name).type
            if name in _KINDS:
                return str(kind).removeprefix("large_") in _KINDS[name]
            if not self.options.one_row:
                kind = kind.value_type if pa.types.is_list(kind) else pa.null()
            dtype, width = self.options.output_dtype, self.manifest["columns"][name]["width"]
            if not pa.types.is_fixed_size_list(kind) or kind.list_size != stored_width(width, dtype):
                return False
            if dtype in BYTES:
                return kind.value_type == pa.from_numpy_dtype(stored_type(dtype))
            return pa.types.is_floating(kind.value_type)

        return all(map(holds, {*columns, *self.manifest["columns"]}))

    def _verify(self, index: int, schema: Any, columns: list[str], whole: bool) -> None:
        """Raise unless a file is the one that was written, as far as its pages do not say so themselves."""
        from rd_hf.embedding.part_file import has_checksums

        part = self.parts[index]
        if not self._is_part(schema, columns):
            raise self._damaged(part)
        if index in self._verified:
            return
        if self._with_journal:
            entry = self._folder.entry(index)
            if entry is None or any(getattr(entry, name, None) != value for name, value in part.items()):
                raise self._damaged(part)
        if self._with_journal or (whole and not has_checksums(schema)):
            if self._sha256(part) != part["sha256"]:
                raise self._damaged(part)
            self._verified.add(index)

    def _bytes(self, part: dict[str, Any]) -> Any:
        """A part's file, to be opened: its path, or where it lies elsewhere a file that reads ranges of it."""
        return self.path / part["file"] if self._remote is None else self._remote.open(part["file"], part["bytes"])

    def _opened(self, part: dict[str, Any]) -> IO[bytes]:
        file = self._bytes(part)
        return open(file, "rb") if isinstance(file, Path) else file

    def _sha256(self, part: dict[str, Any]) -> str:
        with self._opened(part) as file:
            return stream_sha256(file)

    def _footer(self, part: dict[str, Any]) -> Any:
        """What a file says of its columns, read once while few others are."""
        from rd_hf.embedding.part_file import read_footer

        name = part["file"]
        if name not in self._footers:
            with self._opened(part) as file:
                self._footers[name] = read_footer(file)
            if len(self._footers) > _FOOTERS:
                self._footers.popitem(last=False)
        return self._footers[name]

    def _damaged(self, part: dict[str, Any]) -> InputError:
        if self._remote is not None:
            return self._remote.damaged(part["file"])
        path = self.path / part["file"]
        return InputError(f"{path} is not as it was written: give the command that wrote it again")
