"""The page of input says what the tests have checked."""

from __future__ import annotations

import pyarrow as pa
import pytest

from tests.data.table import PAGE, render


@pytest.mark.skipif(not hasattr(pa, "list_view"), reason="the table has types that this release of pyarrow has not")
def test_the_page_has_the_tables_of_the_tests() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), "refresh it: python -m tests.data.table"
