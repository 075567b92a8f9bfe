"""What is imported on first use, so that importing the package costs nothing, and so that first use costs little."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` (PEP 562).

    Args:
        package: its ``__name__``.
        homes: module that each public name lives in.
    """

    def look_up(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with uncollected():
            return getattr(import_module(homes[name]), name)

    return look_up


@contextmanager
def uncollected() -> Iterator[None]:
    """Import, or build, what stays: without looking for garbage meanwhile.

    torch and transformers make a million objects as they are imported, nearly all of which stay. Looking through them
    again and again for cycles that nobody holds takes a fifth of the time of importing them.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
