"""Raw embeddings of each backbone, and bases: the nested embeddings, in the folder that ``rd-hf embed`` writes.

Everything after the backbones is affine, so that means of each backbone's final states over residues are enough for
means of the nested embedding, and no backbone is loaded. Levels are told by width, proteins by id; the order is that
of the smallest level. The values are read as a stream; what grows with their number is a list of ids per level.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from rd_hf.carried import model_place
from rd_hf.conversion.raw import Raw, open_raw
from rd_hf.conversion.relayout import change_layout
from rd_hf.conversion.settings import ConvertSettings
from rd_hf.data.records import FastaRecord, InputError, Say
from rd_hf.embedding.algebra import extend, projection
from rd_hf.embedding.checkpoint import resolve
from rd_hf.embedding.columns import why_not_stored
from rd_hf.embedding.folder import Reject
from rd_hf.embedding.job import run_worker
from rd_hf.embedding.parts import Part, part_limit
from rd_hf.embedding.settings import JobSummary
from rd_hf.embedding.worker import Row, Worker
from rd_hf.launch import Processes
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.pooling_rd_esm import pooling_named

# Proteins read together: so many bytes of raw vectors (a Parquet file in another order is read once for each), or few
# where each is a matrix.
_CHUNK_BYTES, _CHUNK_MATRICES = 32 << 20, 16
# Below this cosine of a data set's mean with the mean that the basis was fitted on, the embeddings are of another model
# or were centred. With the mini family 60 proteins came to 0.96, the least alike single protein to 0.48.
_RESEMBLES = 0.3


@dataclass(slots=True)
class LevelInput:
    """All raw embeddings of one level, in sources that are read as one, after each other."""

    name: str
    width: int
    sources: list[Raw]
    order: np.ndarray  # the place, in all sources together, of each protein of the job

    def take(self, places: Sequence[int], pooling: str) -> list[np.ndarray]:
        """Return values of proteins: (width,) float32 each, or (residues, width) with pooling ``residue``."""
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
        one_row = pooling_named(pooling).one_row
        if value.shape[-1:] != (self.width,) or value.ndim != (1 if one_row else 2) or not len(value):
            wanted = f"({self.width},)" if one_row else f"(residues, {self.width})"
            raise InputError(f"{what} is of shape {value.shape} where {wanted} is wanted for --pooling {pooling}")
        return np.ascontiguousarray(value, dtype=np.float32)


def open_levels(settings: ConvertSettings, config: RDEsmConfig) -> list[LevelInput]:
    """Open all inputs, find their levels by width or by the name given, smallest first, and match their ids.

    An InputError if one cannot be read, is of no backbone's width, or a level or id is missing or there twice.
    """
    sources: dict[str, list[Raw]] = {}
    for text in settings.input:
        named, _, path = text.rpartition("=")
        if named not in config.level_names:
            named, path = "", text
        widths = {
            name: width
            for name, width in zip(config.level_names, config.backbone_widths, strict=True)
            if named in ("", name)
        }
        depths = {(width, config.depth(config.level_index(name))) for name, width in widths.items()}
        # A width with two depths is not known by the width alone.
        known = [width for width, _ in depths]
        layers = {width: depth for width, depth in depths if known.count(width) == 1}
        for source in open_raw(path, settings.pooling, layers, settings.id_column, settings.ids):
            sources.setdefault(_level_of(source, widths, config), []).append(source)
    wanted = settings.level or (max(sources, key=config.level_index),)
    names = config.level_names[: max(config.level_index(level) for level in wanted) + 1]
    for index, name in enumerate(names):
        if config.depth(index) < config.levels[index]["backbone"]["num_hidden_layers"]:
            raise InputError(
                f"level {name} is layer {config.depth(index)} of a backbone under its final norm, and stored states of "
                f"a layer are without it: embed the sequences instead, or convert to a level below {name}"
            )
        if name not in sources:
            raise InputError(
                f"no input is {config.backbone_widths[index]:,} wide: level {names[-1]} needs the raw embeddings of "
                f"{', '.join(names)}, and those of {name} are missing"
            )
    ids = {name: _ids_of(sources[name], name) for name in names}
    inputs = []
    for name, width in zip(names, config.backbone_widths, strict=False):
        for there, here in ((names[0], name), (name, names[0])):
            lacking = ids[there].filter(pc.invert(pc.is_in(ids[there], value_set=ids[here])))
            if len(lacking):
                raise InputError(
                    f"{len(lacking):,} ids of level {there} are not among those of level {here} "
                    f"({lacking[0].as_py()!r}, ...): give each level the same proteins under the same ids"
                )
        order = pc.index_in(ids[names[0]], value_set=ids[name])
        inputs.append(LevelInput(name, width, sources[name], order.to_numpy()))
    return inputs


def _level_of(source: Raw, widths: dict[str, int], config: RDEsmConfig) -> str:
    """The one of these levels that is as wide as a source."""
    found = [name for name, width in widths.items() if width == source.width]
    if len(found) > 1:
        raise InputError(f"{source.path} may be of level {' or '.join(found)}: write LEVEL=path")
    if not found:
        levels = zip(config.level_names, config.backbone_widths, strict=True)
        known = ", ".join(f"{width:,} ({name})" for name, width in levels)
        wrong = f"level {next(iter(widths))}" if len(widths) < len(config.level_names) else "no backbone"
        raise InputError(f"{source.path} is {source.width:,} wide, which {wrong} of this model is: they are {known}")
    return found[0]


def _ids_of(sources: list[Raw], name: str) -> pa.Array:
    """The ids of all proteins of a level, each once."""
    ids = pa.array([one for source in sources for one in source.ids], pa.string())
    counts = ids.value_counts()
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise InputError(
            f"{', '.join(source.path for source in sources)} (level {name}) has {len(repeated):,} ids more than once "
            f"({repeated[0].as_py()!r}, ...): proteins are told by their ids, so keep one embedding of each"
        )
    return ids


@dataclass(slots=True)
class RawPart(Part):
    """Consecutive proteins and their raw values, one list per level."""

    values: list[list[np.ndarray]] = field(default_factory=list)
    bytes: int = 0


@dataclass(slots=True)
class ConvertingWorker(Worker):
    """Makes parts from raw values and the bases."""

    levels: list[LevelInput] = field(kw_only=True)

    def parts(self) -> Iterator[Part]:
        """Yield the proteins in the smallest level's order; cuts and digests follow from ids and values."""
        settings, part = self.settings, self._part(0, 1)
        hasher = hashlib.sha256()
        for place, (source, name, values) in enumerate(self._proteins()):
            size = sum(value.nbytes for value in values)
            full = part.bytes + size > settings.part_bytes
            full |= len(part.records) == part_limit(part.first_record - 1, settings.part_records)
            if part.records and full:
                part.digest = hasher.hexdigest()
                yield part
                part, hasher = self._part(part.index + 1, place + 1), hashlib.sha256()
            part.records.append((source, FastaRecord(place + 1, name, name, "")))
            hasher.update(f"{len(name)} {name}".encode())
            for own, value in zip(part.values, values, strict=True):
                own.append(value)
                hasher.update(value.tobytes())
            part.bytes += size
        part.digest = hasher.hexdigest()
        yield part

    def _part(self, index: int, first_record: int) -> RawPart:
        return RawPart(index, first_record, [], "", [[] for _ in self.levels])

    def _proteins(self) -> Iterator[tuple[str, str, Sequence[np.ndarray]]]:
        """Where each protein is from, its id, and its values of all levels."""
        pooling = self.settings.options.pooling
        names = [(source.path, one) for source in self.levels[0].sources for one in source.ids]
        row_bytes = 4 * sum(level.width for level in self.levels)
        size = max(1, _CHUNK_BYTES // row_bytes) if self.settings.options.one_row else _CHUNK_MATRICES
        for start in range(0, len(names), size):
            places = range(start, min(start + size, len(names)))
            taken = [level.take(places, pooling) for level in self.levels]
            self.progress.read(len(places))
            for place, *values in zip(places, *taken, strict=True):
                source, name = names[place]
                if len({value.shape[:-1] for value in values}) > 1:
                    found = ", ".join(f"{len(v)} ({level.name})" for v, level in zip(values, self.levels, strict=True))
                    raise InputError(f"{source}: {name} differs in its number of residues from level to level: {found}")
                yield source, name, values

    def do(self, part: Part) -> None:
        assert isinstance(part, RawPart)
        options = self.settings.options
        model, level = self.started().model, self.started().level
        with self.stages.stage("embed"):
            if part.index == 0:
                self._report_unlike(model, part)
            lengths = [len(np.atleast_2d(value)) for value in part.values[0]]
            flat = [torch.from_numpy(np.concatenate([np.atleast_2d(value) for value in own])) for own in part.values]
            blocks = [flat[0][:, :0]] + [
                projection(model, index).contribution(own.to(model.device))
                for index, own in enumerate(flat[1:], start=1)
            ]
            wide = extend(model, flat[0], torch.cat(blocks, dim=-1), self.levels[0].name, level)
            if options.whiten:
                wide = model.whiten(wide)
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
        self.write(part, rows, rejects)

    def _report_unlike(self, model: RDEsmModel, part: RawPart) -> None:
        """Report embeddings that look like those of another backbone, or not raw."""
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
    settings: ConvertSettings, group: Processes | None = None, report: Say | None = None, show_progress: bool = True
) -> JobSummary:
    """Convert raw embeddings to nested ones, or a folder to another layout, or go on where an earlier run stopped.

    Of the model, the bases are enough; the other arguments are those of :func:`rd_hf.embedding.job.run_job`. An
    InputError if an input or the model cannot be used; a JobError if the folder cannot be used, belongs to another job,
    or is full.
    """
    if settings.of_folder:
        settings.check_of_folder()
        return change_layout(settings.input[0], settings.layout, settings.output, report, show_progress)
    if settings.model is None:
        raise InputError("raw embeddings are converted by a model's bases: name it with --model")
    checkpoint = resolve(settings.model, settings.revision)
    checkpoint.widths(settings.level)
    config = RDEsmConfig.from_pretrained(model_place(checkpoint.name), revision=checkpoint.revision)
    levels = open_levels(settings, config)
    top = levels[-1].name
    about: Mapping[str, Any] = {"converted": [level.name for level in levels], "ids": settings.ids}
    return run_worker(
        replace(settings, level=settings.level or (top,)).job(),
        group or Processes(),
        partial(ConvertingWorker, levels=levels, above=top),
        about,
        (),
        report,
        show_progress,
        total=len(levels[0].order),
        unit="proteins",
    )
