"""From features and folds to tidy rows: one row per fold, one file per unit of work, resumable.

A unit of work is one contender on one assay in one repeat. Its rows go to a Parquet file named by a digest of
everything they depend on, so a stopped run continues, an option that adds a contender or a seed runs only that, and
nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import r2_score
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from rd_hf.evaluation.frame import stored_table
from rd_hf.evaluation.options import ProbeOptions
from rd_hf.evaluation.probe import Features, nested_ridge
from rd_hf.evaluation.representations import Representation
from rd_hf.evaluation.splits import Fold

# Part of every digest: raise it when the meaning of a column changes.
SCHEMA = 1
# Features that may wait for a free worker: embedding runs ahead of the probes only so far.
PENDING_BYTES = 2 * 10**9
TRUE_LABELS, SHUFFLED_LABELS = "true", "shuffled"


@dataclass(frozen=True)
class Contender:
    """What is probed; the columns by which tables group.

    Attributes:
        model: label, empty for one-hot.
        depth: relative depth of the backbone states.
        pooling: "mean", "site" or "difference"; empty for one-hot.
        representation: key of :data:`rd_hf.evaluation.options.KINDS`.
        level: largest backbone used, empty for one-hot.
        labels: "true", or "shuffled" for the control.
    """

    model: str
    depth: float
    pooling: str
    representation: str
    level: str
    labels: str = TRUE_LABELS


@dataclass(frozen=True)
class Unit:
    """One contender on one assay, in one repeat or several.

    Attributes:
        assay_digest: of the assay's content.
        scores: (n,) float64.
        mutation_counts: (n,) int64.
        features: pooled states z, (n, K) of any float dtype, if there is a ``representation``, which is applied where
            the probe runs; else the features themselves, (n, p) float64, dense or CSR.
        feature_digest: of whatever made the features.
    """

    contender: Contender
    assay: str
    assay_digest: str
    scores: np.ndarray = field(repr=False)
    mutation_counts: np.ndarray = field(repr=False)
    features: Features = field(repr=False)
    feature_digest: str
    representation: Representation | None
    folds: Sequence[Fold] = field(repr=False)
    probe: ProbeOptions

    @property
    def digest(self) -> str:
        """Name of the file of results."""
        digest = hashlib.sha256()
        described = {
            "schema": SCHEMA,
            "contender": asdict(self.contender),
            "assay": [self.assay, self.assay_digest],
            "features": [self.feature_digest, self.representation.digest if self.representation else ""],
            "probe": asdict(self.probe),
        }
        digest.update(json.dumps(described, sort_keys=True).encode())
        for fold in self.folds:
            digest.update(f"{fold.split} {fold.repeat} {fold.fold}".encode())
            digest.update(fold.train.tobytes() + b"/" + fold.test.tobytes())
        return digest.hexdigest()[:24]


def _figures(truth: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Spearman, Pearson and R^2; all NaN where the truth is constant, for it cannot be ranked.

    A constant prediction ranks nothing and scores 0: left out, it would flatter the contender that gave up.
    """
    if np.all(truth == truth[0]):
        return {"spearman": np.nan, "pearson": np.nan, "r2": np.nan}
    r2 = float(r2_score(truth, predictions))
    if np.ptp(predictions) <= 1e-12 * max(1.0, float(np.abs(predictions).max())):
        return {"spearman": 0.0, "pearson": 0.0, "r2": r2}
    spearman, pearson = spearmanr(truth, predictions).statistic, pearsonr(truth, predictions).statistic
    return {"spearman": float(spearman), "pearson": float(pearson), "r2": r2}


def evaluate_unit(unit: Unit) -> pd.DataFrame:
    """Probe one contender on one assay.

    Returns:
        One row per fold and, in the splits on multiple mutants, one more for each number of mutations among its
        test variants. Columns: those of :class:`Contender`, assay, width, split, repeat, fold, mutations ("all" or
        the number), n_train, n_test, strength, spearman, pearson, r2.
    """
    features = unit.features if unit.representation is None else unit.representation(unit.features)
    rows = []
    for fold in unit.folds:
        scores = unit.scores
        if unit.contender.labels == SHUFFLED_LABELS:
            scores = np.random.default_rng(fold.repeat).permutation(scores)
        options = replace(unit.probe, seed=unit.probe.seed + fold.repeat)
        result = nested_ridge(features, scores, fold.train, fold.test, options)
        counts = unit.mutation_counts[fold.test]
        groups: dict[str, np.ndarray] = {"all": np.ones(len(counts), dtype=bool)}
        if fold.split in ("by_mutations", "singles_to_multiples"):
            groups |= {str(count): counts == count for count in np.unique(counts) if (counts == count).sum() > 1}
        for mutations, chosen in groups.items():
            rows.append(
                {
                    **asdict(unit.contender),
                    "assay": unit.assay,
                    "width": features.shape[1],
                    "split": fold.split,
                    "repeat": fold.repeat,
                    "fold": fold.fold,
                    "mutations": mutations,
                    "n_train": len(fold.train),
                    "n_test": int(chosen.sum()),
                    "strength": result.strength,
                    **_figures(scores[fold.test][chosen], result.predictions[chosen]),
                }
            )
    return pd.DataFrame(rows)


def _nbytes(features: Features) -> int:
    return int(features.nbytes if isinstance(features, np.ndarray) else features.data.nbytes)


def _work(unit: Unit, path: Path) -> None:
    # One thread each: the matrices are small, and the workers already fill the cores.
    with threadpool_limits(limits=1):
        stored_table(path, lambda: evaluate_unit(unit))


def run_units(units: Iterable[Unit], folder: Path, jobs: int, total: int | None = None) -> tuple[pd.DataFrame, dict]:
    """Probe every unit that has no results yet, and gather those of all.

    Args:
        units: drawn one after the other, so that a generator may embed an assay while workers probe the last.
        folder: where results are kept, one file per unit.
        jobs: worker processes; 1 works in this process.
        total: number of units, for the progress bar.

    Returns:
        The tidy table, and the message for each assay on which a probe failed (its rows are left out).
    """
    paths: list[Path] = []
    failed: dict[str, str] = {}
    pending: dict[Future[None], Unit] = {}
    # Spawned, not forked: a fork of a process whose torch threads run may hang.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) if jobs > 1 else None
    progress = tqdm(total=total, desc="probes", unit="probe", disable=None)

    def collect(done: Iterable[Future[None]]) -> None:
        for future in done:
            unit = pending.pop(future)
            progress.update()
            try:
                future.result()
            except ValueError as error:
                failed.setdefault(unit.assay, f"{unit.assay}: {error}")

    def probed_here(unit: Unit, path: Path) -> Future[None]:
        future: Future[None] = Future()
        try:
            future.set_result(_work(unit, path))
        except ValueError as error:
            future.set_exception(error)
        return future

    try:
        for unit in units:
            path = folder / f"{unit.digest}.parquet"
            paths.append(path)
            if path.exists():
                progress.update()
                continue
            while sum(_nbytes(waiting.features) for waiting in pending.values()) > PENDING_BYTES:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
            pending[pool.submit(_work, unit, path) if pool else probed_here(unit, path)] = unit
            collect([future for future in pending if future.done()])
        while pending:
            collect(wait(pending, return_when=FIRST_COMPLETED).done)
    finally:
        progress.close()
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
    parts = [pd.read_parquet(path) for path in paths if path.exists()]
    parts = [part for part in parts if len(part) and part["assay"].iloc[0] not in failed]
    return (pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()), failed
