"""The frame of every evaluation and study: its output folder, caches, notes, files, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import transformers
from matplotlib.figure import Figure

from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.families import Family, draw_moments
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.files import Workspace, replacing


@dataclass(frozen=True)
class Evaluated:
    """What a finished evaluation has to say."""

    text: str  # the report, or its first sections
    failed: tuple[str, ...]  # a message for each input that was left out
    ending: str  # how long it took, and where the report is


class Evaluation:
    """One evaluation in its output folder, which is refused where it holds something else, and may then be claimed.

    ``command`` says in words what works in the folder; ``names`` are the files that it writes beside ``report.md``.
    """

    def __init__(self, options: EvaluationOptions, command: str, *names: str) -> None:
        self.started = time.monotonic()
        self.options = options
        self.output = Workspace(options.output / ".rd_hf", command)
        self.output.refuse("report.md", *names)
        # States, which runs may share; and results, one file for each unit of work, by which a stopped run goes on.
        self.cache = options.cache or options.output / "cache"
        self.runs = options.output / "runs"
        self.notes: list[str] = []  # on how the run was done
        self.failed: dict[str, str] = {}  # a message for each input left out
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        if options.threads:
            torch.set_num_threads(options.threads)

    def moments(self, family: Family, needed_by: Iterable[str] = ()) -> JointMoments | None:
        """Moments of the fitting sequences of a family, with a note on them; None where there are none.

        Without ``--input`` the note says that ``needed_by`` is left out.
        """
        if family.model.config.one_pass or len(family.names) == 1:
            return None
        if not self.options.fit_data:
            if needed_by:
                self.notes.append(f"{family.label}: no {', '.join(needed_by)}, for want of --input.")
            return None
        moments, note = draw_moments(family, self.options, self.cache)
        self.notes.append(note)
        return moments

    def write_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a Parquet file of the output folder."""
        with self.output.writing(name) as path:
            table.to_parquet(path, index=False)

    def write_figures(self, figures: Mapping[str, Figure]) -> None:
        """Write PNG files of the output folder."""
        for name, figure in figures.items():
            with self.output.writing(name) as path:
                figure.savefig(path, dpi=110, format="png")

    def finish(self, report: str, *, shown_until: str = "", rows: int | None = None) -> Evaluated:
        """Write ``report.md``, of which what stands before the heading ``shown_until`` is to be printed."""
        place = self.options.output / "report.md"
        with self.output.writing(place.name) as path:
            path.write_text(report, encoding="utf-8")
        minutes = f"{(time.monotonic() - self.started) / 60:.1f} minutes: {place}"
        return Evaluated(
            report.split(f"\n## {shown_until}")[0] if shown_until else report,
            tuple(self.failed.values()),
            minutes if rows is None else f"{rows:,} rows in {minutes}",
        )


def stored_table(path: Path, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Read the table that an earlier run left, or compute it and write it whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        table = compute()
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False)
    return pd.read_parquet(path)
