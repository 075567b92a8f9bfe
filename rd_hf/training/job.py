"""A whole training: labelled rows, one embedding, every level judged, heads of all levels in a checkpoint."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.files import FolderError, Workspace, file_sha256
from rd_hf.hub.checkpoint import TRAINING_FILE, refuse_foreign
from rd_hf.hub.describe import describe_model
from rd_hf.training.data import Examples, make_examples, with_known_labels
from rd_hf.training.features import Features, embed, with_substitutions
from rd_hf.training.levels import LevelResult, choose, fit_examples, judge_levels, learning_curve, out_of_fold
from rd_hf.training.probes import Linear
from rd_hf.training.report import Findings, summary_text
from rd_hf.training.save import finish, save_model, write_results
from rd_hf.training.settings import FEATURES, SCORES, SIMILARITY, TrainingSettings, TrainingSummary
from rd_hf.training.similarity import similarity_groups
from rd_hf.training.splits import Fold, inner_folds, make_folds
from rd_hf.training.table import read_rows
from rd_hf.training.uncertainty import certainty_of
from rd_hf.training.variants import read_wild_type

AUGMENTED, EMBEDDING, ONE_HOT = FEATURES
# None of them changes what a training finds.
_NO_CHOICE = ("output", "device", "batch_tokens")
# What counts of these is what they hold.
_FILES = ("model", "input", "wild_type")


def run_training(
    settings: TrainingSettings, report: Callable[[str], None] | None = None, show_progress: bool = True
) -> TrainingSummary:
    """Run a training to its end, or from where an earlier run of it stopped; the checkpoint is then in its folder.

    Args:
        settings: the training.
        report: called with sentences that a user should see; by default prints them beside the progress bar.
        show_progress: whether bars are drawn.

    Raises:
        ValueError, OSError: a model, table or folder that cannot be used.
    """
    report = report or partial(tqdm.write, file=sys.stderr)
    output = Path(settings.output)
    workspace = Workspace(output / ".train", "a training")
    embedder = _embedder(settings, "mean")
    digest = _digest(settings, embedder.checkpoint.fingerprint)
    if (before := _finished(output, workspace, digest)) is not None:
        return before
    workspace.refuse_others()
    refuse_foreign(output)
    rows, left_out = read_rows(settings, report)
    wild_type = "" if settings.wild_type is None else read_wild_type(settings.wild_type)
    told = (settings.task, wild_type, settings.unknown)
    examples = make_examples(settings.input, settings.target, rows, left_out, *told)
    if examples.task == "multi_label":
        examples = with_known_labels(examples, settings.folds)
    if settings.group == SIMILARITY and examples.groups is None:
        examples = replace(examples, parts=None, groups=similarity_groups(examples.sequences))
    score, kind = _score(settings, examples), _kind_of_features(settings, examples)
    folds = make_folds(examples, settings)
    workspace.claim()
    embedding = np.zeros((len(examples.sequences), 0))
    if kind != ONE_HOT:
        embedding = _embedded(settings, embedder, examples, workspace, show_progress)
    features = Features(embedding) if kind == EMBEDDING else with_substitutions(embedding, examples)
    with threadpool_limits(limits=None if len(examples.targets) > 2000 else 1):
        findings = _find(settings, examples, folds, score, features, embedder, show_progress)
    save_model(findings, embedder)
    write_results(findings)
    text = summary_text(findings)
    finish(findings, digest, text, workspace)
    return _summary(settings, text, findings.to_dict())


def _embedder(settings: TrainingSettings, pooling: str) -> Embedder:
    """What embeds at the largest level that is judged."""
    embedder = Embedder(
        settings.model,
        settings.up_to,
        settings.revision,
        device=settings.device,
        pooling=pooling,
        batch_tokens=settings.batch_tokens,
    )
    if settings.level is not None and settings.level not in _widths(embedder):
        raise InputError(
            f"level {settings.level!r} is none that is judged ({', '.join(_widths(embedder))}): give --level one of "
            "them"
        )
    return embedder


def _embedded(
    settings: TrainingSettings, embedder: Embedder, examples: Examples, workspace: Workspace, show_progress: bool
) -> np.ndarray:
    """Means in float64, or residues, of which there are many, in float32."""
    if examples.task == "residues":
        return embed(_embedder(settings, "residue"), examples.sequences, workspace, show_progress)
    return embed(embedder, examples.sequences, workspace, show_progress).astype(np.float64)


def _widths(embedder: Embedder) -> dict[str, int]:
    """Widths of the levels that are judged, smallest first."""
    (width,) = embedder.widths.values()
    return embedder.checkpoint.held(width)


def _score(settings: TrainingSettings, examples: Examples) -> str:
    """What levels are judged by."""
    names = SCORES[examples.task]
    if settings.score is not None and settings.score not in names:
        raise InputError(
            f"--score {settings.score} is not for {examples.task}, which {settings.target} is taken as: give one of "
            f"{', '.join(names)}, or name the --task"
        )
    return settings.score or names[0]


def _kind_of_features(settings: TrainingSettings, examples: Examples) -> str:
    """What probes are fitted on."""
    if not examples.wild_type or examples.task == "residues":
        return EMBEDDING
    if examples.classes:
        if settings.features not in (None, EMBEDDING):
            raise InputError(
                f"--features {settings.features} is for numbers, and {settings.target} is taken as classes: leave it "
                "out, or give --task regression"
            )
        return EMBEDDING
    return settings.features or AUGMENTED


def _find(
    settings: TrainingSettings, examples: Examples, folds: Sequence[Fold], score: str, features: Features,
    embedder: Embedder, show_progress: bool,
) -> Findings:  # fmt: skip
    """Judge all levels, choose one, draw its learning curve, and fit the heads."""
    widths = _widths(embedder)
    facts = describe_model(settings.model, embedder.checkpoint.revision)
    flop = {level.level: level.flop_per_residue for level in facts.levels}
    hidden = None if show_progress else True
    with tqdm(total=len(widths) * len(folds), desc="probes", unit="probe", disable=hidden) as bar:
        results = judge_levels(features, widths, flop, examples, folds, score, settings.seed, on_fit=bar.update)
    baseline = None
    if features.substitutions is not None and features.embedding.shape[1]:
        alone, nothing = features.cut(0), {ONE_HOT: 0}
        (baseline,) = judge_levels(alone, nothing, nothing, examples, folds, score, settings.seed)
    chosen = _chosen(results, settings)
    learnt = folds[0].train if examples.parts is not None else np.arange(len(examples.sequences))
    inner = folds[0].inner if examples.parts is not None else inner_folds(examples, learnt, settings)
    probes: dict[str, Linear] = {}
    for level, width in widths.items():
        probes[level] = fit_examples(features.cut(width), examples, learnt, inner)

    def inner_of(train: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        if examples.parts is not None and len(folds[0].inner) == 1:
            return ((train, folds[0].inner[0][1]),)
        return inner_folds(examples, train, settings)

    certainty = {
        result.level: certainty_of(
            examples, folds, result.outputs, settings.interval,
            partial(_inside, features.cut(result.width), examples, folds[0]),
        )
        for result in results
    }  # fmt: skip
    curve = learning_curve(features.cut(chosen.width), examples, folds, score, settings.seed, inner_of)
    return Findings(
        settings,
        examples,
        folds,
        score,
        results,
        chosen,
        probes,
        curve,
        certainty,
        features.columns,
        baseline,
        model={"fingerprint": embedder.checkpoint.fingerprint, "backbones": embedder.checkpoint.backbones},
    )


def _inside(features: Features, examples: Examples, fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """Rows that judge inside of a split's training set (or its validation set), and what was predicted of them."""
    inner = [Fold(fitting, judging, ((fitting, judging),)) for fitting, judging in fold.inner]
    outputs = out_of_fold(features, examples, inner)
    rows = np.concatenate([examples.rows_of(own.test) for own in inner])
    return rows, outputs[rows]


def _chosen(results: Sequence[LevelResult], settings: TrainingSettings) -> LevelResult:
    if settings.level is not None:
        return next(result for result in results if result.level == settings.level)
    return choose(results, settings.rule)


def _digest(settings: TrainingSettings, fingerprint: str) -> str:
    """Of what is trained on what: a finished folder with another is another training's."""
    told = {name: value for name, value in asdict(settings).items() if name not in (*_NO_CHOICE, *_FILES)}
    named = [settings.input, *([] if settings.wild_type is None else [settings.wild_type])]
    content = [file_sha256(name) if Path(name).is_file() else name for name in named]
    return hashlib.sha256(json.dumps([told, fingerprint, content], default=str).encode()).hexdigest()


def _finished(output: Path, workspace: Workspace, digest: str) -> TrainingSummary | None:
    """The summary of a training that is done; None where there is none.

    Raises:
        FolderError: the folder holds another one.
    """
    place = output / TRAINING_FILE
    if workspace.record() is not None or not place.is_file():
        return None
    try:
        found = json.loads(place.read_bytes())
        known = found["training"]
        levels = {level: figures["score"] for level, figures in found["levels"].items()}
        before = TrainingSummary(str(found["summary"]), str(output), str(found["level"]), levels, finished_before=True)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FolderError(f"{place} is damaged ({error!r}): choose another --output") from error
    if known != digest:
        raise FolderError(
            f"{output} holds a finished training of other data or choices already: choose another --output, or delete "
            "it"
        )
    return before


def _summary(settings: TrainingSettings, text: str, found: dict) -> TrainingSummary:
    scores = {level: figures["score"] for level, figures in found["levels"].items()}
    return TrainingSummary(text, str(settings.output), found["level"], scores)
