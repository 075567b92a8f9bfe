"""ProteinGym's assays, checked, and which variants train and test: an error names the file, the row and the mend."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import KFold
from tqdm import tqdm

from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.tables import BadRow, delimited
from rd_hf.evaluation.options import LABELLED_SPLITS, SPLITS
from rd_hf.evaluation.progress import progress_bar

COLUMNS = ("mutant", "mutated_sequence", "DMS_score")
# Five outer folds of which each trains five inner ones: below this an inner fold validates on two variants.
MIN_VARIANTS = 20

OUTER_FOLDS = 5
LOW_N = "low_n"
FoldLabels = Mapping[str, pd.DataFrame]

_SUBSTITUTION = re.compile(r"([A-Z])(\d+)([A-Z])")


@dataclass(frozen=True)
class Assay:
    """One deep mutational scan of n variants."""

    name: str  # of the file, without its suffix; ProteinGym's DMS_id
    wild_type: str  # the sequence that all variants share when their substitutions are taken back
    mutants: tuple[str, ...]  # ProteinGym's names, "A12G" or "A12G:L40P"
    sequences: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]  # that are substituted, counted from 0
    scores: np.ndarray  # (n,) float64, finite
    digest: str  # of names, sequences and scores, in order: what a result depends on

    @property
    def mutation_counts(self) -> np.ndarray:
        """Number of substitutions of each variant: (n,) int64."""
        return np.array([len(positions) for positions in self.positions])


def variant_name(mutant: str) -> str:
    """A mutant's name with its substitutions in order of position: one name for "K7D:R11W" and "R11W:K7D"."""

    def place(name: str) -> tuple[int, str]:
        match = _SUBSTITUTION.fullmatch(name)
        return (int(match[2]) if match else 0), name

    return ":".join(sorted(mutant.strip().split(":"), key=place))


def _row(index: int) -> str:
    return f"row {index + 2}"  # as an editor counts lines: the header is line 1


def _read_table(path: Path) -> list[dict[str, str]]:
    """The needed columns of every row, blank lines at the end dropped."""
    rows: list[dict[str, str]] = []
    blank = 0
    with delimited(path, ".csv", lambda columns: set(COLUMNS) <= set(columns)) as table:
        absent = [column for column in COLUMNS if table.columns.count(column) != 1]
        if absent:
            raise InputError(
                f"{path} lacks the column {', '.join(absent)}, or has it twice (row 1 has "
                f"{', '.join(table.columns)}{table.about}); a ProteinGym file has {', '.join(COLUMNS)}: rename yours"
            )
        for row in table.read(COLUMNS):
            if isinstance(row, BadRow):
                raise InputError(f"{path}: {row.reason}; mend the row")
            # So that rows are numbered as an editor does.
            rows += [dict.fromkeys(COLUMNS, "")] * (table.blank() - blank)
            blank = table.blank()
            rows.append({column: row[column].strip() for column in COLUMNS})
    while rows and not any(rows[-1].values()):
        rows.pop()
    return rows


def _read_scores(path: Path, mutants: list[str], cells: list[str]) -> np.ndarray:
    scores = pd.to_numeric(pd.Series(cells, dtype=str), errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~np.isfinite(scores))
    if len(wrong):
        more = f" and {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
        raise InputError(
            f"{path}, {_row(wrong[0])} ({mutants[wrong[0]]}){more}: DMS_score is "
            f"{cells[wrong[0]]!r}, not a finite number; remove the row or give its score"
        )
    return scores


def _take_back(path: Path, index: int, mutant: str, sequence: str) -> tuple[str, tuple[int, ...]]:
    """The sequence before its substitutions, and their positions."""
    before = list(sequence)
    positions = []
    for name in mutant.split(":"):
        match = _SUBSTITUTION.fullmatch(name)
        if match is None:
            raise InputError(
                f"{path}, {_row(index)}: {mutant!r} is not a substitution such as A12G or A12G:L40P; "
                "remove rows that are wild type, insertions or deletions"
            )
        old, position, new = match[1], int(match[2]) - 1, match[3]
        if not 0 <= position < len(sequence):
            raise InputError(
                f"{path}, {_row(index)}: {name} names position {position + 1} of a sequence of {len(sequence)} "
                "residues; positions count from 1 in mutated_sequence"
            )
        if sequence[position] != new:
            raise InputError(
                f"{path}, {_row(index)}: {name} does not match its sequence, which has {sequence[position]} at "
                f"position {position + 1}; check that mutant and mutated_sequence belong together"
            )
        if old == new or position in positions:
            raise InputError(f"{path}, {_row(index)}: {mutant} changes nothing or one position twice; remove the row")
        before[position] = old
        positions.append(position)
    return "".join(before), tuple(positions)


def read_assay(path: str | Path) -> Assay:
    """Read and check a CSV file (plain or compressed) with the columns mutant, mutated_sequence and DMS_score."""
    path = Path(path)
    table = _read_table(path)
    mutants, letters, cells = ([row[column] for row in table] for column in COLUMNS)
    if len(mutants) < MIN_VARIANTS:
        last = _row(len(mutants) - 1)
        raise InputError(
            f"{path} ends at {last} and holds {len(mutants)} variants; nested cross-validation needs {MIN_VARIANTS}"
        )
    scores = _read_scores(path, mutants, cells)
    if np.all(scores == scores[0]):
        raise InputError(
            f"{path}, rows 2 to {len(scores) + 1}: every DMS_score is {scores[0]:g}, so there is nothing to rank; "
            "check the score column"
        )
    sequences, wild_types, positions = [], [], []
    seen: dict[str, int] = {}
    for index, (mutant, word) in enumerate(zip(mutants, letters, strict=True)):
        try:
            sequence = clean_sequence(word)
        except RejectedSequenceError as error:
            raise InputError(f"{path}, {_row(index)} ({mutant}): {error}; mend mutated_sequence") from error
        first = seen.setdefault(sequence, index)
        if first != index:
            # Its substitutions may stand in another order there.
            name = "" if mutants[first] == mutant else f" as {mutants[first]}"
            raise InputError(
                f"{path}, {_row(index)}: {mutant} is there already{name} ({_row(first)}) and would sit in training "
                "and test folds at once; keep one row a variant"
            )
        before, where = _take_back(path, index, mutant, sequence)
        sequences.append(sequence)
        wild_types.append(before)
        positions.append(where)
    # Each variant names the wild type; the odd one out is the row to mend.
    wild_type, _ = Counter(wild_types).most_common(1)[0]
    for index, before in enumerate(wild_types):
        if before != wild_type:
            raise InputError(
                f"{path}, {_row(index)}: {mutants[index]} does not match its sequence, which without it is not the "
                "wild type of the other rows; check that mutant and mutated_sequence belong together"
            )
    digest = hashlib.sha256("\n".join(f"{m},{s}" for m, s in zip(mutants, sequences, strict=True)).encode())
    digest.update(scores.tobytes())
    name = path.name.split(".")[0]
    return Assay(name, wild_type, tuple(mutants), tuple(sequences), tuple(positions), scores, digest.hexdigest())


def read_assays(paths: Sequence[Path]) -> tuple[list[Assay], dict[str, str]]:
    """Read every assay that can be used, in order of name; folders stand for the CSV files in them.

    Returns the assays, and the message for each file that cannot be used.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.csv")) if path.is_dir() else [path])]
    if not files:
        raise InputError(f"{', '.join(map(str, paths))}: no CSV file is there; give ProteinGym assays")
    assays: dict[str, Assay] = {}
    failed: dict[str, str] = {}
    for file in progress_bar(files, desc="reading assays", unit="assay"):
        try:
            assay = read_assay(file)
        except InputError as error:
            failed[file.name] = str(error)
            tqdm.write(f"left out: {error}")
            continue
        if assay.name in assays:
            raise InputError(f"two files are named {assay.name}; results are told apart by name, so rename {file}")
        assays[assay.name] = assay
    return [assays[name] for name in sorted(assays)], failed


def one_hot(assay: Assay) -> sparse.csr_array:
    """One-hot encoding less the wild type's: (n, columns) float64 of -1, 0 and 1, one column per position and residue.

    The sober baseline of the field: a ridge on it is the additive model of substitution effects. The difference
    to the wild type shifts each column by a constant, which standardising takes off again, and leaves two entries
    for each substitution.
    """
    return substitutions(assay.sequences, assay.positions, assay.wild_type)[0]


def substitutions(
    sequences: Sequence[str], positions: Sequence[Sequence[int]], wild_type: str
) -> tuple[sparse.csr_array, list[tuple[int, str]]]:
    """:func:`one_hot` of variants, (n, columns), and the position (from 0) and residue that each column stands for.

    Sequences are as long as the wild type, and differ from it at their positions alone.
    """
    columns: dict[tuple[int, str], int] = {}
    rows, places, values = [], [], []
    for row, (sequence, substituted) in enumerate(zip(sequences, positions, strict=True)):
        for position in substituted:
            for residue, value in ((wild_type[position], -1.0), (sequence[position], 1.0)):
                rows.append(row)
                places.append(columns.setdefault((position, residue), len(columns)))
                values.append(value)
    return sparse.csr_array((values, (rows, places)), shape=(len(sequences), len(columns))), list(columns)


class Fold(NamedTuple):
    """One training and test set: row numbers of the assay, int64, disjoint."""

    split: str  # of SPLITS, or "low_n"
    repeat: int  # seed of the draw; 0 of a labelled split is ProteinGym's own labelling
    fold: int  # number within the repeat
    train: np.ndarray
    test: np.ndarray


def read_fold_labels(path: str | Path) -> FoldLabels:
    """Read ProteinGym's labels of single mutants: for each DMS_id a frame indexed by :func:`variant_name`."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; leave --folds out to draw folds by seed")
    columns = ["DMS_id", "mutant", *LABELLED_SPLITS.values()]
    table = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", dtype={"DMS_id": str, "mutant": str})
    absent = set(columns) - set(table.columns)
    if absent:
        raise InputError(f"{path} lacks the column {', '.join(sorted(absent))}; it must label ProteinGym's folds")
    table = table[columns].drop_duplicates()
    empty = table.isna().any(axis=1)
    if empty.any():
        row = table.index[empty][0]
        raise InputError(f"{path}, row {row + 2}: a cell is empty; give the variant's assay, name and folds, or none")
    table = table.assign(mutant=table["mutant"].map(variant_name)).drop_duplicates()
    twice = table.duplicated(["DMS_id", "mutant"])
    if twice.any():
        row = table[twice].iloc[0]
        raise InputError(
            f"{path} gives {row['mutant']} of {row['DMS_id']} two different folds, which would put it in training and "
            "test at once; keep one"
        )
    return {str(name): group.set_index("mutant") for name, group in table.groupby("DMS_id")}


def _labelled(assay: Assay, labels: FoldLabels | None, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of the labelled single mutants and their labels, or None where the assay has no labels."""
    if labels is None or assay.name not in labels:
        return None
    column = labels[assay.name][LABELLED_SPLITS[split]]
    names = [variant_name(mutant) for mutant in assay.mutants]
    rows = np.array([row for row, name in enumerate(names) if name in column.index], dtype=np.int64)
    if len(rows) < MIN_VARIANTS:
        return None
    return rows, column.loc[[names[row] for row in rows]].to_numpy()


def _seeded(split: str, rows: np.ndarray, seeds: range) -> list[Fold]:
    """Five folds for each seed."""
    return [
        Fold(split, seed, number, rows[train], rows[test])
        for seed in seeds
        for number, (train, test) in enumerate(KFold(OUTER_FOLDS, shuffle=True, random_state=seed).split(rows))
    ]


def folds(assay: Assay, split: str, repeats: int, labels: FoldLabels | None = None) -> list[Fold]:
    """Cross-validation folds of one split.

    - "random", "modulo", "contiguous": ProteinGym's five folds of the labelled single mutants. Random folds are
      drawn anew for each repeat after the first, which gives their spread; the other two are fixed by the
      sequence and have one repeat. Without labels, "random" is a seeded five-fold split of all variants and the
      other two are empty.
    - "by_mutations": seeded five-fold split of all variants of an assay that has multiple mutants.
    - "singles_to_multiples": train on every single mutant, test on every multiple one; one repeat.

    Seeded repeats have the seeds 0 to repeats - 1.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    every = np.arange(len(assay.mutants))
    counts = assay.mutation_counts
    if split in LABELLED_SPLITS:
        found = _labelled(assay, labels, split)
        if found is None:
            return _seeded(split, every, range(repeats)) if split == "random" else []
        rows, label = found
        published = [
            Fold(split, 0, number, rows[label != value], rows[label == value])
            for number, value in enumerate(np.unique(label))
        ]
        return published + (_seeded(split, rows, range(1, repeats)) if split == "random" else [])
    if counts.max() == 1:
        return []
    if split == "by_mutations":
        return _seeded(split, every, range(repeats))
    return [Fold(split, 0, 0, every[counts == 1], every[counts > 1])] if (counts == 1).sum() >= MIN_VARIANTS else []


def low_n_folds(assay: Assay, sizes: Sequence[int], repeats: int, labels: FoldLabels | None = None) -> list[Fold]:
    """Training sets of a few variants, as a user has them; everything else is the test set.

    The variants are those of the "random" split. The draws of one repeat are nested: 24 variants are part of
    the 96. A size that would leave fewer than a fifth of the variants to test is left out.
    """
    found = _labelled(assay, labels, "random")
    rows = np.arange(len(assay.mutants)) if found is None else found[0]
    orders = [np.random.default_rng(repeat).permutation(rows) for repeat in range(repeats)]
    return [
        Fold(LOW_N, repeat, number, order[:size], order[size:])
        for repeat, order in enumerate(orders)
        for number, size in enumerate(sorted(sizes))
        if size <= 0.8 * len(rows)
    ]
