"""What is searched and how: the choices of one search, and what it came to. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

METRICS = ("cosine", "euclidean")
INDICES = ("exact", "ivf", "hnsw")
WHITENINGS = ("auto", "database", "model", "none")
FORMATS = (".parquet", ".tsv", ".csv")
NEIGHBOURS = 10
RECALL_SAMPLE = 100


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """One search.

    Attributes:
        queries: sequences (any input of an embedding job), or a folder of embeddings; the database itself may be
            searched against itself.
        database: a folder that an embedding job filled, one row a protein.
        output: file of hits: Parquet, or tab- or comma-separated text, by its suffix.
        model: what embeds the queries, and the shortlisted proteins where the database lacks the level; by default
            the model that the database names.
        revision: branch, tag or commit of a Hub model.
        k: neighbours a query.
        metric: ``cosine`` (similarity, larger is nearer) or ``euclidean`` (distance).
        level: level at which hits are scored; by default the largest that both sides hold. One that the database
            does not hold is computed for the shortlisted proteins alone.
        shortlist_level: smaller level that picks the candidates.
        shortlist: candidates a query.
        index: what picks the candidates: ``exact`` compares with every row, ``ivf`` and ``hnsw`` are faiss' indices
            of those names over one byte a dimension, their candidates scored from the rows.
        labels: tab-separated file of ids and labels: neighbours are then sought among the labelled, and each query
            gets their labels.
        label_column: column of that file with the labels; by default the second.
        sequences: inputs that the database was made from; by default those that it names.
        cache: folder for what the next search can use: approximate indices and computed levels; by default
            ``.search`` in the database.
        recall_sample: queries whose shortlist is held against an exact search; 0 for none.
        device: torch device for the model.
        whiten: what each level's block is centred and scaled by before vectors are compared: ``database`` (its own
            proteins), ``model`` (the residues of its fit), ``none``, or ``auto``: by cosine the database where it holds
            the level and enough proteins, else the model where that can, and by Euclidean distance nothing.
        block_weights: what each level's whitened block is multiplied by, a number a level of the model; by default
            those that came with it, and 1 where none did.

    Raises:
        ValueError: an unknown choice, or numbers that do not fit together.
    """

    queries: str
    database: str
    output: str
    model: str | None = None
    revision: str | None = None
    k: int = NEIGHBOURS
    metric: str = "cosine"
    level: str | None = None
    shortlist_level: str | None = None
    shortlist: int | None = None
    index: str = "exact"
    labels: str | None = None
    label_column: str | None = None
    sequences: tuple[str, ...] = ()
    cache: str | None = None
    recall_sample: int = RECALL_SAMPLE
    device: str | None = None
    whiten: str = "auto"
    block_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("metric", METRICS), ("index", INDICES), ("whiten", WHITENINGS)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"--{name} must be one of {', '.join(allowed)}, not {value!r}")
        if not self.output.endswith(FORMATS):
            raise ValueError(f"--output {self.output} must end in one of {', '.join(FORMATS)}")
        if not all(0 <= weight < float("inf") for weight in self.block_weights):
            raise ValueError(f"--block-weights must be finite and not below 0, got {list(self.block_weights)}")
        if self.k < 1:
            raise ValueError(f"--k must be positive, not {self.k}")
        if self.shortlist is not None and self.shortlist < self.k:
            raise ValueError(f"--shortlist {self.shortlist} holds fewer candidates than the --k {self.k} asked for")
        if self.recall_sample < 0:
            raise ValueError(f"--recall-sample must not be negative, is {self.recall_sample}")
        if self.label_column is not None and self.labels is None:
            raise ValueError(f"--label-column {self.label_column} is given, but no --labels that it is a column of")


@dataclass(frozen=True, slots=True)
class Recall:
    """What a shortlist cost, measured against an exact search.

    Attributes:
        queries: that were sampled.
        first: share of them whose nearest neighbour was found.
        all: share of their k nearest that were found.
    """

    queries: int
    first: float
    all: float


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """What a search came to.

    Attributes:
        queries, rows, hits: that were searched with, searched in, written.
        level: at which hits were scored.
        metric: of their scores.
        whitening: how vectors were whitened, in words; None where they were compared as they are.
        shortlist: how candidates were picked, in words; None where every row was compared.
        recall: of the shortlist, None where there was none or it cannot be known.
        computed, reused, residues: proteins whose larger level was computed in this run, was found in the cache, and
            residues of the former.
        predictions: labels given to queries, None without labels.
        seconds: of the whole search.
        short: which queries have fewer than k hits, in words; None where none has.
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

    def __str__(self) -> str:
        lines = [
            f"{self.queries:,} queries against {self.rows:,} proteins: {self.hits:,} hits, {self.metric} at level "
            f"{self.level}"
        ]
        if self.short is not None:
            lines.append(self.short)
        if self.whitening is not None:
            lines.append(f"whitened {self.whitening}")
        if self.shortlist is not None:
            lines.append(f"shortlist: {self.shortlist}")
        if self.recall is not None:
            lines.append(
                f"recall of the shortlist on {self.recall.queries:,} queries against an exact search: "
                f"{self.recall.first:.4f} of the nearest, {self.recall.all:.4f} of all neighbours"
            )
        if self.computed or self.reused:
            lines.append(
                f"level {self.level} computed for {self.computed:,} proteins ({self.residues:,} residues), "
                f"{self.reused:,} from the cache"
            )
        if self.predictions is not None:
            lines.append(f"{self.predictions:,} labels transferred")
        return "\n".join(lines)
