"""An embedding job: files in, a folder of Parquet shards out, whatever interrupts it.

The input is read once, as a stream, and cut into parts of consecutive records; each part is cleaned, embedded and
written as one file before the next begins, so memory does not grow with the number of records. Part ``i`` belongs
to process ``i % world``. What a part's file holds follows from its records, the options and the model alone.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from rd_hf.data.records import InputError
from rd_hf.data.sources import check_sources, source_size
from rd_hf.devices import check_device, kind_of
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.extension import ExtendingWorker, check, open_extendable, with_stored
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.manifest import check_digest, dtype_of, open_job, with_stored_settings
from rd_hf.embedding.options import AUTO_MEANS, DTYPE, OLD_DTYPE, EmbeddingOptions
from rd_hf.embedding.progress import Progress
from rd_hf.embedding.settings import JobSettings, JobSummary
from rd_hf.embedding.worker import StageTimer, Worker
from rd_hf.launch import Processes, left_at_the_end, processes
from rd_hf.memory import bound_kernels
from rd_hf.options import options_from

logger = logging.getLogger(__name__)

# Different reasons of rejected records that are printed.
_REASONS = 3


def run_job(
    settings: JobSettings,
    group: Processes | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
    hints: bool = False,
) -> JobSummary:
    """Run a job to its end, or from where an earlier run of it stopped.

    Args:
        settings: the job.
        group: this process among those that share the job; alone by default.
        report: called with what a user should know on the way; by default it is printed beside the progress bar.
        show_progress: whether the main process shows a bar (where standard error is a terminal).
        hints: whether to name a faster dtype, where there is one.

    Raises:
        InputError: an input or the model cannot be used, or with ``strict`` a record.
        JobError: the folder cannot be used, belongs to another job, or is full.
    """
    group = group or Processes()
    check_sources(settings.inputs, group.world)
    if settings.device is not None:
        check_device(settings.device)
    settings = with_stored_settings(settings, OutputFolder(settings.output))
    if settings.extend is None:
        return run_worker(settings, group, partial(Worker, hints=hints), {}, (), report, show_progress)
    stored = open_extendable(settings.extend)
    settings = replace(settings, backbones=stored.manifest["model"].get("backbones"))
    about = {"extends": settings.extend, "extends_sha256": stored.digest}
    start = partial(ExtendingWorker, stored=stored, above=stored.level)
    return run_worker(settings, group, start, about, [partial(check, stored, settings)], report, show_progress)


def settings_from(args: argparse.Namespace) -> tuple[JobSettings, list[str]]:
    """Return the job of ``rd-hf embed`` and notes for the user; None stands for an argument that was not typed."""
    notes: list[str] = []
    if args.dtype == OLD_DTYPE:
        notes.append(AUTO_MEANS)
        args.dtype = None
    if args.extend is not None:
        args = with_stored(open_extendable(args.extend), args)
    if args.dtype is None:
        args.dtype = dtype_of(args.output)
        if args.dtype != DTYPE:
            notes.append(f"going on in {args.dtype}, as {args.output} was begun")
    return options_from(JobSettings, args, options=options_from(EmbeddingOptions, args)), notes


def run_launched(settings: JobSettings, show_progress: bool) -> JobSummary | None:
    """Run a job in the processes that a launcher started, or in this one; the summary in the main process."""
    group = processes()
    with left_at_the_end(group):
        summary = run_job(settings, group, show_progress=show_progress, hints=True)
    return summary if group.is_main else None


def run_worker(
    settings: JobSettings,
    group: Processes,
    start: Callable[..., Worker],
    about: Mapping[str, Any],
    checks: Sequence[Callable[[Checkpoint], None]],
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
    total: int | None = None,
    unit: str = "residues",
) -> JobSummary:
    """Run a job of any kind: claim its folder, let a worker do the parts, complete the manifest.

    Args:
        settings, group, report, show_progress: as in :func:`run_job`.
        start: makes the worker.
        about, checks: as in :func:`rd_hf.embedding.manifest.open_job`.
        total, unit: of the worker's progress, by default the bytes of the inputs.
    """
    bound_kernels()
    folder = OutputFolder(settings.output)
    with ExitStack() as stack:
        stack.callback(folder.leave)
        kind = partial(kind_of, settings.device)
        checkpoint, settings, notes = open_job(settings, group, folder, about, checks, kind)
        widths = checkpoint.widths(settings.options.levels, settings.options.width)
        if total is None:
            sizes = [source_size(source) for source in settings.inputs]
            total = None if None in sizes else sum(size or 0 for size in sizes)
        with Progress(total, shown=group.is_main and show_progress, unit=unit) as progress:
            report = report or progress.say
            for note in notes:
                report(note)
            worker = start(settings, group, folder, checkpoint, widths, StageTimer(), progress, report)
            digests, records = worker.run()
        # Only when every process has ended its parts can their number be right.
        group.all_well(True)
        entries = complete(folder, digests, records, is_main=group.is_main)
        group.all_well(True)
    engine = worker.engine
    if engine is not None:
        logger.info("%s waited for the host %s", engine.model.device, engine.clock)
    return JobSummary(
        **counted(entries),
        parts=len(entries),
        parts_kept=worker.kept,
        tokens=engine.work.tokens if engine else 0,
        padding=engine.work.padding if engine else 0,
        seconds=worker.stages.seconds,
        device=str(engine.model.device) if engine else None,
        waiting=engine.clock.share if engine else None,
    )


def ending(summary: JobSummary, output: str, words: str = "") -> str:
    """Return the last words of a command that wrote a folder; an InputError if no record could be embedded."""
    done = f"{words or summary}\nwritten to {output}"
    if not summary.rejected:
        return done
    folder = OutputFolder(output)
    reasons: dict[str, str] = {}
    for reject in folder.rejects():
        reasons.setdefault(reject.reason, f"record {reject.record:,} ({reject.id or 'no id'}): {reject.reason}")
        if len(reasons) == _REASONS:
            break
    first = "; ".join(reasons.values())
    if summary.written:
        return f"{done}; what was rejected is in {folder.rejects_path}, first {first}"
    raise InputError(
        f"none of the {summary.records:,} records could be embedded, so that {output} is empty: {first}; "
        f"{folder.rejects_path} has the reason of each"
    )


def counted(entries: Sequence[PartEntry]) -> dict[str, int]:
    """Add up the counts of parts."""
    names = ("records", "written", "rejected", "unique", "long", "residues", "clipped")
    return {name: sum(getattr(entry, name) for entry in entries) for name in names}


def complete(folder: OutputFolder, digests: Sequence[str], records: int, is_main: bool = True) -> list[PartEntry]:
    """Check that the folder has the parts with these digests and no others, of so many records in all.

    Then the main process completes the manifest. Returns the journal's entries; raises a JobError where parts are
    missing or too many.
    """
    entries: list[PartEntry] = []
    for index, digest in enumerate(digests):
        entry = folder.entry(index)
        if entry is None:
            raise JobError(f"part {index} of {folder.path} is missing: give the same command again to do it")
        check_digest(folder, entry, digest)
        entries.append(entry)
    extra = [index for index in folder.noted_parts() if index >= len(digests)]
    if extra:
        raise JobError(
            f"{folder.path} holds {len(extra)} parts beyond the end of the input, which was longer when the job was "
            "begun: give the same input as before, or choose another --output"
        )
    counts = counted(entries)
    if counts["records"] != records or counts["written"] + counts["rejected"] != records:
        raise JobError(
            f"{folder.path}: {records:,} records were read, but {counts['written']:,} were written and "
            f"{counts['rejected']:,} rejected; please report this, it should be impossible"
        )
    if is_main:
        folder.write_rejects(reject for entry in entries for reject in entry.rejects)
        manifest = folder.manifest() or {}
        manifest["status"] = "complete"
        if "grid" not in manifest:
            del counts["clipped"]
        manifest["counts"] = {**counts, "parts": len(entries)}
        names = ("file", "sha256", "bytes", "first_record", "records", "written", "rejected")
        manifest["parts"] = [{name: getattr(entry, name) for name in names} for entry in entries]
        folder.write_manifest(manifest)
    return entries
