"""What a training leaves in its folder: a checkpoint with heads, a report with figures, predictions out of fold.

The README of this room says what each file holds.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.special import expit

from rd_hf.carried import model_place
from rd_hf.embedding import Embedder
from rd_hf.embedding.checkpoint import pinned_config
from rd_hf.files import Workspace, replacing, write_json, write_text
from rd_hf.hub.checkpoint import FIGURE_FILE, REPORT_FILE, TRAINING_FILE, save_checkpoint, write_card
from rd_hf.hub.sources import find_file
from rd_hf.model import saving_rd_esm
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
from rd_hf.model.pooling_rd_esm import VOCABULARY
from rd_hf.training import figures
from rd_hf.training.data import Examples
from rd_hf.training.probes import Linear, probabilities
from rd_hf.training.report import CURVE_FIGURE, LEVELS_FIGURE, PREDICTIONS_FIGURE, Findings, render
from rd_hf.version import __version__

# What transformers calls a task.
PROBLEM_TYPES = {
    **{"regression": "regression", "multi_label": "multi_label_classification"},
    **dict.fromkeys(("classification", "residues"), "single_label_classification"),
}
PREDICTIONS_FILE, LEFT_OUT_FILE = "out_of_fold.parquet", "left_out.tsv"


def save_model(findings: Findings, embedder: Embedder) -> None:
    """Write the checkpoint: the model up to the largest level that was judged, with a head for each level."""
    checkpoint, examples = embedder.checkpoint, findings.examples
    place = model_place(checkpoint.name)
    config = pinned_config(place, checkpoint.revision, checkpoint.backbones)
    config.heads, config.level = None, findings.results[-1].level
    if findings.columns:
        config.heads = {"of": "sequences", "levels": [], "wild_type": examples.wild_type}
    config.num_labels = max(1, len(examples.classes))
    config.problem_type = PROBLEM_TYPES[examples.task]
    names = examples.classes or (findings.settings.target,)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    revision = {} if checkpoint.revision is None else {"revision": checkpoint.revision}
    kind = RDEsmForTokenClassification if examples.task == "residues" else RDEsmForSequenceClassification
    with _heads_unsaid():
        model = kind.from_pretrained(
            # A checkpoint that was trained before has heads of other sizes.
            place, config=config, ignore_mismatched_sizes=True, **revision
        )  # fmt: skip
    for level, probe in findings.probes.items():
        tensors = head_tensors(findings, probe, config.nested_dims[level], findings.certainty[level].temperature)
        model.set_head(level, **tensors, bases=model.bases_fingerprint(level))
    model.choose_level(findings.chosen.level)
    output = Path(findings.settings.output)
    save_checkpoint(model, output, backbones=None)
    for name in (REPORT_FILE, FIGURE_FILE):
        if (found := find_file(place, name, checkpoint.revision)) is not None:
            with replacing(output / name) as fresh:
                shutil.copyfile(found, fresh)


def head_tensors(findings: Findings, probe: Linear, width: int, temperature: float) -> dict[str, torch.Tensor]:
    """What a head of a level of this width computes as the probe does, logits divided by a temperature.

    Returns:
        Arguments of ``set_head``.
    """
    missing = width - len(probe.mean)  # all of it, where substitutions are all that was fitted on
    arrays = {
        "weight": np.pad(probe.weight, ((0, 0), (0, missing))),
        "bias": probe.bias,
        "mean": np.pad(probe.mean, (0, missing)),
        "scale": np.pad(probe.scale, (0, missing), constant_values=1.0),
    }
    # Probabilities are then calibrated, without a number of its own for the temperature.
    arrays["weight"], arrays["bias"] = arrays["weight"] / temperature, arrays["bias"] / temperature
    if probe.substitutions is not None:
        table = substitution_table(findings.examples.wild_type, findings.columns, probe.substitutions)
        arrays["substitutions"] = table[None]
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def substitution_table(wild_type: str, columns: Sequence[tuple[int, str]], values: np.ndarray) -> np.ndarray:
    """What each token adds at each position of a variant: (residues, tokens) float64, 0 for the wild type's own.

    A residue that was seen nowhere there adds what the loss of the wild type's costs.

    Args:
        wild_type: its sequence.
        columns, values: position and residue of each substitution's column, and its coefficient.
    """
    found = np.zeros((len(wild_type), len(VOCABULARY)))
    for (position, residue), value in zip(columns, values.tolist(), strict=True):
        if residue == wild_type[position]:
            found[position] -= value
        else:
            found[position, VOCABULARY.index(residue)] += value
    found[np.arange(len(wild_type)), [VOCABULARY.index(residue) for residue in wild_type]] = 0.0
    return found


@contextmanager
def _heads_unsaid() -> Iterator[None]:
    """Load without the news that heads start afresh: each is given what was trained."""
    logger = logging.getLogger(saving_rd_esm.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def write_results(findings: Findings) -> None:
    """Write the report, its figures, the predictions, and the rows that were left out."""
    output, chosen = Path(findings.settings.output), findings.chosen
    drawn = {
        LEVELS_FIGURE: figures.levels_figure(findings.results, chosen.level, findings.score),
        PREDICTIONS_FIGURE: figures.predictions_figure(findings.examples, chosen.outputs, findings.settings.target),
    }
    if len(findings.curve) > 1:
        drawn[CURVE_FIGURE] = figures.curve_figure(findings.curve, findings.score)
    for name, figure in drawn.items():
        with replacing(output / name) as path:
            figure.savefig(path, dpi=110, format="png")
    with replacing(output / PREDICTIONS_FILE) as path:
        pq.write_table(predictions_table(findings), path)
    if findings.examples.left_out:
        lines = ["where\tid\treason", *(f"{o.where}\t{o.id}\t{o.reason}" for o in findings.examples.left_out)]
        write_text(output / LEFT_OUT_FILE, "\n".join(" ".join(line.splitlines()) for line in lines) + "\n")
    write_text(output / "report.md", render(findings))


def predictions_table(findings: Findings) -> pa.Table:
    """One row for each row of the table that was used and tested, in its order.

    Columns: record (from 1), id, sequence, target, fold, ``prediction_<level>`` for each level; and at the level
    that answers of numbers lower and upper, the ends of the interval, of classes ``probability_<class>``.
    Predictions of residues are strings, see :func:`residue_strings`.
    """
    examples = findings.examples
    fold_of = np.full(len(examples.sequences), -1)
    for number, fold in enumerate(findings.folds):
        fold_of[fold.test] = number
    kept = [place for place, example in enumerate(examples.example_of.tolist()) if fold_of[example] >= 0]
    rows, which = [examples.rows[place] for place in kept], examples.example_of[kept]
    classes = np.array(examples.classes)
    columns: dict[str, object] = {
        "record": pa.array([row.number for row in rows], pa.int64()),
        "id": [row.id for row in rows],
        "sequence": [row.sequence for row in rows],
        "target": [row.target for row in rows] if len(classes) else pa.array([float(row.target) for row in rows]),
        "fold": pa.array(fold_of[which], pa.int64()),
    }
    if examples.units is not None:
        for result in findings.results:
            strings = residue_strings(examples, result.outputs)
            columns[f"prediction_{result.level}"] = [strings[example] for example in which.tolist()]
        return pa.table(columns)
    several = examples.task == "multi_label"
    for result in findings.results:
        outputs = result.outputs[which]
        if several:
            predicted = [";".join(classes[row > 0]) for row in outputs]
        else:
            predicted = (classes[outputs.argmax(axis=1)] if len(classes) else outputs[:, 0]).tolist()
        columns[f"prediction_{result.level}"] = pa.array(predicted)
    certainty = findings.certainty[findings.chosen.level]
    if certainty.widths is not None:
        middle, widths = findings.chosen.outputs[which, 0], certainty.widths[which]
        columns |= {"lower": pa.array(middle - widths), "upper": pa.array(middle + widths)}
    if len(classes):
        chances = (expit if several else probabilities)(certainty.outputs[which])
        columns |= {f"probability_{name}": pa.array(chances[:, c]) for c, name in enumerate(examples.classes)}
    return pa.table(columns)


def residue_strings(examples: Examples, outputs: np.ndarray) -> list[str]:
    """Predicted classes of each sequence's residues; ``-`` where a class is not known, or was not tested."""
    letters = np.full(len(outputs), "-")
    tested = (examples.targets >= 0) & ~np.isnan(outputs[:, 0])
    letters[tested] = np.array(examples.classes)[outputs[tested].argmax(axis=1)]
    ends = np.cumsum([len(sequence) for sequence in examples.sequences])
    return ["".join(own) for own in np.split(letters, ends[:-1])]


def finish(findings: Findings, digest: str, text: str, workspace: Workspace) -> None:
    """Write ``training.json`` and the card made of it, and remove what was kept for going on."""
    output = Path(findings.settings.output)
    found = {"rd_hf_version": __version__, "training": digest, **findings.to_dict(), "summary": text}
    write_json(output / TRAINING_FILE, found)
    write_card(output)
    # Goes last: while it is there, the training counts as unfinished.
    workspace.remove("embeddings-*.safetensors")
