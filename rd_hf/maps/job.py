"""One map from a folder of embeddings to a page."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from rd_hf.data.records import InputError
from rd_hf.files import write_text
from rd_hf.maps.labels import columns_of
from rd_hf.maps.neighbours import nearest
from rd_hf.maps.page import Map, render_page
from rd_hf.maps.projection import project
from rd_hf.maps.proteins import read_proteins
from rd_hf.maps.settings import METHODS, MapSettings
from rd_hf.maps.table import write_table


def draw_map(settings: MapSettings, show_progress: bool = True) -> str:
    """Draw a map and write its page; returns what was drawn, one sentence per line.

    Bars are shown where standard error is a terminal, unless ``show_progress`` is False.

    Raises:
        InputError: something cannot be used as given; the message is one sentence that names it and the mend.
        FolderError: the page cannot be written.
    """
    output, table = Path(settings.output), settings.table and Path(settings.table)
    # Before minutes of work, not after them.
    for flag, path in (("--output", output), ("--table", table)):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise InputError(f"{path} cannot be written: give {flag} a file in a folder that exists")

    def bar(what: str, unit: str, total: int | None = None) -> tqdm:
        return tqdm(desc=what, unit=unit, total=total, disable=None if show_progress else True, leave=False)

    with bar("reading", " proteins") as shown:

        def on_read(rows: int, total: int) -> None:
            shown.total = total
            shown.update(rows)

        proteins = read_proteins(settings.embeddings, settings.level, settings.sample, settings.seed, on_read)
    columns, notes = columns_of(settings, proteins)
    with bar("projecting", " levels", len(proteins.levels)) as shown:
        projections = project(proteins, settings.method, settings.seed, shown.update)
    neighbours = {}
    if settings.neighbours:
        with bar("neighbours", " proteins", len(proteins.ids)) as shown:
            neighbours = nearest(proteins.vectors, proteins.levels, settings.neighbours, shown.update)
    content = Map(
        title=settings.title or Path(settings.embeddings).resolve().name,
        proteins=proteins,
        projections=projections,
        neighbours=neighbours,
        columns=columns,
        method=METHODS[settings.method],
        descriptions=not settings.no_descriptions,
    )
    page = render_page(content)
    if table:
        write_table(table, proteins, projections, neighbours)
    write_text(output, page)
    shares = [
        f"level {one.level}: the two axes hold {one.explained:.1%} of the variance"
        for one in projections
        if one.explained is not None
    ]
    drawn = f"{len(proteins.ids):,} proteins of {proteins.total:,} at {', '.join(proteins.levels)}"
    size = f"{output.stat().st_size / 1e6:.1f} MB written to {output}"
    tables = [f"coordinates and neighbours written to {table}"] if table else []
    return "\n".join([drawn, *notes, *shares, *tables, size])
