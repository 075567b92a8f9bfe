"""The embedding's README says of input what the tests have checked."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tests.data.table import README, between, render


@pytest.mark.skipif(not hasattr(pa, "list_view"), reason="the table has types that this release of pyarrow has not")
def test_the_readme_has_the_table_of_the_tests() -> None:
    said = between(README.read_text(encoding="utf-8"))
    assert said == render().strip(), "refresh it: python -m tests.data.table"
