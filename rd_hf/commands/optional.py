"""Packages that only some commands need: one sentence where one is not installed."""

from __future__ import annotations

# Import name: name on the package index, and the extra of this package that brings it.
OPTIONAL = {
    "faiss": ("faiss-cpu", "search"),
    "h5py": ("h5py", "h5"),
    "matplotlib": ("matplotlib", "plots"),
    "pandas": ("pandas", "eval"),
    "plotly": ("plotly", "map"),
    "ray": ("ray", "ray"),
    "scipy": ("scipy", "eval"),
    "sklearn": ("scikit-learn", "eval"),
    "threadpoolctl": ("threadpoolctl", "eval"),
    "umap": ("umap-learn", "umap"),
}


def what_to_install(error: ModuleNotFoundError, extra: str | None = None) -> str:
    """The sentence for an import that failed, with the command's own extra, if it has one that brings all it needs.

    The error itself is raised again where the package is none of the optional ones.
    """
    module = (error.name or "").partition(".")[0]
    if module not in OPTIONAL:
        raise error
    package, usual = OPTIONAL[module]
    return f'this needs {package}, which is not installed: pip install "rd_hf[{extra or usual}]"'
