"""Fitting bases: sequences in, moments of one streaming pass, bases out, on any number of processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names

if TYPE_CHECKING:
    from rd_hf.fitting.fit import FitResult, backbone_states, fit_bases, install_bases, install_whitening
    from rd_hf.fitting.sample import FitOptions, Sample, draw_sample

__all__ = [
    "FitOptions",
    "FitResult",
    "Sample",
    "backbone_states",
    "draw_sample",
    "fit_bases",
    "install_bases",
    "install_whitening",
]

__getattr__ = lazy_names(
    __name__,
    dict.fromkeys(
        ("FitResult", "backbone_states", "fit_bases", "install_bases", "install_whitening"), "rd_hf.fitting.fit"
    )
    | dict.fromkeys(("FitOptions", "Sample", "draw_sample"), "rd_hf.fitting.sample"),
)
