"""The choices of a search, and its summary. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from rd_hf.files import byte_size
from rd_hf.flags import FILE, GPU, NAMES, flag
from rd_hf.options import check_options, option, real, whole
from rd_hf.tables import FORMATS


def labels_path(output: str) -> Path:
    """Where the labels that queries are given are written, beside the hits: for hits.tsv hits.labels.tsv."""
    path = Path(output)
    return path.with_name(f"{path.stem}.labels{path.suffix}")


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """The choices of one search; a ValueError for an unknown one, or numbers that do not fit together."""

    queries: str = flag(
        "input",
        MISSING,
        " to be searched for: sequences (FASTA or a table, as rd-hf embed reads them) or a folder of embeddings; the "
        "database itself may be given, each protein's own row is then left out",
        required=True,
        former=("--queries",),
    )
    database: str = flag(
        "embeddings",
        MISSING,
        ": the database, one row per protein, as rd-hf embed made it, or hf://datasets/owner/name that was pushed",
        flags=("database",),
        former=("--database",),
    )
    output: str = flag("output", MISSING, f": hits, as .parquet, .tsv or .csv, {FILE}", required=True, metavar="FILE")
    model: str | None = flag("model", None, f": {NAMES} (default: the one that the database names)")
    revision: str | None = flag("revision", None)
    k: int = flag("neighbours", 10, " that is searched for", kind=whole(1), former=("--k",))
    metric: str = option(
        "cosine",
        "cosine (similarity, larger is nearer) or euclidean (distance); default cosine",
        choices=("cosine", "euclidean"),
    )
    level: str | None = flag(
        "level",
        None,
        " that scores the hits (default: the largest held). One that the database lacks is computed for the "
        "shortlist alone",
    )
    shortlist_level: str | None = option(None, "smaller level that picks candidates", metavar="LEVEL")
    shortlist: int | None = option(None, "candidates per query", kind=whole(1), metavar="N")
    index: str = option(
        "exact",
        "what picks candidates: a comparison with every row (exact, the default), or faiss' inverted lists (ivf) or "
        "graph (hnsw), held in memory with one byte per dimension, or the signs of dimensions (binary), with one bit; "
        "kept for the next search",
        choices=("exact", "ivf", "hnsw", "binary"),
    )
    signs: str = option(
        "block",
        "dimensions whose signs --index binary compares: those that --shortlist-level adds to the next smaller one "
        "(block, the default), or all up to it",
        choices=("block", "all"),
    )
    labels: str | None = flag("labels", None, ": each query is given the labels of its neighbours")
    label_column: str | None = option(
        None, "column with the labels (default: the first after the ids)", metavar="COLUMN"
    )
    sequences: tuple[str, ...] = option(
        (),
        "what the database was made from, where it has moved (default: as the database names it)",
        flags=("--database-input",),
        former=("--sequences",),
        metavar="INPUT",
    )
    cache: str | None = flag("cache", None, " (default: .search in the database)")
    recall_sample: int = option(
        100, "queries on which a shortlist is compared with an exact search; 0 for none", kind=whole(0), metavar="N"
    )
    device: str | None = flag("device", None, f" {GPU}")
    whiten: str = flag(
        "whiten",
        "auto",
        ": centre, scale and weigh it before vectors are compared, by the database's own proteins, by what came with "
        "the model, or not at all (default auto: by cosine the database where it has enough proteins, else the model; "
        "by Euclidean distance not)",
        choices=("auto", "database", "model", "none"),
    )
    block_weights: tuple[float, ...] = flag(
        "block_weights", (), ", one number per level (default: as the model says)", kind=real(0)
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.output.endswith(FORMATS):
            raise ValueError(f"--output {self.output} must end in one of {', '.join(FORMATS)}")
        if self.shortlist is not None and self.shortlist < self.k:
            raise ValueError(f"--shortlist {self.shortlist} holds fewer candidates than --neighbours {self.k} asks for")
        if self.signs == "all" and self.index != "binary":
            raise ValueError("--signs are what --index binary compares: give that too, or leave them away")
        if self.label_column is not None and self.labels is None:
            raise ValueError(f"--label-column {self.label_column} is given, but no --labels that it is a column of")


@dataclass(frozen=True, slots=True)
class Recall:
    """What a shortlist missed: of so many ``queries``, the share whose ``first`` was found, and that of ``all`` k."""

    queries: int
    first: float
    all: float


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """What a search did.

    Attributes:
        queries, rows, hits: numbers of queries, of rows searched in, and of hits written.
        shortlist, whitening: how candidates were picked and vectors whitened, in words; None where they were not.
        recall: of the shortlist; None where there was none or it cannot be known.
        computed, reused, residues: proteins whose larger level was computed in this run or found in the cache, and
            residues of the former.
        predictions: number of labels given to queries; None without labels.
        short: which queries have fewer than k hits, in words; None where none has.
        bytes_read: of the database's files, but for the sample that gives the recall.
    """

    queries: int
    rows: int
    hits: int
    level: str
    metric: str
    shortlist: str | None
    recall: Recall | None
    computed: int
    reused: int
    residues: int
    predictions: int | None
    seconds: float
    whitening: str | None = None
    short: str | None = None
    bytes_read: int = 0

    def __str__(self) -> str:
        recall, computes = self.recall, self.computed or self.reused
        lines = [
            f"{self.queries:,} queries against {self.rows:,} proteins: {self.hits:,} hits, {self.metric} at level "
            f"{self.level}, {byte_size(float(f'{self.bytes_read:.2g}'))} of the database read",
            self.short,
            self.whitening and f"whitened {self.whitening}",
            self.shortlist and f"shortlist: {self.shortlist}",
            recall
            and f"recall of the shortlist on {recall.queries:,} queries against an exact search: {recall.first:.4f} of "
            f"the nearest, {recall.all:.4f} of all neighbours",
            computes
            and f"level {self.level} computed for {self.computed:,} proteins ({self.residues:,} residues), "
            f"{self.reused:,} from the cache",
            None if self.predictions is None else f"{self.predictions:,} labels transferred",
        ]
        return "\n".join(line for line in lines if line)
