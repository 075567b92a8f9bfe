"""Shared by the tests of the model's files."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Warnings of the model's code, whichever release of transformers sends them where."""
    found: list[str] = []
    ear = logging.Handler()
    ear.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rd_hf.model.saving_rd_esm")
    logger.addHandler(ear)
    yield found
    logger.removeHandler(ear)
