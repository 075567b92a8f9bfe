"""Imports on first use, so that importing the package costs nothing, and first use little."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str], former: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """A module's ``__getattr__`` (PEP 562).

    ``homes`` are the modules that public names live in, where a module's own name stands for it; ``former`` what names
    of earlier versions are called now: they are understood, with a FutureWarning.
    """
    renamed = former or {}

    def look_up(name: str) -> Any:
        if name in renamed:
            warnings.warn(f"{package}.{name} is called {renamed[name]} now", FutureWarning, stacklevel=2)
            name = renamed[name]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with gc_paused():
            home = import_module(homes[name])
        # Importing a module makes it an attribute of its package: one name cannot stand for it and for something in it.
        return home if homes[name] == f"{package}.{name}" else getattr(home, name)

    return look_up


def callable_as(package: str, function: str) -> None:
    """Let the module of this ``__name__`` be called, as the function of this name in it, looked up at the call."""

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **keywords: Any) -> Any:
            return getattr(self, function)(*args, **keywords)

    sys.modules[package].__class__ = CallableModule


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import, or build, what stays, without the search for garbage meanwhile.

    torch and transformers make a million objects as they are imported, nearly all of which stay. To look through them
    again and again for cycles that nobody holds takes a fifth of the time of importing them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
