"""The driver of a job on Ray: it plans, adopts what workers hand over, and keeps the books."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from rd_hf.data.fasta import InputError
from rd_hf.data.sources import source_size
from rd_hf.devices import parse_device
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.job import check_inputs, complete, counted
from rd_hf.embedding.manifest import check_digest, check_known, known_parts, open_job, with_stored_settings
from rd_hf.embedding.progress import Progress
from rd_hf.embedding.ray.cluster import Cluster, RaySettings, ask_every_node, joined
from rd_hf.embedding.ray.duplicates import Shared, find_shared, first_records
from rd_hf.embedding.ray.plan import PlannedPart, plan
from rd_hf.embedding.ray.staging import Chunk, Staged, Staging, stage
from rd_hf.embedding.ray.worker import Assignment, PartWorker, begun, check_part, installed, look_around, stage_input
from rd_hf.embedding.settings import JobSettings, JobSummary
from rd_hf.launch import Processes


def run_on_ray(
    settings: JobSettings,
    ray_settings: RaySettings | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
) -> JobSummary:
    """Run a job on a Ray cluster to its end, or from where an earlier run of it (here or by ``run_job``) stopped.

    Args:
        settings: the job; relative paths must mean the same on every node, which must share the output's file system.
        ray_settings: where and how widely; by default this machine.
        report: told what a user should know on the way; by default printed beside the progress bar.
        show_progress: whether to show a bar (where standard error is a terminal).

    Returns:
        What the job did; its seconds are added up over all workers.

    Raises:
        InputError: an input or the model cannot be used, or with ``strict`` a record.
        JobError: the folder or the cluster cannot be used, or the disk is full.
        ModuleNotFoundError: Ray is not installed.
    """
    ray_settings = ray_settings or RaySettings()
    check_inputs(settings, Processes())
    if settings.device is not None:
        parse_device(settings.device)
    if settings.extend is not None:
        raise InputError("a job on Ray cannot extend a folder: leave --engine ray away, which needs one machine only")
    if ray_settings.deduplicate and not settings.options.one_row:
        raise InputError(
            f"with pooling {settings.options.pooling!r} a sequence has many rows, which are not kept aside: leave "
            "--deduplicate away, or choose mean, max or cls"
        )
    folder = OutputFolder(settings.output)
    settings = with_stored_settings(settings, folder)
    with joined(ray_settings) as cluster, ExitStack() as stack:
        _check_versions(ask_every_node(cluster, installed))
        stack.callback(folder.leave)
        return _Run(settings, ray_settings, cluster, folder, report, show_progress).run()


def _check_versions(found: dict[Any, dict[str, str]]) -> None:
    """Raise where a node has another version of this package, whose parts might be cut or written otherwise."""
    own = installed()["rd_hf"]
    for node, versions in found.items():
        if versions["rd_hf"] != own:
            raise JobError(
                f"the worker at {node.address} has rd_hf {versions['rd_hf']}, and here it is {own}: install the same "
                "on all nodes"
            )


@dataclass(slots=True)
class _Run:
    """One run of one job, in the driver."""

    settings: JobSettings
    ray_settings: RaySettings
    cluster: Cluster
    folder: OutputFolder
    told: Callable[[str], None] | None
    show_progress: bool
    digests: dict[int, str] = field(default_factory=dict)
    kept: int = 0
    work: Counter = field(default_factory=Counter)
    workers: dict[str, str] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)
    bar: Progress | None = None

    def run(self) -> JobSummary:
        token = (self.folder.workspace.record() or {}).get("token")
        lost = begun(self.folder, token) if token else []
        checkpoint, self.settings, notes = open_job(self.settings, Processes(), self.folder, {})
        self.settings = replace(self.settings, options=checkpoint.within(self.settings.options))
        widths = checkpoint.widths(self.settings.options.levels)
        token = (self.folder.workspace.record() or {})["token"]
        deduplicate = self.ray_settings.deduplicate
        assignment = Assignment(self.settings, checkpoint, widths, os.getcwd(), token, keys=deduplicate)
        for note in notes:
            self.say(note)
        self._check_view(assignment)
        staging = Staging(self.folder, self.settings, deduplicate)
        staged = self._stage(staging, assignment)
        parts = list(plan(staged, staging.path, self.settings, widths))
        known = known_parts(self.folder)
        for part in parts:
            check_known(self.folder, known, part.index, part.first_record)
        with self._bar(sum(part.letters for part in parts), "residues") as bar:
            noted = set(self.folder.noted_parts())
            self._check([part for part in parts if part.index in noted], assignment, bar)
            left = [part for part in parts if part.index not in self.digests]
            shared = self._share(staged, staging, parts) if left and deduplicate else None
            self._compute(left, assignment, bar, shared, first_records(staged))
        digests = [self.digests[part.index] for part in parts]
        entries = complete(self.folder, digests, sum(each.records for each in staged))
        staging.remove()
        return self._summary(entries, len(lost) + self._clear_up(token))

    def say(self, text: str) -> None:
        """Tell the user once, beside the bar where there is one."""
        if text in self.said:
            return
        self.said.add(text)
        if self.told is not None:
            self.told(text)
        elif self.bar is not None:
            self.bar.say(text)
        else:
            with Progress(None, shown=False) as bar:
                bar.say(text)

    @contextmanager
    def _bar(self, total: int | None, unit: str) -> Iterator[Progress]:
        with Progress(total, shown=self.show_progress, unit=unit) as bar:
            self.bar = bar
            try:
                yield bar
            finally:
                self.bar = None

    def _check_view(self, assignment: Assignment) -> None:
        """Raise unless every node sees the files that the job names where this machine sees them."""
        here = look_around(assignment)
        for node, seen in ask_every_node(self.cluster, look_around, assignment).items():
            missing = next((path for path in here if here[path] and not seen[path]), None)
            if missing is not None:
                raise JobError(
                    f"the node at {node.address} does not see {missing or self.folder.path}: put it on a file system "
                    "that all nodes share, under the same path"
                )

    def _stage(self, staging: Staging, assignment: Assignment) -> list[Staged]:
        """Every input as staged files, those of an earlier run where they are still good."""
        count = len(self.settings.inputs)
        found: dict[int, Staged] = {index: kept for index in range(count) if (kept := staging.kept(index)) is not None}
        chunks: dict[int, list[Chunk]] = {}
        left = [index for index in range(count) if index not in found]
        identities = {index: staging.identity(index) for index in left}
        sizes = [source_size(self.settings.inputs[index]) for index in left]
        read: Counter = Counter()

        def rows() -> Iterator[dict[str, Any]]:
            # Standard input is this process's own.
            for index in left:
                if self.settings.inputs[index] == "-":
                    yield from stage(self.settings, index, assignment.keys)
            elsewhere = [{"index": index} for index in left if self.settings.inputs[index] != "-"]
            yield from _rows(_of_items(elsewhere, staging_of))

        def staging_of(data: Any) -> Any:
            # A row a block: what was read is told as it comes.
            data.context.target_max_block_size = 1
            return data.map_batches(stage_input, batch_size=None, num_cpus=1, fn_kwargs={"assignment": assignment})

        with self._bar(None if None in sizes else sum(size or 0 for size in sizes), "records") as bar:
            for row in rows():
                index = row["index"]
                for note in json.loads(row["notes"]):
                    self.say(note)
                if row["error"]:
                    raise InputError(row["error"])
                bar.read(row["bytes"] - read[index])
                read[index] = row["bytes"]
                bar.embedded(row["records"], row["records"])
                bar.part_done()
                if row["file"]:
                    chunks.setdefault(index, []).append(Chunk(row["file"], row["records"]))
                    continue
                if identities[index] != staging.identity(index):
                    raise InputError(
                        f"{self.settings.inputs[index]} has changed while it was read: give the same command again "
                        "once it is whole"
                    )
                ordered = tuple(sorted(chunks.get(index, []), key=lambda chunk: chunk.file))
                found[index] = Staged(ordered, tuple(json.loads(row["notes"])))
                staging.keep(index, found[index], identities[index])
        for index in range(count):
            for note in found[index].notes:
                self.say(note)
        return [found[index] for index in range(count)]

    def _check(self, parts: Sequence[PlannedPart], assignment: Assignment, bar: Progress) -> None:
        """Keep the parts of an earlier run that are whole and of this input."""
        size = {part.index: part.letters for part in parts}
        rows = [{"part": part.to_json()} for part in parts]
        for row in _rows(_of_items(rows, lambda data: data.map(check_part, fn_args=(assignment,), num_cpus=1))):
            self._hear(row)
            entry = self.folder.entry(row["index"])
            if entry is not None:
                check_digest(self.folder, entry, row["digest"])
            if row["kept"]:
                self.kept += 1
                self.digests[row["index"]] = row["digest"]
                bar.read(size[row["index"]])
                bar.skipped()

    def _share(self, staged: Sequence[Staged], staging: Staging, parts: Sequence[PlannedPart]) -> Shared:
        """The sequences that several parts have."""
        shared = find_shared(staged, staging.path, parts)
        self.say(f"{shared.count:,} sequences of {shared.copies:,} records lie in several parts, and are computed once")
        return shared

    def _compute(
        self,
        parts: Sequence[PlannedPart],
        assignment: Assignment,
        bar: Progress,
        shared: Shared | None,
        chunks: Sequence[tuple[str, int]],
    ) -> None:
        """Have the other parts made, shared sequences first, and give each its place as it is handed over."""
        import ray

        rows: list[dict[str, Any]] = [{"part": part.to_json(), "block": -1} for part in parts]
        if shared is not None:
            blocks = [block for block in range(shared.blocks) if not shared.block_path(block).exists()]
            rows = [{"part": "", "block": block} for block in blocks] + rows
        strategy = ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=max(1, min(self.cluster.actors, len(rows))),
            max_size=self.ray_settings.workers,
            # The next part waits where it will be made.
            max_tasks_in_flight_per_actor=2,
        )
        size = {part.index: part.letters for part in parts}

        def made(data: Any) -> Any:
            # Ray starts a lost actor again, and gives what it had in hand to whoever is there. One pool does it all:
            # a large model is loaded once.
            given = (assignment, shared, chunks if shared is not None else ())
            cpus, gpus = self.ray_settings.cpus, self.cluster.gpus or None
            return data.map(PartWorker, fn_constructor_args=given, compute=strategy, num_cpus=cpus, num_gpus=gpus)

        for row in _rows(_of_items(rows, made)):
            self._hear(row)
            handed, letters = self.folder.journal / row["handed"], size.get(row["index"], 0)
            if row["entry"]:
                self.folder.adopt(handed, PartEntry.from_json(row["entry"]))
                self.digests[row["index"]] = row["digest"]
            with suppress(FileNotFoundError):
                (self.folder.journal / row["begun"]).unlink()
            bar.read(letters)
            bar.embedded(letters, letters)
            bar.part_done()

    def _hear(self, row: dict[str, Any]) -> None:
        """What a worker says beside its result."""
        for note in json.loads(row["notes"]):
            self.say(note)
        work = json.loads(row["work"])
        device, worker = work.pop("device"), work.pop("worker")
        if device is not None:
            self.workers[worker] = device
        self.work.update(work)
        if row["error"]:
            raise JobError(row["error"])

    def _clear_up(self, token: str) -> int:
        """Remove what lost workers left; how many parts they had begun."""
        lost = begun(self.folder, token)
        for path in [*lost, *self.folder.journal.glob(f"{token}-*.tmp")]:
            path.unlink(missing_ok=True)
        return len(lost)

    def _summary(self, entries: list[PartEntry], lost: int) -> JobSummary:
        devices = sorted({device.partition(":")[0] for device in self.workers.values()})
        workers = f"{len(self.workers)} worker{'s' if len(self.workers) != 1 else ''} ({', '.join(devices)})"
        stages = ("read", "check", "load", "embed", "write")
        return JobSummary(
            **counted(entries),
            parts=len(entries),
            parts_kept=self.kept,
            tokens=int(self.work["tokens"]),
            padding=int(self.work["padding"]),
            seconds={name: float(self.work[name]) for name in stages},
            device=workers if self.workers else None,
            lost=lost,
        )


def _of_items(rows: Sequence[dict[str, Any]], then: Callable[[Any], Any]) -> Any:
    """A dataset of one block a row, with what is done to it."""
    import ray

    return then(ray.data.from_items(list(rows), override_num_blocks=len(rows))) if rows else None


def _rows(data: Any) -> Iterator[dict[str, Any]]:
    """Rows of a dataset as they come, in any order.

    Raises:
        JobError: the cluster could not make them.
    """
    from ray.exceptions import RayError

    if data is None:
        return
    try:
        yield from data.iter_rows()
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[-1] if lines else type(error).__name__
        raise JobError(
            f"the workers could not go on ({type(error).__name__}: {said[:300]}): look at Ray's logs, and give the "
            "same command again to go on; what is finished is kept"
        ) from error
