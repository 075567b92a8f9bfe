"""Cutting a job's input into parts: consecutive records that become one file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rd_hf.data.fasta import FastaRecord
from rd_hf.data.sources import read_records
from rd_hf.data.text import readable
from rd_hf.embedding.settings import JobSettings

# Parts start small and grow with what lies before them, so that many processes find work in a small input and a
# large one does not become thousands of files.
FIRST_PART_RECORDS, PART_SHARE = 1024, 64
# Letters a part may hold at most, however small its embeddings: bounds memory for genomes' worth of titins.
_PART_LETTERS = 64 << 20


@dataclass(slots=True)
class Part:
    """Consecutive input records."""

    index: int
    first_record: int
    records: list[tuple[str, FastaRecord]]
    digest: str


def read_all(
    settings: JobSettings, on_read: Callable[[int], None], say: Callable[[str], None] | None = None
) -> Iterator[tuple[str, FastaRecord]]:
    """All records of all inputs, with the input each comes from, its name as text that can be written."""
    for source in settings.inputs:
        named_columns = (settings.sequence_column, settings.id_column, settings.positions_column)
        name = readable(source)
        for record in read_records(source, *named_columns, on_read=on_read, say=say, strict=settings.strict):
            yield name, record


def part_limit(before: int, largest: int) -> int:
    """Records of the part that begins after ``before`` records: a 64th of them, 1,024 to ``largest``.

    It asks neither how long the input is nor how many processes share it, so that the same parts serve any number of
    processes. The shares of two of them differ by one part at most, 1,024 records or a 64th of all: part ``i`` goes to
    process ``i % world``, and parts only grow.
    """
    return min(largest, max(FIRST_PART_RECORDS, before // PART_SHARE))


def cut_parts(
    stream: Iterator[tuple[str, FastaRecord]], settings: JobSettings, widths: dict[str, int]
) -> Iterator[Part]:
    """Cut the stream where a limit is reached; the cuts follow from the records as read, and nothing else."""
    # Float32 until it is written, whatever the output's dtype.
    row_bytes = 4 * max(widths.values())
    part = Part(0, 1, [], "")
    used = letters = 0
    hasher = hashlib.sha256()
    for source, record in stream:
        options = settings.options
        rows = 1 if options.one_row else len(record.positions or options.positions) or len(record.sequence)
        full = used + rows * row_bytes > settings.part_bytes or letters + len(record.sequence) > _PART_LETTERS
        full |= len(part.records) == part_limit(part.first_record - 1, settings.part_records)
        if part.records and full:
            part.digest = hasher.hexdigest()
            yield part
            part = Part(part.index + 1, part.first_record + len(part.records), [], "")
            used = letters = 0
            hasher = hashlib.sha256()
        part.records.append((source, record))
        used += rows * row_bytes
        letters += len(record.sequence)
        # JSON keeps the fields apart whatever characters they hold.
        fields = [source, record.id, record.description, record.sequence, record.positions]
        fields += [record.problem] if record.problem else []
        hasher.update(json.dumps(fields).encode())
    if part.records:
        part.digest = hasher.hexdigest()
        yield part
