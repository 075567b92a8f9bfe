"""Sequences that fits are tried on."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd_hf.data.fasta import read_fasta
from tests.conftest import EXAMPLE_FASTA


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 real proteins of up to 300 residues, one of them twice and one record without residues."""
    records = [record for record in read_fasta(EXAMPLE_FASTA) if len(record.sequence) <= 300][:120]
    path = tmp_path_factory.mktemp("fasta") / "proteins.fasta"
    text = "".join(f">{record.id}\n{record.sequence}\n" for record in records)
    path.write_text(text + f">again\n{records[0].sequence.lower()}*\n>empty\n")
    return path
