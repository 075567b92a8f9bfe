"""Cutting a job's input into parts: consecutive records that become one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rd_hf.data.records import FastaRecord
from rd_hf.data.sources import read_records
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.settings import JobSettings

# Parts start small and grow with what lies before them, so that many processes find work in a small input and a
# large one does not become thousands of files.
FIRST_PART_RECORDS, PART_SHARE = 1024, 64
# Letters a part may hold at most, however small its embeddings: bounds memory for genomes' worth of titins.
_PART_LETTERS = 64 << 20


@dataclass(slots=True)
class Part:
    """Consecutive input records, each with the input that it comes from."""

    index: int
    first_record: int
    records: list[tuple[str, FastaRecord]]
    digest: str


def read_all(
    settings: JobSettings, on_read: Callable[[int], None], say: Callable[[str], None] | None = None
) -> Iterator[tuple[str, FastaRecord]]:
    """Yield all records of all inputs, with the name of the input that each comes from."""
    for name, source in zip(settings.names, settings.inputs, strict=True):
        named_columns = (settings.sequence_column, settings.id_column, settings.positions_column)
        for record in read_records(source, *named_columns, on_read=on_read, say=say, strict=settings.strict):
            yield name, record


def part_limit(before: int, largest: int) -> int:
    """Return the size of the part that begins after ``before`` records: a 64th of them, 1,024 to ``largest``.

    The same parts serve any number of processes. As part ``i`` goes to process ``i % world`` and parts only grow, the
    shares of two processes differ by one part at most.
    """
    return min(largest, max(FIRST_PART_RECORDS, before // PART_SHARE))


@dataclass(slots=True)
class Cut:
    """Says of one record after the other, by its size, whether it begins a new part."""

    settings: JobSettings
    row_bytes: int  # of one embedding
    first_record: int = 1  # of the part that is being filled
    records: int = 0
    used: int = 0  # bytes of embeddings
    letters: int = 0

    def begins(self, rows: int, letters: int) -> bool:
        """Count a record of ``rows`` embeddings and ``letters``, and say whether a new part begins with it."""
        full = self.used + rows * self.row_bytes > self.settings.part_bytes or self.letters + letters > _PART_LETTERS
        full |= self.records == part_limit(self.first_record - 1, self.settings.part_records)
        begins = bool(self.records) and full
        if begins:
            self.first_record += self.records
            self.records = self.used = self.letters = 0
        self.records += 1
        self.used += rows * self.row_bytes
        self.letters += letters
        return begins


def rows_of(record: FastaRecord, options: EmbeddingOptions) -> int:
    """Return how many embeddings a record may become."""
    return 1 if options.one_row else len(record.positions or options.positions) or len(record.sequence)


def digest(records: Iterable[tuple[str, FastaRecord]]) -> str:
    """Hash records and the names of the inputs that they come from."""
    hasher = hashlib.sha256()
    for source, record in records:
        # JSON keeps the fields apart whatever characters they hold.
        fields = [source, record.id, record.description, record.sequence, record.positions]
        fields += [record.problem] if record.problem else []
        hasher.update(json.dumps(fields).encode())
    return hasher.hexdigest()


def cut_parts(
    stream: Iterator[tuple[str, FastaRecord]], settings: JobSettings, widths: dict[str, int]
) -> Iterator[Part]:
    """Cut the stream where a limit is reached; the cuts follow from the records as read, and nothing else."""
    cut = Cut(settings, row_bytes(widths))
    index, first, records = 0, 1, list[tuple[str, FastaRecord]]()
    for source, record in stream:
        if cut.begins(rows_of(record, settings.options), len(record.sequence)):
            yield Part(index, first, records, digest(records))
            index, first, records = index + 1, cut.first_record, []
        records.append((source, record))
    if records:
        yield Part(index, first, records, digest(records))


def row_bytes(widths: dict[str, int]) -> int:
    """Return the bytes of one embedding in memory: float32 until it is written, whatever the output's dtype."""
    return 4 * max(widths.values())
