"""Bars of evaluations."""

from __future__ import annotations

import os
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **how: Any) -> tqdm:
    """A bar of tqdm where standard error is a terminal, unless ``TQDM_DISABLE`` is set, as ``--quiet`` does.

    tqdm itself heeds the variable only where nothing else is said of ``disable``, and as it was at its import.
    """
    return tqdm(*arguments, **how, disable=True if os.environ.get("TQDM_DISABLE") else None)
