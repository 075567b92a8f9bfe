"""Residue-level tasks in: sequences with one label per residue, in the splits their authors drew."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from Bio.SeqIO.FastaIO import SimpleFastaParser

from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence

UNLABELLED = -1
TRAIN, VALIDATION, TEST = "train", "validation", "test"


class Chain(NamedTuple):
    """One protein, its sequence cleaned."""

    id: str
    sequence: str
    labels: np.ndarray  # (length,) int8, index into the task's classes, UNLABELLED where there is none


class ResidueTask(NamedTuple):
    """A classification of residues."""

    name: str
    classes: tuple[str, ...]  # the second is the positive one where there are two
    splits: Mapping[str, list[Chain]]  # of "train", "validation", "test" and possibly further test sets


def _apart(path: Path, task: ResidueTask) -> ResidueTask:
    """The task, whose test chains were neither trained nor chosen on; InputError where one was, whatever its name."""
    seen: dict[str, tuple[str, str]] = {}
    for part, chains in task.splits.items():
        for chain in chains:
            before, name = seen.setdefault(chain.sequence, (part, chain.id))
            if before != part and before in (TRAIN, VALIDATION):
                raise InputError(
                    f"{path}: {chain.id} of the {part} set has the sequence of {name} of the {before} set, which would "
                    "be tested on what it was fitted to; remove one of the two"
                )
    return task


def _clean(path: Path, name: str, letters: str) -> str:
    try:
        sequence = clean_sequence(letters)
    except RejectedSequenceError as error:
        raise InputError(f"{path}, record {name}: {error}; mend or remove it") from error
    if len(sequence) != len(letters):
        raise InputError(f"{path}, record {name}: gaps or a stop leave labels without a residue; remove them")
    return sequence


def read_secondary_structure(folder: str | Path) -> ResidueTask:
    """FLIP's three-state secondary structure (Dallago et al. 2021; data of Klausen et al. 2019).

    The folder holds splits.zip with sequences.fasta, sampled.fasta (H, E or C per residue; SET and VALIDATION in the
    header) and mask.fasta (0 where the structure does not resolve a residue).
    """
    path = Path(folder) / "splits.zip"
    classes = ("C", "E", "H")
    records: dict[str, dict[str, tuple[str, str]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("sequences", "sampled", "mask"):
                with archive.open(f"splits/{name}.fasta") as raw:
                    parsed = SimpleFastaParser(io.TextIOWrapper(raw, encoding="utf-8"))
                    records[name] = {title.split()[0]: (title, letters) for title, letters in parsed}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not FLIP's secondary structure archive ({error}); fetch it again") from error
    splits: dict[str, list[Chain]] = {TRAIN: [], VALIDATION: [], TEST: []}
    index = {ord(letter): number for number, letter in enumerate(classes)}
    for name, (title, letters) in records["sampled"].items():
        _, residues = records["sequences"].get(name, ("", ""))
        _, mask = records["mask"].get(name, ("", ""))
        if not len(letters) == len(residues) == len(mask):
            raise InputError(
                f"{path}, record {name}: {len(residues)} residues, {len(letters)} labels and {len(mask)} mask letters "
                "disagree; fetch the archive again"
            )
        labels = np.array([index.get(ord(letter), UNLABELLED) for letter in letters], dtype=np.int8)
        labels[np.array(list(mask)) == "0"] = UNLABELLED
        part = TEST if "SET=test" in title else VALIDATION if "VALIDATION=True" in title else TRAIN
        splits[part].append(Chain(name, _clean(path, name, residues), labels))
    return _apart(path, ResidueTask("secondary structure (Q3)", classes, splits))


def _read_lines(path: Path) -> list[str]:
    if not path.exists():
        raise InputError(f"{path}: no such file; give bindPredict's folder")
    return path.read_text(encoding="utf-8").splitlines()


def _read_binding(path: Path) -> dict[str, list[int]]:
    """Positions, counted from 1, by protein."""
    found = {}
    for number, line in enumerate(_read_lines(path), start=1):
        name, *positions = line.split()
        try:
            found[name] = [int(position) for position in positions[0].split(",")] if positions else []
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {line!r} is not a list of positions; mend the line") from error
    return found


def _bound_chains(fasta: Path, binding: Path, lists: Iterable[Path] = ()) -> list[Chain]:
    """Chains of a FASTA file, labelled 1 at positions that bind; only those that ``lists`` name, if there are any."""
    positions = _read_binding(binding)
    paths = list(lists)
    names = {name for path in paths for line in _read_lines(path) for name in line.split()}
    found = []
    for record in read_fasta(fasta):
        if paths and record.id not in names:
            continue
        labels = np.zeros(len(record.sequence), dtype=np.int8)
        for position in positions.get(record.id, []):
            if not 1 <= position <= len(labels):
                raise InputError(
                    f"{binding}, {record.id}: position {position} lies outside its {len(labels)} residues; "
                    "check that the files belong together"
                )
            labels[position - 1] = 1
        found.append(Chain(record.id, _clean(fasta, record.id, record.sequence), labels))
    return found


def read_metal_binding(folder: str | Path) -> ResidueTask:
    """bindPredict's metal-binding residues (Littmann et al. 2021).

    Train on development splits 1 to 4, choose on split 5, test on the authors' test proteins and on their
    independent set. Residues that are not listed are negatives, as in the source. The folder holds development_set/ and
    independent_set/.
    """
    development, independent = Path(folder) / "development_set", Path(folder) / "independent_set"
    own = (development / "all.fasta", development / "binding_residues_2.5_metal.txt")
    splits = {
        TRAIN: _bound_chains(*own, [development / f"ids_split{number}.txt" for number in range(1, 5)]),
        VALIDATION: _bound_chains(*own, [development / "ids_split5.txt"]),
        TEST: _bound_chains(*own, [development / "uniprot_test.txt"]),
        "independent": _bound_chains(independent / "indep_set.fasta", independent / "binding_residues_metal.txt"),
    }
    return _apart(own[0], ResidueTask("metal binding", ("other", "metal"), splits))


def subsample(task: ResidueTask, train: int | None, validation: int | None, seed: int = 0) -> ResidueTask:
    """At most so many training and validation chains, drawn by seed; test sets stay whole."""
    generator = np.random.default_rng(seed)
    splits = dict(task.splits)
    for part, limit in ((TRAIN, train), (VALIDATION, validation)):
        order = generator.permutation(len(splits[part]))[:limit]
        splits[part] = [task.splits[part][position] for position in sorted(order)]
    return task._replace(splits=splits)
