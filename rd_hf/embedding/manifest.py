"""The manifest of an embedding job: started, compared with another job, taken up."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rd_hf.carried import is_carried_input
from rd_hf.data.records import InputError, readable
from rd_hf.data.remote import facts_of, is_remote, pinned
from rd_hf.data.sources import is_hub_dataset, source_size
from rd_hf.devices import pick_device
from rd_hf.embedding.checkpoint import Checkpoint, resolve
from rd_hf.embedding.compiling import decided
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry, differences
from rd_hf.embedding.options import AUTO, DTYPE, OFF, PLAIN
from rd_hf.embedding.quantization import described_grid
from rd_hf.embedding.settings import COLUMNS, LIMITS, JobSettings
from rd_hf.embedding.storage import FORMATS, columns_of, described, format_of
from rd_hf.launch import Processes
from rd_hf.version import __version__

# Settings that decide what is written, beside the embedding's options.
DECIDING = (*COLUMNS, *LIMITS, "attn_implementation")
# What options are where a manifest does not name them.
_UNSAID = {"width": None, "whiten": False, "layout": PLAIN, "compile": OFF}


def open_job(
    settings: JobSettings,
    group: Processes,
    folder: OutputFolder,
    about: Mapping[str, Any],
    checks: Sequence[Callable[[Checkpoint], None]] = (),
    kind: Callable[[], str] | None = None,
) -> tuple[Checkpoint, JobSettings, list[str]]:
    """Claim the folder, and start or take up its manifest in the main process, for which the others wait.

    Args:
        settings, group, folder: of the job.
        about: what else decides what is written, beside the settings.
        checks: each raises a JobError where the model is not one for this job.
        kind: gives the kind of device that computes; None where that is known later.

    Returns:
        The model, the settings with sequences no longer than it takes, and what the user should know.
    """
    failure: Exception | None = None
    notes: list[str] = []
    if group.is_main:
        try:
            settings = _with_pinned_inputs(settings, folder, folder.holds_work())
            noted = (folder.manifest() or {}).get("model", {}).get("backbones") or settings.backbones
            checkpoint = resolve(settings.model, settings.revision, settings.one_pass, noted)
            checkpoint.refuse_to_store(settings.options)
            settings, said = _with_compile(settings, folder, checkpoint, folder.holds_work())
            job = {**_describe(settings, checkpoint.widths(settings.options.levels, settings.options.width)), **about}
            for check in checks:
                check(checkpoint)
            # Asked before the folder is touched, and again once nobody else can change it.
            _compare(folder, checkpoint, job)
            folder.claim()
            notes = _begin(settings, folder, checkpoint, job, kind) + said
        except (InputError, JobError) as error:
            failure = error
    if not group.all_well(failure is None):
        raise failure or JobError("stopped, because the main process could not start the job")
    if not group.is_main:
        # The main process has hashed the weights for all.
        checkpoint = Checkpoint(**(folder.manifest() or {})["model"])
        settings = _with_pinned_inputs(settings, folder, begun=True)
        settings, _ = _with_compile(settings, folder, checkpoint, begun=True)
    return checkpoint, replace(settings, options=checkpoint.within(settings.options)), notes


def dtype_of(output: str) -> str:
    """Return what a command that names no dtype computes in: as the folder was begun, else the default."""
    return str((OutputFolder(output).manifest() or {}).get("job", {}).get("dtype", DTYPE))


def _describe(settings: JobSettings, widths: dict[str, int]) -> dict[str, Any]:
    """Describe everything that decides what is written, apart from the weights."""
    # Those that are not there in manifests of earlier versions are named where they are asked for alone.
    chosen = asdict(settings.options).items()
    options = {name: one for name, one in chosen if name not in _UNSAID or one != _UNSAID[name]}
    job = {**options, **{name: getattr(settings, name) for name in DECIDING}}
    job |= {"inputs": settings.names, "levels": tuple(widths)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in job.items()}


def _files(settings: JobSettings) -> list[dict[str, Any] | None]:
    """Return where each input that is a file lies, its size, and of one elsewhere what changes with its content.

    Files are compared by this, not by their names.
    """

    def noted(source: str) -> dict[str, Any] | None:
        if is_remote(source):
            return facts_of(source)
        size = source_size(source)
        return None if size is None else {"path": _place(source), "bytes": size}

    return list(map(noted, settings.inputs))


def _files_then(manifest: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """What :func:`_files` was; None for each input where a version did not note it, or it is not as it is noted."""
    inputs, found = manifest.get("job", {}).get("inputs", []), manifest.get("files")
    if not isinstance(found, list) or len(found) != len(inputs):
        return [None] * len(inputs)
    kinds = {"path": str, "bytes": int}
    return [
        one if isinstance(one, dict) and all(isinstance(one.get(name), kind) for name, kind in kinds.items()) else None
        for one in found
    ]


def _place(path: str) -> str:
    # Carried proteins are the same wherever the package is installed, and an address wherever it is typed.
    return path if is_carried_input(path) or is_remote(path) else readable(str(Path(path).resolve()))


def with_stored_settings(settings: JobSettings, folder: OutputFolder) -> JobSettings:
    """Call the inputs as an earlier run did, where they are the same files under paths written otherwise."""
    before = folder.manifest() or {}
    then = before.get("job", {}).get("inputs", [])
    files = _files_then(before)
    if not len(then) == len(files) == len(settings.inputs):
        return settings
    for source, name, file in zip(settings.inputs, then, files, strict=True):
        known = _place(name) if file is None else file["path"]
        if readable(source) != name and (source == "-" or is_hub_dataset(source) or _place(source) != known):
            return settings
    return replace(settings, called=tuple(then))


def _with_pinned_inputs(settings: JobSettings, folder: OutputFolder, begun: bool) -> JobSettings:
    """Read inputs on the Hub at one commit: where the job has begun the one that it noted, else today's."""
    before = (folder.manifest() if begun else None) or {}
    noted = zip(before.get("job", {}).get("inputs", []), _files_then(before), strict=True)
    then = {name: file["path"] for name, file in noted if file is not None}
    places = tuple(pinned(then.get(one, one)) if is_remote(one) else one for one in settings.inputs)
    return settings if places == settings.inputs else replace(settings, inputs=places, called=settings.names)


def _with_compile(
    settings: JobSettings, folder: OutputFolder, checkpoint: Checkpoint, begun: bool
) -> tuple[JobSettings, list[str]]:
    """Whether layers are compiled, where that is left open: as the job has begun; by its device and input, if asked."""
    if settings.options.compile not in (None, AUTO):
        return settings, []
    if begun or settings.options.compile is None:
        then = (folder.manifest() or {}).get("job", {}).get("compile", OFF) if begun else OFF
        return replace(settings, options=replace(settings.options, compile=then)), []
    sizes = [source_size(source) for source in settings.inputs]
    # A letter of an input is a byte, or less than one where it is compressed.
    residues = None if None in sizes else sum(size or 0 for size in sizes)
    device = settings.device or str(pick_device())
    choice, said = decided(AUTO, device, residues, checkpoint.nested_dims[checkpoint.largest(settings.options)])
    return replace(settings, options=replace(settings.options, compile=choice)), [] if said is None else [said]


def known_parts(folder: OutputFolder) -> int | None:
    """How many parts a finished job has, None where it is not finished."""
    manifest = folder.manifest() or {}
    return len(manifest["parts"]) if manifest.get("status") == "complete" else None


def check_known(folder: OutputFolder, known: int | None, index: int, first_record: int) -> None:
    """Raise a JobError where a finished job's input has a part more than it had."""
    if known is not None and index >= known:
        raise JobError(
            f"the input is longer than when {folder.path} was finished: it has records from number {first_record:,} on "
            "that it had not; give the same input as before, or choose another --output"
        )


def _compare(folder: OutputFolder, checkpoint: Checkpoint, job: dict[str, Any]) -> dict[str, Any] | None:
    """Return the manifest of an earlier run that finished a part, if there was one.

    Raises:
        JobError: it is another job's, whose parts this one's would be mixed with.
    """
    before = folder.manifest()
    if before is None or not folder.holds_work():
        return None
    if before.get("format") not in FORMATS:
        raise JobError(f"{folder.path} was written by another version of rd_hf: choose another --output")
    then = before.get("job", {})
    if job.get("extends_sha256") is not None and job["extends_sha256"] == then.get("extends_sha256"):
        # The same folder, wherever it lies or however its path is written.
        job = {**job, "extends": then.get("extends")}
    unsaid = {"layout": PLAIN, "compile": OFF}
    changed = list(differences(unsaid | then, unsaid | job))
    old = before.get("model", {})
    if checkpoint.backbones and "backbones" not in old and before.get("status") != "complete":
        raise JobError(
            f"{folder.path} was begun by a version that did not note which commits it loaded of "
            f"{', '.join(checkpoint.backbones)}, which may have moved on: choose another --output"
        )
    if not checkpoint.is_of(old.get("fingerprint"), old.get("backbones", {})):
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
    return before


def _begin(
    settings: JobSettings,
    folder: OutputFolder,
    checkpoint: Checkpoint,
    job: dict[str, Any],
    kind: Callable[[], str] | None,
) -> list[str]:
    """Write the manifest of a new job, or take up that of an earlier run; what the user should know about it."""
    before = _compare(folder, checkpoint, job)
    if before is None:
        widths = checkpoint.widths(settings.options.levels, settings.options.width)
        grid = checkpoint.grid(settings.options)
        content = {
            "format": format_of(settings.options),
            "status": "running",
            "model": asdict(checkpoint),
            "job": job,
            "files": _files(settings),
            "columns": described(columns_of(settings.options, widths, checkpoint.nested_dims)),
            **({} if grid is None else {"grid": described_grid(grid)}),
            **({} if kind is None else {"device": kind()}),
            "versions": installed_versions(),
        }
        folder.write_manifest(content)
        return []
    if kind is not None and before.get("status") != "complete":
        check_kind(folder, kind())
    if before.get("model") != asdict(checkpoint):
        # The same weights under another name: the other processes load what the manifest names.
        folder.write_manifest({**before, "model": asdict(checkpoint)})
    notes = []
    for name, then, now in zip(settings.names, _files_then(before), _files(settings), strict=False):
        if before.get("status") == "complete" or not then or not now:
            continue
        if any(then.get(one) != now.get(one) for one in ("bytes", "version")):
            unlike = "" if then["bytes"] != now["bytes"] else ", but has changed since"
            notes.append(
                f"{name} had {then['bytes']:,} bytes when {folder.path} was begun and has {now['bytes']:,}{unlike}: "
                "finished parts are compared with it, and the others made of it as it is now"
            )
        elif is_remote(name) and (today := pinned(name)) != now["path"]:
            notes.append(f"{name} has moved on, to {today}: it is read as it was when {folder.path} was begun")
    updated = differences(before.get("versions", {}), installed_versions())
    if not updated or before.get("status") == "complete":
        return notes
    return [
        *notes,
        f"begun with other versions ({'; '.join(updated)}): parts done now may differ from the others in last digits",
    ]


def check_kind(folder: OutputFolder, kind: str) -> None:
    """Raise a JobError where a folder was begun on another kind of device: its parts would not be of one kind."""
    then = (folder.manifest() or {}).get("device", kind)
    if then != kind:
        raise JobError(
            f"{folder.path} was begun on {then}, and this is {kind}, whose numbers differ in their last digits (in "
            f"bfloat16 in their third): go on with --device {then}, or choose another --output"
        )


def installed_versions() -> dict[str, str]:
    """What is installed, as far as it can change a digit."""
    packages = {name: version(name) for name in ("torch", "transformers", "pyarrow")}
    return {"python": platform.python_version(), "rd_hf": __version__, **packages}


def check_digest(folder: OutputFolder, entry: PartEntry, digest: str) -> None:
    if entry.digest != digest:
        raise JobError(
            f"the input has changed since {folder.path} was begun: records from number {entry.first_record:,} on "
            "differ; give the same input as before, or choose another --output"
        )
