"""What runs on the cluster: parts made by the local job's own worker.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from rd_hf.carried import input_place, model_place
from rd_hf.data.records import InputError
from rd_hf.data.remote import is_remote
from rd_hf.data.sources import source_size
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.parts import Part
from rd_hf.embedding.progress import Progress
from rd_hf.embedding.ray.staging import PlannedPart, SharedSequences, StagedFile, stage
from rd_hf.embedding.settings import JobSettings
from rd_hf.embedding.worker import StageTimer, Worker
from rd_hf.files import file_sha256, replacing
from rd_hf.launch import Processes
from rd_hf.memory import bound_kernels, trim_heap

if TYPE_CHECKING:
    from rd_hf.embedding.engine import Request

# More machines than that are hardly lost in the midst of one and the same part.
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Assignment:
    """What every worker knows of the job."""

    settings: JobSettings
    checkpoint: Checkpoint
    widths: dict[str, int]
    directory: str  # where it was started; relative paths count from there
    token: str  # of the output folder, as names of half-written files begin
    keys: bool = False  # whether staged records have the keys of their sequences

    def enter(self) -> None:
        """Let relative paths mean here what they mean where the job was started."""
        with suppress(OSError):
            os.chdir(self.directory)


class WorkerFolder(OutputFolder):
    """The output folder as a worker has it: what it writes is handed over, not put in its place."""

    sign: Path  # says that the part in hand was started
    handed: Path  # what its file is handed over as
    entry_written: PartEntry

    def __init__(self, path: str | os.PathLike, token: str) -> None:
        super().__init__(path)
        self._token = token

    def start(self, what: str) -> None:
        """Leave a sign that this part (or group of shared sequences) was started, which goes once it is adopted.

        Raises:
            JobError: it was started so often that it is at fault; Ray would try for ever.
        """
        before = len(unfinished(self, self._token, what))
        if before >= _TRIES:
            raise JobError(
                f"{what.replace('block', 'group ')} ended its worker {before} times: it may need more memory than a "
                "worker has (lower --batch-tokens or --part-records, or give workers more), or the machines' logs say "
                "why"
            )
        name = f"{what}-{secrets.token_hex(4)}.tmp"
        self.sign = self.journal / f"{self._token}-begun-{name}"
        self.handed = self.journal / f"{self._token}-handed-{name}"
        self.sign.touch()

    def refuse_foreign_part(self, index: int) -> None:
        """Left to the driver, which alone replaces files."""

    def write(self, path: Path, fill: Callable[[IO[bytes]], Any]) -> tuple[str, int]:
        """The part's file, under the name that it is handed over by."""
        temporary = self.handed.with_name(self.handed.name.replace("-handed-", "-half-"))
        with replacing(self.handed, temporary, JobError) as half:
            with half.open("wb") as handle:
                fill(handle)
            return file_sha256(half), half.stat().st_size

    def write_entry(self, entry: PartEntry) -> None:
        """Keep the entry for the driver."""
        self.entry_written = entry

    def names(self) -> dict[str, str]:
        """Of what was handed over, and of the sign that it was started."""
        return {"handed": self.handed.name, "sign": self.sign.name}


def unfinished(folder: OutputFolder, token: str | None, what: str = "*") -> list[Path]:
    """Signs of parts and groups (or of one) that were started and never adopted."""
    return list(folder.journal.glob(f"{token}-begun-{what}-*.tmp"))


@dataclass(slots=True)
class DeduplicatingWorker(Worker):
    """Makes a part from what was computed before, and computes the rest of it."""

    shared: SharedSequences | None = field(default=None, kw_only=True)

    def compute(self, part: Part, places: list[int], requests: list[Request]) -> list[np.ndarray | str]:
        found: list[Any] = [None] * len(requests)
        if self.shared is not None:
            with self.stages.stage("read"):
                found = [self.shared.find(request.sequence) for request in requests]
        left = [index for index, value in enumerate(found) if value is None]
        # Spelled out, since super() without arguments does not find the class that slots made anew.
        computed = Worker.compute(self, part, [places[i] for i in left], [requests[i] for i in left])
        for index, value in zip(left, computed, strict=True):
            found[index] = value
        return found


class PartWorker:
    """Makes one part after the other; the model loads once, when the first part needs it.

    With ``shared`` sequences, and all staged ``files``, it also computes groups of them.
    """

    def __init__(
        self, assignment: Assignment, shared: SharedSequences | None = None, files: Sequence[StagedFile] = ()
    ) -> None:
        assignment.enter()
        bound_kernels()
        self._settings, self._shared, self._files = assignment.settings, shared, files
        self._notes: list[str] = []
        self._folder = WorkerFolder(assignment.settings.output, assignment.token)
        self._worker = DeduplicatingWorker(
            assignment.settings,
            Processes(),
            self._folder,
            assignment.checkpoint,
            assignment.widths,
            StageTimer(),
            Progress(None, shown=False),
            self._notes.append,
            shared=shared,
        )

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        """Make a part (unless an earlier run left it whole), or a group of shared sequences.

        Args:
            row: ``task``: JSON of ``part``, the fields of a :class:`PlannedPart`, or of ``group``, a number.

        Returns:
            ``answer``: JSON of a part's ``index`` and ``digest``; of ``handed`` and ``sign``, names in the journal's
            folder, and a part's ``entry``, if anything was made; of ``work``, ``notes`` and ``error``. (A message for
            the user travels as a value: Ray would wrap an exception in its own words.)
        """
        self._notes.clear()
        task = json.loads(row["task"])
        try:
            answer = self._make_part(PlannedPart(**task["part"])) if "part" in task else self._make_group(task["group"])
        except (InputError, JobError) as error:
            answer = {"error": str(error)}
        trim_heap()
        return {"answer": json.dumps({"error": "", **answer, "work": self._work(), "notes": self._notes})}

    def _make_part(self, planned: PlannedPart) -> dict[str, Any]:
        with self._worker.stages.stage("read"):
            part = planned.read(self._folder.journal / "staged", self._settings)
        answer = {"index": part.index, "digest": part.digest}
        if self._worker.is_finished(part):
            return answer
        self._folder.start(f"{part.index:06d}")
        self._worker.do(part)
        return answer | {"entry": self._folder.entry_written.to_json()} | self._folder.names()

    def _make_group(self, group: int) -> dict[str, Any]:
        from rd_hf.embedding.engine import embed_requests, prepare

        assert self._shared is not None
        self._folder.start(f"block{group:06d}")
        stages = self._worker.stages
        with stages.stage("read"):
            sequences = self._shared.sequences(group, self._files)
            requests = [prepare(sequence, (), self._settings.options) for sequence in sequences]
        engine = self._worker.started()
        with stages.stage("embed"):
            values = embed_requests(engine, requests)
        # As wide as what is computed, of which less may be stored.
        width = next((len(value) for value in values if not isinstance(value, str)), 0)
        missing = np.full(width, np.nan, np.float32)
        rows = np.array([missing if isinstance(value, str) else value for value in values], np.float32)
        with stages.stage("write"):
            path = self._shared.group_path(group)
            self._folder.write(path, lambda handle: np.save(handle, rows, allow_pickle=False))
            # Needs no driver: what another worker may write there is as good. The next part here asks for it already.
            os.replace(self._folder.handed, path)
        return self._folder.names()

    def _work(self) -> dict[str, Any]:
        """This process, its device, and all that it did: tokens, padding, seconds of each stage."""
        engine = self._worker.engine
        work: dict[str, Any] = {"worker": f"{socket.gethostname()}:{os.getpid()}", **self._worker.stages.seconds}
        if engine is not None:
            work |= {"device": str(engine.model.device), "tokens": engine.work.tokens, "padding": engine.work.padding}
        return work


def stage_input(batch: dict[str, Any], assignment: Assignment) -> Iterator[dict[str, list[str]]]:
    """``answer``: JSON of what :func:`rd_hf.embedding.ray.staging.stage` yields of inputs, each in a row of its own."""
    assignment.enter()
    for task in batch["task"]:
        for answer in stage(assignment.settings, int(task), assignment.keys):
            yield {"answer": [json.dumps(answer)]}


def look_around(assignment: Assignment) -> dict[str, bool]:
    """Whether a node sees the output folder (under the name ""), and each file that the job names."""
    assignment.enter()
    settings = assignment.settings
    record = OutputFolder(settings.output).workspace.record()
    named = [
        one for one in settings.inputs if source_size(one) is not None or (Path(one).suffix and not is_remote(one))
    ]
    named += [settings.model] if assignment.checkpoint.revision is None else []
    seen = {name: Path(model_place(input_place(name))).exists() for name in named if name != "-"}
    return {"": record is not None and record["token"] == assignment.token} | seen
