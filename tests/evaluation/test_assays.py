"""Reading assays: what is accepted, and that every refusal names file, row and mend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rd_hf.data.records import InputError
from rd_hf.evaluation.assays import Assay, one_hot, read_assay, read_assays, variant_name
from tests.evaluation.conftest import ASSAY_FILE


def broken(folder: Path, change) -> Path:
    """The carried assay with one change."""
    table = pd.read_csv(ASSAY_FILE, dtype=str)
    path = folder / "broken.csv"
    change(table).to_csv(path, index=False)
    return path


def with_cell(row: int, column: str, value: str):
    """Set one cell; rows as an editor counts them."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row - 2, column] = value
        return table

    return change


def reordered(table: pd.DataFrame) -> pd.DataFrame:
    """One of the double mutants once more, its substitutions in another order."""
    double = table[table["mutant"].str.contains(":")].iloc[[0]]
    return pd.concat([table, double.assign(mutant=":".join(reversed(double["mutant"].iloc[0].split(":"))))])


def test_one_variant_has_one_name() -> None:
    assert variant_name("R11W:K7D") == variant_name("K7D:R11W") == "K7D:R11W"
    assert variant_name("A100G:C20D:E3F") == "E3F:C20D:A100G"
    assert variant_name("WT") == "WT"


def test_variants_are_read_in_file_order_with_positions_from_zero(assay: Assay) -> None:
    table = pd.read_csv(ASSAY_FILE)
    assert list(assay.mutants) == table["mutant"].tolist()
    assert list(assay.sequences) == table["mutated_sequence"].tolist()
    np.testing.assert_array_equal(assay.scores, table["DMS_score"])
    for mutant, sequence, positions in zip(assay.mutants, assay.sequences, assay.positions, strict=True):
        for name, position in zip(mutant.split(":"), positions, strict=True):
            assert position == int(name[1:-1]) - 1
            assert (assay.wild_type[position], sequence[position]) == (name[0], name[-1])
        elsewhere = [i for i in range(len(sequence)) if i not in positions]
        assert all(sequence[i] == assay.wild_type[i] for i in elsewhere)
    assert assay.mutation_counts.tolist() == [mutant.count(":") + 1 for mutant in assay.mutants]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns="DMS_score"), ["row 1", "DMS_score", "rename"]),
        (with_cell(7, "mutant", "A31W"), ["row 7", "A31W", "does not match its sequence"]),
        (with_cell(7, "mutated_sequence", "MKV" * 20), ["row 7", "does not match its sequence"]),
        (with_cell(9, "DMS_score", "nan"), ["row 9", "'nan'", "finite", "remove"]),
        (with_cell(9, "DMS_score", ""), ["row 9", "''", "finite"]),
        (with_cell(9, "DMS_score", "inf"), ["row 9", "'inf'", "finite"]),
        (lambda table: table.head(1), ["row 2", "1 variants", "20"]),
        (lambda table: table.assign(DMS_score="0.5"), ["rows 2 to 159", "every DMS_score is 0.5"]),
        (with_cell(5, "mutant", "WT"), ["row 5", "'WT'", "substitution"]),
        (with_cell(5, "mutant", "A999G"), ["row 5", "position 999", "52"]),
        (lambda table: pd.concat([table, table.iloc[[3]]]), ["row 160", "row 5", "one row a variant"]),
        (reordered, ["row 160", "is there already as", "one row a variant"]),
        (with_cell(6, "mutated_sequence", "EL?WT"), ["row 6", "'?'", "mend"]),
        (lambda table: table.head(0), ["0 variants"]),
    ],
)
def test_a_broken_file_is_refused_in_one_sentence_that_names_file_and_row(tmp_path, change, words) -> None:
    path = broken(tmp_path, change)
    with pytest.raises(InputError) as caught:
        read_assay(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_shifted_wild_type_is_told_by_the_odd_row(tmp_path) -> None:
    # Row 4 claims another wild-type letter than all other rows that show this position.
    table = pd.read_csv(ASSAY_FILE, dtype=str)
    name = table.loc[2, "mutant"]
    wrong = ("C" if name[0] != "C" else "D") + name[1:]
    path = broken(tmp_path, with_cell(4, "mutant", wrong))
    with pytest.raises(InputError, match="row 4"):
        read_assay(path)


def test_an_empty_file_and_a_missing_one_are_named(tmp_path) -> None:
    empty = tmp_path / "empty.csv"
    empty.touch()
    for path in (empty, tmp_path / "absent.csv"):
        with pytest.raises(InputError, match=path.name):
            read_assay(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda line: line + ",1", "line 4 has 5 cells where the header has 4"),
        (lambda line: "x," + line, "line 4 has 5 cells where the header has 4"),
        (lambda line: line.rpartition(",")[0], "line 4 has 3 cells where the header has 4"),
        (lambda line: f'"{line}', "row 4"),
        (lambda line: f"\n{line}", "row 4"),
    ],
)
def test_a_row_that_does_not_fit_the_header_is_named(tmp_path, change, sentence: str) -> None:
    lines = ASSAY_FILE.read_text().splitlines()
    assert lines[0].count(",") == 3
    lines[3] = change(lines[3])
    path = tmp_path / "broken.csv"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=sentence):
        read_assay(path)


def test_semicolons_and_utf_16_are_the_same_assay(tmp_path, assay: Assay) -> None:
    path = tmp_path / ASSAY_FILE.name
    path.write_text(ASSAY_FILE.read_text().replace(",", ";"), encoding="utf-16")
    assert read_assay(path).digest == assay.digest


def test_broken_files_are_reported_and_the_others_go_on(tmp_path) -> None:
    good = tmp_path / "good.csv"
    good.write_bytes(ASSAY_FILE.read_bytes())
    broken(tmp_path, with_cell(9, "DMS_score", "nan"))
    assays, failed = read_assays([tmp_path])
    assert [assay.name for assay in assays] == ["good"]
    assert list(failed) == ["broken.csv"]
    assert "row 9" in failed["broken.csv"]


def test_one_hot_is_the_plain_encoding_less_the_wild_types(assay: Assay) -> None:
    alphabet = sorted({letter for sequence in (*assay.sequences, assay.wild_type) for letter in sequence})

    def encode(sequence: str) -> np.ndarray:
        return np.array([[letter == other for other in alphabet] for letter in sequence], dtype=float).ravel()

    plain = np.array([encode(sequence) for sequence in assay.sequences]) - encode(assay.wild_type)
    expected = plain[:, (plain != 0).any(axis=0)]
    found = one_hot(assay).toarray()
    # The same columns, in whichever order.
    assert sorted(map(tuple, found.T)) == sorted(map(tuple, expected.T))


def test_all_shared_assays_are_read(shared_data) -> None:
    assays, failed = read_assays([shared_data / "dms"])
    assert not failed
    published = pd.read_csv(shared_data / "dms" / "ASSAYS.tsv", sep="\t").set_index("DMS_id")
    assert {assay.name for assay in assays} == set(published.index)
    assert all(len(assay.mutants) == published.loc[assay.name, "rows"] for assay in assays)
