"""An embedding job: files in, a folder of Parquet shards out, whatever interrupts it.

The input is read once, as a stream, and cut into parts of consecutive records; each part is cleaned, embedded and
written as one file before the next begins, so memory does not grow with the number of records. Part ``i`` belongs
to process ``i % world``. What a part's file holds follows from its records, the options and the model alone: not
from which parts were done before, by which process, or how often the job was killed on the way.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from rd_hf.data.fasta import FastaRecord, InputError
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.sources import is_hub_dataset, read_records, source_size
from rd_hf.embedding.checkpoint import Checkpoint, load_model, pick_device, resolve
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry, Reject, differences
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.progress import Progress
from rd_hf.launch import Processes

if TYPE_CHECKING:
    from rd_hf.embedding.engine import Engine

MANIFEST_FORMAT = 2
PART_RECORDS = 16384
# Parts start small and grow with what lies before them, so that many processes find work in a small input and a
# large one does not become thousands of files.
FIRST_PART_RECORDS, PART_SHARE = 1024, 64
PART_BYTES = 256 << 20
# Letters a part may hold at most, however small its embeddings: bounds memory for genomes' worth of titins.
_PART_LETTERS = 64 << 20
# Rows are read back in groups of about this size.
_ROW_GROUP_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class JobSettings:
    """One job.

    Attributes:
        model: folder or Hub id.
        inputs: sources, read one after the other; see :mod:`rd_hf.data.sources`.
        output: folder for the shards.
        options: what is embedded and how.
        revision: branch, tag or commit of a Hub model.
        sequence_column, id_column, positions_column: columns of tables.
        strict: stop at the first record that would be rejected.
        part_records: records a part (and file) has at most; see :func:`part_limit`.
        part_bytes: bytes of embeddings a part has at most, unless one record alone has more.
        attn_implementation: as in transformers.
        device: torch device; by default a GPU by rank, else the CPU.
        window_tokens: with a number, one backbone is held at a time, loaded anew for each window of batches of so
            many tokens: for families larger than memory. None holds all.
    """

    model: str
    inputs: tuple[str, ...]
    output: str
    options: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    revision: str | None = None
    sequence_column: str | None = None
    id_column: str | None = None
    positions_column: str | None = None
    strict: bool = False
    part_records: int = PART_RECORDS
    part_bytes: int = PART_BYTES
    attn_implementation: str | None = None
    device: str | None = None
    window_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 1:
            raise ValueError(f"window_tokens must be positive, not {self.window_tokens}")
        if not self.inputs:
            raise ValueError("a job needs at least one input")
        if self.part_records < 1 or self.part_bytes < 1:
            raise ValueError("part_records and part_bytes must be positive")


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What a job did.

    Attributes:
        records, written, rejected: of the whole job; the first is the sum of the others.
        residues: of the written records.
        unique, long: different sequences within their parts; sequences windowed or truncated.
        parts, parts_kept: files of the whole job; of them those that this process found finished.
        tokens, padding: what this process gave the model in this run, and how much of that was padding.
        seconds: of each stage, in this process and run.
        device: that this process used, None if nothing was left to compute.
    """

    records: int
    written: int
    rejected: int
    residues: int
    unique: int
    long: int
    parts: int
    parts_kept: int
    tokens: int
    padding: int
    seconds: dict[str, float]
    device: str | None

    def __str__(self) -> str:
        share = 100 * self.padding / self.tokens if self.tokens else 0.0
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        lines = [
            f"{self.records:,} records: {self.written:,} written, {self.rejected:,} rejected",
            f"{self.residues:,} residues; {self.written - self.unique:,} duplicates computed once, "
            f"{self.long:,} long sequences",
            f"{self.parts:,} parts, {self.parts_kept:,} of them from an earlier run",
            f"{self.tokens:,} tokens computed on {self.device or 'no device'}, {share:.1f} % of them padding",
            f"seconds: {spent}",
        ]
        return "\n".join(lines)


@dataclass(slots=True)
class _Part:
    """Consecutive input records."""

    index: int
    first_record: int
    records: list[tuple[str, FastaRecord]]
    digest: str


class _Stages:
    """Seconds a stage, added up."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("read", "check", "load", "embed", "write"), 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started


def run_job(
    settings: JobSettings,
    group: Processes | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
) -> JobSummary:
    """Run a job to its end, or from where an earlier run of it stopped.

    Args:
        settings: the job.
        group: this process among those that share the job; alone by default.
        report: told what a user should know on the way; by default printed beside the progress bar.
        show_progress: whether the main process shows a bar (where standard error is a terminal).

    Raises:
        InputError: an input or the model cannot be used, or with ``strict`` a record.
        JobError: the folder cannot be used, belongs to another job, or is full.
    """
    group = group or Processes()
    _check_inputs(settings, group)
    folder = OutputFolder(settings.output)
    checkpoint, notes = _open(settings, group, folder)
    widths = checkpoint.widths(settings.options.levels)
    stages = _Stages()
    sizes = [source_size(source) for source in settings.inputs]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    with Progress(total, shown=group.is_main and show_progress) as progress:
        report = report or progress.say
        for note in notes:
            report(note)
        worker = _Worker(settings, group, folder, checkpoint, widths, stages, progress, report)
        digests, records = worker.run()
    # Only when every process has ended its parts can their number be right.
    group.all_well(True)
    summary = _finish(settings, group, folder, digests, records, worker)
    group.all_well(True)
    return summary


def _check_inputs(settings: JobSettings, group: Processes) -> None:
    """Look at every input before the first is read: a typing error in the last one should not cost a night."""
    for source in settings.inputs:
        if source == "-":
            if group.world > 1:
                raise InputError("standard input cannot be shared by several processes: write it to a file first")
        elif not Path(source).exists() and not is_hub_dataset(source):
            raise InputError(f"{source}: no such file; check the path (relative to {Path.cwd()})")
    if settings.inputs.count("-") > 1:
        raise InputError("standard input ('-') can be read once only")


def _open(settings: JobSettings, group: Processes, folder: OutputFolder) -> tuple[Checkpoint, list[str]]:
    """Claim the folder, and begin or take up its manifest: the main process's part, the others wait for it."""
    failure: Exception | None = None
    notes: list[str] = []
    if group.is_main:
        try:
            checkpoint = resolve(settings.model, settings.revision)
            widths = checkpoint.widths(settings.options.levels)
            folder.claim()
            notes = _begin(settings, folder, checkpoint, widths)
        except (InputError, JobError) as error:
            failure = error
    if not group.all_well(failure is None):
        raise failure or JobError("stopped, because the main process could not start the job")
    # The main process has hashed the weights for all.
    return (checkpoint if group.is_main else Checkpoint(**(folder.manifest() or {})["model"])), notes


def _describe(settings: JobSettings, widths: dict[str, int]) -> dict[str, Any]:
    """Everything that decides what is written, apart from the weights."""
    options = asdict(settings.options)
    del options["levels"]
    return {
        "inputs": list(settings.inputs),
        "levels": list(widths),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
        "sequence_column": settings.sequence_column,
        "id_column": settings.id_column,
        "positions_column": settings.positions_column,
        "part_records": settings.part_records,
        "part_bytes": settings.part_bytes,
        "attn_implementation": settings.attn_implementation,
    }


def _begin(settings: JobSettings, folder: OutputFolder, checkpoint: Checkpoint, widths: dict[str, int]) -> list[str]:
    """Write the manifest of a new job, or refuse to mix this job with another one's parts.

    Returns:
        What the user should know about parts done before.
    """
    job = _describe(settings, widths)
    before = folder.manifest()
    if before is None:
        content = {
            "format": MANIFEST_FORMAT,
            "status": "running",
            "model": asdict(checkpoint),
            "job": job,
            "columns": {settings.options.column(level): {"level": level, "width": w} for level, w in widths.items()},
            "versions": _versions(),
        }
        folder.write_manifest(content)
        return []
    if before.get("format") != MANIFEST_FORMAT:
        raise JobError(f"{folder.path} was written by another version of rd_hf: choose another --output")
    changed = list(differences(before.get("job", {}), job))
    old = before.get("model", {})
    if old.get("fingerprint") != checkpoint.fingerprint:
        changed.insert(
            0,
            f"the model was {old.get('name')} ({str(old.get('fingerprint'))[:19]}) and is now {checkpoint.name} "
            f"({checkpoint.fingerprint[:19]})",
        )
    if changed:
        raise JobError(
            f"{folder.path} holds another job, which this one will not be mixed with: {'; '.join(changed)}; "
            "give the same command as before, or choose another --output"
        )
    if old != asdict(checkpoint):
        # The same weights under another name: the other processes load what the manifest names.
        folder.write_manifest({**before, "model": asdict(checkpoint)})
    updated = differences(before.get("versions", {}), _versions())
    if not updated or before.get("status") == "complete":
        return []
    return [
        f"begun with other versions ({'; '.join(updated)}): parts done now may differ from the others in last digits"
    ]


def _versions() -> dict[str, str | None]:
    """What is installed, as far as it can change a digit."""
    packages = ("rd_hf", "torch", "transformers", "pyarrow")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str | None:
    """Version of an installed package; None for this one run from its source folder."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _stream(settings: JobSettings, on_read: Callable[[int], None]) -> Iterator[tuple[str, FastaRecord]]:
    """All records of all inputs, with the input each comes from."""
    for source in settings.inputs:
        named_columns = (settings.sequence_column, settings.id_column, settings.positions_column)
        for record in read_records(source, *named_columns, on_read=on_read):
            yield source, record


def part_limit(before: int, largest: int) -> int:
    """Records of the part that begins after ``before`` records: a 64th of them, 1,024 to ``largest``.

    It asks neither how long the input is nor how many processes share it, so that the same parts serve any number of
    processes. The shares of two of them differ by one part at most, 1,024 records or a 64th of all: part ``i`` goes to
    process ``i % world``, and parts only grow.
    """
    return min(largest, max(FIRST_PART_RECORDS, before // PART_SHARE))


def _parts(stream: Iterator[tuple[str, FastaRecord]], settings: JobSettings, widths: dict[str, int]) -> Iterator[_Part]:
    """Cut the stream where a limit is reached; the cuts follow from the records as read, and nothing else."""
    # Float32 until it is written, whatever the output's dtype.
    row_bytes = 4 * max(widths.values())
    part = _Part(0, 1, [], "")
    used = letters = 0
    hasher = hashlib.sha256()
    for source, record in stream:
        options = settings.options
        rows = 1 if options.one_row else len(record.positions or options.positions) or len(record.sequence)
        full = used + rows * row_bytes > settings.part_bytes or letters + len(record.sequence) > _PART_LETTERS
        full |= len(part.records) == part_limit(part.first_record - 1, settings.part_records)
        if part.records and full:
            part.digest = hasher.hexdigest()
            yield part
            part = _Part(part.index + 1, part.first_record + len(part.records), [], "")
            used = letters = 0
            hasher = hashlib.sha256()
        part.records.append((source, record))
        used += rows * row_bytes
        letters += len(record.sequence)
        # JSON keeps the fields apart whatever characters they hold.
        fields = (source, record.id, record.description, record.sequence, record.positions)
        hasher.update(json.dumps(fields).encode())
    if part.records:
        part.digest = hasher.hexdigest()
        yield part


@dataclass(slots=True)
class _Worker:
    """One process's share of a job."""

    settings: JobSettings
    group: Processes
    folder: OutputFolder
    checkpoint: Checkpoint
    widths: dict[str, int]
    stages: _Stages
    progress: Progress
    report: Callable[[str], None]
    engine: Engine | None = None
    kept: int = 0

    def run(self) -> tuple[list[str], int]:
        """Do this process's parts; return the digest of every part and the number of all records."""
        digests: list[str] = []
        records = 0
        parts = _parts(_stream(self.settings, self.progress.read), self.settings, self.widths)
        while True:
            with self.stages.stage("read"):
                part = next(parts, None)
            if part is None:
                return digests, records
            digests.append(part.digest)
            records += len(part.records)
            if part.index % self.group.world != self.group.rank or self._is_finished(part):
                self.progress.skipped()
                continue
            self._do(part)
            self.progress.part_done()

    def _is_finished(self, part: _Part) -> bool:
        """Whether an earlier run left this part whole.

        Raises:
            JobError: the input is not what it was then.
        """
        with self.stages.stage("check"):
            entry = self.folder.entry(part.index)
            if entry is None:
                return False
            _check_digest(self.folder, entry, part.digest)
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
            f"{sentence}; correct the record, or leave --strict away to have such records listed in rejects.tsv"
        )

    def _do(self, part: _Part) -> None:
        """Clean, embed and write one part."""
        from rd_hf.embedding.columns import why_not_stored
        from rd_hf.embedding.engine import Request, embed_requests, prepare

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
                requests.append(prepare(record.sequence, record.positions or options.positions, options))
                places.append(place)
            except RejectedSequenceError as error:
                reject(place, str(error))
        results: list[np.ndarray | str] = []
        if requests:
            engine = self._started()
            with self.stages.stage("embed"):
                results = embed_requests(engine, requests, self.progress.embedded)
        good: list[tuple[int, Request, np.ndarray]] = []
        for place, request, result in zip(places, requests, results, strict=True):
            reason = result if isinstance(result, str) else why_not_stored(result, self.widths, options)
            if reason is not None:
                reject(place, reason)
            elif not isinstance(result, str):
                good.append((place, request, result))
        rejects.sort(key=lambda reject: reject.record)
        with self.stages.stage("write"):
            self._write(part, good, rejects)

    def _started(self) -> Engine:
        """The engine, which loads the model when the first part needs it."""
        from rd_hf.embedding.engine import Engine

        if self.engine is None:
            with self.stages.stage("load"):
                level = self.checkpoint.largest(self.settings.options.levels)
                model = load_model(
                    self.checkpoint.name,
                    self.checkpoint.revision,
                    self.checkpoint.fingerprint,
                    level,
                    self.settings.options.dtype,
                    self.settings.attn_implementation,
                    self.settings.device or str(pick_device(self.group.local_rank)),
                    sequential=self.settings.window_tokens is not None,
                )
                self.engine = Engine(
                    model,
                    level,
                    self.settings.options,
                    report=self.report,
                    window_tokens=self.settings.window_tokens or 0,
                )
        return self.engine

    def _write(self, part: _Part, good: list[tuple[int, Any, np.ndarray]], rejects: list[Reject]) -> None:
        """The part's Parquet file, then its journal entry."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from rd_hf.embedding.columns import to_arrow

        options = self.settings.options
        records = [part.records[place] for place, _, _ in good]
        lengths = [len(request.sequence) for _, request, _ in good]
        columns: dict[str, pa.Array] = {
            "source": pa.array([source for source, _ in records], pa.string()),
            "record": pa.array([part.first_record + place for place, _, _ in good], pa.int64()),
            "id": pa.array([record.id for _, record in records], pa.string()),
            "description": pa.array([record.description for _, record in records], pa.string()),
            "length": pa.array(lengths, pa.int32()),
        }
        if options.pooling == "positions":
            columns["positions"] = pa.array([request.positions for _, request, _ in good], pa.list_(pa.int32()))
        values = [value for _, _, value in good]
        for level, width in self.widths.items():
            columns[options.column(level)] = to_arrow(values, width, options)
        about = {
            "model": self.checkpoint.name,
            "revision": self.checkpoint.revision,
            "fingerprint": self.checkpoint.fingerprint,
            "levels": list(self.widths),
            "nested_dims": {
                level: width
                for level, width in self.checkpoint.nested_dims.items()
                if width <= max(self.widths.values())
            },
            **{name: getattr(options, name) for name in ("pooling", "dtype", "output_dtype", "normalize", "long")},
        }
        table = pa.table(columns).replace_schema_metadata({"rd_hf": json.dumps(about)})
        rows_a_group = max(1, _ROW_GROUP_BYTES * len(good) // max(1, table.nbytes))
        text = ("source", "id", "description")

        def fill(handle: IO[bytes]) -> None:
            # Embeddings are as good as noise to a compressor: only text is worth its time.
            codecs = dict.fromkeys(text, "zstd")
            pq.write_table(table, handle, row_group_size=rows_a_group, compression=codecs, use_dictionary=["source"])

        path = self.folder.part_path(part.index)
        sha256, size = self.folder.write(path, fill)
        entry = PartEntry(
            index=part.index,
            first_record=part.first_record,
            records=len(part.records),
            written=len(good),
            rejected=len(rejects),
            unique=len({request.sequence for _, request, _ in good}),
            long=sum(length > options.max_length for length in lengths),
            residues=sum(lengths),
            digest=part.digest,
            file=path.name,
            sha256=sha256,
            bytes=size,
            rejects=tuple(rejects),
        )
        self.folder.write_entry(entry)


def _check_digest(folder: OutputFolder, entry: PartEntry, digest: str) -> None:
    if entry.digest != digest:
        raise JobError(
            f"the input has changed since {folder.path} was begun: records from number {entry.first_record:,} on "
            "differ; give the same input as before, or choose another --output"
        )


def _finish(
    settings: JobSettings, group: Processes, folder: OutputFolder, digests: list[str], records: int, worker: _Worker
) -> JobSummary:
    """Check that nothing is missing or too many, and complete the manifest (the main process's part)."""
    entries: list[PartEntry] = []
    for index, digest in enumerate(digests):
        entry = folder.entry(index)
        if entry is None:
            raise JobError(f"part {index} of {folder.path} is missing: give the same command again to do it")
        _check_digest(folder, entry, digest)
        entries.append(entry)
    extra = [index for index in folder.noted_parts() if index >= len(digests)]
    if extra:
        raise JobError(
            f"{folder.path} holds {len(extra)} parts beyond the end of the input, which was longer when the job was "
            "begun: give the same input as before, or choose another --output"
        )
    counts = {
        name: sum(getattr(entry, name) for entry in entries)
        for name in ("records", "written", "rejected", "unique", "long", "residues")
    }
    if counts["records"] != records or counts["written"] + counts["rejected"] != records:
        raise JobError(
            f"{folder.path}: {records:,} records were read, but {counts['written']:,} were written and "
            f"{counts['rejected']:,} rejected; please report this, it should be impossible"
        )
    if group.is_main:
        folder.write_rejects(reject for entry in entries for reject in entry.rejects)
        manifest = folder.manifest() or {}
        manifest["status"] = "complete"
        manifest["counts"] = {**counts, "parts": len(entries)}
        names = ("file", "sha256", "bytes", "first_record", "records", "written", "rejected")
        manifest["parts"] = [{name: getattr(entry, name) for name in names} for entry in entries]
        folder.write_manifest(manifest)
    work = worker.engine.work if worker.engine else None
    return JobSummary(
        **counts,
        parts=len(entries),
        parts_kept=worker.kept,
        tokens=work.tokens if work else 0,
        padding=work.padding if work else 0,
        seconds=worker.stages.seconds,
        device=str(worker.engine.model.device) if worker.engine else None,
    )
