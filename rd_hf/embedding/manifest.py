"""The manifest of an embedding job: begun, refused to another job, completed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from typing import Any

from rd_hf import __version__
from rd_hf.data.fasta import InputError
from rd_hf.data.text import readable
from rd_hf.embedding.checkpoint import Checkpoint, pick_device, resolve
from rd_hf.embedding.dtypes import choose_dtype, warn_of
from rd_hf.embedding.folder import JobError, OutputFolder, PartEntry, differences
from rd_hf.embedding.settings import JobSettings
from rd_hf.launch import Processes

MANIFEST_FORMAT = 2


def open_job(
    settings: JobSettings,
    group: Processes,
    folder: OutputFolder,
    about: Mapping[str, Any],
    checks: Sequence[Callable[[Checkpoint], None]] = (),
) -> tuple[Checkpoint, JobSettings, list[str]]:
    """Claim the folder, and begin or take up its manifest: the main process's part, the others wait for it.

    Args:
        settings, group, folder: of the job.
        about: what else decides what is written, beside the settings.
        checks: each raises a JobError where the model is not one for this job.

    Returns:
        The model, the settings with a dtype that all processes share, and what the user should know.
    """
    failure: Exception | None = None
    notes: list[str] = []
    if group.is_main:
        try:
            checkpoint = resolve(settings.model, settings.revision, settings.one_pass)
            if settings.options.whiten:
                checkpoint.refuse_to_whiten()
            settings, said = _settle_dtype(settings, group, folder, checkpoint)
            job = {**_describe(settings, checkpoint.widths(settings.options.levels, settings.options.width)), **about}
            for check in checks:
                check(checkpoint)
            # Asked before the folder is touched, and again once nobody else can change it.
            _compare(folder, checkpoint, job)
            folder.claim()
            notes = [*said, *_begin(settings, folder, checkpoint, job)]
        except (InputError, JobError) as error:
            failure = error
    if not group.all_well(failure is None):
        raise failure or JobError("stopped, because the main process could not start the job")
    if group.is_main:
        return checkpoint, settings, notes
    # The main process has hashed the weights, and settled what was left open, for all.
    manifest = folder.manifest() or {}
    return Checkpoint(**manifest["model"]), _with_dtype(settings, manifest["job"]["dtype"]), notes


def _settle_dtype(
    settings: JobSettings, group: Processes, folder: OutputFolder, checkpoint: Checkpoint
) -> tuple[JobSettings, list[str]]:
    """Settings with a dtype in place of ``auto``: that of an earlier run, or what suits the device."""
    dtype = settings.options.dtype
    before = (folder.manifest() or {}).get("job", {}).get("dtype")
    if dtype == "auto" and before is not None:
        return _with_dtype(settings, before), []
    if dtype == "float32" or before is not None:
        return settings, []
    device = settings.device or str(pick_device(group.local_rank))
    width = max(checkpoint.widths(settings.options.levels).values())
    if dtype == "auto":
        dtype, said = choose_dtype(device, width)
    else:
        said = warn_of(dtype, device, width)
    return _with_dtype(settings, dtype), [said] if said else []


def _with_dtype(settings: JobSettings, dtype: str) -> JobSettings:
    return replace(settings, options=replace(settings.options, dtype=dtype))


def _describe(settings: JobSettings, widths: dict[str, int]) -> dict[str, Any]:
    """Everything that decides what is written, apart from the weights."""
    options = asdict(settings.options)
    del options["levels"]
    # Said where they are asked for: manifests of versions without them mean their defaults.
    options = {name: value for name, value in options.items() if value or name not in ("width", "whiten")}
    return {
        "inputs": [readable(source) for source in settings.inputs],
        "levels": list(widths),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
        "sequence_column": settings.sequence_column,
        "id_column": settings.id_column,
        "positions_column": settings.positions_column,
        "part_records": settings.part_records,
        "part_bytes": settings.part_bytes,
        "attn_implementation": settings.attn_implementation,
    }


def _compare(folder: OutputFolder, checkpoint: Checkpoint, job: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier run, None if there was none, or none that finished a part: it claims nothing.

    Raises:
        JobError: it is another job's, whose parts this one's would be mixed with.
    """
    before = folder.manifest()
    if before is None or not folder.holds_work():
        return None
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
    return before


def _begin(settings: JobSettings, folder: OutputFolder, checkpoint: Checkpoint, job: dict[str, Any]) -> list[str]:
    """Write the manifest of a new job, or take up that of an earlier run.

    Returns:
        What the user should know about parts done before.
    """
    before = _compare(folder, checkpoint, job)
    if before is None:
        widths = checkpoint.widths(settings.options.levels, settings.options.width)
        content = {
            "format": MANIFEST_FORMAT,
            "status": "running",
            "model": asdict(checkpoint),
            "job": job,
            "columns": {settings.options.column(level): {"level": level, "width": w} for level, w in widths.items()},
            "versions": installed_versions(),
        }
        folder.write_manifest(content)
        return []
    if before.get("model") != asdict(checkpoint):
        # The same weights under another name: the other processes load what the manifest names.
        folder.write_manifest({**before, "model": asdict(checkpoint)})
    updated = differences(before.get("versions", {}), installed_versions())
    if not updated or before.get("status") == "complete":
        return []
    return [
        f"begun with other versions ({'; '.join(updated)}): parts done now may differ from the others in last digits"
    ]


def installed_versions() -> dict[str, str]:
    """What is installed, as far as it can change a digit."""
    packages = ("torch", "transformers", "pyarrow")
    return {
        "python": platform.python_version(),
        "rd_hf": __version__,
        **{name: version(name) for name in packages},
    }


def check_digest(folder: OutputFolder, entry: PartEntry, digest: str) -> None:
    if entry.digest != digest:
        raise JobError(
            f"the input has changed since {folder.path} was begun: records from number {entry.first_record:,} on "
            "differ; give the same input as before, or choose another --output"
        )
