"""One process's share of an embedding job: parts cleaned, embedded and written, one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import IO, TYPE_CHECKING

import numpy as np

from rd_hf.data.records import FastaRecord, InputError
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.devices import kind_of, pick_device
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.concurrency import Aside
from rd_hf.embedding.dtypes import hint_of, warn_of
from rd_hf.embedding.folder import OutputFolder, PartEntry, Reject
from rd_hf.embedding.manifest import check_digest, check_kind, check_known, known_parts
from rd_hf.embedding.parts import Part, cut_parts, read_all
from rd_hf.embedding.progress import Progress
from rd_hf.embedding.quantization import beyond, read_grid
from rd_hf.embedding.settings import JobSettings
from rd_hf.embedding.storage import columns_of
from rd_hf.launch import Processes
from rd_hf.lazy import gc_paused
from rd_hf.memory import trim_heap

if TYPE_CHECKING:
    from rd_hf.embedding.engine import Engine, Request


class StageTimer:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "check", "load", "embed", "write"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


@dataclass(frozen=True, slots=True)
class Row:
    """A record to be written."""

    place: int  # in its part, from 0
    length: int | None  # residues, where that is known
    positions: tuple[int, ...]  # those asked for
    key: str  # the same for records that have the same embedding
    long: bool  # whether it was windowed or truncated
    value: np.ndarray  # (widest,) or (rows, widest) float32


@dataclass(slots=True)
class Worker:
    """One process's share of a job."""

    settings: JobSettings
    group: Processes
    folder: OutputFolder
    checkpoint: Checkpoint
    widths: dict[str, int]
    stages: StageTimer
    progress: Progress
    report: Callable[[str], None]
    above: str | None = None  # backbones up to this level need not run
    hints: bool = False  # whether to name a faster dtype
    engine: Engine | None = None
    aside: Aside = field(default_factory=Aside)
    kept: int = 0
    grid: np.ndarray | None = None  # of the folder, where its numbers lie on one

    def run(self) -> tuple[list[str], int]:
        """Do this process's parts; return the digest of every part and the number of all records."""
        digests: list[str] = []
        records = 0
        known = known_parts(self.folder)
        take: Callable[[], Part | None] = partial(self._next, self.parts())
        with self.aside:
            following = take
            while (part := following()) is not None:
                following = self.aside.soon(take)
                check_known(self.folder, known, part.index, part.first_record)
                digests.append(part.digest)
                records += len(part.records)
                if part.index % self.group.world != self.group.rank or self.is_finished(part):
                    self.progress.skipped()
                    continue
                self.do(part)
                self.progress.part_done()
                del part
                trim_heap()
                if self.overlaps:
                    self.aside.start()
        return digests, records

    @property
    def overlaps(self) -> bool:
        """Whether parts are read and written while the device computes: a CPU's threads are all busy with that."""
        return self.engine is not None and self.engine.model.device.type != "cpu"

    def _next(self, parts: Iterator[Part]) -> Part | None:
        """The next part, or None after the last."""
        with self.stages.stage("read"):
            return next(parts, None)

    def parts(self) -> Iterator[Part]:
        """Return the input, cut."""
        return cut_parts(self.records(), self.settings, self.widths)

    def records(self) -> Iterator[tuple[str, FastaRecord]]:
        """Return all records, with the input that each comes from."""
        return read_all(self.settings, self.progress.read, self.report_input)

    @property
    def report_input(self) -> Callable[[str], None] | None:
        """Where notes on the input go: every process reads everything, and one of them reports."""
        return self.report if self.group.is_main else None

    def is_finished(self, part: Part) -> bool:
        """Whether an earlier run left this part whole; raises a JobError where the input is not what it was then."""
        with self.stages.stage("check"):
            entry = self.folder.entry(part.index)
            if entry is None:
                return False
            check_digest(self.folder, entry, part.digest)
            if not self.folder.holds(entry):
                self.report(f"{self.folder.path / entry.file} is not as it was written: doing part {part.index} again")
                return False
            if self.settings.strict and entry.rejects:
                first = entry.rejects[0]
                raise self._strict(f"{first.source} record {first.record} ({first.id or 'no id'}): {first.reason}")
            self.kept += 1
            return True

    @staticmethod
    def _strict(sentence: str) -> InputError:
        return InputError(
            f"{sentence}; correct the record, or leave --strict away to have such records listed in _rejects.tsv"
        )

    def do(self, part: Part) -> None:
        """Clean, embed and write one part."""
        with gc_paused():
            from rd_hf.embedding.columns import why_not_stored
            from rd_hf.embedding.engine import prepare

        options = self.settings.options
        rejects: list[Reject] = []

        def reject(place: int, reason: str) -> None:
            source, record = part.records[place]
            if self.settings.strict:
                raise self._strict(f"{source} record {record.number} ({record.id or 'no id'}): {reason}")
            rejects.append(Reject(source, part.first_record + place, record.id, reason))

        places: list[int] = []
        requests: list[Request] = []
        for place, (_, record) in enumerate(part.records):
            try:
                requests.append(prepare(record.letters(), record.positions or options.positions, options))
                places.append(place)
            except RejectedSequenceError as error:
                reject(place, str(error))
        results = self.compute(part, places, requests)
        rows: list[Row] = []
        for place, request, result in zip(places, requests, results, strict=True):
            reason = result if isinstance(result, str) else why_not_stored(result, self.widths, options)
            if isinstance(result, str) or reason is not None:
                reject(place, str(reason))
                continue
            length = len(request.sequence)
            rows.append(Row(place, length, request.positions, request.sequence, length > options.max_length, result))
        rejects.sort(key=lambda reject: reject.record)
        self.aside.write(partial(self.write, part, rows, rejects))

    def compute(self, part: Part, places: list[int], requests: list[Request]) -> list[np.ndarray | str]:
        """Embed the records of a part at these places; a sentence each where that cannot be done."""
        from rd_hf.embedding.engine import embed_requests

        if not requests:
            return []
        engine = self.started()
        with self.stages.stage("embed"):
            return embed_requests(engine, requests, self.progress.embedded)

    def started(self) -> Engine:
        """Return the engine, whose model is loaded when the first part needs it."""
        from rd_hf.embedding.engine import load_engine

        if self.engine is None:
            with self.stages.stage("load"), gc_paused():
                device = self.settings.device or str(pick_device(self.group.local_rank))
                check_kind(self.folder, kind_of(device))
                # Notes on the dtype decide nothing.
                settings, dtype = self.settings, self.settings.options.dtype
                width = self.checkpoint.nested_dims[self.checkpoint.largest(settings.options)]
                for note in (warn_of(dtype, device), hint_of(dtype, device, width) if self.hints else None):
                    if note is not None and self.group.is_main:
                        self.report(note)
                self.engine = load_engine(
                    self.checkpoint,
                    settings.options,
                    device,
                    settings.attn_implementation,
                    report=self.report,
                    group_tokens=settings.group_tokens or 0,
                    above=self.above,
                )
        return self.engine

    def write(self, part: Part, rows: list[Row], rejects: list[Reject]) -> None:
        """The part's Parquet file, then its journal entry."""
        with self.stages.stage("write"):
            self._write(part, rows, rejects)

    def _write(self, part: Part, rows: list[Row], rejects: list[Reject]) -> None:
        with gc_paused():
            import pyarrow as pa

            from rd_hf.embedding.columns import integer_lists, numbers, texts, to_arrow
            from rd_hf.embedding.part_file import write_part

        options = self.settings.options
        records = [part.records[row.place] for row in rows]
        columns: dict[str, pa.Array] = {
            "source": texts([source for source, _ in records]),
            "record": numbers(part.first_record + np.array([row.place for row in rows], np.int64)),
            "id": texts([record.id for _, record in records]),
            "description": texts([record.description for _, record in records]),
            "length": numbers(
                np.array([row.length or 0 for row in rows], np.int32),
                np.array([row.length is not None for row in rows], bool),
            ),
        }
        if options.takes_positions:
            columns["positions"] = integer_lists([row.positions for row in rows])
        values = [row.value for row in rows]
        if self.grid is None:
            self.grid = read_grid(self.folder.manifest() or {})
        vectors = columns_of(options, self.widths, self.checkpoint.nested_dims)
        for one in vectors:
            columns[one.name] = to_arrow(values, one.width, options, one.first, self.grid)
        about = {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "fingerprint": self.checkpoint.fingerprint,
            "levels": list(self.widths),
            "nested_dims": self.checkpoint.held(max(self.widths.values())),
            **{name: getattr(options, name) for name in ("pooling", "dtype", "output_dtype", "normalize", "long")},
        }

        def fill(handle: IO[bytes]) -> None:
            write_part(handle, columns, vectors, options, about)

        self.folder.refuse_foreign_part(part.index)
        path = self.folder.part_path(part.index)
        sha256, size = self.folder.write(path, fill)
        entry = PartEntry(
            index=part.index,
            first_record=part.first_record,
            records=len(part.records),
            written=len(rows),
            rejected=len(rejects),
            unique=len({row.key for row in rows}),
            long=sum(row.long for row in rows),
            residues=sum(row.length or 0 for row in rows),
            clipped=0 if self.grid is None else sum(beyond(value, self.grid) for value in values),
            digest=part.digest,
            file=path.name,
            sha256=sha256,
            bytes=size,
            rejects=tuple(rejects),
        )
        self.folder.write_entry(entry)
