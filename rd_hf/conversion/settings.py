"""What the two commands are asked to do. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from rd_hf.embedding.options import OUTPUT_DTYPES, EmbeddingOptions
from rd_hf.embedding.settings import PART_BYTES, PART_RECORDS, JobSettings
from rd_hf.options import check_options, option, whole


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Which raw embeddings are converted, and how the nested ones are stored."""

    model: str = option(
        MISSING, "reverse-distilled model: folder, Hub id or rd-esm2-mini", required=True, metavar="ID_OR_DIR"
    )
    revision: str | None = option(None, "branch, tag or commit of a Hub model")
    input: tuple[str, ...] = option(
        MISSING,
        ".parquet, .h5, .npy or .pt files, or folders of .pt files; LEVEL= where two backbones are equally wide",
        required=True,
        nargs="+",
        metavar="[LEVEL=]PATH",
    )
    output: str = option(MISSING, "a new folder, or that of this same job", required=True, metavar="DIR")
    level: tuple[str, ...] = option((), "level or levels to write (default: the largest given)", metavar="L")
    pooling: str = option(
        "mean",
        "what the inputs hold: means over residues, or rows per residue that are averaged (mean, the default); rows to "
        "be kept (residue); states of cls (cls)",
        choices=("mean", "residue", "cls"),
    )
    normalize: bool = option(False, "make vectors of length one, each level for itself")
    output_dtype: str = option("float32", "stored as", choices=OUTPUT_DTYPES)
    id_column: str | None = option(None, "column of Parquet files with ids (default: id, name, ...)", metavar="NAME")
    ids: str | None = option(None, "ids of .npy files: one per line, or the FASTA file they came from", metavar="FILE")
    strict: bool = option(False, "stop at the first protein that would be rejected")
    part_records: int = option(PART_RECORDS, "records per file at most", kind=whole(1), metavar="N")
    part_megabytes: int = option(PART_BYTES >> 20, "raw embeddings per file at most, in MB", kind=whole(1), metavar="N")
    device: str | None = option(None, "torch device (default: a GPU where there is one)", metavar="D")

    def __post_init__(self) -> None:
        check_options(self)

    def job(self) -> JobSettings:
        """Return the settings of the job that writes the folder."""
        options = EmbeddingOptions(
            levels=self.level, pooling=self.pooling, output_dtype=self.output_dtype, normalize=self.normalize
        )
        same = ("model", "revision", "output", "id_column", "strict", "part_records", "device")
        return JobSettings(
            inputs=self.input,
            options=options,
            part_bytes=self.part_megabytes << 20,
            **{name: getattr(self, name) for name in same},
        )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Which embeddings are exported, and what names them in the file."""

    embeddings: str = option(
        MISSING, "finished folder of rd-hf embed or rd-hf convert", flags=("embeddings",), metavar="DIR"
    )
    output: str = option(MISSING, "h5 file; replaced where it exists", required=True, metavar="FILE")
    level: str | None = option(None, "level to export (default: the largest that the folder holds)", metavar="L")
    key: str = option(
        "auto",
        "what names a dataset: id, hash (of the sequence), or auto (ids where they serve, the default)",
        choices=("auto", "id", "hash"),
    )
    input: tuple[str, ...] = option((), "with hash: what was embedded, where it lies now", metavar="FILE")

    def __post_init__(self) -> None:
        check_options(self)
