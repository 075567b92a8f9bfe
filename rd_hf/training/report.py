"""What a training found, as a dictionary for ``training.json`` and as ``report.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rd_hf.evaluation.tables import between, markdown_table, number
from rd_hf.training.data import Examples
from rd_hf.training.levels import SCORERS, LevelResult, best_of, score_of, standard_error
from rd_hf.training.probes import Linear, probabilities
from rd_hf.training.settings import SCORES, TrainingSettings
from rd_hf.training.similarity import COVERAGE, IDENTITY
from rd_hf.training.splits import Fold
from rd_hf.training.uncertainty import Certainty, one_of_several

LEVELS_FIGURE, PREDICTIONS_FIGURE, CURVE_FIGURE = (
    "training_levels.png",
    "training_predictions.png",
    "training_curve.png",
)
_RULES = {
    "paired": "the smallest whose difference to the best is within one standard error of that difference",
    "breiman": "the smallest whose score is within one standard error of the best's",
    "best": "the best",
}


@dataclass(frozen=True)
class Findings:
    """All that a report is made of.

    Attributes:
        settings, examples, folds: of the training.
        score: key of :data:`rd_hf.training.levels.SCORERS`.
        results: of the levels, smallest first.
        chosen: the level that answers.
        probes: of each level, fitted on all examples that may be learnt from.
        curve: as :func:`rd_hf.training.levels.learning_curve` gives it.
        certainty: of each level.
        columns: position and residue of each substitution that probes know.
        baseline: substitutions alone, on the same folds, where probes are fitted on them beside the embedding.
        model: fingerprint of what embedded, and the commits of its backbones that were left open.
    """

    settings: TrainingSettings
    examples: Examples
    folds: Sequence[Fold]
    score: str
    results: Sequence[LevelResult]
    chosen: LevelResult
    probes: Mapping[str, Linear]
    curve: Sequence[tuple[int, np.ndarray]]
    certainty: Mapping[str, Certainty]
    columns: Sequence[tuple[int, str]] = ()
    baseline: LevelResult | None = None
    model: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of ``training.json``; numbers that are not known are None."""
        best = best_of(self.results)
        levels = {}
        for result in self.results:
            (low, high), (below, error) = result.interval, result.below(best)
            figures = {"score": result.score, "low": low, "high": high, "below_best": below, "below_best_error": error}
            strength = self.probes[result.level].strength
            own = {name: _known(value) for name, value in figures.items()}
            levels[result.level] = {
                "width": result.width, "flop_per_residue": result.flop, **own, "strength": strength,
                **self.certainty[result.level].to_dict(),
            }  # fmt: skip
        return {
            "task": self.examples.task,
            "target": self.settings.target,
            "classes": list(self.examples.classes),
            "model": self.model,
            "data": str(self.settings.input).replace("\\", "/").rsplit("/", 1)[-1],
            "rows": len(self.examples.rows),
            "sequences": len(self.examples.sequences),
            "substitutions": bool(self.columns),
            "interval": self.settings.interval,
            "folds": len(self.folds),
            "score": self.score,
            "rule": None if self.settings.level else self.settings.rule,
            "level": self.chosen.level,
            "best_level": best.level,
            "levels": levels,
            "metrics": {name: _known(value) for name, value in self.metrics().items()},
            "learning_curve": [
                {"sequences": count, "score": _known(float(np.nanmean(scores)))} for count, scores in self.curve
            ],
        }

    def metrics(self) -> dict[str, float]:
        """Of the level that answers: every score, mean over folds, and the error (of classes the log loss)."""
        truth, outputs = self.examples.targets, self.chosen.outputs
        tested = [self.examples.rows_of(fold.test) for fold in self.folds]
        found = {
            name: float(np.nanmean([score_of(name, truth[rows], outputs[rows]) for rows in tested]))
            for name in SCORES[self.examples.task]
            if name in SCORERS
        }
        every = np.concatenate(tested)
        if self.examples.classes:
            calibrated = self.certainty[self.chosen.level].outputs
            classes, logits = one_of_several(truth[every], calibrated[every])
            chances = probabilities(logits)[np.arange(len(classes)), classes]
            return found | {"log_loss": float(-np.log(np.maximum(chances, 1e-300)).mean())}
        return found | {"rmse": float(np.sqrt(np.mean((outputs[every, 0] - truth[every]) ** 2)))}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def levels_table(findings: Findings) -> str:
    """The table of levels, in Markdown."""
    best, largest = best_of(findings.results), findings.results[-1]
    rows = []
    for result in findings.results:
        below, error = result.below(best)
        apart = "best" if result is best else f"{number(-below, '+.3f')} ± {number(error)}"
        name = f"**{result.level}**" if result is findings.chosen else result.level
        share = f"{result.flop / 1e6:,.3g} M ({result.flop / largest.flop:.0%})"
        rows.append([name, str(result.width), number(result.score), between(*result.interval), apart, share])
    if findings.baseline is not None:
        alone = findings.baseline
        below, error = alone.below(best)
        apart = f"{number(-below, '+.3f')} ± {number(error)}"
        rows.append(["substitutions alone", "", number(alone.score), between(*alone.interval), apart, ""])
    return markdown_table(["level", "width", findings.score, "95 %", "to the best", "FLOP per residue"], rows)


def what_is_judged(findings: Findings) -> str:
    """How examples were split, in a sentence."""
    count = len(findings.folds)
    tested = sum(len(fold.test) for fold in findings.folds)
    if findings.examples.parts is not None:
        return (
            f"Judged on the {tested:,} sequences of the test set, from which nothing was learnt, neither for the score "
            "nor for the heads."
        )
    settings = findings.settings
    if settings.scheme != "random":
        return (
            f"Judged by cross-validation in {count} folds of positions ({settings.scheme}), on {tested:,} sequences: "
            "what is tested is substituted nowhere in what was learnt from. Variants with substitutions in several "
            "folds take no part in either."
        )
    how = f"groups of {settings.group} kept together" if settings.group else "random"
    if findings.examples.groups is not None and not findings.examples.rows[0].group:
        groups = len(np.unique(findings.examples.groups))
        how = (
            f"{groups:,} groups of similar sequences (MMseqs2: {IDENTITY:.0%} identity over {COVERAGE:.0%} of both) "
            "kept together"
        )
    return f"Judged by cross-validation in {count} folds, {how}, on {tested:,} sequences; equal sequences are one."


def chosen_words(findings: Findings) -> str:
    """Which level was chosen, why, and what it saves."""
    chosen, best, largest = findings.chosen, best_of(findings.results), findings.results[-1]
    why = "as asked for" if findings.settings.level else _RULES[findings.settings.rule]
    saved = 1 - chosen.flop / largest.flop
    words = f"Level {chosen.level} answers: {why}."
    if saved > 0:
        words += f" It takes {saved:.0%} less FLOP than {largest.level}"
        words += "." if chosen is best else f", and scores {number(chosen.below(best)[0])} less than {best.level}."
    return words


def certainty_words(findings: Findings) -> str:
    """How wide intervals are and what they cover, or how well probabilities are calibrated."""
    found, asked = findings.certainty[findings.chosen.level], findings.settings.interval
    if findings.examples.classes:
        return (
            f"Logits are divided by a temperature of {found.temperature:.2f}: the calibration error out of fold is "
            f"{number(found.after or 0.0)}, and {number(found.before or 0.0)} without."
        )
    if found.half_width is None or not np.isfinite(found.half_width):
        return f"There are too few sequences for intervals that cover {asked:.0%}."
    return (
        f"Intervals of ± {found.half_width:.3g} are to cover {asked:.0%} of new sequences; out of fold they covered "
        f"{found.measured:.1%}."
    )


def curve_words(findings: Findings) -> str:
    """Whether more labels would help, as far as the learning curve says."""
    if len(findings.curve) < 2:
        return "There are too few sequences for a learning curve."
    (fewer, before), (most, now) = findings.curve[-2:]
    gain = float(np.nanmean(now - before))
    words = f"From {fewer:,} to {most:,} sequences that are learnt from, the score changes by {gain:+.3f}"
    if len(now) < 2:
        return f"{words}."
    error = standard_error(now - before, now - before)
    if gain > 2 * error:
        return f"{words} (± {error:.3f}): more labels would help."
    return f"{words} (± {error:.3f}), within the noise: more labels of this kind may not help."


def summary_text(findings: Findings) -> str:
    """What the command prints."""
    task = f"{findings.settings.target} is taken as "
    if findings.examples.classes:
        names = ", ".join(findings.examples.classes[:8]) + (", ..." if len(findings.examples.classes) > 8 else "")
        of_residues = findings.examples.task == "residues"
        several = "any" if findings.examples.task == "multi_label" else "one"
        task += f"{'a class of each residue, ' * of_residues}{several} of {len(findings.examples.classes)} ({names})"
    else:
        task += "a number"
    if findings.columns:
        wild_type = findings.examples.wild_type
        task += f", of variants of a wild type of {len(wild_type)} residues, from "
        task += "the embedding and the substitutions" if findings.baseline else "the substitutions alone"
    parts = [" ".join([f"{task}.", *findings.examples.notes]), what_is_judged(findings), levels_table(findings)]
    said = (chosen_words(findings), certainty_words(findings), curve_words(findings))
    return "\n\n".join([*parts, " ".join(said)])


def render(findings: Findings) -> str:
    """``report.md``."""
    metrics = findings.metrics()
    rows = [[name, number(value)] for name, value in metrics.items()]
    left = findings.examples.left_out
    parts = [
        f"# Training on {findings.settings.target}",
        summary_text(findings),
        f"![Score against cost]({LEVELS_FIGURE})",
        f"## Level {findings.chosen.level}, out of fold",
        markdown_table(["figure", "value"], rows),
        f"![Predictions]({PREDICTIONS_FIGURE})",
        certainty_words(findings),
        "## Would more labels help?",
        curve_words(findings),
        *([f"![Learning curve]({CURVE_FIGURE})"] if len(findings.curve) > 1 else []),
        "## How it was done",
        _method(findings),
        *([f"Rows that are left out, with the reason: `left_out.tsv` ({len(left):,})."] if left else []),
    ]
    return "\n\n".join(parts) + "\n"


def _method(findings: Findings) -> str:
    judged = "mean log loss" if findings.examples.classes else "mean R²"
    probe = "Multinomial logistic regression" if findings.examples.classes else "Ridge regression"
    if findings.examples.task == "multi_label":
        probe = "Logistic regression of each label against the rest, all of one strength,"
    beside, what = "", "embeddings of residues" if findings.examples.task == "residues" else "mean embeddings"
    if findings.columns:
        beside = ", and on the substitutions themselves, each block with a strength of its own (Hsu et al. 2022)"
    chosen = f"its strength chosen by {judged}"
    if findings.columns:
        chosen = f"the mean over all pairs of strengths that come within one standard error of the best {judged}"
    return (
        f"{probe} on standardised {what}{beside}, {chosen} inside of the training folds. All "
        "levels are cut from one embedding of the largest, and judged on the same folds; a score is the mean over "
        "folds. Intervals resample the tested sequences (groups, where there are any); the ± beside a difference to "
        "the best is its standard error over folds (of a single split over resamples). Heads of all levels are fitted "
        "on all sequences, or, where the table names a test set, on its training set. out_of_fold.parquet holds what "
        "was predicted of each row by probes that had not seen its sequence."
    )
