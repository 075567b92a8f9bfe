"""Weights of the first publication (``reverse_distillation`` 0.1.0) as bases of this project.

Each step of its chain is one file, ``rd-scaler-{small}-{large}-{regressor}-{pca}-{sequences}.npz``. It predicts
the larger state and compresses what is left,

    prediction = (x - input_mean) C_q coef^T + intercept + output_mean        (pcr)
    prediction = x coef^T + intercept                                         (linear, ridge)
    block      = (h - prediction - pca_mean) components^T

which is this project's step with W = C_q coef^T, V = components^T, mean(e) = input_mean (or zero) and all
constants that are taken off h in mean(h).
"""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rd_hf.bases.chain import FitReport
from rd_hf.families import ESM2, Member, esm2_config
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel

_FILE = re.compile(
    r"rd-scaler-(?P<small>\w+)-(?P<large>\w+)-(?P<regressor>linear|ridge|pcr)-(?P<pca>incremental|fbpca)"
    r"-(?P<sequences>[\w.]+)\.npz"
)
# Input means beyond the first level's width, against those within: zero but for rounding where the step was fitted
# on the accumulated embedding (its blocks have no mean), of one size with them where it was fitted on raw states.
ACCUMULATED_BELOW = 0.05


@dataclass(frozen=True)
class Recipe:
    """Which of the published files: regressor, PCA and number of sequences."""

    regressor: str
    pca: str
    sequences: str

    def file(self, small: str, large: str) -> str:
        """Name of the file of one step."""
        return f"rd-scaler-{small}-{large}-{self.regressor}-{self.pca}-{self.sequences}.npz"

    def __str__(self) -> str:
        return f"{self.regressor}-{self.pca}-{self.sequences}"


@dataclass(frozen=True)
class PublishedStep:
    """One file, folded, float64.

    Attributes:
        prefix_mean, backbone_mean, regression, directions: as in :class:`rd_hf.bases.chain.Basis`.
        fitted_on: "accumulated", "raw", "first level" (where both are one) or "unknown" (linear and ridge files
            hold no input means).
        report: what the file says of its fit.
    """

    prefix_mean: np.ndarray
    backbone_mean: np.ndarray
    regression: np.ndarray
    directions: np.ndarray
    fitted_on: str
    report: FitReport


class PublishedFileError(ValueError):
    """A published file that is damaged or is not what its name says."""


def find_recipes(folder: Path, level: str) -> list[Recipe]:
    """Recipes for which ``folder`` has every step up to ``level``."""
    matches = [match for path in folder.glob("rd-scaler-*.npz") if (match := _FILE.fullmatch(path.name))]
    recipes = {Recipe(match["regressor"], match["pca"], match["sequences"]) for match in matches}
    steps = _steps(level)
    complete = [
        recipe
        for recipe in recipes
        if all((folder / recipe.file(small.name, large.name)).is_file() for small, large in steps)
    ]
    return sorted(complete, key=str)


def _steps(level: str) -> list[tuple[Member, Member]]:
    names = [member.name for member in ESM2]
    if level not in names[1:]:
        raise ValueError(f"no reverse-distilled ESM-2 {level}: choose {', '.join(names[1:])}")
    members = ESM2[: names.index(level) + 1]
    return list(pairwise(members))


def read_step(path: Path, small: Member, large: Member, first_width: int) -> PublishedStep:
    """Read and fold one file; nothing in it is unpickled.

    Raises:
        PublishedFileError: not an ``.npz``, pickled content, a key absent, a size that does not fit, or numbers
            that are not finite.
    """
    regressor = _FILE.fullmatch(path.name)
    if regressor is None:
        raise PublishedFileError(f"{path.name} is not named like rd-scaler-8M-35M-pcr-fbpca-1k.npz")
    p, k = small.width, large.width
    with _open(path) as archive:
        components = _array(path, archive, "pca__components_", (k - p, k))
        pca_mean = _array(path, archive, "pca__mean_", (k,))
        intercept = _array(path, archive, "regressor__intercept_", (k,))
        residual_spectrum = _optional(path, archive, "pca__explained_variance_", (k - p,))
        report: dict[str, Any] = {}
        if regressor["regressor"] == "pcr":
            selected = int(_array(path, archive, "regressor__n_significant_pcs_", ()))
            if not 1 <= selected <= p:
                raise PublishedFileError(f"{path}: {selected} selected components of {p} cannot be")
            input_mean = _array(path, archive, "regressor__input_mean_", (p,))
            output_mean = _array(path, archive, "regressor__output_mean_", (k,))
            axes = _array(path, archive, "regressor__input_components_", (p, p))
            coefficients = _array(path, archive, "regressor__coef_", (k, selected))
            regression = axes[:, :selected] @ coefficients.T
            constant = output_mean + intercept
            spectrum = _optional(path, archive, "regressor__input_eigenvalues_", (p,))
            report = {
                "selected_components": selected,
                "components": p,
                "sigma_squared": _scalar(path, archive, "regressor__sigma_sq_"),
                "edge": _scalar(path, archive, "regressor__johnstone_threshold_"),
                "eigenvalues": [] if spectrum is None else spectrum.tolist(),
            }
            fitted_on = _fitted_on(input_mean, first_width)
        else:
            regression = _array(path, archive, "regressor__coef_", (k, p)).T
            input_mean, constant = np.zeros(p), intercept
            fitted_on = "first level" if p == first_width else "unknown"
    return PublishedStep(
        prefix_mean=input_mean,
        backbone_mean=constant + pca_mean,
        regression=regression,
        directions=components.T,
        fitted_on=fitted_on,
        report=FitReport(
            level=large.name,
            backbone_width=k,
            nested_width=k,
            directions=k - p,
            regression=regressor["regressor"],
            residual_eigenvalues=[] if residual_spectrum is None else residual_spectrum.tolist(),
            **report,
        ),
    )


def _fitted_on(input_mean: np.ndarray, first_width: int) -> str:
    if len(input_mean) == first_width:
        return "first level"
    within, beyond = input_mean[:first_width], input_mean[first_width:]
    ratio = np.sqrt(np.mean(beyond**2)) / max(float(np.sqrt(np.mean(within**2))), np.finfo(np.float64).tiny)
    return "accumulated" if ratio < ACCUMULATED_BELOW else "raw"


def _open(path: Path) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise PublishedFileError(f"{path}: no such file; every step of the chain needs its own") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise PublishedFileError(f"{path} is no readable .npz file ({error}): delete it and fetch it again") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise PublishedFileError(f"{path} is a single array, not an .npz file")
    return archive


def _shape(path: Path, key: str) -> tuple[int, ...]:
    """What an array's header says of it."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        shape, _, dtype = readers[np.lib.format.read_magic(member)](member)
    if dtype.hasobject:
        raise ValueError("it holds objects")
    return shape


def _array(path: Path, archive: np.lib.npyio.NpzFile, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """One array, float64, of the shape it must have."""
    if key not in archive:
        raise PublishedFileError(f"{path} has no {key}; it has {', '.join(sorted(archive.files))}")
    # scikit-learn writes the intercept of a fit without one as the number 0.
    single = key.endswith("intercept_")
    try:
        # Asked before it is read: a file of a few bytes may say that it needs more memory than there is.
        found = _shape(path, key)
        array = archive[key] if found == shape or (single and not found) else None
    except (ValueError, OSError, EOFError, KeyError, SyntaxError, zipfile.BadZipFile) as error:
        raise PublishedFileError(f"{path}: {key} cannot be read without unpickling, or is damaged ({error})") from error
    if array is None:
        raise PublishedFileError(f"{path}: {key} has shape {found}, but these levels need {shape}")
    if single and array.ndim == 0:
        array = np.full(shape, float(array))
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise PublishedFileError(f"{path}: {key} holds NaN, infinite or non-numeric values")
    return array.astype(np.float64)


def _optional(path: Path, archive: np.lib.npyio.NpzFile, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    return _array(path, archive, key, shape) if key in archive else None


def _scalar(path: Path, archive: np.lib.npyio.NpzFile, key: str) -> float | None:
    value = _optional(path, archive, key, ())
    return None if value is None else float(value)


def import_published(folder: str | Path, level: str, recipe: Recipe) -> tuple[RDEsmModel, list[FitReport]]:
    """A bases-only model from the published files, without backbones, and what they say of their fit.

    ``model.config.bases["fitted_on"]`` says of each level whether its step was fitted on the accumulated
    embedding (to which it is applied) or on the raw one.

    Args:
        folder: that holds the ``.npz`` files.
        level: largest level.
        recipe: which files.

    Raises:
        PublishedFileError: a file is absent, damaged or does not fit.
        ValueError: ESM-2 has no such level.
    """
    folder = Path(folder)
    config: RDEsmConfig = esm2_config(level)
    steps = [
        read_step(folder / recipe.file(small.name, large.name), small, large, ESM2[0].width)
        for small, large in _steps(level)
    ]
    config.bases = {
        "regression": recipe.regressor,
        "num_sequences": recipe.sequences,
        "fitted_on": {step.report.level: step.fitted_on for step in steps},
        "imported_from": f"reverse_distillation 0.1.0, {recipe}",
    }
    model = RDEsmModel(config, build_backbones=False)
    model.eval()
    for projection, step in zip(model.projections, steps, strict=True):
        for name in ("prefix_mean", "backbone_mean", "regression", "directions"):
            projection.get_buffer(name).copy_(torch.from_numpy(np.ascontiguousarray(getattr(step, name))))
    first = FitReport(ESM2[0].name, ESM2[0].width, ESM2[0].width)
    return model, [first, *(step.report for step in steps)]
