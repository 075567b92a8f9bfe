"""What a prediction is asked to do, and what it says that it did. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from rd_hf.embedding.options import DTYPE, MODEL_DTYPES, EmbeddingOptions
from rd_hf.embedding.settings import JobSettings
from rd_hf.flags import FOLDER, GPU, NAMES, READS, flag
from rd_hf.options import check_options, option, options_from, same_option

# Options of the embedding that decide what is predicted.
EMBEDDED = ("dtype", "long", "max_length", "overlap")


@dataclass(frozen=True)
class PredictionSettings:
    """A whole prediction: which model with heads, which proteins, and where the answers go.

    Raises:
        ValueError: settings that do not fit together.
    """

    model: str = flag("model", MISSING, f" with heads, as rd-hf train writes it: {NAMES}", required=True)
    output: str = flag("output", MISSING, f": {FOLDER}", required=True, metavar="DIR")
    inputs: tuple[str, ...] = flag("input", (), f": {READS}")
    embeddings: str | None = option(
        None,
        "finished folder of embeddings to predict from, in place of --input: of the same model, at the level of the "
        "head or a larger one; no backbone runs",
        metavar="EMBEDDINGS",
    )
    level: str | None = flag("level", None, " whose head answers (default: the one that the training chose)")
    revision: str | None = flag("revision", None)
    probabilities: bool = option(
        False, "of residues, also the probability of every class (a column that is many times as large)"
    )
    keep_embeddings: bool = option(
        False, "leave the embeddings in the folder .embeddings of the output, and do not remove them at the end"
    )
    dtype: str = flag(
        "dtype",
        DTYPE,
        f" (default {DTYPE}); bfloat16 is faster on GPUs, and predictions then differ in their third digit. Heads "
        "compute in float32",
        choices=MODEL_DTYPES,
    )
    long: str = same_option(EmbeddingOptions, "long")
    max_length: int = same_option(EmbeddingOptions, "max_length")
    overlap: int = same_option(EmbeddingOptions, "overlap")
    batch_tokens: int | None = same_option(EmbeddingOptions, "batch_tokens")
    group_tokens: int | None = same_option(JobSettings, "group_tokens")
    strict: bool = same_option(JobSettings, "strict")
    sequence_column: str | None = same_option(JobSettings, "sequence_column")
    id_column: str | None = same_option(JobSettings, "id_column")
    part_records: int = same_option(JobSettings, "part_records")
    part_bytes: int = same_option(JobSettings, "part_bytes")
    attn_implementation: str | None = same_option(JobSettings, "attn_implementation")
    device: str | None = flag("device", None, f" {GPU}; of several processes each takes its own GPU")

    def __post_init__(self) -> None:
        check_options(self)
        if bool(self.inputs) == (self.embeddings is not None):
            raise ValueError(
                "give proteins with --input, or a folder of their embeddings with --embeddings: one of them"
            )
        if self.embeddings is not None and self.keep_embeddings:
            raise ValueError(
                "--keep-embeddings keeps what a run embeds, and --embeddings embeds nothing: leave one out"
            )
        self.job("mean", None, "")

    def job(self, pooling: str, level: str | None, output: str) -> JobSettings | None:
        """The job that embeds the proteins; None where they are embedded."""
        if not self.inputs:
            return None
        levels = () if level is None else (level,)
        return options_from(
            JobSettings,
            self,
            output=output,
            options=options_from(EmbeddingOptions, self, levels=levels, pooling=pooling),
        )


@dataclass(frozen=True)
class PredictionSummary:
    """What a prediction did.

    Attributes:
        records, predicted, rejected: of the whole input.
        parts: files.
        level: whose head answered.
        finished_before: whether the folder held these predictions already.
    """

    records: int
    predicted: int
    rejected: int
    parts: int
    level: str
    finished_before: bool = False

    def __str__(self) -> str:
        return (
            f"{self.records:,} records: {self.predicted:,} predicted at level {self.level}, {self.rejected:,} rejected"
        )
