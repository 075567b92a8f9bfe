"""What an embedding job is asked to do, and what it says that it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rd_hf.data.records import readable
from rd_hf.embedding.options import EmbeddingOptions

PART_RECORDS = 16384
PART_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class JobSettings:
    """One job.

    Attributes:
        model: folder or Hub id.
        inputs: sources, read one after the other; see :mod:`rd_hf.data.sources`.
        output: folder for the shards.
        options: what is embedded and how.
        revision: branch, tag or commit of a Hub model.
        sequence_column, id_column, positions_column: columns of tables.
        strict: stop at the first record that would be rejected.
        part_records: records a part (and file) has at most; see :func:`part_limit`.
        part_bytes: bytes of embeddings a part has at most, unless one record alone has more.
        attn_implementation: as in transformers.
        device: torch device; by default a GPU by rank, else the CPU.
        window_tokens: with a number, one backbone is held at a time, loaded anew for each window of batches of so
            many tokens: for families larger than memory. None holds all.
        extend: finished folder of the same inputs at a smaller level, whose backbones need not run again; see
            :mod:`rd_hf.embedding.extension`.
        one_pass: read every level out of the largest backbone alone, of a model that was fitted for it.
        backbones: commits of backbones whose revision the model leaves open, where another job noted them; by default
            those of an earlier run, or those that they have now.
        called: what the inputs are called in what is written, where that is not as they are given now.
    """

    model: str
    inputs: tuple[str, ...]
    output: str
    options: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    revision: str | None = None
    sequence_column: str | None = None
    id_column: str | None = None
    positions_column: str | None = None
    strict: bool = False
    part_records: int = PART_RECORDS
    part_bytes: int = PART_BYTES
    attn_implementation: str | None = None
    device: str | None = None
    window_tokens: int | None = None
    extend: str | None = None
    one_pass: bool = False
    backbones: Mapping[str, str] | None = None
    called: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.window_tokens is not None and self.window_tokens < 1:
            raise ValueError(f"window_tokens must be positive, not {self.window_tokens}")
        if self.one_pass and self.extend is not None:
            raise ValueError("--one-pass reads all levels out of the largest backbone: there is nothing to --extend")
        options = self.options
        if options.pooling == "positions" and not options.positions and self.positions_column is None:
            raise ValueError(
                "pooling 'positions' returns the rows of positions, and none are named: give --positions, or a table "
                "with --positions-column"
            )
        if not self.inputs:
            raise ValueError("a job needs at least one input")
        if self.part_records < 1 or self.part_bytes < 1:
            raise ValueError("part_records and part_bytes must be positive")

    @property
    def names(self) -> tuple[str, ...]:
        """What the inputs are called in what is written: text that can be written."""
        return self.called or tuple(map(readable, self.inputs))


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What a job did.

    Attributes:
        records, written, rejected: of the whole job; the first is the sum of the others.
        residues: of the written records.
        unique, long: different sequences within their parts; sequences windowed or truncated.
        parts, parts_kept: files of the whole job; of them those that this process found finished.
        tokens, padding: what this process gave the model in this run, and how much of that was padding.
        seconds: of each stage, in this process and run.
        device: that this process used, None if nothing was left to compute.
        lost: parts that were begun and lost with a worker, a machine or a driver, and so begun again; only a job on
            Ray knows.
    """

    records: int
    written: int
    rejected: int
    residues: int
    unique: int
    long: int
    parts: int
    parts_kept: int
    tokens: int
    padding: int
    seconds: dict[str, float]
    device: str | None
    lost: int = 0

    def __str__(self) -> str:
        share = 100 * self.padding / self.tokens if self.tokens else 0.0
        spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        lines = [
            f"{self.records:,} records: {self.written:,} written, {self.rejected:,} rejected",
            f"{self.residues:,} residues; {self.written - self.unique:,} duplicates computed once, "
            f"{self.long:,} long sequences",
            f"{self.parts:,} parts, {self.parts_kept:,} of them from an earlier run",
            f"{self.tokens:,} tokens computed on {self.device or 'no device'}, {share:.1f} % of them padding",
            f"seconds: {spent}",
        ]
        if self.lost:
            lines.insert(3, f"{self.lost:,} parts were begun again after a worker or the job itself was lost")
        return "\n".join(lines)
