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
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rd_hf.bases.chain import Basis, FitReport
from rd_hf.data.records import Say
from rd_hf.families import ESM2, FAMILIES, Member, esm2_config
from rd_hf.files import Workspace
from rd_hf.hub.checkpoint import is_checkpoint, save_checkpoint
from rd_hf.hub.options import ImportSettings
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

    def files(self, level: str) -> list[tuple[Member, Member, str]]:
        """The two members and the file of each step up to a level; ValueError if ESM-2 has no such level."""
        steps = pairwise(FAMILIES["esm"].up_to(level))
        return [(small, large, self.file(small.name, large.name)) for small, large in steps]

    def __str__(self) -> str:
        return f"{self.regressor}-{self.pca}-{self.sequences}"


class PublishedFileError(ValueError):
    """A published file that is damaged or is not what its name says."""


def find_recipes(folder: Path, level: str) -> list[Recipe]:
    """Recipes for which ``folder`` has every step up to ``level``."""
    matches = [match for path in folder.glob("rd-scaler-*.npz") if (match := _FILE.fullmatch(path.name))]
    recipes = {Recipe(match["regressor"], match["pca"], match["sequences"]) for match in matches}
    complete = [one for one in recipes if all((folder / name).is_file() for _, _, name in one.files(level))]
    return sorted(complete, key=str)


def read_step(path: Path, small: Member, large: Member, first_width: int) -> tuple[Basis, str, FitReport]:
    """Read and fold one file; nothing in it is unpickled, and a PublishedFileError says what is wrong in it.

    Returns:
        The basis; what it was fitted on: "accumulated", "raw", "first level" (where both are one) or "unknown"
        (linear and ridge files hold no input means); what the file reports of its fit.
    """
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise PublishedFileError(f"{path.name} is not named like rd-scaler-8M-35M-pcr-fbpca-1k.npz")
    p, k = small.width, large.width
    with _open(path) as archive:

        def array(key: str, *shape: int) -> np.ndarray:
            return _array(path, archive, key, shape)

        def optional(key: str, *shape: int) -> Any:
            return _array(path, archive, key, shape).tolist() if key in archive else None

        directions = array("pca__components_", k - p, k).T
        constant = array("regressor__intercept_", k)
        report: dict[str, Any] = {"residual_eigenvalues": optional("pca__explained_variance_", k - p) or []}
        if match["regressor"] == "pcr":
            prefix_mean, regression, own = _component_regression(path, array, optional, p, k)
            constant = array("regressor__output_mean_", k) + constant
            report |= own
            fitted_on = _fitted_on(prefix_mean, first_width)
        else:
            prefix_mean, regression = np.zeros(p), array("regressor__coef_", k, p).T
            fitted_on = "first level" if p == first_width else "unknown"
        folded = (prefix_mean, constant + array("pca__mean_", k), regression, directions)
    basis = Basis(*(torch.from_numpy(np.ascontiguousarray(one)) for one in folded))
    return basis, fitted_on, FitReport(large.name, k, k, k - p, match["regressor"], **report)


def _component_regression(
    path: Path, array: Callable[..., np.ndarray], optional: Callable[..., Any], p: int, k: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Input means, folded regression and report of a step that regresses on principal components."""
    selected = int(array("regressor__n_significant_pcs_"))
    if not 1 <= selected <= p:
        raise PublishedFileError(f"{path}: {selected} selected components of {p} cannot be")
    axes = array("regressor__input_components_", p, p)
    report = {
        "selected_components": selected,
        "components": p,
        "sigma_squared": optional("regressor__sigma_sq_"),
        "edge": optional("regressor__johnstone_threshold_"),
        "eigenvalues": optional("regressor__input_eigenvalues_", p) or [],
    }
    return array("regressor__input_mean_", p), axes[:, :selected] @ array("regressor__coef_", k, selected).T, report


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
    """The shape that an array's header states."""
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
        # Compared before it is read: a file of a few bytes may state a shape larger than memory.
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


def import_published(folder: str | Path, level: str, recipe: Recipe) -> tuple[RDEsmModel, list[FitReport]]:
    """Return a bases-only model up to a level from the published files in a folder, and what they report of their fit.

    ``model.config.bases["fitted_on"]`` states for each level whether its step was fitted on the accumulated
    embedding (to which it is applied) or on the raw one.
    """
    config, first = esm2_config(level), ESM2[0]
    steps = [read_step(Path(folder) / name, small, large, first.width) for small, large, name in recipe.files(level)]
    config.bases = {
        "regression": recipe.regressor,
        "num_sequences": recipe.sequences,
        "fitted_on": {report.level: fitted_on for _, fitted_on, report in steps},
        "imported_from": f"reverse_distillation 0.1.0, {recipe}",
    }
    model = RDEsmModel(config, build_backbones=False)
    model.eval()
    for projection, (basis, _, _) in zip(model.projections, steps, strict=True):
        for name, value in vars(basis).items():
            projection.get_buffer(name).copy_(value)
    return model, [FitReport(first.name, first.width, first.width), *(report for _, _, report in steps)]


def import_checkpoint(settings: ImportSettings, say: Say = print) -> None:
    """Make a checkpoint folder of the one set of published files that is asked for, and say what it was fitted on."""
    weights, output = Path(settings.weights), Path(settings.output)
    if not is_checkpoint(output):
        Workspace(output / ".rd_hf", "a checkpoint").refuse_others()
    if not weights.is_dir():
        raise ValueError(f"{weights}: no such folder")
    recipes = [
        recipe
        for recipe in find_recipes(weights, settings.level)
        if all(getattr(settings, name) in (None, value) for name, value in vars(recipe).items())
    ]
    naive = next(weights.glob("naive-scaler-*.npz"), None)
    if not recipes and naive:
        raise ValueError(
            f"{naive} is a step of a chain of PCAs, whose levels do not nest, and no checkpoint here can hold it: "
            "compare with --representations pca_chain of rd-hf evaluate dms, or give the files named rd-scaler-*.npz"
        )
    if len(recipes) != 1:
        found = ", ".join(map(str, recipes)) or "none"
        raise ValueError(
            f"{weights} has {len(recipes)} complete sets of files for {settings.level} ({found}): choose one "
            f"with --regressor, --pca and --num-sequences, or fetch the steps that are absent"
        )
    model, reports = import_published(weights, settings.level, recipes[0])
    if is_checkpoint(output):
        before = RDEsmConfig.from_pretrained(output)
        if (before.level_names, before.bases) != (model.config.level_names, model.config.bases):
            raise ValueError(f"{output} holds another model: choose another --output, or delete it")
    save_checkpoint(model, output, backbones=False, report=reports, license=settings.license)
    for level, what in model.config.bases["fitted_on"].items():
        say(f"{level:>6}: fitted on {what}")
    say(f"saved to {output}")
