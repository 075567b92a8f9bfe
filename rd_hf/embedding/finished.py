"""A finished folder of embeddings, read: its rows by record, and the sequences that they were made of."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rd_hf.data.fasta import FastaRecord, InputError
from rd_hf.data.records import readable
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.fields import unfinished
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.manifest import MANIFEST_FORMAT
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.parts import cut_parts, read_all
from rd_hf.embedding.settings import JobSettings

# What the manifest says of a job under the names of an embedding's options, and of its tables' columns.
OPTIONS = ("pooling", "positions", "normalize", "dtype", "output_dtype", "long", "max_length", "overlap", "whiten")
COLUMNS = ("sequence_column", "id_column", "positions_column")
LIMITS = ("part_records", "part_bytes")


def finished_manifest(path: str | os.PathLike) -> tuple[OutputFolder, dict[str, Any]]:
    """A folder and its manifest, which says all that readers rely on, in the types that a job writes.

    Raises:
        InputError: no such folder, its job is not finished, or its manifest is not as a job writes it.
    """
    folder = OutputFolder(path)
    if not folder.manifest_path.is_file():
        raise InputError(
            f"{path} is no folder of embeddings (it holds no {folder.manifest_path.name}): make one with rd-hf embed"
        )
    try:
        manifest = folder.manifest() or {}
    except JobError as error:
        raise InputError(str(error)) from error
    if manifest["format"] != MANIFEST_FORMAT:
        raise InputError(f"{path} was written by another version of rd_hf: embed its input again")
    if manifest.get("status") != "complete":
        raise InputError(f"{path} is not finished: give its embed command again, then this one")
    wrong = unfinished(manifest)
    try:
        if wrong is None:
            options_of(manifest["job"])
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise InputError(
            f"{folder.manifest_path} is not as an embedding job writes it ({wrong}): restore it, or embed again into "
            "another folder"
        )
    return folder, manifest


def options_of(job: dict[str, Any]) -> EmbeddingOptions:
    """How a manifest's job embedded; what it does not say is as by default.

    Raises:
        ValueError: no options are so.
    """
    said = {one.name: job[one.name] for one in fields(EmbeddingOptions) if one.name in job}
    options: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return EmbeddingOptions(**options)


def model_of(manifest: dict[str, Any]) -> Checkpoint:
    """The model that a manifest names."""
    said = manifest["model"]
    return Checkpoint(**{one.name: said[one.name] for one in fields(Checkpoint) if one.name in said})


def part_files(folder: OutputFolder, manifest: dict[str, Any], columns: Iterable[str]) -> list[Path]:
    """The files of a finished folder, in order, each as large as it was written and of as many rows.

    Args:
        folder, manifest: of the job.
        columns: that will be read, beside the embeddings.

    Raises:
        InputError: one is not.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [folder.path / part["file"] for part in manifest["parts"]]
    for file, part in zip(files, manifest["parts"], strict=True):
        try:
            metadata = pq.read_metadata(file)
            as_written = file.stat().st_size == part["bytes"] and metadata.num_rows == part["written"]
            as_written = as_written and is_part(metadata.schema.to_arrow_schema(), manifest, columns)
        except (pa.ArrowException, OSError):
            as_written = False
        if not as_written:
            raise InputError(f"{file} is missing or not as it was written: give the embed command again")
    return files


def is_part(schema: Any, manifest: dict[str, Any], columns: Iterable[str]) -> bool:
    """Whether a part has columns once each, of types that hold what they should, and all embeddings of its folder.

    Args:
        schema: pyarrow's, of a part's file.
        manifest: of the folder.
        columns: of a part, beside the embeddings.
    """
    import pyarrow as pa

    text, whole = "string", "int64 int32"
    kinds = {"record": whole, "length": whole, "source": text, "id": text, "description": text}
    one_row = options_of(manifest["job"]).one_row

    def holds(name: str) -> bool:
        if schema.names.count(name) != 1:
            return False
        kind = schema.field(name).type
        if name in kinds:
            return str(kind).removeprefix("large_") in kinds[name].split()
        if not one_row:
            kind = kind.value_type if pa.types.is_list(kind) else pa.null()
        width = manifest["columns"][name]["width"]
        return pa.types.is_fixed_size_list(kind) and kind.list_size == width and pa.types.is_floating(kind.value_type)

    return all(map(holds, {*columns, *manifest["columns"]}))


@dataclass(slots=True)
class Finished:
    """A finished folder.

    Attributes:
        folder: where it is.
        manifest: of it.
        settings: of the job that wrote it, as far as they say what it holds and how its input was read and cut.
        level, width, column: the widest that it holds.
        verified: parts whose files were found to be as they were written.
    """

    folder: OutputFolder
    manifest: dict[str, Any]
    settings: JobSettings
    level: str
    width: int
    column: str
    verified: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, path: str) -> Finished:
        """Read the manifest of a folder.

        Raises:
            InputError: see :func:`finished_manifest`.
            JobError: it is no job of this version's, or has lost its journal.
        """
        folder, manifest = finished_manifest(path)
        if not folder.noted_parts():
            raise JobError(f"{path} has lost its journal (the folder .job): copy the folder whole")
        job, absent = manifest["job"], [name for name in LIMITS if name not in manifest["job"]]
        if absent:
            raise JobError(f"{path} does not say how its input was cut ({absent[0]}): embed its input again")
        column, widest = max(manifest["columns"].items(), key=lambda item: item[1]["width"])
        settings = JobSettings(
            model=manifest["model"]["name"],
            inputs=tuple(job["inputs"]),
            output=path,
            options=replace(options_of(job), levels=()),
            **{name: job[name] for name in (*LIMITS, *COLUMNS)},
        )
        return cls(folder, manifest, settings, widest["level"], widest["width"], column)

    @property
    def digest(self) -> str:
        """Changes whenever one of its files does."""
        return hashlib.sha256("".join(part["sha256"] for part in self.manifest["parts"]).encode()).hexdigest()

    @property
    def converted(self) -> bool:
        """Whether it was made of stored embeddings, so that its sequences are not known."""
        return "converted" in self.manifest["job"]

    def column_of(self, level: str | None = None) -> tuple[str, int, str]:
        """Column whose first dimensions are a level, that level's width, and its name; by default the largest's.

        Raises:
            JobError: the folder does not hold the level.
        """
        if level is None:
            return self.column, self.width, self.level
        for column, held in self.manifest["columns"].items():
            if held["level"] == level:
                return column, held["width"], level
        width = self.manifest["model"]["nested_dims"].get(level)
        if width is None or width > self.width:
            raise JobError(f"{self.folder.path} holds level {self.level}, which does not have level {level} within it")
        if self.settings.options.normalize:
            raise JobError(
                f"{self.folder.path} holds level {self.level} normalised: embed with --level {level} {self.level} to "
                f"have level {level} normalised for itself"
            )
        return self.column, width, level

    def rows(self, first: int, count: int) -> dict[int, np.ndarray]:
        """Stored embeddings of ``count`` records from number ``first`` on, by number.

        Returns:
            The widest level of each record that was written: (width,) or (rows, width).

        Raises:
            JobError: a file is not as it was written.
        """
        wanted = [("record", ">=", first), ("record", "<", first + count)]
        found: dict[int, np.ndarray] = {}
        for index, part in enumerate(self.manifest["parts"]):
            if part["first_record"] < first + count and part["first_record"] + part["records"] > first:
                found |= {row["record"]: value for row, value in self._part_rows(index, self.column, wanted)}
        return found

    def all_rows(self, column: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """``record`` and ``id`` of every row, in order, with its embedding in a column.

        Raises:
            JobError: a file is not as it was written.
        """
        for index in range(len(self.manifest["parts"])):
            yield from self._part_rows(index, column, None)

    def ids(self) -> Iterator[str]:
        """Ids of all rows, in order.

        Raises:
            JobError: a file is not as it was written.
        """
        for index in range(len(self.manifest["parts"])):
            yield from self._part(index, ["id"])["id"].to_pylist()

    def _part_rows(self, index: int, column: str, wanted: Any) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        for batch in self._part(index, ["record", "id", column], wanted).to_batches():
            yield from zip(batch.select(["record", "id"]).to_pylist(), self._arrays(batch[column]), strict=True)

    def _part(self, index: int, columns: list[str], wanted: Any = None) -> Any:
        """Columns of a part, once its file was found to be the one that the journal tells of."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        noted = self.manifest["parts"][index]
        path = self.folder.path / noted["file"]
        damaged = JobError(f"{path} is not as it was written: give the command that wrote it again")
        if index not in self.verified:
            entry = self.folder.entry(index)
            if entry is None or any(getattr(entry, name, None) != value for name, value in noted.items()):
                raise damaged
            if not self.folder.holds(entry):
                raise damaged
            self.verified.add(index)
        try:
            if not is_part(pq.read_schema(path), self.manifest, columns):
                raise damaged
            return pq.read_table(path, columns=columns, filters=wanted)
        except (pa.ArrowException, OSError) as error:
            raise damaged from error

    def _arrays(self, column: Any) -> list[np.ndarray]:
        """An Arrow column as one array a record, each a view."""
        if self.settings.options.one_row:
            return list(np.asarray(column.flatten()).reshape(len(column), column.type.list_size))
        values = np.asarray(column.values.flatten()).reshape(len(column.values), column.type.value_type.list_size)
        return [values[start:stop] for start, stop in pairwise(column.offsets.to_pylist())]

    def records(
        self,
        inputs: tuple[str, ...] = (),
        called: tuple[str, ...] = (),
        on_read: Callable[[int], None] = lambda count: None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[str, FastaRecord]]:
        """The records of the inputs, each once it was found to be what the folder was made of.

        Args:
            inputs: where they lie now; by default where they lay then.
            called: what they are called now; by default as they are given.
            on_read: told the number of bytes each time some are read.
            say: told in a sentence what a user should know of an input.

        Raises:
            JobError: they are not the same, or not known.
        """
        path, known = self.folder.path, self.manifest["parts"]
        if self.converted:
            raise JobError(f"{path} was converted from stored embeddings, so that its sequences are not known")
        inputs = inputs or self.settings.inputs
        if len(inputs) != len(self.settings.inputs):
            raise JobError(
                f"{path} was made of {len(self.settings.inputs)} inputs ({', '.join(self.settings.inputs)}), not of "
                f"{len(inputs)}: give the same, in the same order"
            )
        # What was embedded is known by the names that its inputs had then.
        sources: deque[str] = deque()

        def renamed() -> Iterator[tuple[str, FastaRecord]]:
            for name, source, now in zip(self.settings.inputs, inputs, called or inputs, strict=True):
                for _, record in read_all(replace(self.settings, inputs=(source,)), on_read, say):
                    sources.append(readable(now))
                    yield readable(name), record

        changed, mend = f"the input is not what {path} was made of: it", "give the same input, or embed it from scratch"
        count = 0
        for part in cut_parts(renamed(), self.settings, {self.level: self.width}):
            entry = self.folder.entry(part.index) if part.index < len(known) else None
            if entry is None or entry.digest != part.digest:
                raise JobError(f"{changed} differs from record number {part.first_record:,} on; {mend}")
            for _, record in part.records:
                yield sources.popleft(), record
            count += 1
        if count < len(known):
            raise JobError(f"{changed} ends before record number {known[count]['first_record']:,}; {mend}")
