"""The evaluation on deep mutational scans: every unit of a run, and the report made of their rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from rd_hf.evaluation import plots, statistics
from rd_hf.evaluation.assays import Assay, one_hot, read_assays
from rd_hf.evaluation.embeddings import StateCache, embed_assay
from rd_hf.evaluation.families import Family, load_families
from rd_hf.evaluation.frame import Evaluated, Evaluation
from rd_hf.evaluation.options import FITTED_KINDS, AssayOptions
from rd_hf.evaluation.probe import Features
from rd_hf.evaluation.report import condition, main_split, read_published, render
from rd_hf.evaluation.representations import Representation, family_maps
from rd_hf.evaluation.runs import SHUFFLED_LABELS, Contender, Unit, run_units
from rd_hf.evaluation.splits import LOW_N, Fold, FoldLabels, folds, low_n_folds, read_fold_labels

# Of one family or several, each with its contenders.
Families = Sequence[tuple[Family, Sequence[Representation]]]


def evaluate_assays(options: AssayOptions) -> Evaluated:
    """Probe every contender on every assay, and write the report.

    Raises:
        InputError: an input cannot be read, or a model cannot be loaded.
        ValueError: no assay could be evaluated.
    """
    evaluation = Evaluation(options, "an evaluation", "results.parquet", threads=half_the_cores())
    labels = read_fold_labels(options.folds) if options.folds else None
    published = read_published(options.reference) if options.reference else None
    assays, evaluation.failed = read_assays(options.assays)
    evaluation.output.claim()
    families = []
    lacking = [" and ".join(FITTED_KINDS)] if set(FITTED_KINDS) & set(options.representations) else []
    for family in load_families(options):
        moments = evaluation.moments(family, lacking)
        families.append((family, family_maps(family, moments, options.representations, options.seed)))
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
        "bootstrap intervals over assays, p is Wilcoxon's signed-rank test, q its false discovery rate over all pairs shown.",
    )
    levels = {family.label: family.names for family, _ in families}
    report = render(results, levels, evaluation.notes, evaluation.failed, published, list(figures))
    return evaluation.finish(report, shown_until="Every assay", rows=len(results))


def half_the_cores() -> int:
    """Threads that embed while other processes probe."""
    return max(1, (os.cpu_count() or 1) // 2)


def _figures(results: pd.DataFrame, families: Sequence[Family], options: AssayOptions) -> dict[str, Figure]:
    scores = statistics.assay_scores(results)
    true = scores[scores["labels"] == "true"]
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
    """Rows of every contender on every assay; an assay on which a probe fails joins what is left out.

    Args:
        families: models in evaluation, and the contenders of each.
        labels: ProteinGym's folds, or None.

    Raises:
        InputError: a backbone returns NaN or infinity.
        ValueError: no assay could be evaluated.
    """
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
    all_folds: Mapping[str, list[Fold]] = {assay.name: _assay_folds(assay, labels, options) for assay in ordered}

    def repeats(
        contender: Contender, assay: Assay, features: Features, digest: str, how: Representation | None
    ) -> Iterator[Unit]:
        """One unit for each repeat, so that a run with more seeds computes the new ones only."""
        for repeat in range(options.seeds):
            chosen = [fold for fold in all_folds[assay.name] if fold.repeat == repeat]
            if contender.labels == SHUFFLED_LABELS:
                chosen = [fold for fold in chosen if fold.split == "random"]
            yield Unit(
                contender=contender,
                assay=assay.name,
                assay_digest=assay.digest,
                scores=assay.scores,
                mutation_counts=assay.mutation_counts,
                features=features,
                feature_digest=digest,
                representation=how,
                folds=chosen,
                probe=options.probe,
            )

    if "one_hot" in options.representations:
        for assay in ordered:
            yield from repeats(Contender("", 1.0, "", "one_hot", ""), assay, one_hot(assay), "one-hot", None)
    for family, maps in families:
        store = StateCache(cache, family.fingerprint)
        variants = sum(len(assay.mutants) for assay in ordered)
        with tqdm(total=variants, desc=f"embedding with {family.label}", unit="variant", disable=None) as progress:
            for assay in ordered:
                states = embed_assay(family, assay, store, options.batch_tokens, progress)
                for pooling in options.pooling:
                    pooled, digest = states.pooled(pooling), f"{family.fingerprint} {pooling}"
                    probed = [(how, "true") for how in maps]
                    if options.control and pooling == options.pooling[0]:
                        largest = next(how for how in maps if how.level == family.names[-1])
                        probed.append((largest, SHUFFLED_LABELS))
                    for how, kind in probed:
                        contender = Contender(family.label, family.depth, pooling, how.kind, how.level, kind)
                        yield from repeats(contender, assay, pooled, digest, how)


def _assay_folds(assay: Assay, labels: FoldLabels | None, options: AssayOptions) -> list[Fold]:
    result = [fold for split in options.splits for fold in folds(assay, split, options.seeds, labels)]
    return result + low_n_folds(assay, options.low_n, options.seeds, labels)
