"""The evaluation on deep mutational scans: from features and folds to tidy rows, one per fold, and a report of them.

A unit of work is one contender on one assay in one repeat. Its rows go to a Parquet file named by a digest of
everything they depend on, so a stopped run continues, an option that adds a contender or a seed runs only that, and
nothing stale is ever read.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from rd_hf.evaluation import plots, statistics
from rd_hf.evaluation.assays import (
    LOW_N,
    Assay,
    Fold,
    FoldLabels,
    folds,
    low_n_folds,
    one_hot,
    read_assays,
    read_fold_labels,
)
from rd_hf.evaluation.embeddings import embed_assay
from rd_hf.evaluation.families import Family, load_families
from rd_hf.evaluation.frame import Evaluated, Evaluation, stored_table
from rd_hf.evaluation.options import FITTED_KINDS, AssayOptions, ProbeOptions
from rd_hf.evaluation.probe import Features, nested_ridge
from rd_hf.evaluation.progress import progress_bar
from rd_hf.evaluation.report import condition, main_split, read_published, render
from rd_hf.evaluation.representations import Representation, family_maps

# Part of every digest: raise it when the meaning of a column changes.
SCHEMA = 1
# Features that may wait for a free worker: embedding runs ahead of the probes only so far.
PENDING_BYTES = 2 * 10**9
TRUE_LABELS, SHUFFLED_LABELS = "true", "shuffled"
# Models in evaluation, each with its contenders.
Families = Sequence[tuple[Family, Sequence[Representation]]]


@dataclass(frozen=True)
class Contender:
    """What is probed; the columns by which tables group. Model, pooling and level are empty for one-hot."""

    model: str
    depth: float  # relative, of the backbone states
    pooling: str
    representation: str  # key of KINDS
    level: str  # largest backbone used
    labels: str = TRUE_LABELS  # or "shuffled" for the control


@dataclass(frozen=True)
class Unit:
    """One contender on one assay, in one repeat or several.

    Features are pooled states z, (n, K) of any float dtype, if there is a ``representation``, which is applied where
    the probe runs; else the features themselves, (n, p) float64, dense or CSR.
    """

    contender: Contender
    assay: Assay
    features: Features = field(repr=False)
    feature_digest: str  # of whatever made the features
    representation: Representation | None
    folds: Sequence[Fold] = field(repr=False)
    probe: ProbeOptions

    @property
    def digest(self) -> str:
        """Name of the file of results."""
        described = {
            "schema": SCHEMA,
            "contender": asdict(self.contender),
            "assay": [self.assay.name, self.assay.digest],
            "features": [self.feature_digest, self.representation.digest if self.representation else ""],
            "probe": asdict(self.probe),
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for fold in self.folds:
            digest.update(f"{fold.split} {fold.repeat} {fold.fold}".encode())
            digest.update(fold.train.tobytes() + b"/" + fold.test.tobytes())
        return digest.hexdigest()[:24]


def evaluate_assays(options: AssayOptions) -> Evaluated:
    """Probe every contender on every assay, and write the report."""
    evaluation = Evaluation(options, "an evaluation", "results.parquet")
    labels = read_fold_labels(options.folds) if options.folds else None
    published = read_published(options.reference) if options.reference else None
    assays, evaluation.failed = read_assays(options.assays)
    evaluation.claim()
    lacking = [" and ".join(FITTED_KINDS)] if set(FITTED_KINDS) & set(options.representations) else []
    families = [
        (family, family_maps(family, evaluation.moments(family, lacking), options.representations, options.seed))
        for family in load_families(options)
    ]
    results = probe_assays(evaluation, families, assays, labels, options)
    evaluation.write_table("results.parquet", results)
    figures = _figures(results, [family for family, _ in families], options)
    evaluation.write_figures(figures)
    evaluation.notes.insert(
        0,
        f"{sum(assay.name not in evaluation.failed for assay in assays)} assays, "
        f"{sum(len(assay.mutants) for assay in assays):,} variants. Ridge on standardised features, strength of "
        f"{len(options.probe.strengths)} chosen by {options.inner_folds}-fold cross-validation inside the "
        f"training folds; a score is the mean over folds, then over {options.seeds} seeds; intervals are 95 % "
        "bootstrap intervals over assays, p is Wilcoxon's signed-rank test, q its false discovery rate over all pairs "
        "shown.",
    )
    levels = {family.label: family.names for family, _ in families}
    report = render(results, levels, evaluation.notes, evaluation.failed, published, list(figures))
    return evaluation.finish(report, shown_until="Every assay", rows=len(results))


def _figures(results: pd.DataFrame, families: Sequence[Family], options: AssayOptions) -> dict[str, Figure]:
    scores = statistics.assay_scores(results)
    true = scores[scores["labels"] == TRUE_LABELS]
    main, low = condition(true, main_split(true)), true[true["split"] == LOW_N]
    figures = {}
    for number, family in enumerate(families, start=1):
        for pooling in options.pooling:
            group = {"model": family.label, "depth": family.depth, "pooling": pooling}
            tag = "" if len(families) == 1 else f"_{number}"
            tag += "" if len(options.pooling) == 1 else f"_{pooling}"
            figures[f"score_by_level{tag}.png"] = plots.score_figure(main, family.names, group)
            if len(low):
                figures[f"low_n{tag}.png"] = plots.low_n_figure(low, family.names[-1], group)
    return figures | {"win_rates.png": plots.win_figure(main)}


def probe_assays(
    evaluation: Evaluation,
    families: Families,
    assays: Sequence[Assay],
    labels: FoldLabels | None,
    options: AssayOptions,
) -> pd.DataFrame:
    """Rows of every contender on every assay; an assay on which a probe fails joins what is left out."""
    contenders = sum(len(maps) for _, maps in families) * len(options.pooling)
    contenders += options.control * len(families) + ("one_hot" in options.representations)
    units = plan_units(families, assays, labels, options, evaluation.cache)
    results, broken = run_units(units, evaluation.runs, options.jobs, contenders * options.seeds * len(assays))
    evaluation.failed |= broken
    if results.empty:
        raise ValueError(f"no assay could be evaluated: {'; '.join(evaluation.failed.values())}")
    return results


def plan_units(
    families: Families, assays: Sequence[Assay], labels: FoldLabels | None, options: AssayOptions, cache: Path
) -> Iterator[Unit]:
    """Every unit of a run, embedding an assay when its turn comes.

    One-hot goes first: it needs no embedding, so that workers are busy while this process runs the backbones.
    """
    ordered = sorted(assays, key=lambda assay: -len(assay.mutants))
    all_folds: dict[str, list[Fold]] = {}
    for assay in ordered:
        own = [fold for split in options.splits for fold in folds(assay, split, options.seeds, labels)]
        all_folds[assay.name] = own + low_n_folds(assay, options.low_n, options.seeds, labels)

    def repeats(
        contender: Contender, assay: Assay, features: Features, digest: str, how: Representation | None
    ) -> Iterator[Unit]:
        """One unit for each repeat, so that a run with more seeds computes the new ones only."""
        for repeat in range(options.seeds):
            chosen = [fold for fold in all_folds[assay.name] if fold.repeat == repeat]
            if contender.labels == SHUFFLED_LABELS:
                chosen = [fold for fold in chosen if fold.split == "random"]
            yield Unit(contender, assay, features, digest, how, chosen, options.probe)

    if "one_hot" in options.representations:
        for assay in ordered:
            yield from repeats(Contender("", 1.0, "", "one_hot", ""), assay, one_hot(assay), "one-hot", None)
    for family, maps in families:
        variants = sum(len(assay.mutants) for assay in ordered)
        largest = [how for how in maps if how.level == family.names[-1]][:1] if options.control else []
        with progress_bar(total=variants, desc=f"embedding with {family.label}", unit="variant") as progress:
            for assay in ordered:
                states = embed_assay(family, assay, cache, options.batch_tokens, progress)
                for pooling in options.pooling:
                    pooled, digest = getattr(states, pooling), f"{family.fingerprint} {pooling}"
                    probed = [(how, TRUE_LABELS) for how in maps]
                    if pooling == options.pooling[0]:
                        probed += [(how, SHUFFLED_LABELS) for how in largest]
                    for how, kind in probed:
                        contender = Contender(family.label, family.depth, pooling, how.kind, how.level, kind)
                        yield from repeats(contender, assay, pooled, digest, how)


def run_units(units: Iterable[Unit], folder: Path, jobs: int, total: int | None = None) -> tuple[pd.DataFrame, dict]:
    """Probe every unit that has no file in ``folder`` yet, and gather the rows of all.

    Units are drawn one after the other, so that a generator may embed an assay while worker processes probe the last;
    one job works in this process. An assay on which a probe fails is left out, and its message returned.
    """
    paths: list[Path] = []
    failed: dict[str, str] = {}
    pending: dict[Future[None], Unit] = {}
    # Spawned, not forked: a fork of a process whose torch threads run may hang.
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) if jobs > 1 else None
    progress = progress_bar(total=total, desc="probes", unit="probe")

    def collect(done: Iterable[Future[None]]) -> None:
        for future in done:
            name = pending.pop(future).assay.name
            progress.update()
            if isinstance(error := future.exception(), ValueError):
                failed.setdefault(name, f"{name}: {error}")
            else:
                future.result()

    try:
        for unit in units:
            path = folder / f"{unit.digest}.parquet"
            paths.append(path)
            if path.exists():
                progress.update()
                continue
            while sum(_nbytes(waiting.features) for waiting in pending.values()) > PENDING_BYTES:
                collect(wait(pending, return_when=FIRST_COMPLETED).done)
            pending[pool.submit(_work, unit, path) if pool else _worked_here(unit, path)] = unit
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


def _nbytes(features: Features) -> int:
    return int(features.nbytes if isinstance(features, np.ndarray) else features.data.nbytes)


def _work(unit: Unit, path: Path) -> None:
    # One thread each: the matrices are small, and the workers already fill the cores.
    with threadpool_limits(limits=1):
        stored_table(path, lambda: evaluate_unit(unit))


def _worked_here(unit: Unit, path: Path) -> Future[None]:
    future: Future[None] = Future()
    try:
        _work(unit, path)
        future.set_result(None)
    except ValueError as error:
        future.set_exception(error)
    return future


def evaluate_unit(unit: Unit) -> pd.DataFrame:
    """Probe one contender on one assay.

    One row per fold and, in the splits on multiple mutants, one more for each number of mutations among its test
    variants. Columns: those of :class:`Contender`, assay, width, split, repeat, fold, mutations ("all" or the number),
    n_train, n_test, strength, spearman, pearson, r2.
    """
    features = unit.features if unit.representation is None else unit.representation(unit.features)
    rows = []
    for fold in unit.folds:
        scores = unit.assay.scores
        if unit.contender.labels == SHUFFLED_LABELS:
            scores = np.random.default_rng(fold.repeat).permutation(scores)
        options = replace(unit.probe, seed=unit.probe.seed + fold.repeat)
        result = nested_ridge(features, scores, fold.train, fold.test, options)
        counts = unit.assay.mutation_counts[fold.test]
        groups: dict[str, np.ndarray] = {"all": np.ones(len(counts), dtype=bool)}
        if fold.split in ("by_mutations", "singles_to_multiples"):
            groups |= {str(count): counts == count for count in np.unique(counts) if (counts == count).sum() > 1}
        place = {**asdict(unit.contender), "assay": unit.assay.name, "width": features.shape[1]}
        place |= {"split": fold.split, "repeat": fold.repeat, "fold": fold.fold}
        for mutations, chosen in groups.items():
            row = {"mutations": mutations, "n_train": len(fold.train), "n_test": int(chosen.sum())}
            figures = statistics.agreement(scores[fold.test][chosen], result.predictions[chosen])
            rows.append({**place, **row, "strength": result.strength, **figures})
    return pd.DataFrame(rows)
