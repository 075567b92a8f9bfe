"""What an embedding job is asked to do, and what it says that it did."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import MISSING, InitVar, dataclass, field

from rd_hf.data.records import readable
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.flags import FOLDER, GPU, NAMES, READS, flag
from rd_hf.options import check_options, option, whole

PART_RECORDS = 16384
PART_BYTES = 256 << 20
# Settings by which an input is read and cut.
COLUMNS, LIMITS = ("sequence_column", "id_column", "positions_column"), ("part_records", "part_bytes")


def megabytes(word: str) -> int:
    """Bytes, of the number of megabytes that was typed."""
    return int(whole(1)(word)) << 20


@dataclass(frozen=True, slots=True)
class JobSettings:
    """One embedding job.

    Attributes:
        options: what is embedded and how.
        backbones: commits of backbones whose revision the model leaves open, where another job noted them; by default
            those of an earlier run, or those that they have now.
        called: what the inputs are called in what is written, where that is not as they are given now.
        window_tokens: deprecated name of the argument ``group_tokens``.

    Raises:
        ValueError: settings that do not fit together.
    """

    model: str = flag("model", MISSING, f": {NAMES}")
    inputs: tuple[str, ...] = flag("input", MISSING, f": {READS}", nargs="+")
    output: str = flag("output", MISSING, f": {FOLDER}", required=True, metavar="DIR")
    options: EmbeddingOptions = field(default_factory=EmbeddingOptions)
    revision: str | None = flag("revision", None)
    sequence_column: str | None = flag("sequence_column", None, " (default: sequence, ...)")
    id_column: str | None = flag("id_column", None, " (default: id, name, ...)")
    positions_column: str | None = option(
        None, "column of a table with each record's positions, from 1", metavar="COLUMN"
    )
    strict: bool = flag("strict", False, ", and at input that looks like nucleotides")
    part_records: int = flag(
        "part_records",
        PART_RECORDS,
        " (default 16,384); the first have 1,024, so that processes share small inputs",
    )
    part_bytes: int = flag(
        "part_megabytes", PART_BYTES, ", unless one record alone has more (default 256)", kind=megabytes
    )
    attn_implementation: str | None = option(
        None, "attention of transformers: sdpa, eager, flash_attention_2, ...", metavar="NAME"
    )
    device: str | None = flag("device", None, f" {GPU}; of several processes each takes its own GPU")
    group_tokens: int | None = flag(
        "group_tokens",
        None,
        ": hold one backbone at a time, loaded anew for every group of batches of N tokens, whose embeddings (4 bytes "
        "per dimension) are held meanwhile (default: hold all backbones)",
        former=("--window-tokens",),
    )
    extend: str | None = option(
        None,
        "a finished folder at a smaller level: only the backbones beyond it run. Model, inputs and options are those "
        "of that folder unless given; inputs may lie elsewhere now, but must be the same records",
        metavar="DIR",
    )
    one_pass: bool = flag(
        "one_pass",
        False,
        ", which alone is fetched and run: an approximation, of models "
        "fitted with rd-hf fit --one-pass, whose card says how near it comes; never mixed with exact ones",
    )
    backbones: Mapping[str, str] | None = None
    called: tuple[str, ...] = ()
    window_tokens: InitVar[int | None] = None

    def __post_init__(self, window_tokens: int | None) -> None:
        if window_tokens is not None:
            warnings.warn("window_tokens is called group_tokens now", FutureWarning, stacklevel=3)
            object.__setattr__(self, "group_tokens", window_tokens)
        check_options(self)
        if self.one_pass and self.extend is not None:
            raise ValueError("--one-pass reads all levels out of the largest backbone: there is nothing to --extend")
        if self.options.takes_positions and not self.options.positions and self.positions_column is None:
            raise ValueError(
                "pooling 'positions' returns the rows of positions, and none are named: give --positions, or a table "
                "with --positions-column"
            )
        if not self.inputs:
            raise ValueError("a job needs at least one input")
        if self.part_bytes < 1:
            raise ValueError("part_bytes must be positive")

    @property
    def names(self) -> tuple[str, ...]:
        """What the inputs are called in what is written: text that can be written."""
        return self.called or tuple(map(readable, self.inputs))


@dataclass(frozen=True, slots=True)
class JobSummary:
    """What a job did: the whole of it, and this process in this run."""

    records: int  # of the whole job: written and rejected ones
    written: int
    rejected: int
    residues: int  # of the written records
    unique: int  # different sequences within their parts
    long: int  # sequences windowed or truncated
    parts: int  # files of the whole job
    parts_kept: int  # of them those that this process found finished
    tokens: int  # what this process gave the model, padding included
    padding: int
    seconds: dict[str, float]  # of each stage, in this process
    device: str | None  # that this process used, None if nothing was left to compute
    clipped: int = 0  # numbers of the whole job beyond the grid that they are stored on
    waiting: float | None = None  # share of the time that this process's device waited between batches
    lost: int = 0  # parts that were started again after a worker or a machine was lost, which a job on Ray knows

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
        if self.clipped:
            lines.insert(2, f"{self.clipped:,} numbers lay beyond the grid, and are stored as its end")
        if self.lost:
            lines.insert(3, f"{self.lost:,} parts were begun again after a worker or the job itself was lost")
        return "\n".join(lines)
