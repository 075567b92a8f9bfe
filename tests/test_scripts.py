"""Every command explains itself, and the package's arrows run one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
# What each part of the package may import of the package (design: scripts -> jobs -> maths -> model files).
ALLOWED = {
    "configuration_rd_esm.py": set(),
    "modeling_rd_esm.py": {"configuration_rd_esm"},
    "bases": {"bases"},
    "data": {"data"},
    "fitting.py": {"bases", "data", "configuration_rd_esm", "modeling_rd_esm"},
    "launch.py": set(),
    "embedding": {"embedding", "data", "launch", "configuration_rd_esm", "modeling_rd_esm"},
    "hub": {"hub", "bases", "data", "configuration_rd_esm", "modeling_rd_esm"},
    "evaluation": {"evaluation", "bases", "data", "configuration_rd_esm", "modeling_rd_esm", "fitting", "hub"},
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_teaches(script: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    description = ast.get_docstring(ast.parse(script.read_text())) or ""
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


@pytest.mark.parametrize("name", ["configuration_rd_esm.py", "modeling_rd_esm.py"])
def test_the_hub_files_stand_alone(name: str) -> None:
    """They are copied to the Hub: the standard library, torch, transformers and each other, nothing else."""
    tree = ast.parse((REPOSITORY / "rd_hf" / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module == "configuration_rd_esm"
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
