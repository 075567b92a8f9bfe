"""Raw embeddings of each backbone, and bases: the nested embeddings, in the folder that ``rd-hf embed`` writes.

Everything after the backbones is affine, so that means of each backbone's final states over residues are enough for
means of the nested embedding, and no backbone is loaded. Levels are told by width, proteins by id; the order is that
of the smallest level. The values are read as a stream; what grows with their number is a list of ids a level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rd_hf.conversion.raw import Raw, in_chunks, open_raw
from rd_hf.data.fasta import FastaRecord, InputError
from rd_hf.embedding.algebra import extend, projection
from rd_hf.embedding.checkpoint import resolve
from rd_hf.embedding.columns import why_not_stored
from rd_hf.embedding.folder import Reject
from rd_hf.embedding.job import run_worker
from rd_hf.embedding.parts import Part, part_limit
from rd_hf.embedding.settings import JobSettings, JobSummary
from rd_hf.embedding.worker import Row, Worker
from rd_hf.launch import Processes
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel

POOLINGS = ("mean", "residue", "cls")
# Proteins read together: so many bytes of raw vectors (a Parquet file in another order is read once for each), or few
# where each is a matrix.
_CHUNK_BYTES, _CHUNK_MATRICES = 32 << 20, 16
# Below this cosine of a data set's mean with the mean that the basis was fitted on, the embeddings are of another model
# or were centred. With the mini family 60 proteins came to 0.96, the least alike single protein to 0.48.
_RESEMBLES = 0.3


@dataclass(slots=True)
class LevelInput:
    """All raw embeddings of one level.

    Attributes:
        name, width: of the level's backbone.
        sources: read as one, after each other.
        order: place in that row of each protein of the job.
    """

    name: str
    width: int
    sources: list[Raw]
    order: np.ndarray

    def take(self, places: Sequence[int], pooling: str) -> list[np.ndarray]:
        """Values of proteins of the job: (width,) float32 each, or (residues, width) with pooling ``residue``.

        Raises:
            InputError: a value is not of the shape that it should have.
        """
        starts = np.cumsum([0, *(len(source.ids) for source in self.sources)])
        rows = self.order[list(places)]
        owners = np.searchsorted(starts, rows, side="right") - 1
        values: list[np.ndarray] = [np.empty(0)] * len(rows)
        for owner, source in enumerate(self.sources):
            mine = np.flatnonzero(owners == owner)
            if mine.size == 0:
                continue
            own = (rows[mine] - starts[owner]).tolist()
            for target, place, value in zip(mine.tolist(), own, source.take(own), strict=True):
                values[target] = self._checked(value, pooling, f"{source.path}: {source.ids[place]}")
        return values

    def _checked(self, value: np.ndarray, pooling: str, what: str) -> np.ndarray:
        if value.ndim == 2 and pooling == "mean" and len(value):
            value = value.mean(axis=0, dtype=np.float64)
        if value.shape[-1:] != (self.width,) or value.ndim != (2 if pooling == "residue" else 1) or not len(value):
            wanted = f"(residues, {self.width})" if pooling == "residue" else f"({self.width},)"
            raise InputError(f"{what} is of shape {value.shape} where {wanted} is wanted for --pooling {pooling}")
        return np.ascontiguousarray(value, dtype=np.float32)


def open_levels(settings: JobSettings, config: RDEsmConfig, ids: str | None = None) -> list[LevelInput]:
    """Open all inputs, tell their levels, and match their ids.

    Args:
        settings: of the job; an input is a path, or ``LEVEL=path`` where widths do not tell.
        config: of the model.
        ids: file with the ids of ``.npy`` files.

    Returns:
        The levels, smallest first.

    Raises:
        InputError: an input cannot be read, is of no backbone's width, or a level or id is missing or there twice.
    """
    depths: dict[int, set[int]] = {}
    for index, width in enumerate(config.backbone_widths):
        depths.setdefault(width, set()).add(config.depth(index))
    sources: dict[str, list[Raw]] = {}
    for text in settings.inputs:
        named, _, path = text.rpartition("=")
        if named not in config.level_names:
            named, path = "", text
        # Of a width that several levels have, what was named says which it is.
        layers = {width: found.pop() for width, found in deepcopy(depths).items() if len(found) == 1}
        if named:
            index = config.level_index(named)
            layers[config.backbone_widths[index]] = config.depth(index)
        for source in open_raw(path, settings.options.pooling, layers, settings.id_column, ids):
            sources.setdefault(_level_of(source, named, config), []).append(source)
    wanted = settings.options.levels or (max(sources, key=config.level_index),)
    top = max(config.level_index(level) for level in wanted)
    for index, name in enumerate(config.level_names[: top + 1]):
        if config.depth(index) < config.levels[index]["backbone"]["num_hidden_layers"]:
            raise InputError(
                f"level {name} is layer {config.depth(index)} of a backbone under its final norm, and stored states of "
                f"a layer are without it: embed the sequences instead, or convert to a level below {name}"
            )
        if name not in sources:
            raise InputError(
                f"no input is {config.backbone_widths[index]:,} wide: level {config.level_names[top]} needs the raw "
                f"embeddings of {', '.join(config.level_names[: top + 1])}, and those of {name} are missing"
            )
    names = config.level_names[: top + 1]
    listed = {name: pa.array([one for source in sources[name] for one in source.ids], pa.string()) for name in names}
    for name in names:
        _refuse_repeats(listed[name], f"{', '.join(source.path for source in sources[name])} (level {name})")
    first = listed[names[0]]
    inputs = []
    for name, width in zip(names, config.backbone_widths, strict=False):
        order = pc.index_in(first, value_set=listed[name])
        missing = first.filter(pc.is_null(order)), names[0], name
        if not order.null_count:
            missing = listed[name].filter(pc.invert(pc.is_in(listed[name], value_set=first))), name, names[0]
        lacking, there, here = missing
        if len(lacking):
            raise InputError(
                f"{len(lacking):,} ids of level {there} are not among those of level {here} ({lacking[0].as_py()!r}, "
                f"...): give each level the same proteins under the same ids"
            )
        inputs.append(LevelInput(name, width, sources[name], order.to_numpy()))
    return inputs


def _level_of(source: Raw, named: str, config: RDEsmConfig) -> str:
    levels = list(zip(config.level_names, config.backbone_widths, strict=True))
    by_width = [name for name, width in levels if width == source.width]
    if named in by_width or (not named and len(by_width) == 1):
        return named or by_width[0]
    if not by_width or named:
        known = ", ".join(f"{width:,} ({name})" for name, width in levels)
        raise InputError(
            f"{source.path} is {source.width:,} wide, which {f'level {named}' if named else 'no backbone'} of this "
            f"model is: they are {known}"
        )
    raise InputError(f"{source.path} may be of level {' or '.join(by_width)}: write LEVEL=path")


def _refuse_repeats(ids: pa.Array, where: str) -> None:
    counts = ids.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise InputError(
            f"{where} has {len(repeated):,} ids more than once ({repeated[0].as_py()!r}, ...): proteins are told by "
            f"their ids, so keep one embedding of each"
        )


@dataclass(slots=True)
class RawPart(Part):
    """Consecutive proteins and their raw values, one list a level."""

    values: list[list[np.ndarray]] = field(default_factory=list)


@dataclass(slots=True)
class ConvertingWorker(Worker):
    """Does a part from raw values and the bases."""

    levels: list[LevelInput] = field(kw_only=True)

    def parts(self) -> Iterator[Part]:
        """The proteins in the smallest level's order; cuts and digests follow from ids and values."""
        settings, pooling = self.settings, self.settings.options.pooling
        smallest = self.levels[0]
        names = [(source.path, one) for source in smallest.sources for one in source.ids]
        row_bytes = 4 * sum(level.width for level in self.levels)
        part = RawPart(0, 1, [], "", [[] for _ in self.levels])
        used, hasher = 0, hashlib.sha256()
        chunk = _CHUNK_MATRICES if pooling == "residue" else max(1, _CHUNK_BYTES // row_bytes)
        for places in in_chunks(len(names), chunk):
            taken = [level.take(places, pooling) for level in self.levels]
            self.progress.read(len(places))
            for place, *values in zip(places, *taken, strict=True):
                source, one = names[int(smallest.order[place])]
                if len({value.shape[:-1] for value in values}) > 1:
                    found = ", ".join(f"{len(v)} ({level.name})" for v, level in zip(values, self.levels, strict=True))
                    raise InputError(f"{source}: {one} differs in its number of residues from level to level: {found}")
                size = row_bytes * (len(values[0]) if pooling == "residue" else 1)
                full = used + size > settings.part_bytes
                full |= len(part.records) == part_limit(part.first_record - 1, settings.part_records)
                if part.records and full:
                    part.digest = hasher.hexdigest()
                    yield part
                    part = RawPart(part.index + 1, place + 1, [], "", [[] for _ in self.levels])
                    used, hasher = 0, hashlib.sha256()
                part.records.append((source, FastaRecord(place + 1, one, one, "")))
                hasher.update(f"{len(one)} {one}".encode())
                for own, value in zip(part.values, values, strict=True):
                    own.append(value)
                    hasher.update(value.tobytes())
                used += size
        part.digest = hasher.hexdigest()
        yield part

    def do(self, part: Part) -> None:
        assert isinstance(part, RawPart)
        options = self.settings.options
        model, level = self.started().model, self.started().level
        with self.stages.stage("embed"):
            if part.index == 0:
                self._look(model, part)
            lengths = [len(np.atleast_2d(value)) for value in part.values[0]]
            flat = [torch.from_numpy(np.concatenate([np.atleast_2d(value) for value in own])) for own in part.values]
            brought = [
                projection(model, index).contribution(own.to(model.device))
                for index, own in enumerate(flat[1:], start=1)
            ]
            wide = extend(
                model, flat[0], torch.cat(brought, dim=-1) if brought else flat[0][:, :0], self.levels[0].name, level
            )
            results = np.split(wide.cpu().numpy(), np.cumsum(lengths)[:-1])
        rows: list[Row] = []
        rejects: list[Reject] = []
        for place, (length, result) in enumerate(zip(lengths, results, strict=True)):
            source, record = part.records[place]
            value = result[0] if options.one_row else result
            reason = why_not_stored(value, self.widths, options)
            if not np.isfinite(value).all():
                reason = "its raw embeddings are not finite"
            if reason is None:
                rows.append(Row(place, None if options.one_row else length, (), record.id, False, value))
            elif self.settings.strict:
                raise InputError(f"{source}: {record.id} cannot be converted: {reason}")
            else:
                rejects.append(Reject(source, part.first_record + place, record.id, reason))
        self.progress.embedded(len(lengths), len(lengths))
        with self.stages.stage("write"):
            self.write(part, rows, rejects)

    def _look(self, model: RDEsmModel, part: RawPart) -> None:
        """Say so where the embeddings look like those of another backbone, or not raw."""
        if len(self.levels) < 2 or self.settings.options.pooling == "cls":
            return
        steps = [projection(model, index) for index in range(1, len(self.levels))]
        fitted = [steps[0].prefix_mean, *(step.backbone_mean for step in steps)]
        for level, values, expected in zip(self.levels, part.values, fitted, strict=True):
            mean = np.mean([np.atleast_2d(value).mean(axis=0) for value in values], axis=0)
            cosine = float(torch.cosine_similarity(torch.from_numpy(mean), expected.cpu(), dim=0))
            if cosine < _RESEMBLES:
                self.report(
                    f"the mean of the embeddings of level {level.name} has cosine {cosine:.2f} with the mean that its "
                    f"basis was fitted on: are they raw states of {level.name}'s backbone?"
                )


def convert(
    settings: JobSettings,
    ids: str | None = None,
    group: Processes | None = None,
    report: Callable[[str], None] | None = None,
    show_progress: bool = True,
) -> JobSummary:
    """Convert raw embeddings to nested ones, or go on where an earlier run stopped.

    Args:
        settings: model (its bases are enough), inputs (see :func:`open_levels`), output, levels, pooling.
        ids: file with the ids of ``.npy`` inputs.
        group, report, show_progress: as in :func:`rd_hf.embedding.job.run_job`.

    Raises:
        InputError: an input or the model cannot be used; :func:`open_levels` says which.
        JobError: the folder cannot be used, belongs to another job, or is full.
        ValueError: a pooling that raw embeddings do not give.
    """
    if settings.options.pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {settings.options.pooling!r}")
    if settings.options.whiten or settings.options.width is not None:
        raise ValueError("embeddings are converted plain and whole: rd-hf search whitens by the database itself")
    checkpoint = resolve(settings.model, settings.revision)
    checkpoint.widths(settings.options.levels)
    config = RDEsmConfig.from_pretrained(checkpoint.name, revision=checkpoint.revision)
    levels = open_levels(settings, config, ids)
    top = levels[-1].name
    settings = replace(settings, options=replace(settings.options, levels=settings.options.levels or (top,)))
    about: Mapping[str, Any] = {"converted": [level.name for level in levels], "ids": ids}
    return run_worker(
        settings,
        group or Processes(),
        partial(ConvertingWorker, levels=levels, above=top),
        about,
        (),
        report,
        show_progress,
        total=len(levels[0].order),
        unit="proteins",
    )
