"""A carried checkpoint and carried proteins go by name, wherever a model or an input is taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rd_hf
from rd_hf import carried
from rd_hf.__main__ import main
from rd_hf.commands._outputs import refuse_replacing
from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError
from rd_hf.data.sources import is_there, read_records, source_size
from rd_hf.embedding import Embedder, JobSettings, run_job
from rd_hf.embedding.checkpoint import resolve
from rd_hf.evaluation.families import Family
from rd_hf.hub import load_family, save_checkpoint
from rd_hf.hub.backbones import family_config, parse_source
from rd_hf.hub.describe import describe_model
from rd_hf.hub.push import plan_push
from rd_hf.hub.release import family_of
from rd_hf.trust import missing_code, refuse_foreign_code, strange_code
from tests.conftest import EXAMPLE_FASTA, environment, random_model, run_here

MINI = "rd-esm2-mini"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_the_folder_of_a_carried_checkpoint(mini_checkpoint: Path) -> None:
    assert rd_hf.checkpoint(MINI) == str(mini_checkpoint)
    with pytest.raises(ValueError, match=r"carries no checkpoint 'rd-esm2-8M': it carries rd-esm2-mini$"):
        rd_hf.checkpoint("rd-esm2-8M")


def test_it_is_this_projects_own(mini_checkpoint: Path) -> None:
    folder = rd_hf.checkpoint(MINI)
    refuse_foreign_code(folder)
    assert strange_code(folder) == missing_code(folder) == []


def test_names_cost_nothing() -> None:
    code = "import sys, rd_hf; rd_hf.checkpoint('rd-esm2-mini'); print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment(), cwd="/"
    )
    assert done.stdout == "[]\n"


# Everything that takes a model, and what it makes of a name: the same as of the folder.
TAKERS: dict[str, Any] = {
    "resolve": lambda name: [resolve(name).fingerprint, resolve(name).nested_dims],
    "Embedder": lambda name: Embedder(name, level="0.3M").embed(["MKTAYIAKQR"])["embedding"][0].tolist(),
    "load_family": lambda name: (
        load_family(name, level="0.3M").state_dict()["backbones.0.encoder.layer.0.LayerNorm.bias"].tolist()
    ),
    "describe_model": lambda name: [level.parameters for level in describe_model(name).levels],
    "Family.load": lambda name: [Family.load(name).fingerprint, Family.load(name).label],
    "--backbones": lambda name: family_config([name]).levels,
    "--backbones, levels and layers": lambda name: family_config(
        [f"a={name}:0.3M", f"b={name}:2.7M#4", f"2.7M={name}"], "all"
    ).to_dict(),
    "plan_push": lambda name: plan_push(name, "me/mini").files,
}


@pytest.mark.parametrize("taker", TAKERS)
def test_a_name_is_taken_as_its_folder_is(taker: str, mini_checkpoint: Path) -> None:
    assert TAKERS[taker](MINI) == TAKERS[taker](str(mini_checkpoint))


def test_release_reads_it_too_and_says_that_it_is_no_chain_of_repos() -> None:
    with pytest.raises(ValueError, match="holds its backbones itself"):
        family_of(None, MINI)


def test_a_job_notes_the_names_and_not_where_they_lie(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_here(
        main,
        capsys,
        *("embed", "--model", MINI, "--input", "example", "--output", "embeddings"),
        *("--level", "0.3M", "--max-length", "16", "--long", "truncate"),
    )
    assert done.status == 0, done.stderr
    assert done.stdout.startswith("1,000 records: 1,000 written, 0 rejected")
    text = Path("embeddings/_manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["model"]["name"] == MINI
    assert manifest["job"]["inputs"] == ["example"]
    assert manifest["files"] == [{"path": "example", "bytes": EXAMPLE_FASTA.stat().st_size}]
    assert str(Path(carried.__file__).parents[1]) not in text
    described = run_here(main, capsys, "info", "embeddings")
    assert "model: rd-esm2-mini, fingerprint" in described.stdout
    assert "inputs: example" in described.stdout
    extended = run_here(main, capsys, "embed", "--extend", "embeddings", "--level", "1.2M", "--output", "larger")
    assert extended.status == 0, extended.stderr
    # Of another installation it is the same model and the same job.
    again = run_here(
        main,
        capsys,
        *("embed", "--model", rd_hf.checkpoint(MINI), "--input", "example", "--output", "embeddings"),
        *("--level", "0.3M", "--max-length", "16", "--long", "truncate"),
    )
    assert again.status == 0, again.stderr
    assert "1 of them from an earlier run" in again.stdout


def test_fit_takes_both_names(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Into a folder of the same name, which is that model from then on."""
    few = ("--num-sequences", "20", "--max-length", "32")
    done = run_here(main, capsys, "fit", "--config", MINI, "--data", "example", "--output", MINI, *few)
    assert done.status == 0, done.stderr
    assert json.loads(Path(MINI, "config.json").read_text())["bases"]["data"] == ["example"]
    assert resolve(MINI).fingerprint != resolve(rd_hf.checkpoint(MINI)).fingerprint


def test_a_search_takes_example_as_queries_and_reads_the_database_again(elsewhere: Path) -> None:
    from rd_hf.embedding.options import EmbeddingOptions
    from rd_hf.search import SearchSettings, run_search

    few = EmbeddingOptions(levels=("0.3M",), max_length=16, long="truncate")
    run_job(JobSettings(model=MINI, inputs=("example",), output="database", options=few), show_progress=False)
    found = run_search(
        SearchSettings(queries="example", database="database", output="hits.tsv", k=1, level="1.2M", shortlist=1),
        report=lambda text: None,
        show_progress=False,
    )
    assert found.queries == 1000
    assert found.computed > 0


class TestWhichOneWins:
    """What lies in the working directory goes before; a path is never a name."""

    def test_a_model_here_goes_before_the_carried_one(self, elsewhere: Path) -> None:
        random_model([32, 48], names=["S", "L"]).save_pretrained(MINI)
        assert list(resolve(MINI).nested_dims) == ["S", "L"]
        assert describe_model(MINI).levels[0].level == "S"
        assert parse_source(MINI).where == MINI

    def test_a_folder_without_a_model_is_no_model(self, elsewhere: Path) -> None:
        """As where one of that name is being fitted."""
        Path(MINI).mkdir()
        assert "0.3M" in resolve(MINI).nested_dims
        assert describe_model(MINI).levels[0].level == "0.3M"

    def test_a_file_here_goes_before_the_carried_proteins(self, elsewhere: Path) -> None:
        Path("example").write_text(">mine\nMKT\n")
        assert [record.id for record in read_records("example")] == ["mine"]
        assert source_size("example") == 10

    def test_a_folder_is_no_input(self, elsewhere: Path) -> None:
        """As the output of a job on the example may be called."""
        Path("example").mkdir()
        assert len(list(read_records("example"))) == 1000
        assert source_size("example") == EXAMPLE_FASTA.stat().st_size

    @pytest.mark.parametrize("path", ["./example", Path("example")])
    def test_a_path_is_the_file(self, path: str | Path) -> None:
        assert not is_there(path)
        with pytest.raises(InputError, match="example: no such file"):
            list(read_fasta(path))
        Path("example").write_text(">mine\nMKT\n")
        assert [record.id for record in read_fasta(path)] == ["mine"]

    @pytest.mark.parametrize("path", [f"./{MINI}", Path(MINI)])
    def test_a_path_is_the_folder(self, path: str | Path) -> None:
        with pytest.raises(InputError, match=f"{MINI}: no such folder"):
            resolve(path)
        with pytest.raises(ValueError, match=f"{MINI}: no such folder"):
            plan_push(path, "me/mini")


def test_an_output_of_the_same_name_replaces_nothing(elsewhere: Path) -> None:
    """While a job writes into such a folder, the name still stands for what is carried."""
    for name in (MINI, "example"):
        Path(name).mkdir()
        refuse_replacing({f"--output {name}": name}, {f"--input {name}": name})


class TestTheInstalledPackageIsNotWrittenTo:
    @pytest.fixture
    def installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The carried folder where an installation has it: within the package."""
        place = tmp_path / "site-packages" / "rd_hf" / "hub_configs"
        shutil.copytree(rd_hf.checkpoint(MINI), place / MINI, ignore=shutil.ignore_patterns("*.safetensors"))
        monkeypatch.setattr(carried, "_INSTALLED", place)
        assert rd_hf.checkpoint(MINI) == str(place / MINI)
        return place

    def test_by_save(self, installed: Path) -> None:
        with pytest.raises(ValueError, match="is a part of the installed package, which is not written to"):
            save_checkpoint(random_model([32, 48]), installed / MINI, backbones=True)

    @pytest.mark.parametrize("name", ["", MINI, f"{MINI}/new", "other"])
    def test_by_fit(self, installed: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        before = sorted(installed.rglob("*"))
        done = run_here(main, capsys, "fit", "--config", MINI, "--data", "example", "--output", installed / name)
        assert done.status == 1
        assert done.stderr.startswith(f"rd-hf fit: error: {installed / name} is a part of the installed package")
        assert done.stderr.count("\n") == 1
        assert sorted(installed.rglob("*")) == before

    def test_by_push(self, installed: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in installed.rglob("*")}
        # What an installer compiles of the code there is no part of a checkpoint.
        (installed / MINI / "__pycache__").mkdir()
        plan = plan_push(MINI, "me/mini")
        assert plan.left_out == ["__pycache__", "evaluation"]
        assert "modeling_rd_esm.py" in plan.files
        assert {path: os.stat(path).st_mtime_ns for path in before if path != installed / MINI} == {
            path: time for path, time in before.items() if path != installed / MINI
        }
