"""Every command explains itself, and the package's arrows run one way."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
STUDIES = [
    REPOSITORY / "scripts" / "studies" / f"{name}.py"
    for name in ("ablate", "angles", "blocks", "frontier", "nested", "overview", "readout", "width")
]
# What each part of the package may import of the package (design: scripts -> jobs -> maths -> model files).
ALLOWED = {
    "model": {"model"},
    "families.py": {"model"},
    "carried.py": set(),
    "lazy.py": set(),
    "flags.py": {"options"},
    "memory.py": set(),
    "trust.py": set(),
    "options.py": set(),
    "sklearn.py": {"data", "embedding", "model"},
    "version.py": set(),
    "__init__.py": {"carried", "lazy", "version", "embedding", "families", "fitting", "hub", "model", "search"},
    "__main__.py": {"commands", "version"},
    "network.py": {"data"},
    # What a fit would take is worked out for the sentence that a family by name has no bases.
    "model_names.py": {"carried", "data", "families", "hub", "model"},
    "files.py": {"model"},
    "tables.py": {"files"},
    "launch.py": set(),
    "devices.py": {"data"},
    "bases": {"bases", "files"},
    "data": {"carried", "data", "files", "model", "network"},
    # A whole fit loads its family and saves it (hub), with the embedding's default dtype; neither imports fitting.
    "fitting": {
        "options",
        "flags",
        "version",
        "files",
        "fitting",
        "bases",
        "data",
        "embedding",
        "hub",
        "launch",
        "model",
        "lazy",
        "memory",
    },
    "embedding": {
        "carried",
        "model_names",
        "network",
        "options",
        "flags",
        "version",
        "devices",
        "files",
        "embedding",
        "data",
        "model",
        "launch",
        "lazy",
        "memory",
        "trust",
    },
    "conversion": {
        "carried",
        "options",
        "flags",
        "version",
        "files",
        "conversion",
        "embedding",
        "data",
        "model",
        "launch",
    },
    "hub": {
        "carried",
        "model_names",
        "network",
        "options",
        "flags",
        "version",
        "files",
        "hub",
        "bases",
        "data",
        "model",
        "families",
        "lazy",
        "trust",
    },
    # Above their room: a release fits, then pushes, and fitting saves by way of the rest of the room.
    "hub/release.py": {"files", "hub", "data", "families", "fitting", "model", "model_names", "network"},
    # A folder of embeddings is read as all are.
    "hub/embeddings.py": {"data", "embedding", "files", "hub", "network"},
    "hub/release_settings.py": {"options", "flags", "hub", "families", "fitting"},
    "evaluation": {
        "carried",
        "model_names",
        "network",
        "options",
        "flags",
        "version",
        "devices",
        "files",
        "evaluation",
        "bases",
        "data",
        "model",
        "fitting",
        "hub",
    },
    # Its probes, scores and variants are those of the evaluation; a trained head is saved with its model by the hub.
    "training": {
        "carried",
        "launch",
        "options",
        "flags",
        "version",
        "files",
        "training",
        "bases",
        "data",
        "embedding",
        "evaluation",
        "hub",
        "lazy",
        "model",
    },
    "maps": {"options", "flags", "version", "files", "tables", "maps", "data", "embedding"},
    "search": {
        "options",
        "flags",
        "version",
        "devices",
        "files",
        "tables",
        "search",
        "embedding",
        "bases",
        "data",
        "lazy",
    },
    "commands": {
        "carried",
        "network",
        "commands",
        "options",
        "flags",
        "version",
        "bases",
        "files",
        "data",
        "fitting",
        "embedding",
        "conversion",
        "maps",
        "search",
        "training",
        "hub",
        "evaluation",
        "families",
        "launch",
        "lazy",
    },
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


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_a_study_teaches(study: Path) -> None:
    module = importlib.import_module(f"studies.{study.stem}")
    text = module.build_parser().format_help()
    assert text.startswith(f"usage: python scripts/study.py {study.stem} ")
    assert f"\n    python scripts/study.py {study.stem} --" in text, "an example that a user can type"


@pytest.mark.parametrize("room", sorted(path.parent for path in (REPOSITORY / "rd_hf").glob("*/__init__.py")))
def test_a_room_says_its_job_in_a_sentence(room: Path) -> None:
    words = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
    assert words.split("\n\n")[0].endswith("."), f"{room}/__init__.py does not say what the room is for"


def test_no_file_outgrows_its_room() -> None:
    files = [*(REPOSITORY / "rd_hf").rglob("*.py"), *(REPOSITORY / "rd_hf").rglob("*.js")]
    # What travels to the Hub is few files, so that little is downloaded and read before it is trusted.
    long = {
        str(file): count
        for file in files
        if (count := len(file.read_text().splitlines())) > (600 if file.parent.name == "model" else 400)
    }
    assert not long, "split by job"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "rd_hf" / "commands").glob("*.py")), ids=lambda path: path.name)
def test_a_command_holds_arguments_and_words_only(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == "run":
            assert (node.end_lineno or 0) - node.lineno < 40, "its work belongs into a room"


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_imports_run_one_way(part: str) -> None:
    path = REPOSITORY / "rd_hf" / part
    own = {REPOSITORY / "rd_hf" / other for other in ALLOWED if other != part}
    for file in [path] if path.is_file() else sorted({*path.rglob("*.py")} - own):
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
    """They are copied to the Hub: the standard library, torch, transformers, safetensors, each other; nothing else."""
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
            assert top in {"torch", "transformers", "safetensors"} or top in sys.stdlib_module_names, module
            if top == "transformers":
                # Of the last, the outputs that whoever knows transformers' classifiers expects.
                public = {"transformers", "transformers.utils", "transformers.modeling_outputs"}
                assert module in public, f"{module} is not public"


def relative_imports(name: str) -> set[str]:
    tree = ast.parse((REPOSITORY / "rd_hf" / "model" / f"{name}.py").read_text())
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module}


@pytest.mark.parametrize("entry", ["modeling_rd_esm", "heads_rd_esm"])
def test_a_file_that_is_loaded_by_name_names_all_others_that_travel(entry: str) -> None:
    """transformers up to 5.0 copies, of a folder's code, only what the named file itself imports."""
    travels = {path.stem for path in (REPOSITORY / "rd_hf" / "model").glob("*_rd_esm.py")}
    assert relative_imports(entry) == travels - {entry}


def test_the_configuration_names_all_that_it_needs() -> None:
    """It is fetched by itself, before the modelling file."""
    entry = "configuration_rd_esm"
    found, waiting = set[str](), [entry]
    while waiting:
        new = relative_imports(waiting.pop()) - found
        found |= new
        waiting += new
    assert found == relative_imports(entry)


def test_tensors_are_read_by_readers_that_run_nothing() -> None:
    """What ruff has no rule for: its own (S301, S302, S602, S604, S605, PLW1514) hold the rest."""
    for file in [*(REPOSITORY / "rd_hf").rglob("*.py"), *(REPOSITORY / "scripts").rglob("*.py")]:
        for call in (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("allow_pickle", "False") == "False", file
            if ast.unparse(call.func) == "torch.load":
                assert given.get("weights_only") == "True", file
