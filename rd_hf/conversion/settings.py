"""What the two commands are asked to do. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from rd_hf.embedding.options import OUTPUT_DTYPES, EmbeddingOptions
from rd_hf.embedding.settings import PART_BYTES, PART_RECORDS, JobSettings
from rd_hf.flags import FILE, FOLDER, GPU, NAMES, flag
from rd_hf.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Which raw embeddings are converted, and how the nested ones are stored."""

    model: str = flag("model", MISSING, f": {NAMES}", required=True)
    revision: str | None = flag("revision", None)
    input: tuple[str, ...] = flag(
        "input",
        MISSING,
        ", as raw embeddings: .parquet, .h5, .npy or .pt files, or folders of .pt files; LEVEL=FILE where two "
        "backbones are equally wide",
        required=True,
        nargs="+",
    )
    output: str = flag("output", MISSING, f": {FOLDER}", required=True, metavar="DIR")
    level: tuple[str, ...] = flag("level", (), " or several, to be written (default: the largest given)")
    pooling: str = flag(
        "pooling",
        "mean",
        ": mean (of rows per residue, or what the inputs hold already), residue (rows are kept), cls (which the inputs "
        "hold)",
        choices=("mean", "residue", "cls"),
    )
    normalize: bool = flag("normalize", False)
    output_dtype: str = flag("output_dtype", "float32", choices=OUTPUT_DTYPES)
    id_column: str | None = flag("id_column", None, " (default: id, name, ...)")
    ids: str | None = option(None, "ids of .npy files: one per line, or the FASTA file they came from", metavar="FILE")
    strict: bool = flag("strict", False)
    part_records: int = flag("part_records", PART_RECORDS)
    part_megabytes: int = flag("part_megabytes", PART_BYTES >> 20)
    device: str | None = flag("device", None, f" {GPU}")

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

    embeddings: str = flag("embeddings", MISSING, ": what rd-hf embed or rd-hf convert finished")
    output: str = flag("output", MISSING, f": an h5 file, {FILE}", required=True, metavar="FILE")
    level: str | None = flag("level", None, " to export (default: the largest that the folder holds)")
    key: str = option(
        "auto",
        "what names a dataset: id, hash (of the sequence), or auto (ids where they serve, the default)",
        choices=("auto", "id", "hash"),
    )
    input: tuple[str, ...] = flag("input", (), " that were embedded, where they lie now; needed by --key hash")

    def __post_init__(self) -> None:
        check_options(self)
