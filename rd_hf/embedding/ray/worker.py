"""What runs on the cluster: a part checked or made, by the local job's own worker.

A worker hands its finished file over under a name of its own; the driver alone gives it its place and notes it, so that
a part is there once whatever a lost worker, or one that was thought lost, still writes.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rd_hf.data.fasta import InputError
from rd_hf.data.sources import source_size
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.progress import Progress
from rd_hf.embedding.ray.duplicates import Shared, SharedRows, SharingWorker, sequences_of
from rd_hf.embedding.ray.plan import PlannedPart, read_part
from rd_hf.embedding.ray.staging import stage
from rd_hf.embedding.settings import JobSettings
from rd_hf.embedding.worker import StageTimer, Worker
from rd_hf.files import file_sha256, replacing
from rd_hf.launch import Processes
from rd_hf.memory import bound_kernels, trim_heap

# More machines than that are hardly lost in the midst of one and the same part.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Assignment:
    """What every worker knows of the job.

    Attributes:
        settings, checkpoint, widths: of the job.
        directory: where it was started; relative paths count from there.
        token: of the output folder, as names of half-written files begin.
        keys: whether staged records are to tell what their sequence is once cleaned.
    """

    settings: JobSettings
    checkpoint: Checkpoint
    widths: dict[str, int]
    directory: str
    token: str
    keys: bool = False

    def enter(self) -> None:
        """Let relative paths mean here what they mean where the job was started."""
        with suppress(OSError):
            os.chdir(self.directory)


class WorkerFolder(OutputFolder):
    """The output folder as a worker has it: what it writes is handed over, not put in its place."""

    def __init__(self, path: str | os.PathLike, token: str) -> None:
        super().__init__(path)
        self._token = token
        self.begun: Path | None = None
        self.handed: Path | None = None
        self.noted: PartEntry | None = None

    def begin(self, what: str) -> None:
        """Leave a sign that this part (or block of shared sequences) was begun, which only its being adopted removes.

        Raises:
            JobError: it was begun so often that it is at fault; Ray would try for ever.
        """
        before = len(begun(self, self._token, what))
        if before >= _TRIES:
            raise JobError(
                f"{what} ended its worker {before} times: it may need more memory than a worker has (lower "
                "--batch-tokens or --part-records, or give workers more), or the machines' logs say why"
            )
        name = f"{what}-{secrets.token_hex(4)}.tmp"
        self.begun = self.journal / f"{self._token}-begun-{name}"
        self.handed = self.journal / f"{self._token}-handed-{name}"
        self.begun.touch()

    def refuse_foreign_part(self, index: int) -> None:
        """Left to the driver, which alone replaces files."""

    def write(self, path: Path, fill: Callable[[IO[bytes]], Any]) -> tuple[str, int]:
        """The part's file, under the name that it is handed over by."""
        assert self.handed is not None
        temporary = self.handed.with_name(self.handed.name.replace("-handed-", "-half-"))
        with replacing(self.handed, temporary, JobError) as half:
            with half.open("wb") as handle:
                fill(handle)
            return file_sha256(half), half.stat().st_size

    def write_entry(self, entry: PartEntry) -> None:
        """Keep the entry for the driver."""
        self.noted = entry


def begun(folder: OutputFolder, token: str, what: str = "*") -> list[Path]:
    """Signs of parts and blocks (or of one) that were begun and never adopted."""
    return list(folder.journal.glob(f"{token}-begun-{what}-*.tmp"))


class PartWorker:
    """Checks or makes one part after the other; the model loads once, when the first part needs it.

    Args:
        assignment: of the job.
        shared: sequences that several parts have, if those are computed once; rows of the job may then be blocks.
        chunks: from :func:`rd_hf.embedding.ray.duplicates.first_records`; needed for blocks.
    """

    def __init__(
        self, assignment: Assignment, shared: Shared | None = None, chunks: Sequence[tuple[str, int]] = ()
    ) -> None:
        assignment.enter()
        bound_kernels()
        self._settings, self._shared, self._chunks = assignment.settings, shared, chunks
        self._said: list[str] = []
        self._desk = WorkerFolder(assignment.settings.output, assignment.token)
        self._staged = self._desk.journal / "staged"
        given = (assignment.settings, Processes(), self._desk, assignment.checkpoint, assignment.widths, StageTimer())
        bar = Progress(None, shown=False)
        if shared is None:
            self._worker = Worker(*given, bar, self._said.append)
        else:
            self._worker = SharingWorker(*given, bar, self._said.append, shared=SharedRows(shared))
        self._seen = dict[str, float]()

    def check(self, row: dict[str, Any]) -> dict[str, Any]:
        """Whether an earlier run left a part whole; see :meth:`__call__`."""
        return self._answer(row["part"], self._check)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make a part, or a block of shared sequences.

        Args:
            row: ``part``, a :class:`PlannedPart` in JSON, or empty and ``block``, a number.

        Returns:
            One row: ``index`` (-1 for a block), ``block``, ``digest``, ``kept``, ``entry`` (JSON), ``handed`` and
            ``begun`` (names in the journal's folder), ``work`` (JSON: tokens, padding, seconds of each stage, device),
            ``notes`` (JSON) and ``error``. A sentence for the user travels as a value: Ray would wrap an exception in
            its own words.
        """
        if row["part"]:
            answer = self._answer(row["part"], self._make)
        else:
            answer = self._answer("", lambda _: self._make_block(int(row["block"]))) | {"block": row["block"]}
        trim_heap()
        return answer

    def _answer(self, part: str, body: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        self._said.clear()
        planned = PlannedPart.from_json(part) if part else None
        answer: dict[str, Any] = {"index": planned.index if planned else -1, "block": -1, "digest": "", "kept": False}
        answer |= dict.fromkeys(("entry", "handed", "begun", "error"), "")
        try:
            answer |= body(planned)
        except (InputError, JobError) as error:
            answer["error"] = str(error)
        return answer | {"work": json.dumps(self._work()), "notes": json.dumps(self._said)}

    def _check(self, planned: PlannedPart) -> dict[str, Any]:
        with self._worker.stages.stage("read"):
            part = read_part(planned, self._staged, self._settings)
        return {"digest": part.digest, "kept": self._worker.is_finished(part)}

    def _make(self, planned: PlannedPart) -> dict[str, Any]:
        with self._worker.stages.stage("read"):
            part = read_part(planned, self._staged, self._settings)
        self._desk.begin(f"{part.index:06d}")
        self._worker.do(part)
        assert self._desk.noted is not None
        return {"digest": part.digest, "entry": self._desk.noted.to_json(), **self._names()}

    def _make_block(self, block: int) -> dict[str, Any]:
        import numpy as np

        from rd_hf.embedding.engine import embed_requests, prepare

        assert self._shared is not None
        self._desk.begin(f"block{block:06d}")
        stages, options = self._worker.stages, self._settings.options
        with stages.stage("read"):
            raw = sequences_of(self._shared, block, self._chunks)
            requests = [prepare(sequence, (), options) for sequence in raw]
        engine = self._worker.started()
        with stages.stage("embed"):
            values = embed_requests(engine, requests)
        # As wide as what is computed, of which less may be stored.
        width = next((len(value) for value in values if not isinstance(value, str)), 0)
        rows = np.full((len(values), width), np.nan, np.float32)
        for place, value in enumerate(values):
            if not isinstance(value, str):
                rows[place] = value
        path = self._shared.block_path(block)
        with stages.stage("write"):
            self._desk.write(path, lambda handle: np.save(handle, rows, allow_pickle=False))
            # Needs no driver: what another worker may write there is as good. The next part here asks for it already.
            assert self._desk.handed is not None
            os.replace(self._desk.handed, path)
        return self._names()

    def _names(self) -> dict[str, str]:
        """Of what was handed over, and of the sign that it was begun."""
        assert self._desk.begun is not None
        assert self._desk.handed is not None
        return {"handed": self._desk.handed.name, "begun": self._desk.begun.name}

    def _work(self) -> dict[str, Any]:
        """Since the last answer: tokens, padding, seconds of each stage."""
        engine = self._worker.engine
        now: dict[str, float] = dict(self._worker.stages.seconds)
        now |= {"tokens": engine.work.tokens, "padding": engine.work.padding} if engine else {}
        news: dict[str, Any] = {name: value - self._seen.get(name, 0) for name, value in now.items()}
        self._seen = now
        who = f"{socket.gethostname()}:{os.getpid()}"
        return news | {"device": str(engine.model.device) if engine else None, "worker": who}


def check_part(row: dict[str, Any], assignment: Assignment) -> dict[str, Any]:
    """As :meth:`PartWorker.check`, for a task without a model."""
    return PartWorker(assignment).check(row)


def stage_input(batch: dict[str, Any], assignment: Assignment) -> Iterator[dict[str, list[Any]]]:
    """Rows of :func:`rd_hf.embedding.ray.staging.stage` for an ``index``, one a block as they come."""
    assignment.enter()
    for index in batch["index"]:
        for row in stage(assignment.settings, int(index), assignment.keys):
            yield {name: [value] for name, value in row.items()}


def installed() -> dict[str, str]:
    """Versions on a node."""
    from rd_hf.embedding.manifest import installed_versions

    return installed_versions()


def look_around(assignment: Assignment) -> dict[str, bool]:
    """Whether a node sees the output folder (under the name ""), and each file that the job names."""
    assignment.enter()
    settings = assignment.settings
    record = OutputFolder(settings.output).workspace.record()
    named = [source for source in settings.inputs if source_size(source) is not None or Path(source).suffix]
    named += [settings.model] if assignment.checkpoint.revision is None else []
    seen = {path: Path(path).exists() for path in named if path != "-"}
    return {"": record is not None and record["token"] == assignment.token} | seen
