"""What `rd-hf train` finds on deep mutational scans, judged on variants that had no part in it.

    python scripts/studies/training.py --model rd-esm2-mini --assays dms/ --output training.csv

For each assay: the score of every level in five random folds, and of 96 training variants, beside the probe of
`rd-hf evaluate dms` on the same folds; then, for draws of 300 training variants, embedding, substitutions and both, the
level that the rules choose by cross-validation among the 300, and the coverage of 90 % intervals, all judged on the
variants that were not drawn; an assay that has too few is left out of these draws. One row a figure; assays that the
output has already are not done again.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from rd_hf.embedding import Embedder
from rd_hf.evaluation.assays import Assay, folds, low_n_folds, read_assay
from rd_hf.evaluation.options import ProbeOptions
from rd_hf.evaluation.probe import nested_ridge
from rd_hf.evaluation.tables import markdown_table
from rd_hf.hub.describe import describe_model
from rd_hf.training.data import Examples, make_examples
from rd_hf.training.features import Features, with_substitutions
from rd_hf.training.levels import RESAMPLES, choose, judge_levels
from rd_hf.training.probes import fit
from rd_hf.training.rows import LabelledRow
from rd_hf.training.settings import RULES, TrainingSettings
from rd_hf.training.splits import inner_folds, make_folds
from rd_hf.training.uncertainty import half_width

FIELDS = ("assay", "figure", "level", "draw", "value", "other")
Row = tuple[str, str, int, float, float]


def examples_of(assay: Assay, rows: Sequence[int] | np.ndarray) -> Examples:
    """Some variants of an assay, as a table of them would give."""
    table = [
        LabelledRow(n + 1, f"row {n + 2}", assay.mutants[row], assay.sequences[row], repr(float(assay.scores[row])))
        for n, row in enumerate(rows)
    ]
    return make_examples(assay.name, "score", table, [], "regression", assay.wild_type)


def same_folds(
    assay: Assay, embedding: np.ndarray, widths: dict[str, int], settings: TrainingSettings
) -> Iterator[Row]:
    """Scores of levels here (value) and by the evaluation's probe (other), in random folds and with 96 variants."""
    every = np.arange(len(assay.scores))
    examples, flop = examples_of(assay, every), dict.fromkeys(widths, 1)
    own = make_folds(examples, settings)
    for result in judge_levels(Features(embedding), widths, flop, examples, own, "spearman", 0):
        theirs = [
            spearmanr(assay.scores[f.test], _evaluated(embedding[:, : result.width], assay, f.train, f.test)).statistic
            for f in folds(assay, "random", 1)
        ]
        yield "random folds", result.level, 0, result.score, float(np.mean(theirs))
    for few, (level, width) in product(low_n_folds(assay, [96], 1), widths.items()):
        inner = inner_folds(examples, few.train, settings)
        features = Features(embedding[:, :width])
        predicted = fit(features, examples.targets, 0, few.train, inner)(features, few.test)[:, 0]
        evaluated = _evaluated(features.embedding, assay, few.train, few.test)
        truth = assay.scores[few.test]
        yield "96 variants", level, 0, spearmanr(truth, predicted).statistic, spearmanr(truth, evaluated).statistic


def _evaluated(embedding: np.ndarray, assay: Assay, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    return nested_ridge(embedding, assay.scores, train, test, ProbeOptions()).predictions


def draws(
    assay: Assay, embedding: np.ndarray, widths: dict[str, int], flop: dict[str, int], settings: TrainingSettings,
    size: int, count: int,
) -> Iterator[Row]:  # fmt: skip
    """Judge what is learnt from draws of some variants on all others."""
    for draw in range(count):
        order = np.random.default_rng(draw).permutation(len(assay.scores))
        train, test = order[:size], order[size:]
        examples = examples_of(assay, order)  # drawn ones first
        learnt, judged = np.arange(size), np.arange(size, len(order))
        both = with_substitutions(embedding[order], examples)
        own = examples_of(assay, train)
        cut = Features(both.embedding[:size], both.substitutions[:size], both.columns)
        own_folds = make_folds(own, settings)
        results = judge_levels(cut, widths, flop, own, own_folds, "spearman", 0)
        inner = inner_folds(examples, learnt, settings)
        truth, predicted = assay.scores[test], {}
        kinds = {"augmented": both, "embedding": Features(both.embedding)}
        for kind, features in kinds.items():
            for level, width in widths.items():
                part = features.cut(width)
                found = fit(part, examples.targets, 0, learnt, inner)(part, judged)[:, 0]
                yield kind, level, draw, spearmanr(truth, found).statistic, float("nan")
                predicted[kind, level] = found
        alone = both.cut(0)
        found = fit(alone, examples.targets, 0, learnt, inner)(alone, judged)[:, 0]
        yield "one-hot", "", draw, spearmanr(truth, found).statistic, float("nan")
        yield from _choices(results, truth, {level: predicted["augmented", level] for level in widths}, draw)
        for result in results:
            half = half_width(own.targets, result.outputs[:, 0], 0.9)
            share = (np.abs(truth - predicted["augmented", result.level]) <= half).mean()
            yield "coverage", result.level, draw, float(share), float(len(test))


def _choices(results: Sequence, truth: np.ndarray, predicted: dict[str, np.ndarray], draw: int) -> Iterator[Row]:
    """The level of each rule: its score and FLOP (of the largest's); whether it is within one error of the best."""
    scores = {level: spearmanr(truth, found).statistic for level, found in predicted.items()}
    best = max(scores, key=lambda level: scores[level])
    generator = np.random.default_rng(draw)
    resamples = [generator.integers(0, len(truth), len(truth)) for _ in range(RESAMPLES)]
    for rule in RULES:
        chosen = choose(results, rule)
        apart = [
            spearmanr(truth[r], predicted[best][r]).statistic
            - spearmanr(truth[r], predicted[chosen.level][r]).statistic
            for r in resamples
        ]
        yield f"chosen by {rule}", chosen.level, draw, scores[chosen.level], chosen.flop / results[-1].flop
        within = scores[best] - scores[chosen.level] <= np.std(apart, ddof=1)
        yield f"within one error by {rule}", chosen.level, draw, float(within), scores[best]


def summary(figures: pd.DataFrame) -> str:
    """Tables of all assays, in Markdown."""
    figures = figures.assign(level=figures["level"].fillna(""))  # substitutions alone have none
    counts = [figures.loc[figures["figure"] == name, "assay"].nunique() for name in ("random folds", "one-hot")]
    parts = [f"{counts[0]} assays, of which {counts[1]} with {figures['draw'].nunique()} draws each."]
    same = figures[figures["figure"].isin(("random folds", "96 variants"))]
    apart = (same["value"] - same["other"]).abs().groupby([same["figure"], same["level"]]).max()
    rows = [[*key, f"{value:.1e}"] for key, value in apart.items()]
    parts.append(markdown_table(["folds", "level", "furthest from rd-hf evaluate dms"], rows))
    means = figures.groupby(["assay", "figure", "level"])["value"].mean().unstack("assay")
    levels = list(dict.fromkeys(figures.loc[figures["figure"] == "augmented", "level"]))
    alone = means.loc["one-hot"].iloc[0]
    rows = []
    # What a training answers with, unless it is told otherwise.
    answers = figures[figures["figure"] == "chosen by paired"].groupby("assay")["value"].mean()
    for level in (*levels, "chosen"):
        both = answers if level == "chosen" else means.loc[("augmented", level)]
        gain = (both - alone).dropna()
        embedding = "" if level == "chosen" else f"{means.loc[('embedding', level)].mean():.3f}"
        rows.append(
            [
                level,
                embedding,
                f"{alone.mean():.3f}",
                f"{both.mean():.3f}",
                f"{gain.mean():+.3f}",
                f"{(gain > 0).mean():.1%}",
            ]
        )
    header = ["level", "embedding", "one-hot", "both", "both less one-hot", "both better on"]
    parts.append(markdown_table(header, rows))
    tested = figures[figures["figure"] == "coverage"].groupby("assay")["other"].first()
    rows = []
    for rule in RULES:
        chosen = figures[figures["figure"] == f"chosen by {rule}"]
        within = figures[figures["figure"] == f"within one error by {rule}"]
        taken = " ".join(f"{level} {share:.0%}" for level, share in chosen["level"].value_counts(True).items())
        best, count = within["other"].to_numpy(), tested[within["assay"]].to_numpy()
        # Of Spearman's coefficient (Bonett and Wright 2000), of as many variants as judge.
        error = (1 - best**2) * np.sqrt((1 + best**2 / 2) / (count - 3))
        near = (best - chosen["value"].to_numpy() <= error).mean()
        figure = [f"{chosen['value'].mean():.3f}", f"{within['other'].mean():.3f}", f"{chosen['other'].mean():.2f}"]
        rows.append([rule, *figure, f"{near:.1%}", f"{within['value'].mean():.1%}", taken])
    header = ["rule", "score", "best level's", "of the FLOP", "within an error of the best's score"]
    parts.append(markdown_table([*header, "of the difference", "chosen"], rows))
    rows = []
    for level in levels:
        own = figures[(figures["figure"] == "coverage") & (figures["level"] == level)]
        together = np.average(own["value"], weights=own["other"])
        rows.append([level, f"{together:.1%}", f"{own['value'].min():.1%} to {own['value'].max():.1%}"])
    parts.append(markdown_table(["level", "covered by 90 % intervals, all together", "assays"], rows))
    rows = []
    for assay, chosen in figures[figures["figure"] == "chosen by paired"].groupby("assay", sort=False):
        judged = figures[(figures["figure"] == "within one error by paired") & (figures["assay"] == assay)]["other"]
        numbers = (f"{chosen['value'].mean():.3f}", f"{judged.mean():.3f}", f"{1 - chosen['other'].mean():.0%}")
        rows.append([assay, " ".join(chosen["level"]), *numbers])
    parts.append(markdown_table(["assay", "chosen", "its score", "best level's", "FLOP saved"], rows))
    return "\n\n".join(parts)


def main() -> None:
    """Do the assays that the output lacks, smallest first, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rd-esm2-mini", help="reverse-distilled model")
    parser.add_argument("--assays", type=Path, required=True, help="folder of ProteinGym's CSV files")
    parser.add_argument("--output", type=Path, required=True, help="CSV file of figures")
    parser.add_argument("--embeddings", type=Path, required=True, help="folder in which embeddings are kept")
    parser.add_argument("--size", type=int, default=300, help="training variants of a draw (default 300)")
    parser.add_argument("--most", type=int, help="variants of an assay, drawn by seed where it has more (default all)")
    parser.add_argument("--draws", type=int, default=3, help="draws of each assay (default 3)")
    args = parser.parse_args()
    embedder = Embedder(args.model, device="cpu")
    widths = embedder.checkpoint.nested_dims
    flop = {level.level: level.flop_per_residue for level in describe_model(args.model).levels}
    settings = TrainingSettings(model=args.model, input="assay", target="score", output="none")
    done = set(pd.read_csv(args.output)["assay"]) if args.output.exists() else set()
    for path in sorted(args.assays.glob("*.csv"), key=lambda path: path.stat().st_size):
        if path.name.split(".")[0] in done:
            continue
        assay = _drawn(read_assay(path), args.most)
        embedding = _embedded(embedder, assay, args.embeddings)
        rows = list(same_folds(assay, embedding, widths, settings))
        if len(assay.scores) >= args.size * 1.25:
            rows += draws(assay, embedding, widths, flop, settings, args.size, args.draws)
        fresh = not args.output.exists()
        with args.output.open("a", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerows([FIELDS] if fresh else [])
            writer.writerows([assay.name, *row] for row in rows)
        print(f"{assay.name}: {len(rows)} figures", flush=True)
    print(summary(pd.read_csv(args.output)))


def _drawn(assay: Assay, most: int | None) -> Assay:
    """So many variants of an assay, or all."""
    if most is None or len(assay.scores) <= most:
        return assay
    rows = np.sort(np.random.default_rng(0).permutation(len(assay.scores))[:most])
    own: dict[str, Any] = {
        name: tuple(getattr(assay, name)[row] for row in rows) for name in ("mutants", "sequences", "positions")
    }
    return replace(assay, **own, scores=assay.scores[rows], digest=f"{assay.digest} {most}")


def _embedded(embedder: Embedder, assay: Assay, folder: Path) -> np.ndarray:
    """Mean embeddings at the largest level, (n, width) float64, kept in a folder."""
    place = folder / f"{assay.name}-{len(assay.scores)}.npy"
    if not place.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(place, np.stack(embedder.embed(list(assay.sequences))["embedding"]))
    return np.asarray(np.load(place), dtype=np.float64)


if __name__ == "__main__":
    main()
