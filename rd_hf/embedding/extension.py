"""A finished folder of embeddings and the backbones that it lacks: the folder at a larger level.

The sequences are read again and compared with the folder's digests: what is extended is what was embedded. The stored
rows are means (or residues) of e_(i-1), and the larger backbones alone run; see :mod:`rd_hf.embedding.algebra`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from rd_hf.data.records import FastaRecord
from rd_hf.devices import kind_of
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.embedding.folder import JobError
from rd_hf.embedding.options import AUTO, DTYPE, OFF, EmbeddingOptions
from rd_hf.embedding.parts import Part
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.settings import COLUMNS, JobSettings
from rd_hf.embedding.worker import Worker

if TYPE_CHECKING:
    from rd_hf.embedding.engine import Request

# What a manifest says under the names of an embedding's options, and decides what is extended.
OPTIONS = tuple(one.name for one in fields(EmbeddingOptions) if one.name not in ("levels", "width", "batch_tokens"))
# Rows that go through the bases together.
_ROWS = 4096


def open_extendable(path: str) -> EmbeddingFolder:
    """Open a finished folder; raises a JobError where its rows do not say enough of the smaller levels."""
    stored = EmbeddingFolder(path, with_journal=True)
    if stored.is_converted:
        raise JobError(
            f"{path} was converted from stored embeddings, so that its sequences are not known: convert those of the "
            "larger backbone too"
        )
    if stored.manifest["model"].get("one_pass"):
        raise JobError(
            f"{path} was read out of the largest backbone in one pass, which is no beginning of a larger exact level: "
            "embed from scratch, without --extend"
        )
    reason = why_not_extended(stored.options)
    if reason is not None:
        raise JobError(f"{path} cannot be extended: {reason}; embed from scratch, without --extend")
    return stored


def why_not_extended(options: EmbeddingOptions) -> str | None:
    """Why embeddings made so do not say enough of the smaller levels, or None."""
    if not options.commutes:
        return f"pooling {options.pooling!r} does not commute with the bases, as the mean does"
    if options.width is not None:
        return f"it was cut to {options.width:,} dimensions, and larger levels are computed from all of a level's"
    if options.whiten:
        return "its vectors were whitened, and larger levels are computed from plain ones"
    if options.normalize:
        return "its vectors were normalised, and their lengths are lost"
    if options.output_dtype != "float32":
        return f"it was stored in {options.output_dtype}, which rounds what larger levels are computed from"
    return None


def with_stored(stored: EmbeddingFolder, args: argparse.Namespace) -> argparse.Namespace:
    """Return a command's arguments, with those that the folder decides taken from it.

    None stands for what was not typed. A JobError is raised where what was typed contradicts the folder.
    """
    job, model = stored.manifest["job"], stored.manifest["model"]
    taken = dict(vars(args))
    for name in (*OPTIONS, *COLUMNS):
        # What a manifest does not say was as by default.
        was = job.get(name, OFF if name == "compile" else getattr(stored.options, name, None))
        if taken[name] not in (None, was, AUTO):
            raise JobError(
                f"{stored.path} was made with {name} {was!r}, not {taken[name]!r}: leave "
                f"--{name.replace('_', '-')} away, or embed from scratch, without --extend"
            )
        taken[name] = was
    known = {"model": model["name"], "revision": model["revision"], "inputs": job["inputs"]}
    known["attn_implementation"] = job.get("attn_implementation")
    return argparse.Namespace(**taken | {name: taken[name] or was for name, was in known.items()})


def check(stored: EmbeddingFolder, settings: JobSettings, checkpoint: Checkpoint) -> None:
    """Raise a JobError unless the checkpoint and the levels asked for extend this folder."""
    path, was = stored.path, stored.manifest["model"]
    if not checkpoint.is_of(was["fingerprint"], was.get("backbones", {})):
        raise JobError(
            f"{path} was made with {was['name']} ({was['fingerprint'][:19]}), and {checkpoint.name} is another "
            f"model or revision ({checkpoint.fingerprint[:19]}): name that one, or embed from scratch"
        )
    if settings.options.dtype != stored.options.dtype:
        raise JobError(
            f"{path} was computed in {stored.options.dtype}, and is extended in it: dtype "
            f"{settings.options.dtype} needs embedding from scratch"
        )
    kind = kind_of(settings.device)
    if stored.options.dtype != DTYPE and stored.manifest.get("device", kind) != kind:
        raise JobError(
            f"{path} was computed in {stored.options.dtype} on {stored.manifest['device']}, and this is {kind}, which "
            f"rounds otherwise: give --device {stored.manifest['device']}, or embed from scratch"
        )
    if settings.options.whiten:
        raise JobError(f"{path} is extended by plain vectors: leave whiten away, or embed from scratch to whiten")
    wanted = checkpoint.largest(settings.options)
    if checkpoint.nested_dims[wanted] <= stored.width:
        raise JobError(
            f"{path} holds level {stored.level} already, whose first {checkpoint.nested_dims[wanted]:,} dimensions "
            f"are level {wanted}: there is nothing to extend"
        )
    held = checkpoint.within(replace(stored.options, levels=(stored.level,))).max_length
    takes = checkpoint.within(settings.options).max_length
    if takes != held:
        raise JobError(
            f"{path} holds sequences of which the model saw {held:,} residues at once, and level {wanted} takes "
            f"{takes:,}: embed from scratch at level {wanted}"
        )


@dataclass(slots=True)
class ExtendingWorker(Worker):
    """Makes a part of the stored rows of its records and the larger backbones."""

    stored: EmbeddingFolder = field(kw_only=True)

    def records(self) -> Iterator[tuple[str, FastaRecord]]:
        return self.stored.records(self.settings.inputs, self.settings.called, self.progress.read, self.report_input)

    def compute(self, part: Part, places: list[int], requests: list[Request]) -> list[np.ndarray | str]:
        with self.stages.stage("read"):
            known = self.stored.rows_of(part.first_record, len(part.records))
        missing = f"{self.stored.path} has no embedding of it, and says why in {self.stored.rejects_path.name}"
        results: dict[int, np.ndarray | str] = dict.fromkeys(places, missing)
        asked = {
            place: request
            for place, request in zip(places, requests, strict=True)
            if part.first_record + place in known
        }
        # Spelled out, since super() without arguments does not find the class that slots made anew.
        results |= zip(asked, Worker.compute(self, part, list(asked), list(asked.values())), strict=True)
        pairs = [
            (place, np.atleast_2d(known[part.first_record + place]), np.atleast_2d(value))
            for place, value in results.items()
            if not isinstance(value, str)
        ]
        with self.stages.stage("embed"):
            for place, rows in self._extended(pairs):
                results[place] = rows[0] if self.settings.options.one_row else rows
        return list(results.values())

    def _extended(self, pairs: list[tuple[int, np.ndarray, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        """Stored rows and contributions of each record through the bases, as many together as make a good product."""
        import torch

        from rd_hf.embedding.algebra import extend

        while pairs:
            taken = rows = 0
            while taken < len(pairs) and (rows < _ROWS or not taken):
                rows += len(pairs[taken][1])
                taken += 1
            group, pairs = pairs[:taken], pairs[taken:]
            known, brought = (np.concatenate([pair[which] for pair in group]) for which in (1, 2))
            engine = self.started()
            wide = extend(
                engine.model, torch.from_numpy(known), torch.from_numpy(brought), self.stored.level, engine.level
            )
            ends = np.cumsum([len(pair[1]) for pair in group])[:-1]
            yield from zip((pair[0] for pair in group), np.split(wide.cpu().numpy(), ends), strict=True)
