"""Nucleotides are said once with counts; peptides of few letters are not taken for them."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.data.nucleotides import LOOKED_AT, watch_nucleotides
from rd_hf.data.records import FastaRecord, InputError
from rd_hf.data.sources import read_records
from tests.conftest import EXAMPLE_FASTA


def said(sequences: list[str], strict: bool = False) -> list[str]:
    heard: list[str] = []
    records = [FastaRecord(number, "", "", sequence) for number, sequence in enumerate(sequences, start=1)]
    assert list(watch_nucleotides("x.fasta", iter(records), heard.append, strict)) == records
    return heard


def dna(length: int, letters: str = "ACGT", seed: int = 0) -> str:
    return "".join(random.Random(seed).choices(letters, k=length))


NUCLEOTIDES = {
    "a gene": [dna(300)],
    "lower case": [dna(300).lower()],
    "RNA": [dna(80, "ACGU")],
    "with N": [dna(200) + "N" * 60],
    "with codes for several bases": [dna(200) + "RYKM"],
    "an alignment": [dna(60) + "-----" + dna(60)],
    "primers": [dna(20, seed=seed) for seed in range(10)],
}
PROTEINS = {
    "poly-A": ["A" * 80],
    "poly-G linkers": ["G" * 12] * 40,
    "A and G linkers": ["GAGAGAGAGAGA"] * 40,
    "dipeptide repeats": ["GA" * 50, "GAT" * 30],
    "no U or T": ["GACN" * 20],
    "one short peptide of bases": ["ACGTACGT"],
    "few short ones among others": ["ACGT" * 4, "ACTG" * 4, "GGTC" * 4, "CATG" * 4, *["MKTAYIAKQR"] * 5],
    "X alone": ["X" * 100],
    "nothing": ["", "-", "*"],
}


@pytest.mark.parametrize("sequences", NUCLEOTIDES.values(), ids=NUCLEOTIDES)
def test_nucleotides_are_said_once_and_refused_when_strict(sequences: list[str]) -> None:
    heard = said(sequences)
    assert len(heard) == 1
    assert f"x.fasta: {len(sequences)} of the first {len(sequences)} records look like nucleotide" in heard[0]
    with pytest.raises(InputError, match=r"would be embedded as if they were proteins: translate them first"):
        said(sequences, strict=True)


@pytest.mark.parametrize("sequences", PROTEINS.values(), ids=PROTEINS)
def test_peptides_of_few_letters_are_no_nucleotides(sequences: list[str]) -> None:
    assert said(sequences, strict=True) == []


@given(st.lists(st.tuples(st.text("ACDGHKMNRSTVWY", max_size=90), st.sampled_from("EFILPQ")), max_size=30))
@settings(deadline=None)
def test_a_letter_that_no_nucleotide_has_settles_it(parts: list[tuple[str, str]]) -> None:
    assert said([letters + residue for letters, residue in parts], strict=True) == []


def test_natural_proteins_are_no_nucleotides(shared_data: Path) -> None:
    files = [EXAMPLE_FASTA, *sorted((shared_data / "sequences").glob("*.gz"))[:4]]
    for file in files:
        list(read_records(file, say=pytest.fail, strict=True))


def test_the_verdict_comes_before_the_first_part_and_counts_what_was_seen() -> None:
    records = (FastaRecord(number, "", "", dna(60) if number % 10 == 0 else "MKLV" * 20) for number in range(1, 5000))
    stream = watch_nucleotides("x.fasta", records, None, strict=True)
    with pytest.raises(InputError, match=rf"{LOOKED_AT // 10} of the first {LOOKED_AT:,} records"):
        list(islice(stream, LOOKED_AT))


def test_one_that_comes_late_is_still_said() -> None:
    assert len(said(["MKLV" * 20] * (LOOKED_AT + 5) + [dna(60)])) == 1
