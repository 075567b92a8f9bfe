"""How a job is cut into parts: the same for any number of processes, and shared evenly by any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.embedding.parts import part_limit
from tests.embedding.conftest import Outcome, parts

LARGEST = 16384


def cut(records: int, largest: int = LARGEST) -> list[int]:
    """Records of each part of an input."""
    sizes: list[int] = []
    before = 0
    while before < records:
        sizes.append(min(part_limit(before, largest), records - before))
        before += sizes[-1]
    return sizes


@given(records=st.integers(1, 5_000_000), processes=st.integers(1, 64))
def test_any_two_processes_get_equal_shares_but_for_one_part(records: int, processes: int) -> None:
    sizes = cut(records)
    shares = [sum(sizes[rank::processes]) for rank in range(processes)]
    assert sum(shares) == records
    assert max(shares) - min(shares) <= min(LARGEST, max(1024, records / 64))


def test_a_large_input_does_not_become_thousands_of_files() -> None:
    # 62 of 16,384 records each would be the fewest for a million, and 15,259 for the 250 million of a large database.
    assert len(cut(1_000_000)) < 250
    assert len(cut(250_000_000)) < 1.02 * 250_000_000 / LARGEST


@given(records=st.integers(1, 50_000), largest=st.integers(1, 1024))
def test_a_smaller_limit_that_was_asked_for_holds(records: int, largest: int) -> None:
    assert set(cut(records, largest)[:-1]) <= {largest}


def test_a_proteome_is_several_files_so_that_several_processes_share_it(
    embed: Callable[..., Outcome], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    fasta = tmp_path / "tripeptides.fasta"
    fasta.write_text("".join(f">p{number}\nMKT\n" for number in range(2100)))
    assert embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out").status == 0
    assert [pq.read_metadata(path).num_rows for path in parts(tmp_path / "out")] == [1024, 1024, 52]
