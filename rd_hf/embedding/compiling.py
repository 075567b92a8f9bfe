"""Whether a job compiles its model's layers: decided once, by what it computes and where, and kept from then on.

Compiled layers round otherwise, in the last digits: no part of a job may have them that another has not.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from rd_hf.data.records import InputError
from rd_hf.devices import parse_device
from rd_hf.embedding.options import AUTO, OFF, ON

# Residues times the square of the embedding's width, by which the time of a pass grows, from which on "auto" compiles.
# A guess until a GPU has measured it: 100 million residues at the width of 650M take an H200 six minutes, and graphs
# are made within one on two cores of a CPU.
ENOUGH = 100_000_000 * 1280**2


def decided(choice: str, device: str, residues: int | None, width: int) -> tuple[str, str | None]:
    """Return "on" or "off" for a choice that may be "auto", and a sentence for the user where "auto" became "on".

    Args:
        choice: as it was asked for.
        device: where the job runs.
        residues: of its input, as far as they are counted before it begins; None for any number.
        width: of the embedding.
    """
    if choice != AUTO:
        return choice, None
    if parse_device(device).type != "cuda" or not _has_compiler(device) or (residues or 0) * width**2 < ENOUGH:
        return OFF, None
    return ON, (
        f"layers are compiled first, once: about {residues:,} residues {width:,} wide on {device} are worth it "
        "(--compile off leaves them as they are)"
    )


def check_compiler(device: str) -> None:
    """Raise an InputError where nothing compiles for a device."""
    if not _has_compiler(device):
        needed = "a C++ compiler (g++ or clang++)" if parse_device(device).type == "cpu" else "Triton"
        raise InputError(f"--compile on needs {needed} for device {device}, and there is none here: leave it away")


def _has_compiler(device: str) -> bool:
    if parse_device(device).type == "cpu":
        return bool(os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"))
    return find_spec("triton") is not None
