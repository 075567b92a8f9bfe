"""The wheel is the product: installed alone, with what it requires and nothing else, its commands do their work.

The environment is a new one whose site-packages hold the wheel and links to what the running environment has of the
wheel's own requirements, followed to the end; so an extra that is not asked for is really absent, and no network is
needed.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rd_hf import __version__
from tests.conftest import EXAMPLE_FASTA, REPOSITORY

PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()
EXTRAS = set(
    re.findall(r"^(\w+) = \[", PYPROJECT.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M)
)


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel."""

    folder: Path

    @property
    def site_packages(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
        """A command as a user types it: nothing of this repository is on the path."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "RD_HF", "COV"))}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [str(self.folder / "bin" / str(command[0])), *map(str, command[1:])],
            cwd=cwd,
            env={**kept, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "hf")},
            capture_output=True,
            text=True,
            check=False,
            timeout=900,  # under load; alone each takes seconds
        )


def needed(requirements: Sequence[str], extras: Sequence[str] = ()) -> dict[str, Distribution]:
    """What is installed here of these requirements, and of theirs, to the end."""
    found: dict[str, Distribution] = {}
    asked: set[tuple[str, tuple[str, ...]]] = set()
    waiting = [(text, tuple(extras)) for text in requirements]
    while waiting:
        text, wanted = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *wanted)):
            continue
        key = (requirement.name, tuple(sorted(requirement.extras)))
        if key in asked:
            continue
        asked.add(key)
        try:
            one = found.setdefault(requirement.name, distribution(requirement.name))
        except PackageNotFoundError:
            continue  # another platform's, or what its own package can do without
        waiting += [(text, key[1]) for text in one.requires or []]
    return found


def link(distributions: Sequence[Distribution], site_packages: Path) -> None:
    """Put installed packages where another environment finds them."""
    for one in distributions:
        tops = {file.parts[0] for file in one.files or () if file.parts[0] not in {"..", "__pycache__", "bin"}}
        for top in tops:
            source, target = Path(str(one.locate_file(top))), site_packages / top
            if source.exists() and not target.exists() and source.suffix != ".pth":
                target.symlink_to(source, target_is_directory=source.is_dir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the repository."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    copy_source(copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", built, copy], check=True)
    (wheel,) = built.glob("*.whl")
    return wheel


def copy_source(folder: Path) -> None:
    """Copy what a wheel is built from."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, folder / name)
    for name in ("rd_hf", "hub_configs"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def build(what: str, source: Path, target: Path) -> Path:
    """Call a hook of the build backend, as installers do: ``build_sdist`` or ``build_editable``."""
    code = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    subprocess.run([sys.executable, "-c", code, what, target], cwd=source, check=True, capture_output=True)
    (built,) = target.iterdir()
    return built


def install(wheel: Path, folder: Path, extras: Sequence[str] = ()) -> Installed:
    """A new environment with the wheel, what it requires, and these extras."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    environment = Installed(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-compile", wheel], check=True)
    (metadata,) = environment.site_packages.glob("rd_hf-*.dist-info/METADATA")
    requirements = re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(), re.MULTILINE)
    everything = needed(requirements, extras)
    everything.pop("rd_hf", None)
    link(list(everything.values()), environment.site_packages)
    return environment


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """No extra."""
    return install(wheel, tmp_path_factory.mktemp("bare") / "env")


@pytest.fixture(scope="module")
def work(bare: Installed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder in which a user of the wheel has fitted a model and embedded the proteins that it carries."""
    folder = tmp_path_factory.mktemp("work")
    few = ["--num-sequences", "40", "--max-length", "64"]
    with gzip.open(EXAMPLE_FASTA, "rt") as source:
        records = source.read().split(">")[1:101]
    (folder / "proteins.fasta").write_text("".join(f">{record}" for record in records))
    fitted = bare.run(
        *("rd-hf", "fit", "--config", "rd-esm2-mini", "--input", "example", "--output", "model", *few), cwd=folder
    )
    assert fitted.returncode == 0, fitted.stderr
    # The figure is what an extra brings; the fit itself does without, and says so.
    assert "rd_hf[plots]" in fitted.stderr
    embedded = bare.run(
        *("rd-hf", "embed", "--model", "model", "--input", "proteins.fasta", "--output", "embeddings"),
        *("--level", "0.3M", "--max-length", "64", "--long", "truncate"),
        cwd=folder,
    )
    assert embedded.returncode == 0, embedded.stderr
    assert "100 records: 100 written, 0 rejected" in embedded.stdout
    return folder


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith(f"rd_hf-{__version__}-")
    assert {name.partition("/")[0] for name in names} == {"rd_hf", f"rd_hf-{__version__}.dist-info"}
    ours = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "rd_hf").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name and not name.endswith((".md", ".png"))}
    carried = REPOSITORY / "hub_configs" / "rd-esm2-mini"
    ours |= {f"rd_hf/hub_configs/rd-esm2-mini/{path.name}" for path in carried.iterdir() if path.is_file()}
    assert ours <= set(names), f"not in the wheel: {ours - set(names)}"
    # The other families are named in the package itself.
    assert {name.split("/")[2] for name in names if name.startswith("rd_hf/hub_configs/")} == {"rd-esm2-mini"}
    assert not [name for name in names if name.endswith(".pyc")]


def test_a_wheel_of_a_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    copy, unpacked, built = (tmp_path / name for name in ("copy", "unpacked", "built"))
    for folder in (copy, built, tmp_path / "sdist"):
        folder.mkdir()
    copy_source(copy)
    with tarfile.open(build("build_sdist", copy, tmp_path / "sdist")) as archive:
        # Pythons before 3.10.12 and 3.11.4 have none.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(unpacked)
    (source,) = unpacked.iterdir()
    again = build("build_wheel", source, built)
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_an_editable_installation_finds_what_it_carries(tmp_path: Path) -> None:
    copy, built = tmp_path / "copy", tmp_path / "built"
    for folder in (copy, built):
        folder.mkdir()
    copy_source(copy)
    environment = install(build("build_editable", copy, built), tmp_path / "env")
    done = environment.run("python", "-c", "import rd_hf; print(rd_hf.checkpoint('rd-esm2-mini'))", cwd=tmp_path)
    assert done.stdout == f"{copy / 'hub_configs' / 'rd-esm2-mini'}\n", done.stderr
    assert "full, float32" in environment.run("rd-hf", "info", "rd-esm2-mini", cwd=tmp_path).stdout


def test_the_command_is_there(bare: Installed, tmp_path: Path) -> None:
    assert bare.run("rd-hf", "--version", cwd=tmp_path).stdout == f"rd-hf {__version__}\n"
    assert "commands:" in bare.run("rd-hf", "--help", cwd=tmp_path).stdout
    assert bare.run("python", "-m", "rd_hf", "--version", cwd=tmp_path).stdout == f"rd-hf {__version__}\n"
    # Not this repository's: else everything here would be of no worth.
    where = bare.run("python", "-c", "import rd_hf; print(rd_hf.__file__)", cwd=tmp_path).stdout
    assert where.startswith(str(bare.site_packages))


def test_info_describes_what_was_made(bare: Installed, work: Path) -> None:
    model = bare.run("rd-hf", "info", "model", cwd=work)
    assert f"written by rd_hf {__version__}" in model.stdout, model.stderr
    assert "100 written" in bare.run("rd-hf", "info", "embeddings", cwd=work).stdout


def test_transformers_loads_it_without_the_package(bare: Installed, work: Path) -> None:
    code = (
        "import sys; from transformers import AutoModel, AutoTokenizer\n"
        "model = AutoModel.from_pretrained('model', trust_remote_code=True)\n"
        "tokens = AutoTokenizer.from_pretrained('model', trust_remote_code=True)(['MKTAYIAKQR'], return_tensors='pt')\n"
        "print(tuple(model(**tokens).last_hidden_state.shape), 'rd_hf' in sys.modules)"
    )
    done = bare.run("python", "-c", code, cwd=work)
    assert done.stdout == "(1, 12, 192) False\n", done.stderr


def test_the_carried_checkpoint_loads_as_from_the_hub(bare: Installed, tmp_path: Path) -> None:
    """From the installed package, by transformers and the code that lies in its folder."""
    code = (
        "import rd_hf, sys; from transformers import AutoModel, AutoTokenizer\n"
        "name = rd_hf.checkpoint('rd-esm2-mini')\n"
        "model = AutoModel.from_pretrained(name, trust_remote_code=True)\n"
        "tokens = AutoTokenizer.from_pretrained(name, trust_remote_code=True)(['MKTAYIAKQR'], return_tensors='pt')\n"
        "print(name, tuple(model(**tokens).last_hidden_state.shape), 'rd_hf.model' in sys.modules)"
    )
    folder = bare.site_packages / "rd_hf" / "hub_configs" / "rd-esm2-mini"
    before = sorted(folder.rglob("*"))
    done = bare.run("python", "-c", code, cwd=tmp_path)
    assert done.stdout == f"{folder} (1, 12, 192) False\n", done.stderr
    # Nothing was imported from where it lies, and nothing written there.
    assert sorted(folder.rglob("*")) == before


# A command, and enough of arguments for it to reach for what it needs.
OPTIONAL = {
    "map": (["embeddings", "--output", "map.html"], "map"),
    "search": (["--input", "embeddings", "embeddings", "--output", "hits.tsv"], "search"),
    "export": (["embeddings", "--output", "e.h5"], "h5"),
    "embed": (["--model", "model", "--input", "proteins.fasta", "--output", "o", "--engine", "ray"], "ray"),
    "train": (["--model", "model", "--input", "x.csv", "--target", "y", "--output", "o"], "train"),
    "evaluate dms": (["--model", "model", "--assays", "x.csv", "--output", "o"], "eval"),
    "evaluate residues": (["--model", "model", "--secondary-structure", "x", "--output", "o"], "eval"),
}


def test_a_missing_extra_is_a_sentence(bare: Installed, work: Path) -> None:
    """All in one process: what takes seconds is imported once."""
    code = (
        "import contextlib, io, json, sys\nfrom rd_hf.__main__ import main\nsaid = {}\n"
        "for name, (arguments, _) in json.loads(sys.argv[1]).items():\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as error:\n"
        "        said[name] = main([*name.split(), *arguments]), error.getvalue()\n"
        "print(json.dumps(said))"
    )
    done = bare.run("python", "-c", code, json.dumps(OPTIONAL), cwd=work)
    assert done.returncode == 0, done.stderr
    for command, (status, words) in json.loads(done.stdout).items():
        assert status == 1, command
        assert words.startswith(f"rd-hf {command}: error: ")
        assert words.endswith(f'pip install "rd_hf[{OPTIONAL[command][1]}]"\n')
        assert words.count("\n") == 1


# What each extra is for: what it brings, and the modules of the package that then import.
PURPOSES = {
    "plots": ("matplotlib", "rd_hf.bases.figure"),
    "eval": ("sklearn scipy threadpoolctl matplotlib", "rd_hf.evaluation.residues rd_hf.evaluation.plots"),
    "train": ("sklearn scipy threadpoolctl matplotlib", "rd_hf.training.job rd_hf.sklearn"),
    "map": ("plotly scipy", "rd_hf.maps.page rd_hf.maps.projection"),
    "umap": ("umap", "rd_hf.maps.projection"),
    "search": ("faiss", "rd_hf.search.approximate rd_hf.search.job"),
    "h5": ("h5py", "rd_hf.conversion.export"),
    "ray": ("ray", "rd_hf.embedding.ray.job"),
    "completion": ("argcomplete", "rd_hf.__main__"),
    "docs": ("mkdocs mkdocstrings nbclient nbconvert ipykernel sklearn faiss", "rd_hf.options"),
}


def test_each_extra_is_enough_for_what_it_names(bare: Installed, wheel: Path, tmp_path: Path) -> None:
    assert set(PURPOSES) == EXTRAS - {"dev"}
    absent = "import sys, importlib.util as u; print(*[name for name in sys.argv[1:] if u.find_spec(name) is None])"
    for extra, (libraries, modules) in PURPOSES.items():
        if any(find_spec(name) is None for name in libraries.split()):
            continue  # not installed here either: nothing to link
        done = bare.run("python", "-c", absent, *libraries.split(), cwd=tmp_path)
        assert done.stdout.split() == libraries.split(), f"what {extra} brings is there without it"
        imports = "; ".join(f"import {name}" for name in [*libraries.split(), *modules.split()])
        done = install(wheel, tmp_path / extra, [extra]).run("python", "-c", imports, cwd=tmp_path)
        assert done.returncode == 0, f"{extra}: {done.stderr}"


@pytest.fixture(scope="module")
def with_search(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """With the extra that the front page installs."""
    return install(wheel, tmp_path_factory.mktemp("search") / "env", ["search"])


def steady(output: str) -> str:
    """An output without what differs from run to run and machine to machine: times, versions, bytes."""
    output = re.sub(r"^(seconds: |written by ).*$", r"\1...", output, flags=re.MULTILINE)
    return re.sub(r"[\d.]+ kB of Parquet", "... kB of Parquet", output)


def test_the_first_minute_of_the_front_page(with_search: Installed, tmp_path: Path) -> None:
    """As typed, but for the installation: in an empty folder, without a network, with the output that is printed."""
    minute = (REPOSITORY / "README.md").read_text().partition("## The first minute\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", minute, re.MULTILINE | re.DOTALL)
    (_, installation), *typed = blocks
    assert installation.startswith('pip install ".[search]"')
    assert [kind for kind, _ in typed] == ["bash", "", "python", ""]
    commands = typed[0][1].splitlines()
    assert len(commands) == 3
    said = ""
    for command in commands:
        done = with_search.run(*command.split(), cwd=tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said += done.stdout
    assert steady(said) == steady(typed[1][1])
    done = with_search.run("python", "-c", typed[2][1], cwd=tmp_path)
    assert done.stdout == typed[3][1], done.stderr


def test_training_and_prediction_of_the_front_page(wheel: Path, tmp_path: Path) -> None:
    """As typed, in an empty folder with the extra for it: the table that is printed, and an answer for each protein."""
    installed = install(wheel, tmp_path / "env", ["train"])
    section = (REPOSITORY / "README.md").read_text().partition("## Train and predict\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```bash\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    (work := tmp_path / "work").mkdir()
    said = ""
    for command in block.splitlines():
        done = installed.run(*command.split(), cwd=work)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said += done.stdout
    table = "\n".join(line for line in section.splitlines() if line.startswith("|"))
    assert f"\n\n{table}\n\n" in said, said
    assert "1,000 records: 1,000 predicted at level 0.3M, 0 rejected\n" in said


def test_a_search_where_its_extra_is(with_search: Installed, work: Path, tmp_path: Path) -> None:
    ends = ["--neighbours", "1", "--output", tmp_path / "hits.tsv"]
    done = with_search.run("rd-hf", "search", "--input", "embeddings", "embeddings", *ends, cwd=work)
    assert done.returncode == 0, done.stderr
    # Against itself a protein is not its own neighbour.
    rows = [line.split("\t") for line in (tmp_path / "hits.tsv").read_text().splitlines()]
    places = [rows[0].index(name) for name in ("query_id", "id")]
    assert len(rows) == 101
    assert all(row[places[0]] != row[places[1]] for row in rows[1:])


@pytest.mark.skipif("RD_HF_FULL" not in os.environ, reason="RD_HF_FULL=1 types all pages again, with the wheel")
def test_every_page_runs_with_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """What tests/test_readmes.py runs, where the package is the installed one and no module of the repository's is."""
    full = install(wheel, tmp_path / "env", sorted(EXTRAS))
    copy = tmp_path / "pages"
    shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(".*", "__pycache__", "build"))
    for module in (copy / "rd_hf").rglob("*.py"):
        module.unlink()
    where = full.run("python", "-c", "import rd_hf; print(rd_hf.__file__)", cwd=copy)
    assert Path(where.stdout.strip()).is_relative_to(full.site_packages), where.stderr
    pages = ["tests/test_readmes.py", "-k", "run_as_written", "-p", "no:cacheprovider"]
    done = full.run("python", "-m", "pytest", "-q", *pages, cwd=copy)
    assert done.returncode == 0, done.stdout[-3000:]
