"""Every command explains itself, and the package's arrows run one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
# What each part of the package may import of the package (design: scripts -> jobs -> maths -> model files).
ALLOWED = {
    "model": {"model"},
    "families.py": {"model"},
    "lazy.py": set(),
    "launch.py": set(),
    "bases": {"bases"},
    "data": {"data"},
    "fitting": {"fitting", "bases", "data", "model", "lazy"},
    "embedding": {"embedding", "data", "model", "launch", "lazy"},
    "hub": {"hub", "bases", "data", "model", "families"},
    "evaluation": {"evaluation", "bases", "data", "model", "fitting", "hub"},
    "search": {"search", "embedding", "data", "lazy"},
    "commands": {"commands", "bases", "data", "fitting", "embedding", "search", "hub", "evaluation", "families", "launch"},
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_teaches(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    source = script.read_text()
    thin = re.search(r"from rd_hf.commands.(\w+) import main", source)
    if thin:
        source = (REPOSITORY / "rd_hf" / "commands" / f"{thin[1]}.py").read_text()
    description = ast.get_docstring(ast.parse(source)) or ""
    assert description.splitlines()[0][:40] in done.stdout


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_run_one_way(part: str) -> None:
    path = REPOSITORY / "rd_hf" / part
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            elif isinstance(node, ast.ImportFrom) and node.level == 1 and path.is_file():
                names = [f"rd_hf.{node.module}"]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.startswith("rd_hf."):
                    assert name.split(".")[1] in ALLOWED[part], f"{file} imports {name}"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "rd_hf" / "model").glob("*_rd_esm.py")), ids=lambda p: p.name)
def test_the_hub_files_stand_alone(path: Path) -> None:
    """They are copied to the Hub: the standard library, torch, transformers and each other, nothing else."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or (path.parent / f"{node.module}.py").exists()
            modules = [] if node.level else [node.module or ""]
        else:
            continue
        for module in modules:
            top = module.split(".")[0]
            assert top in {"torch", "transformers"} or top in sys.stdlib_module_names, module
            if top == "transformers":
                assert module in {"transformers", "transformers.utils"}, f"{module} is not public"


def test_nothing_is_unpickled() -> None:
    for file in [*(REPOSITORY / "rd_hf").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "pickle.load", "pickle.loads", "joblib.load"}, file
                for keyword in node.keywords:
                    loud = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
                    assert not (keyword.arg in {"allow_pickle", "shell"} and loud), file
