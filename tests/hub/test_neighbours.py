"""The pushed repo in sentence-transformers, pipelines and PEFT, and the code on its card."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hub.conftest import WIDTHS, World

pytest.importorskip("peft")
pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def found(world: World) -> dict[str, Any]:
    return world.run("neighbours", "home-neighbours")


def test_the_tokenizer_is_esm2s(found: dict[str, Any]) -> None:
    # M K T A Y I A K Q R in ESM-2's vocabulary, between cls (0) and eos (2).
    assert found["tokenizer"] == [0, 20, 15, 11, 5, 19, 12, 5, 15, 16, 10, 2]


@pytest.mark.parametrize("level", WIDTHS)
def test_truncation_in_sentence_transformers_is_exactly_the_smaller_level(found: dict[str, Any], level: str) -> None:
    assert found[f"truncated-{level}"]


def test_truncation_at_any_width_is_exactly_the_embedder_at_that_width(found: dict[str, Any]) -> None:
    """Of the lossless form: five widths drawn at random and those of the levels, two proteins."""
    assert len(found["any_width"]) == 5 + len(WIDTHS)
    assert all(found["any_width"].values()), found["any_width"]


def test_sentence_embeddings_are_means_over_residues(found: dict[str, Any]) -> None:
    # float32 sums of at most ten numbers against float64: a few times 2^-24, relative to the largest.
    assert found["mean_over_residues"] < 1e-6


def test_the_feature_extraction_pipeline_gives_the_embedding(found: dict[str, Any]) -> None:
    # The same model on the same row; the way through Python floats changes nothing of a float32.
    assert found["pipeline"] == 0.0


def test_a_lora_on_the_largest_backbone_trains_saves_and_loads(found: dict[str, Any]) -> None:
    assert found["lora"] == {"trained": True, "reloaded_equal": True, "prefix_untouched": True}


def test_the_card_says_what_the_hub_reads(found: dict[str, Any]) -> None:
    metadata = found["metadata"]
    assert metadata["base_model"] == [f"lab/esm-{name}" for name in WIDTHS]
    assert metadata["library_name"] == "transformers"
    assert metadata["pipeline_tag"] == "feature-extraction"
    assert metadata["license"] == "mit"
    assert metadata["datasets"] == ["agemagician/uniref50"]
    assert {"protein", "esm2", "matryoshka"} <= set(metadata["tags"])


def test_the_code_on_the_card_runs_as_pasted(found: dict[str, Any]) -> None:
    assert found["blocks"] == 2
