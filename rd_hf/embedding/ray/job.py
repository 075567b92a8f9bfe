"""The driver of a job on Ray: it plans, adopts what workers hand over, and notes what is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from operator import itemgetter
from typing import Any

from rd_hf.data.records import InputError
from rd_hf.data.sources import check_sources, source_size
from rd_hf.devices import kind_of, parse_device
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry
from rd_hf.embedding.job import complete, counted
from rd_hf.embedding.manifest import (
    check_kind,
    check_known,
    installed_versions,
    known_parts,
    open_job,
    with_stored_settings,
)
from rd_hf.embedding.options import AUTO, OFF
from rd_hf.embedding.progress import Progress
from rd_hf.embedding.ray import RaySettings
from rd_hf.embedding.ray.cluster import Cluster, ask_every_node, joined
from rd_hf.embedding.ray.staging import (
    PlannedPart,
    SharedSequences,
    StagedFile,
    StagingFolder,
    find_shared,
    plan,
    stage,
)
from rd_hf.embedding.ray.worker import Assignment, PartWorker, look_around, stage_input, unfinished
from rd_hf.embedding.settings import JobSettings, JobSummary
from rd_hf.launch import Processes
from rd_hf.version import __version__


def run_on_ray(
    settings: JobSettings,
    ray_settings: RaySettings | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
) -> JobSummary:
    """Run a job on a Ray cluster to its end, or from where an earlier run of it (here or by ``run_job``) stopped.

    Relative paths must mean the same on every node, and all must share the output's file system; by default this
    machine alone. ``report`` takes what a user should know on the way, by default printed beside the bar. The seconds
    of what is returned are added up over all workers.

    Raises:
        InputError: an input or the model cannot be used, or with ``strict`` a record.
        JobError: the folder or the cluster cannot be used, or the disk is full.
        ModuleNotFoundError: Ray is not installed.
    """
    ray_settings = ray_settings or RaySettings()
    check_sources(settings.inputs)
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
    report = report or Progress(None, shown=False).say
    with joined(ray_settings) as cluster, ExitStack() as stack:
        # Another version might cut or write parts otherwise.
        for address, versions in ask_every_node(cluster, installed_versions):
            if versions["rd_hf"] != __version__:
                raise JobError(
                    f"the worker at {address} has rd_hf {versions['rd_hf']}, and here it is {__version__}: install the "
                    "same on all nodes"
                )
        stack.callback(folder.leave)
        return _Driver(settings, ray_settings, cluster, folder, report, show_progress).run()


@dataclass(slots=True)
class _Driver:
    """One run of one job."""

    settings: JobSettings
    ray_settings: RaySettings
    cluster: Cluster
    folder: OutputFolder
    report: Callable[[str], None]
    show_progress: bool
    digests: dict[int, str] = field(default_factory=dict)
    kept: int = 0
    work: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each worker, all in all
    reported: set[str] = field(default_factory=set)

    def run(self) -> JobSummary:
        # Before the folder is claimed, which clears them away.
        lost = len(unfinished(self.folder, (self.folder.workspace.record() or {}).get("token")))
        if self.settings.options.compile == AUTO and not self.folder.holds_work():
            # The driver's device is not the workers'.
            self.settings = replace(self.settings, options=replace(self.settings.options, compile=OFF))
        checkpoint, self.settings, notes = open_job(self.settings, Processes(), self.folder, {})
        self._say(*notes)
        options = checkpoint.within(self.settings.options)
        self.settings = replace(self.settings, options=options)
        widths = checkpoint.widths(options.levels, options.width)
        token = (self.folder.workspace.record() or {})["token"]
        deduplicate = self.ray_settings.deduplicate
        assignment = Assignment(self.settings, checkpoint, widths, os.getcwd(), token, deduplicate)
        self._check_view(assignment)
        staging = StagingFolder(self.folder, self.settings, deduplicate)
        files = staging.files(self._stage(staging, assignment))
        parts = list(plan(files, staging.path, self.settings, widths))
        known = known_parts(self.folder)
        for part in parts:
            check_known(self.folder, known, part.index, part.first_record)
        shared = None
        if deduplicate and len(self.folder.noted_parts()) < len(parts):
            shared = find_shared(files, staging.path, parts)
            counts = f"{shared.count:,} sequences of {shared.copies:,} records"
            self._say(f"{counts} lie in several parts, and are computed once")
        self._compute(parts, assignment, shared, files)
        digests = [self.digests[part.index] for part in parts]
        entries = complete(self.folder, digests, sum(file.records for file in files))
        staging.remove()
        signs = unfinished(self.folder, token)
        for path in self.folder.journal.glob(f"{token}-*.tmp"):
            path.unlink(missing_ok=True)
        return self._summary(entries, lost + len(signs))

    def _say(self, *notes: str) -> None:
        """Tell the user, each note once."""
        for note in notes:
            if note not in self.reported:
                self.reported.add(note)
                self.report(note)

    def _check_view(self, assignment: Assignment) -> None:
        """Raise unless every node sees the files that the job names where this machine sees them."""
        here = look_around(assignment)
        for address, seen in ask_every_node(self.cluster, look_around, assignment):
            missing = next((path for path in here if here[path] and not seen[path]), None)
            if missing is not None:
                raise JobError(
                    f"the node at {address} does not see {missing or self.folder.path}: put it on a file system that "
                    "all nodes share, under the same path"
                )

    def _stage(self, staging: StagingFolder, assignment: Assignment) -> list[dict[str, Any]]:
        """Read every input into staged files, unless those of an earlier run are still good; return their notes."""
        inputs = self.settings.inputs
        found = {index: earlier for index in range(len(inputs)) if (earlier := staging.find(index)) is not None}
        left = [index for index in range(len(inputs)) if index not in found]
        identities = {index: staging.identity(index) for index in left}
        chunks: dict[int, list[dict[str, Any]]] = {index: [] for index in left}

        def staging_of(data: Any) -> Any:
            # A row per Ray block: what was read is reported as it comes.
            data.context.target_max_block_size = 1
            return data.map_batches(stage_input, batch_size=None, num_cpus=1, fn_kwargs={"assignment": assignment})

        # Standard input is this process's own.
        here = (stage(self.settings, index, assignment.keys) for index in left if inputs[index] == "-")
        elsewhere = _answers([index for index in left if inputs[index] != "-"], staging_of)
        sizes = [source_size(inputs[index]) for index in left]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        with Progress(total, shown=self.show_progress, unit="records") as bar:
            for answer in chain(*here, elsewhere):
                self._take(answer, InputError)
                index = answer["index"]
                bar.read(answer["bytes"])
                bar.embedded(answer["records"], answer["records"])
                bar.part_done()
                if answer["file"]:
                    chunks[index].append({"file": answer["file"], "records": answer["records"]})
                    continue
                if identities[index] != staging.identity(index):
                    raise InputError(
                        f"{inputs[index]} has changed while it was read: give the same command again once it is whole"
                    )
                chunks[index].sort(key=itemgetter("file"))
                found[index] = {"chunks": chunks[index], "notes": answer["notes"]}
                staging.note(index, found[index], identities[index])
        staged = [found[index] for index in range(len(inputs))]
        for each in staged:
            self._say(*each["notes"])
        return staged

    def _compute(
        self,
        parts: Sequence[PlannedPart],
        assignment: Assignment,
        shared: SharedSequences | None,
        files: Sequence[StagedFile],
    ) -> None:
        """Have the parts made that are not whole, shared sequences first, and put each in its place."""
        import ray

        tasks: list[dict[str, Any]] = [{"part": asdict(part)} for part in parts]
        if shared is not None:
            tasks = [{"group": n} for n in range(shared.groups) if not shared.group_path(n).exists()] + tasks
        strategy = ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=max(1, min(self.cluster.actors, len(tasks))),
            max_size=self.ray_settings.workers,
            # The next part waits where it will be made.
            max_tasks_in_flight_per_actor=2,
        )

        def made(data: Any) -> Any:
            # Ray starts a lost actor again, and gives what it had in hand to whoever is there. One pool does it all:
            # a large model is loaded once.
            given = (assignment, shared, files if shared is not None else ())
            cpus, gpus = self.ray_settings.cpus, self.cluster.gpus or None
            return data.map(PartWorker, fn_constructor_args=given, compute=strategy, num_cpus=cpus, num_gpus=gpus)

        with Progress(sum(part.letters for part in parts), shown=self.show_progress) as bar:
            for answer in _answers(tasks, made):
                self._take(answer)
                letters = parts[answer["index"]].letters if "index" in answer else 0
                bar.read(letters)
                if "index" in answer:
                    self.digests[answer["index"]] = answer["digest"]
                if "sign" not in answer:
                    self.kept += 1
                    bar.skipped()
                    continue
                if "entry" in answer:
                    self.folder.adopt(self.folder.journal / answer["handed"], PartEntry.from_json(answer["entry"]))
                (self.folder.journal / answer["sign"]).unlink(missing_ok=True)
                bar.embedded(letters, letters)
                bar.part_done()

    def _take(self, answer: dict[str, Any], kind: type[ValueError] = JobError) -> None:
        """Take the notes and the work of an answer; its error is raised as this kind."""
        self._say(*answer["notes"])
        if answer["error"]:
            raise kind(answer["error"])
        if "work" in answer:
            work = answer["work"]
            if "device" in work:
                self._note_kind(kind_of(work["device"]))
            # Answers may come in another order than they were given.
            self.work[work["worker"]] = max(self.work.get(work["worker"], work), work, key=itemgetter("read"))

    def _note_kind(self, kind: str) -> None:
        """Note the kind of device that workers compute on; raises a JobError where an earlier one had another."""
        check_kind(self.folder, kind)
        manifest = self.folder.manifest() or {}
        if "device" not in manifest:
            self.folder.write_manifest({**manifest, "device": kind})

    def _summary(self, entries: list[PartEntry], lost: int) -> JobSummary:
        devices = [work["device"].partition(":")[0] for work in self.work.values() if "device" in work]
        workers = f"{len(devices)} worker{'s' if len(devices) != 1 else ''} ({', '.join(sorted(set(devices)))})"
        names = ("read", "check", "load", "embed", "write", "tokens", "padding")
        totals = {name: sum(work.get(name, 0) for work in self.work.values()) for name in names}
        return JobSummary(
            **counted(entries),
            parts=len(entries),
            parts_kept=self.kept,
            tokens=totals.pop("tokens"),
            padding=totals.pop("padding"),
            seconds=totals,
            device=workers if devices else None,
            lost=lost,
        )


def _answers(tasks: Sequence[Any], compute: Callable[[Any], Any]) -> Iterator[dict[str, Any]]:
    """What workers answer to tasks, as it comes, in any order; JobError where the cluster could not go on.

    Each task goes as JSON to one row, and one Ray block, of a dataset, of which ``compute`` makes rows of JSON.
    """
    import ray
    from ray.exceptions import RayError

    if not tasks:
        return
    data = ray.data.from_items([{"task": json.dumps(task)} for task in tasks], override_num_blocks=len(tasks))
    try:
        for row in compute(data).iter_rows():
            yield json.loads(row["answer"])
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        message = lines[-1] if lines else type(error).__name__
        raise JobError(
            f"the workers could not go on ({type(error).__name__}: {message[:300]}): look at Ray's logs, and give the "
            "same command again to go on; what is finished is kept"
        ) from error
