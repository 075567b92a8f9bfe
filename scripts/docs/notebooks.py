"""Notebooks as pages of the site: run, and written out as Markdown with their pictures."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

FOLDER = Path(__file__).resolve().parent / "notebooks"
# What a page of text has no use for.
QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}


def run(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in a folder of its own, beside the data.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER / "data", Path(folder, "data"))
        client = NotebookClient(
            notebook,
            timeout=300,
            kernel_name="python3",
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": folder}},
        )
        client.execute(env={**os.environ, **QUIET})
    return notebook


def run_all() -> dict[str, nbformat.NotebookNode]:
    """All notebooks by name, with their outputs; two at a time, since much of each is the start of Python."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    with ThreadPoolExecutor(2) as pool:
        return dict(zip((path.stem for path in paths), pool.map(run, paths), strict=True))


def as_markdown(name: str, notebook: nbformat.NotebookNode) -> tuple[str, dict[str, bytes]]:
    """A page, and its pictures by name."""
    resources: dict[str, Any] = {"unique_key": name, "output_files_dir": f"{name}_files"}
    text, found = MarkdownExporter().from_notebook_node(notebook, resources=resources)
    return text, dict(found["outputs"])
