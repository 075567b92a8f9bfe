"""The choices of a map. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from rd_hf.flags import FILE, flag
from rd_hf.options import check_options, option, whole
from rd_hf.tables import FORMATS

METHODS = {"pca": "Principal components", "umap": "UMAP"}


@dataclass(frozen=True, slots=True)
class MapSettings:
    """The choices of one map; what each means is the help of its field.

    Raises:
        ValueError: an unknown choice, or a number out of its bounds.
    """

    embeddings: str = flag(
        "embeddings",
        MISSING,
        ": what rd-hf embed finished, with pooling mean, max or cls, here or at hf://datasets/owner/name",
    )
    output: str = flag("output", MISSING, f": the page, such as map.html, {FILE}", required=True, metavar="FILE")
    labels: str | None = flag("labels", None, ": the colours")
    color_by: str | None = option(
        None, "column of the labels that the page opens with (default: the first)", metavar="COLUMN"
    )
    categories: tuple[str, ...] = option(
        (), "columns of the labels whose numbers are names, such as clusters: a colour each, no scale", metavar="COLUMN"
    )
    table: str | None = option(None, "also write coordinates and neighbours, as .parquet, .tsv or .csv", metavar="FILE")
    level: tuple[str, ...] = flag("level", (), " or several, to be drawn (default: all)")
    method: str = option(
        "pca", "principal components (default), or UMAP (needs the extra umap)", choices=tuple(METHODS)
    )
    neighbours: int = flag("neighbours", 10, " that are listed; 0: none", kind=whole(0))
    sample: int | None = flag(
        "num_sequences", None, ", of which the map is made (default: all)", kind=whole(3), former=("--sample",)
    )
    seed: int = flag("seed", 0, ": proteins, and UMAP's beginning", kind=whole(0))
    title: str | None = option(None, "of the page (default: the folder's name)", metavar="TEXT")
    no_descriptions: bool = option(False, "leave the FASTA descriptions out of the page")

    def __post_init__(self) -> None:
        check_options(self)
        if self.table is not None and not self.table.endswith(FORMATS):
            raise ValueError(f"--table {self.table} must end in one of {', '.join(FORMATS)}")
        if self.table is not None and Path(self.table).resolve() == Path(self.output).resolve():
            raise ValueError(f"--table and --output are the same file, {self.table}: give each its own")
