"""Which records become which part: the cuts of the local job, made from the sizes of staged records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rd_hf.data.fasta import FastaRecord
from rd_hf.embedding.parts import Cut, Part, digest, row_bytes
from rd_hf.embedding.ray.staging import Staged, read_chunk
from rd_hf.embedding.settings import JobSettings


@dataclass(frozen=True, slots=True)
class Slice:
    """Records ``start`` to ``stop`` (exclusive) of a staged file, which holds some of input number ``source``."""

    file: str
    source: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """A part before its records are read: where they lie.

    Attributes:
        index: number of the part.
        first_record: number of its first record among all, from 1.
        records, letters: how many it has.
        slices: where they are staged, in order.
    """

    index: int
    first_record: int
    records: int
    letters: int
    slices: tuple[Slice, ...]

    def to_json(self) -> str:
        """What :meth:`from_json` understands."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PlannedPart:
        """A part that travelled."""
        fields = json.loads(text)
        return cls(**{**fields, "slices": tuple(Slice(**each) for each in fields["slices"])})


def plan(staged: Sequence[Staged], path: Path, settings: JobSettings, widths: dict[str, int]) -> Iterator[PlannedPart]:
    """Cut the staged records as :func:`rd_hf.embedding.parts.cut_parts` would; only their sizes are read.

    Args:
        staged: of each input, in order.
        path: of the staged files.
        settings, widths: of the job.
    """
    import pyarrow.parquet as pq

    cut = Cut(settings, row_bytes(widths))
    index, first_record, letters = 0, 1, 0
    slices: list[Slice] = []

    def planned(number: int) -> PlannedPart:
        records = sum(each.stop - each.start for each in slices)
        return PlannedPart(number, first_record, records, letters, tuple(slices))

    for source, each in enumerate(staged):
        for chunk in each.chunks:
            table = pq.read_table(path / chunk.file, columns=["rows", "letters"])
            start = 0
            sizes = zip(table["rows"].to_pylist(), table["letters"].to_pylist(), strict=True)
            for place, (rows, size) in enumerate(sizes):
                if cut.begins(rows, size):
                    if place > start:
                        slices.append(Slice(chunk.file, source, start, place))
                    yield planned(index)
                    index, first_record, letters, start = index + 1, cut.first_record, 0, place
                    slices.clear()
                letters += size
            slices.append(Slice(chunk.file, source, start, chunk.records))
    if slices:
        yield planned(index)


def read_part(planned: PlannedPart, path: Path, settings: JobSettings) -> Part:
    """A part with its records, as the local job would have it in hand."""
    records: list[tuple[str, FastaRecord]] = []
    for each in planned.slices:
        name = settings.names[each.source]
        records += ((name, record) for record in read_chunk(path / each.file, each.start, each.stop))
    return Part(planned.index, planned.first_record, records, digest(records))
