"""A whole prediction: proteins embedded by the embedding job, or before, and a head's answers as Parquet files.

    OUTPUT/
      predictions-000000.parquet    one file per part of the embedding job, in input order
      _rejects.tsv                  what was not predicted, and why
      _predictions.json             of which model and input; "complete" once all files are there, with checksums
      .predict/, .embeddings/       while it runs: whose folder this is, and the embeddings

Files appear whole or not at all, and say in their schema of which embeddings and head they are made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from rd_hf.carried import input_place
from rd_hf.data.records import InputError
from rd_hf.data.remote import facts_of, is_remote, pinned
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.sources import check_sources
from rd_hf.embedding.checkpoint import Checkpoint, resolve
from rd_hf.embedding.folder import OutputFolder, Reject, differences, fill_rejects
from rd_hf.embedding.job import run_job
from rd_hf.embedding.ray import RaySettings
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.settings import JobSettings
from rd_hf.files import FolderError, Workspace, file_sha256, write_json
from rd_hf.launch import Processes, left_at_the_end, processes
from rd_hf.training.answers import Heads, load_heads, open_embeddings
from rd_hf.training.predict_settings import PredictionSettings, PredictionSummary

MANIFEST_FILE, REJECTS_FILE, EMBEDDINGS_FOLDER = "_predictions.json", "_rejects.tsv", ".embeddings"
FORMAT = 1
# In the schema of each file.
_ABOUT = b"rd_hf_predictions"
# Settings that decide what is predicted.
_DECIDING = (
    *("probabilities", "dtype", "long", "max_length", "overlap", "sequence_column", "id_column"),
    *("part_records", "part_bytes", "attn_implementation"),
)


def run_prediction(
    settings: PredictionSettings,
    group: Processes | None = None,
    ray: RaySettings | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
) -> PredictionSummary:
    """Run a prediction to its end, or from where an earlier run of it stopped.

    Args:
        settings: the prediction.
        group: this process among those that share it; alone by default.
        ray: embed on this Ray cluster, and not in these processes.
        report: called with what a user should know on the way; by default it is printed beside the progress bar.
        show_progress: whether the main process shows bars (where standard error is a terminal).

    Raises:
        InputError: the model, an input or a folder of embeddings cannot be used, or with ``strict`` a record.
        FolderError: the output cannot be used, or belongs to something else.
    """
    group = group or Processes()
    report = report or partial(tqdm.write, file=sys.stderr)
    before = read_manifest(Path(settings.output)) or {}
    checkpoint = resolve(settings.model, settings.revision, backbones=before.get("model", {}).get("backbones"))
    heads = load_heads(checkpoint, settings.level, settings.probabilities)
    stored = None if settings.embeddings is None else open_embeddings(settings.embeddings, checkpoint, heads)
    if stored is None:
        check_sources(settings.inputs, group.world)
        if heads.wild_type and "-" in settings.inputs:
            raise InputError(
                f"the heads of {settings.model} need the sequences of variants a second time, and standard input comes "
                "once: give a file"
            )
    running = _Prediction(settings, group, checkpoint, heads, stored, report, show_progress)
    try:
        return running.run(ray)
    finally:
        running.workspace.leave()


def run_launched(
    settings: PredictionSettings, ray: RaySettings | None = None, show_progress: bool = True
) -> PredictionSummary | None:
    """Run a prediction in the processes that a launcher started, or in this one; the summary in the main process."""
    group = Processes() if ray is not None else processes()
    with left_at_the_end(group):
        summary = run_prediction(settings, group, ray, show_progress=show_progress)
    return summary if group.is_main else None


def read_manifest(output: Path) -> dict[str, Any] | None:
    """What a folder of predictions says of itself; None where there is none.

    Raises:
        FolderError: it is not as a prediction writes it.
    """
    place = output / MANIFEST_FILE
    try:
        found = json.loads(place.read_bytes())
        known = found["format"] == FORMAT and isinstance(found["job"], dict) and isinstance(found["parts"], list)
        known = known and (found["status"] == "running" or isinstance(found["counts"]["records"], int))
        known = known and all(isinstance(found["model"][name], kind) for name, kind in _MODEL.items())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise FolderError(f"{place} is damaged ({error!r}): choose another --output") from error
    if not known:
        raise FolderError(f"{place} is not as this version writes it: choose another --output")
    return dict(found)


_MODEL = {"fingerprint": str, "backbones": dict}


@dataclass
class _Prediction:
    """One run of one prediction."""

    settings: PredictionSettings
    group: Processes
    checkpoint: Checkpoint
    heads: Heads
    stored: EmbeddingFolder | None
    report: Callable[[str], None]
    show_progress: bool

    def __post_init__(self) -> None:
        self.output = Path(self.settings.output)
        self.workspace = Workspace(self.output / ".predict", "a prediction")
        self.embeddings = self.output / EMBEDDINGS_FOLDER

    def run(self, ray: RaySettings | None) -> PredictionSummary:
        failure: Exception | None = None
        if self.group.is_main:
            try:
                self._begin()
            except (InputError, FolderError) as error:
                failure = error
        if not self.group.all_well(failure is None):
            raise failure or FolderError("stopped, because the main process could not start the prediction")
        manifest = read_manifest(self.output) or {}
        if manifest["status"] == "complete":
            self.group.all_well(True)
            return self._end(manifest, finished_before=True)
        folder = self.stored or self._embed(ray)
        if ray is None or self.group.is_main:
            self._predict(folder, manifest)
        self.group.all_well(True)
        if self.group.is_main:
            manifest = self._complete(folder, manifest)
        self.group.all_well(True)
        return self._end(manifest if self.group.is_main else read_manifest(self.output) or {})

    def _begin(self) -> None:
        """Claim the folder and say what it is for, or compare that with what an earlier run said."""
        job, before = self._describe(), read_manifest(self.output)
        if before is not None:
            self._refuse_another(before, job)
            if before["status"] != "complete":
                self.workspace.claim()
            return
        self.workspace.refuse_others()
        self.workspace.claim()
        model = {"fingerprint": self.checkpoint.fingerprint, "backbones": self.checkpoint.backbones}
        content = {"format": FORMAT, "status": "running", "model": model, "job": job, "parts": []}
        write_json(self.output / MANIFEST_FILE, content)

    def _describe(self) -> dict[str, Any]:
        """All that decides what is written, but for the weights; an input is what it holds, wherever it lies."""
        job: dict[str, Any] = {"level": self.heads.level}
        if self.stored is not None:
            return {**job, "probabilities": self.settings.probabilities, "embeddings": self.stored.digest}
        places = [Path(input_place(name)) for name in self.settings.inputs]
        inputs = [
            file_sha256(place) if place.is_file() else str(facts_of(pinned(name))) if is_remote(name) else name
            for name, place in zip(self.settings.inputs, places, strict=True)
        ]
        return {**job, "inputs": inputs, **{name: getattr(self.settings, name) for name in _DECIDING}}

    def _refuse_another(self, before: dict[str, Any], job: dict[str, Any]) -> None:
        """Raise a FolderError where the folder is another prediction's, whose files these would be mixed with."""
        changed = []
        if not self.checkpoint.is_of(before["model"]["fingerprint"], before["model"]["backbones"]):
            changed.append("the model was another")
        then, now = dict(before["job"]), dict(job)
        for name in ("inputs", "embeddings"):
            if then.pop(name, None) != now.pop(name, None):
                changed.append(f"the {name} were others")
        changed += differences(then, now)
        if changed:
            raise FolderError(
                f"{self.output} holds another prediction, which this one will not be mixed with: {'; '.join(changed)}; "
                "give the same command as before, or choose another --output"
            )

    def _job(self) -> JobSettings:
        job = self.settings.job(self.heads.pooling, self.heads.level, str(self.embeddings))
        assert job is not None
        return job

    def _embed(self, ray: RaySettings | None) -> EmbeddingFolder:
        """Run the embedding job, or what is left of it."""
        if ray is not None:
            from rd_hf.embedding.ray import run_on_ray

            run_on_ray(self._job(), ray, report=self.report, show_progress=self.show_progress)
        else:
            run_job(self._job(), self.group, self.report, self.show_progress, hints=True)
        return EmbeddingFolder(self.embeddings, with_journal=bool(self.heads.wild_type))

    def _predict(self, folder: EmbeddingFolder, manifest: dict[str, Any]) -> None:
        """Write this process's files, but for those that an earlier run left whole."""
        stream = self._sequences(folder) if self.heads.wild_type else None
        hidden = None if self.show_progress and self.group.is_main else True
        for index, part in enumerate(tqdm(folder.parts, desc="predictions", unit="file", disable=hidden)):
            records = [] if stream is None else list(islice(stream, part["records"]))
            if index % self.group.world != self.group.rank or self._about(folder, manifest, index) is not None:
                continue
            self._write(folder, manifest, index, records)

    def _sequences(self, folder: EmbeddingFolder) -> Iterator[tuple[str, str, str]]:
        """Input, id and letters of all records, each once it was found to be what was embedded."""
        for source, record in folder.records(self.settings.inputs):
            yield source, record.id, record.letters()

    def _key(self, folder: EmbeddingFolder, manifest: dict[str, Any], index: int) -> str:
        """Of all that a file is made of."""
        told = [manifest["job"], manifest["model"]["fingerprint"], folder.parts[index]["sha256"]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _about(self, folder: EmbeddingFolder, manifest: dict[str, Any], index: int) -> dict[str, Any] | None:
        """What a finished file says of itself; None where it is not there, or not whole.

        Raises:
            FolderError: a file of that name is no prediction.
        """
        path = self.output / file_name(index)
        if not os.path.lexists(path):
            return None
        try:
            about = json.loads((pq.read_schema(path).metadata or {})[_ABOUT])
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise FolderError(
                f"{path} would be replaced, and is no prediction: move it elsewhere, or choose another --output"
            ) from error
        return about if about.get("key") == self._key(folder, manifest, index) else None

    def _write(
        self, folder: EmbeddingFolder, manifest: dict[str, Any], index: int, records: list[tuple[str, str, str]]
    ) -> None:
        """Predict one part, and write its file."""
        part = folder.parts[index]
        first = part["first_record"]
        width, _ = folder.width_of(self.heads.level)
        wanted = range(first, first + part["records"])
        rows: list[tuple[dict[str, Any], np.ndarray]] = [
            (row, value) for row, value in folder.all_rows(width, np.asarray(wanted)) if row["record"] in wanted
        ]
        rejects: list[Reject] = []
        sequences: list[str] = []
        if records:
            rows, sequences, rejects = self._variants(folder, rows, records, first)
        columns = {
            "record": pa.array([row["record"] for row, _ in rows], pa.int64()),
            "id": pa.array([row["id"] for row, _ in rows], pa.string()),
            **self.heads.columns([value for _, value in rows], sequences),
        }
        about = {
            "key": self._key(folder, manifest, index),
            "level": self.heads.level,
            "rejects": [(reject.source, reject.record, reject.id, reject.reason) for reject in rejects],
        }
        table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})
        with self.workspace.replacing(self.output / file_name(index)) as path:
            pq.write_table(table, path, compression="zstd", write_page_checksum=True)

    def _variants(
        self, folder: EmbeddingFolder, rows: list[tuple[dict[str, Any], np.ndarray]],
        records: list[tuple[str, str, str]], first: int,
    ) -> tuple[list[tuple[dict[str, Any], np.ndarray]], list[str], list[Reject]]:  # fmt: skip
        """Rows whose sequences are variants that the heads know, their sequences, and the others as rejects."""
        from rd_hf.embedding.engine import prepare

        kept, sequences, rejects = [], [], []
        for row, value in rows:
            source, name, letters = records[row["record"] - first]
            try:
                sequence = prepare(letters, (), folder.options).sequence
            except RejectedSequenceError as error:  # it was embedded
                raise InputError(f"{source} record {row['record']} has changed: {error}") from error
            reason = self.heads.why_no_variant(sequence)
            if reason is None:
                kept.append((row, value))
                sequences.append(sequence)
                continue
            if self.settings.strict:
                raise InputError(
                    f"{source} record {row['record']} ({name or 'no id'}): it {reason}; correct the record, or leave "
                    f"--strict away to have such records listed in {REJECTS_FILE}"
                )
            rejects.append(Reject(source, row["record"], name, f"it {reason}"))
        return kept, sequences, rejects

    def _complete(self, folder: EmbeddingFolder, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the rejects, then the manifest with checksums of all files."""
        rejects = list(OutputFolder(folder.path).rejects()) if folder.rejects_path.is_file() else []
        parts, written = [], 0
        for index, part in enumerate(folder.parts):
            path = self.output / file_name(index)
            about = self._about(folder, manifest, index)
            if about is None:
                raise FolderError(f"{path} is missing: give the same command again to make it")
            own = [Reject(*reject) for reject in about["rejects"]]
            rejects += own
            written += part["written"] - len(own)
            parts.append({"file": path.name, "sha256": file_sha256(path), "rows": part["written"] - len(own)})
        with self.workspace.replacing(self.output / REJECTS_FILE) as path, path.open("wb") as handle:
            fill_rejects(handle, sorted(rejects, key=lambda reject: reject.record))
        counts = {"records": sum(part["records"] for part in folder.parts), "predicted": written}
        complete = {**manifest, "status": "complete", "counts": counts, "parts": parts}
        write_json(self.output / MANIFEST_FILE, complete)
        return complete

    def _end(self, manifest: dict[str, Any], finished_before: bool = False) -> PredictionSummary:
        """Remove what is no longer needed; the summary.

        Raises:
            FolderError: a file of a finished folder is not as it was written.
        """
        if self.group.is_main:
            for part in manifest["parts"]:
                path = self.output / part["file"]
                if finished_before and not (path.is_file() and file_sha256(path) == part["sha256"]):
                    raise FolderError(
                        f"{path} is not as it was written: delete {self.output}, or choose another --output"
                    )
            if self.workspace.path.is_dir():
                if finished_before:
                    self.workspace.claim()
                if not self.settings.keep_embeddings and self.embeddings.is_dir():
                    shutil.rmtree(self.embeddings)
                # Goes last: while it is there, something may be left to remove.
                self.workspace.remove()
        counts = manifest["counts"]
        return PredictionSummary(
            counts["records"],
            counts["predicted"],
            counts["records"] - counts["predicted"],
            len(manifest["parts"]),
            self.heads.level,
            finished_before,
        )


def file_name(index: int) -> str:
    """Of the predictions of a part."""
    return f"predictions-{index:06d}.parquet"
