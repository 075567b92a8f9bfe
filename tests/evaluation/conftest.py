"""A real assay small enough to carry, and a tiny family's pooled states of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rd_hf.evaluation.assays import Assay, FoldLabels, read_assay, read_fold_labels
from rd_hf.evaluation.embeddings import PooledStates, embed_assay
from rd_hf.evaluation.families import Family

DATA = Path(__file__).parent / "data"
ASSAY_FILE = DATA / "BCHB_CHLTE_Tsuboyama_2023_2KRU.csv"
FOLDS_FILE = DATA / "cv_folds_singles.tsv"


@pytest.fixture(scope="session")
def assay() -> Assay:
    """158 variants of 52 residues, 70 of them double mutants (data/SOURCES.md)."""
    return read_assay(ASSAY_FILE)


@pytest.fixture(scope="session")
def fold_labels() -> FoldLabels:
    return read_fold_labels(FOLDS_FILE)


@pytest.fixture(scope="session")
def tiny_family(tiny_checkpoint: Path) -> Family:
    return Family.load(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def pooled(tiny_family: Family, assay: Assay, tmp_path_factory: pytest.TempPathFactory) -> PooledStates:
    return embed_assay(tiny_family, assay, tmp_path_factory.mktemp("states"))
