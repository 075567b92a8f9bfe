"""What the two commands are asked to do. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields

from rd_hf.data.records import InputError
from rd_hf.embedding.folder import is_folder_of_embeddings
from rd_hf.embedding.options import LAYOUTS, OUTPUT_DTYPES, PLAIN, EmbeddingOptions
from rd_hf.embedding.settings import PART_BYTES, PART_RECORDS, JobSettings
from rd_hf.flags import FILE, FOLDER, GPU, NAMES, flag
from rd_hf.options import check_options, option


@dataclass(frozen=True, kw_only=True)
class ConvertSettings:
    """Which raw embeddings are converted, and how the nested ones are stored."""

    model: str | None = flag("model", None, f", for raw embeddings: {NAMES}")
    revision: str | None = flag("revision", None)
    input: tuple[str, ...] = flag(
        "input",
        MISSING,
        ", as raw embeddings: .parquet, .h5, .npy or .pt files, or folders of .pt files; LEVEL=FILE where two "
        "backbones are equally wide. Or one finished folder of embeddings, whose --layout is changed",
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
    layout: str = flag("layout", PLAIN, choices=LAYOUTS)
    id_column: str | None = flag("id_column", None, " (default: id, name, ...)")
    ids: str | None = option(None, "ids of .npy files: one per line, or the FASTA file they came from", metavar="FILE")
    strict: bool = flag("strict", False)
    part_records: int = flag("part_records", PART_RECORDS)
    part_megabytes: int = flag("part_megabytes", PART_BYTES >> 20)
    device: str | None = flag("device", None, f" {GPU}")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def of_folder(self) -> bool:
        """Whether the layout of a folder of embeddings is changed, and nothing computed."""
        return any(is_folder_of_embeddings(path) for path in self.input)

    def check_of_folder(self) -> None:
        """Raise an InputError where choices were made that are of raw embeddings alone."""
        if len(self.input) > 1:
            raise InputError(f"{' '.join(self.input)}: one folder of embeddings is converted at a time")
        for one in fields(self):
            if one.name not in ("input", "output", "layout") and getattr(self, one.name) not in (None, one.default):
                raise InputError(
                    f"{self.input[0]} is a folder of embeddings, whose layout is changed and nothing else: leave "
                    f"--{one.name.replace('_', '-')} away"
                )

    def job(self) -> JobSettings:
        """Return the settings of the job that writes the folder."""
        assert self.model is not None
        options = EmbeddingOptions(
            levels=self.level,
            pooling=self.pooling,
            output_dtype=self.output_dtype,
            layout=self.layout,
            normalize=self.normalize,
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
