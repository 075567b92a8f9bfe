"""The frame of every evaluation and study: its output folder, caches, notes, files, and how it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from matplotlib.figure import Figure

from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.families import Family, draw_fit_sample, fitting_moments, refit_difference, split_sample
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.files import FolderError, Workspace, replacing, write_json
from rd_hf.options import option_fields, typed_as

# Bases are stored in float32 and batches differ: the same sequences refit to about 1e-5, others to 1e-2 and more.
SAME_BASES = 1e-3
# Options that change how an evaluation runs, and none of its figures.
HOW = {"output", "cache", "device", "batch_tokens", "threads", "jobs"}


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

    def claim(self) -> None:
        """Take the folder for this run: a new one, or one of an evaluation of no more than what is asked for.

        Raises:
            FolderError: what its files tell of, and this run would not.
        """
        self.output.claim()
        record = self.output.path / "options.json"
        fields = [one for one in option_fields(self.options) if one.name not in HOW]
        asked = {typed_as(one)[-1]: getattr(self.options, one.name) for one in fields}
        asked = json.loads(json.dumps(asked, default=str))  # as it is read back
        # Without a report there is nothing to lose; an earlier version did not say what it was asked for.
        told = (self.options.output / "report.md").exists() and record.exists()
        before = json.loads(record.read_bytes()) if told else asked
        lost = [name for name, value in asked.items() if not _includes(value, before.get(name, value))]
        if lost:
            raise FolderError(
                f"{self.options.output} holds an evaluation with other {', '.join(lost)}: choose another --output, or "
                "ask for more than it holds"
            )
        write_json(record, asked)

    def moments(self, family: Family, needed_by: Iterable[str] = ()) -> JointMoments | None:
        """Moments of the fitting sequences of a family; None where there are none.

        A note says whether they are those of the model's own bases, or, without ``--input``, what (``needed_by``) is
        left out.
        """
        if family.model.config.one_pass or len(family.names) == 1:
            return None
        if not self.options.fit_data:
            if needed_by:
                self.notes.append(f"{family.label}: no {', '.join(needed_by)}, for want of --input.")
            return None
        training, _ = split_sample(draw_fit_sample(family, self.options))
        moments = fitting_moments(family, training, self.cache, self.options.batch_tokens)
        what = "PCA and all-directions chain" if family.fitted else "bases, PCA and all-directions chain"
        note = f"{family.label}: {what} fitted on {len(training):,} sequences ({moments.count:,} residues)"
        if family.fitted and family.depth == 1:
            difference = refit_difference(family, moments)
            note += ", the same as its own bases" if difference < SAME_BASES else ", NOT those of its own bases"
            note += f" (regressions fitted on them differ from the model's by {difference:.0e})"
        self.notes.append(f"{note}.")
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


def _includes(value: Any, before: Any) -> bool:
    """Whether a run with one value of an option tells all that a run with another told."""
    both_lists = isinstance(value, list) and isinstance(before, list)
    return set(before) <= set(value) if both_lists else value == before


def stored_table(path: Path, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Read the table that an earlier run left, or compute it and write it whole."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        table = compute()
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False)
    return pd.read_parquet(path)
