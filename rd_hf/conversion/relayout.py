"""A finished folder of embeddings in another layout: the same numbers in other columns, without a model.

A new folder is written and the old one stays as it is: its files are what its manifest, its journal, and the caches of
searches know them by. The new one has a journal too, so that it can be extended, exported by hash and gone on with.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from rd_hf.data.records import Say
from rd_hf.embedding.columns import value_column
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.job import complete, counted
from rd_hf.embedding.options import PLAIN, EmbeddingOptions
from rd_hf.embedding.part_file import write_part
from rd_hf.embedding.quantization import stored_width
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.settings import JobSummary
from rd_hf.embedding.storage import Column, columns_of, described, format_of


def change_layout(
    path: str, layout: str, output: str, report: Say | None = None, show_progress: bool = True
) -> JobSummary:
    """Write a finished folder's rows in another layout, or go on where an earlier run stopped; nothing is computed.

    The counts are those of the job that made the folder; ``report`` and ``show_progress`` as in
    :func:`rd_hf.embedding.job.run_job`.

    Raises:
        InputError: the folder is not finished, not as it was written, or cannot have that layout.
        JobError: it has that layout already, or the new folder belongs to another job, or is full.
    """
    stored = EmbeddingFolder(path, with_journal=True)
    if stored.options.layout == layout:
        raise JobError(f"{path} is in layout {layout!r} already: name another one with --layout")
    try:
        options = replace(stored.options, layout=layout)
    except ValueError as error:
        raise JobError(f"{path} cannot be in layout {layout!r}: {error}") from error
    asked = {level: stored.levels[level] for level in stored.manifest["job"]["levels"]}
    job = _Relayout(stored, OutputFolder(output), columns_of(options, asked, stored.model.nested_dims))
    # What is stored, as a manifest says it: the layout by default is not named.
    said = {name: value for name, value in stored.manifest["job"].items() if name != "layout"}
    manifest = {
        **{name: value for name, value in stored.manifest.items() if name not in ("parts", "counts")},
        "format": format_of(options),
        "status": "running",
        "job": said if layout == PLAIN else said | {"layout": layout},
        "columns": described(job.columns),
        "made_from": stored.digest,
    }
    report = report or partial(print, file=sys.stderr)
    return job.run(manifest, options, report, show_progress)


@dataclass(slots=True)
class _Relayout:
    """One run."""

    stored: EmbeddingFolder
    folder: OutputFolder
    columns: list[Column]

    def run(self, manifest: dict[str, Any], options: EmbeddingOptions, report: Say, show_progress: bool) -> JobSummary:
        self._check(manifest)
        self.folder.claim()
        try:
            self._check(manifest)
            self.folder.write_manifest(manifest)
            kept, digests = 0, []
            hidden = None if show_progress else True
            for index in tqdm(range(len(self.stored.parts)), unit="part", disable=hidden, leave=False):
                entry = self.folder.entry(index)
                if entry is not None and self.folder.holds(entry):
                    kept += 1
                else:
                    if entry is not None:
                        report(f"{self.folder.path / entry.file} is not as it was written: doing part {index} again")
                    entry = self._write(index, options)
                digests.append(entry.digest)
            entries = complete(self.folder, digests, sum(part["records"] for part in self.stored.parts), is_main=True)
        finally:
            self.folder.leave()
        return JobSummary(
            **counted(entries), parts=len(entries), parts_kept=kept, tokens=0, padding=0, seconds={}, device=None
        )

    def _check(self, manifest: dict[str, Any]) -> None:
        """Raise a JobError where the folder holds what another job computed."""
        before = self.folder.manifest()
        same = before is None or all(before.get(n) == manifest[n] for n in ("format", "job", "columns", "made_from"))
        if not same and self.folder.holds_work():
            raise JobError(
                f"{self.folder.path} holds another job, which this one will not be mixed with: choose another --output"
            )

    def _write(self, index: int, options: EmbeddingOptions) -> PartEntry:
        """One part in the new columns, then its journal entry."""
        known, batch, about = self.stored.whole_part(index)
        held = {column.name for column in self.stored.columns}
        columns: dict[str, pa.Array] = {name: batch.column(name) for name in batch.schema.names if name not in held}
        for column in self.columns:
            rows = self.stored.vectors(batch, column.stop, as_stored=True)
            rows = np.ascontiguousarray(rows[:, stored_width(column.first, options.output_dtype) :])
            columns[column.name] = value_column(rows, self.stored.offsets(batch))
        # Whose layout it is, the file says anew.
        about = {name: value for name, value in about.items() if name not in ("page_checksums", "layout")}
        self.folder.refuse_foreign_part(index)
        path = self.folder.part_path(index)
        sha256, size = self.folder.write(path, lambda handle: write_part(handle, columns, self.columns, options, about))
        entry = replace(known, file=path.name, sha256=sha256, bytes=size)
        self.folder.write_entry(entry)
        return entry
