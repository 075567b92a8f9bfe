"""Every file of the awkward collection through the command: INDEX.tsv says why each is in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import pearson_records
from tests.embedding.conftest import Outcome, read

Embed = Callable[..., Outcome]

# File: records in it, residues written, records rejected. Counted by hand where the file fits on a screen, with
# grep -c '>' and tr -cd 'A-Za-z' elsewhere.
EXPECTED = {
    "bio_embeddings_illegal_lowercase.fasta": (3, 56, []),
    "bio_embeddings_seqwence_O_noeol.fasta": (2, 15, []),
    "bio_embeddings_titin_twice.fasta": (1, 68700, []),
    "biopython_NC_005816.faa": (10, 1928, []),
    "biopython_aster_crlf_noeol.pro": (1, 107, []),
    "biopython_aster_no_wrap_crlf.pro": (1, 107, []),
    "biopython_aster_pearson_semicolon.pro": (1, 107, []),
    "biopython_clustalw_msaprobs.a2m": (8, 2072, []),
    "biopython_dups.fasta": (5, 24, []),
    "biopython_f003_ncbi_ids.fa": (2, 112, []),
    "biopython_fa01_gapped.fa": (2, 629, []),
    "biopython_multi_ex_swissprot.fasta": (8, 2500, []),
    "biopython_protein_lib_lowercase.fa": (12, 2267, []),
    "easel_a2m_good_1.a2m": (4, 589, []),
    "easel_afa_good_1.afa": (4, 589, []),
    "fair_esm_UniRef50_E9K9Y4.a3m": (17, 1444, []),
    "fair_esm_few_proteins.fasta": (3, 250, []),
    "fair_esm_some_proteins.fasta": (15, 5115, []),
    "seqkit_empty_id_and_seq.fa": (11, 7, [(2, "s2"), (4, ""), (6, ""), (8, "s8")]),
    "seqkit_titin.fas": (1, 18141, []),
    "ziulbio_P51580_crlf_noeol.fasta": (1, 245, []),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_awkward_file(embed: Embed, shared_data: Path, tiny_checkpoint: Path, tmp_path: Path, name: str) -> None:
    records, residues, rejected = EXPECTED[name]
    path = shared_data / "fasta_awkward" / name
    # The smallest level: titin is long, and what is tested is the way in and out.
    outcome = embed("--model", tiny_checkpoint, "--level", "L0", "--input", path, "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.stderr
    assert f"{records:,} records: {records - len(rejected):,} written, {len(rejected)} rejected" in outcome.stdout

    # Biopython's Pearson reader is another implementation; a residue is a letter, whatever its case.
    reference = pearson_records(path)
    assert len(reference) == records
    expected = [
        (number, record.id, sum(letter.isalpha() for letter in record.seq))
        for number, record in enumerate(reference, start=1)
        if (number, record.id) not in rejected
    ]
    table = read(tmp_path / "out")
    found = zip(*(table[column].to_pylist() for column in ("record", "id", "length")), strict=True)
    assert list(found) == expected
    assert sum(table["length"].to_pylist()) == residues
    assert np.isfinite(np.array(table["embedding"].to_pylist())).all()

    lines = [line.split("\t") for line in (tmp_path / "out" / "_rejects.tsv").read_text().splitlines()[1:]]
    assert [(int(record), record_id) for _, record, record_id, _ in lines] == rejected
    assert {reason for *_, reason in lines} <= {"no residues"}


def test_every_file_of_the_collection_is_tested(shared_data: Path) -> None:
    index = (shared_data / "fasta_awkward" / "INDEX.tsv").read_text().splitlines()[1:]
    assert {line.split("\t")[0] for line in index} == set(EXPECTED)
