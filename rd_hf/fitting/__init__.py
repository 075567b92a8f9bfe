"""Fitting bases: sequences in, moments from a single read of the data, bases out, on any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names

if TYPE_CHECKING:
    from rd_hf.fitting.fit import FitResult, backbone_states, fit_bases
    from rd_hf.fitting.install import install_bases, install_whitening
    from rd_hf.fitting.job import run_fit
    from rd_hf.fitting.sample import Sample, draw_sample
    from rd_hf.fitting.settings import FitOptions, FitSettings, FitSummary

_HOMES = {
    "rd_hf.fitting.fit": ("FitResult", "backbone_states", "fit_bases"),
    "rd_hf.fitting.install": ("install_bases", "install_whitening"),
    "rd_hf.fitting.job": ("run_fit",),
    "rd_hf.fitting.sample": ("Sample", "draw_sample"),
    "rd_hf.fitting.settings": ("FitOptions", "FitSettings", "FitSummary"),
}

__all__ = [
    "FitOptions",
    "FitResult",
    "FitSettings",
    "FitSummary",
    "Sample",
    "backbone_states",
    "draw_sample",
    "fit_bases",
    "install_bases",
    "install_whitening",
    "run_fit",
]

__getattr__ = lazy_names(__name__, {name: home for home, names in _HOMES.items() for name in names})
