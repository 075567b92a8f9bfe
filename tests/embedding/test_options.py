"""Choices that make no sense are refused with a sentence that says what would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rd_hf.commands.embed import build_parser
from rd_hf.embedding import JobSettings
from rd_hf.embedding.columns import finish, to_arrow, why_not_stored
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.options import options_from


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"pooling": "median"}, "pooling must be one of mean, max, cls, residue, positions"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, not"),
        ({"output_dtype": "bfloat16"}, "Arrow has no bfloat16: store float32"),
        ({"long": "split"}, "long must be one of"),
        ({"levels": ("S", "S")}, "levels must differ"),
        ({"max_length": 0}, "max_length must be a whole number of at least 1, not 0"),
        ({"max_length": 100, "overlap": 100}, "overlap must be at least 0 and below max_length 100"),
        ({"batch_tokens": 0}, "batch_tokens must be a whole number of at least 1"),
        ({"pooling": "positions", "positions": (0,)}, "positions must be a whole number of at least 1, not 0"),
        ({"positions": (3,)}, "set pooling to 'positions'"),
    ],
)
def test_senseless_choices_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        EmbeddingOptions(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    options = EmbeddingOptions(
        pooling="positions", positions=tuple(np.array([3, 1])), max_length=np.int64(50), overlap=9
    )
    assert options.positions == (3, 1)
    with pytest.raises(ValueError, match="positions must be a whole number of at least 1"):
        EmbeddingOptions(pooling="positions", positions=tuple(np.array([2.5])))


def test_old_names_of_group_tokens_are_taken() -> None:
    assert build_parser().parse_args(["--output", "o", "--window-tokens", "9"]).group_tokens == 9
    assert "--window-tokens" not in build_parser().format_help()
    with pytest.warns(FutureWarning, match="window_tokens is called group_tokens now"):
        settings = JobSettings("m", ("i",), "o", window_tokens=9)
    assert settings.group_tokens == 9
    assert replace(settings, group_tokens=5).group_tokens == 5
    assert replace(settings, device="cpu").group_tokens == 9
    with pytest.raises(ValueError, match="group_tokens must be a whole number of at least 1"):
        JobSettings("m", ("i",), "o", group_tokens=0)


def test_an_argument_that_was_not_typed_is_none() -> None:
    """The folder that --extend names has a say in what was not typed, and none in what was, even by its default."""
    args = build_parser().parse_args(["--output", "o", "--pooling", "mean"])
    typed = {name for name, value in vars(args).items() if value not in (None, False)}
    assert typed == {"output", "pooling", "engine", "cpus"}
    assert options_from(EmbeddingOptions, args) == EmbeddingOptions()


def test_each_level_is_normalised_for_itself() -> None:
    values = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    values[2] = 0
    for width in (3, 8):
        lengths = np.linalg.norm(finish(values, width, EmbeddingOptions(normalize=True)), axis=1)
        # A unit vector to float32 rounding; a zero vector has no direction and stays.
        np.testing.assert_allclose(lengths, [1, 1, 0, 1, 1], atol=1e-6)


def test_numbers_that_the_dtype_cannot_hold_are_not_stored() -> None:
    widths = {"S": 2, "L": 4}
    half = EmbeddingOptions(output_dtype="float16")
    assert why_not_stored(np.array([1, 2, 65504, 0], np.float32), widths, half) is None
    assert "beyond float16" in str(why_not_stored(np.array([1, 2, 7e4, 0], np.float32), widths, half))
    assert "not finite" in str(why_not_stored(np.array([1, np.nan, 0, 0], np.float32), widths, EmbeddingOptions()))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_arrow_columns_have_fixed_widths(dtype: str) -> None:
    vectors = [np.arange(4, dtype=np.float32) + row for row in range(3)]
    column = to_arrow(vectors, 2, EmbeddingOptions(output_dtype=dtype))
    assert column.type == pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), 2)
    assert column.to_pylist() == [[0, 1], [1, 2], [2, 3]]
    rows = [np.ones((2, 4), np.float32), np.zeros((1, 4), np.float32)]
    nested = to_arrow(rows, 3, EmbeddingOptions(output_dtype=dtype, pooling="residue"))
    assert nested.to_pylist() == [[[1, 1, 1], [1, 1, 1]], [[0, 0, 0]]]
    assert len(to_arrow([], 3, EmbeddingOptions(pooling="residue"))) == 0
