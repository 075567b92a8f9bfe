"""What an Embedder is given and declares: columns in order, or a sentence; types that hold before any row is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset, Features, IterableDataset, Value, load_dataset

from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder

SEQUENCES = ["MKTAYIAKQR", "ACDEFGHIKLMNPQ", "GAVLIM"]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, level="L0", device="cpu")


# -- one sequence is no list of sequences ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        "MKTAYIAKQR",
        np.str_("MKTAYIAKQR"),
        b"MKTAYIAKQR",
        bytearray(b"MK"),
        np.array("MKTAYIAKQR"),
        np.array([list("MK"), list("TA")]),
        {"sequence": SEQUENCES},
        dict.fromkeys(SEQUENCES).keys(),
        set(SEQUENCES),
        iter(SEQUENCES),
        pd.DataFrame({"sequence": SEQUENCES}),
        None,
        5,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_list_of_sequences_is_refused(embedder: Embedder, given: Any) -> None:
    with pytest.raises(InputError, match=r"embed\(\) takes a list of sequences, not a value of type .* \[sequence\]"):
        embedder.embed(given)


@pytest.mark.parametrize(
    "given",
    [SEQUENCES, tuple(SEQUENCES), np.array(SEQUENCES), np.array(SEQUENCES, dtype=object), pd.Series(SEQUENCES), []],
    ids=lambda given: type(given).__name__,
)
def test_what_is_one_is_embedded(embedder: Embedder, given: Any) -> None:
    found = embedder.embed(given)["embedding"]
    for row, expected in zip(found, embedder.embed(SEQUENCES)["embedding"], strict=False):
        assert np.array_equal(row, expected)
    assert len(found) == len(given)


@pytest.mark.parametrize("value", ["MKTAYIAKQR", b"MKTAYIAKQR", None], ids=str)
def test_map_without_batches_is_refused(embedder: Embedder, value: Any) -> None:
    kind = pa.binary() if isinstance(value, bytes) else pa.string()
    dataset = Dataset(pa.table({"sequence": pa.array([value], type=kind)}))
    with pytest.raises(InputError, match="pass batched=True to map"):
        dataset.map(embedder)
    with pytest.raises(InputError, match="pass batched=True to map"):
        next(iter(IterableDataset.from_generator(lambda: iter([{"sequence": value}])).map(embedder)))
    with pytest.raises(InputError, match="pass batched=True to map"):
        embedder({"sequence": value})


def test_other_arguments_than_a_batch_and_a_rank_are_refused(embedder: Embedder) -> None:
    dataset = Dataset.from_dict({"sequence": SEQUENCES})
    with pytest.raises(InputError, match="leave out with_indices=True"):
        dataset.map(embedder, batched=True, with_indices=True)
    with pytest.raises(InputError, match=r"takes a batch of columns, not a value of type list .* use embed\(\)"):
        embedder(SEQUENCES)  # type: ignore[arg-type]


@pytest.mark.parametrize("positions", [[1], [[1], [2]], [[1], [2], [3], [4]], "123", 2], ids=str)
def test_positions_are_those_of_each_sequence(tiny_checkpoint: Path, positions: Any) -> None:
    embedder = Embedder(tiny_checkpoint, level="L0", pooling="positions", device="cpu")
    with pytest.raises(InputError, match="positions must be a list with those of each of the 3 sequences"):
        embedder.embed(SEQUENCES, positions)


# -- types are declared ---------------------------------------------------------------------------------------------

MIXED = [None, "MK1", *SEQUENCES, ""]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"level": ["L0", "L2"]},
    {"output_dtype": "float16"},
    {"normalize": True},
    {"pooling": "max"},
    {"pooling": "cls"},
    {"pooling": "residue"},
    {"pooling": "residue", "output_dtype": "float16", "level": ["L0", "L1"]},
    {"pooling": "positions", "positions": (2, 5)},
    {"pooling": "positions", "positions_column": "where"},
    {"long": "error", "max_length": 12, "overlap": 0},
    {"long": "truncate", "max_length": 12, "overlap": 0},
]


@pytest.mark.parametrize("order", ["null first", "null last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_first_batch_of_nulls_or_of_none_fixes_no_type(
    tiny_checkpoint: Path, options: dict[str, Any], order: str, tmp_path: Path
) -> None:
    rows = MIXED if order == "null first" else MIXED[::-1]
    dataset = Dataset.from_dict(
        {"sequence": rows, "where": [[1, 3]] * len(rows)},
        features=Features({"sequence": Value("string"), "where": [Value("int32")]}),
    )
    embedder = Embedder(tiny_checkpoint, on_reject="null", device="cpu", **options)
    declared = embedder.features(dataset.features)
    found = dataset.map(embedder, batched=True, batch_size=2, writer_batch_size=1, features=declared)
    assert found.features == declared
    expected = embedder({"sequence": rows, "where": [[1, 3]] * len(rows)})
    assert list(found.features) == ["sequence", "where", *expected]
    for column, values in expected.items():
        for mine, wanted in zip(found[column], values, strict=True):
            if wanted is None or column == "reject_reason":
                assert mine == wanted
            else:
                # The same rows in other batches: other products, a few units in the last place.
                np.testing.assert_allclose(np.asarray(mine), wanted, atol=2e-3, rtol=2e-3)
    for column, row in ((column, row) for column in expected for row in range(len(rows))):
        assert (found[column][row] is None) == (expected[column][row] is None)
    if int(pa.__version__.split(".")[0]) < 24:
        pytest.skip("this release of pyarrow has no nulls among fixed-size lists in Parquet")
    found.to_parquet(tmp_path / "found.parquet")
    again = load_dataset("parquet", data_files=str(tmp_path / "found.parquet"), cache_dir=str(tmp_path))["train"]
    assert again.features["reject_reason"] == Value("string")


def test_all_null_and_streams_and_removed_columns(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, level="L0", on_reject="null", device="cpu")
    dataset = Dataset.from_dict({"sequence": ["1", "2"]})
    found = dataset.map(embedder, batched=True, remove_columns=["sequence"], features=embedder.features())
    assert found.features == embedder.features()
    assert found["embedding"][:] == [None, None]
    stream = dataset.to_iterable_dataset()
    streamed = stream.map(embedder, batched=True, features=embedder.features(stream.features))
    assert [row["reject_reason"] for row in streamed] == [
        "'1' is not a residue (position 1 of 1)",
        "'2' is not a residue (position 1 of 1)",
    ]


def test_without_nulls_the_same_types_are_declared_as_are_found(tiny_checkpoint: Path) -> None:
    dataset = Dataset.from_dict({"sequence": SEQUENCES})
    embedder = Embedder(tiny_checkpoint, level=["L0", "L1"], device="cpu")
    found = dataset.map(embedder, batched=True, features=embedder.features(dataset.features))
    assert found.features["embedding_L1"].length == 48
    assert "reject_reason" not in found.features
