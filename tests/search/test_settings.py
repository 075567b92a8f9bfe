"""Choices of a search that no command line lets through are refused from Python too."""

from __future__ import annotations

from typing import Any

import pytest

from rd_hf.search.settings import SearchSettings


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"k": 0}, "k must be a whole number of at least 1, not 0"),
        ({"recall_sample": -1}, "recall_sample must be a whole number of at least 0, not -1"),
        ({"block_weights": (1.0, -1.0)}, "block_weights must be a finite number of at least 0, not -1.0"),
        ({"block_weights": (float("nan"),)}, "block_weights must be a finite number"),
        ({"output": "hits.txt"}, "must end in one of"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(choice: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SearchSettings(**{"queries": "q", "database": "d", "output": "hits.tsv"} | choice)
