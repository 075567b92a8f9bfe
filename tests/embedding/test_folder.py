"""Whose a folder is, and who can read it: nothing of a user's is lost, every reader of Parquet folders reads ours."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from tests.embedding.conftest import Outcome, content_hashes, parts, random_fasta

Embed = Callable[..., Outcome]


def snapshot(folder: Path) -> dict[str, bytes | str | None]:
    """Everything in a folder: bytes of files, targets of links, None for folders."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Path) -> list[object]:
    """A command of 3 parts, all but its --output."""
    return ["--model", tiny_checkpoint, "--input", random_fasta(tmp_path / "p.fasta", 9), "--part-records", 3]


# --- A folder with anything else is refused before the first change -------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["notes.tmp"],
        ["cache.tmp/inside"],
        [".job/notes.tmp"],
        [".job/lock", "thesis.txt"],
        [".job/rd_hf.json"],
        ["manifest.json"],
        ["_manifest.json"],
        ["rejects.tsv"],
        ["embeddings-000000.parquet"],
        [".hidden"],
    ],
    ids=str,
)
def test_a_folder_of_somebody_elses_is_refused_unchanged(
    names: list[str], embed: Embed, job: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("{}")
    before = snapshot(output)
    outcome = embed(*job, "--output", output)
    assert outcome.status == 1
    assert str(output) in outcome.stderr
    assert "choose a" in outcome.stderr
    assert outcome.stderr.count("\n") == 1
    assert snapshot(output) == before


def test_an_input_in_the_folder_itself_is_not_swept_away(
    embed: Embed, job: list[object], tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copy(tmp_path / "p.fasta", folder / "proteins.tmp")
    monkeypatch.chdir(folder)
    before = snapshot(folder)
    outcome = embed("--model", tiny_checkpoint, "--input", "proteins.tmp", "--output", ".")
    assert outcome.status == 1
    assert "--output . is a folder that holds --input proteins.tmp: choose an --output of its own" in outcome.stderr
    assert snapshot(folder) == before


def test_what_a_user_adds_to_a_finished_folder_stays(embed: Embed, job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert embed(*job, "--output", output).status == 0
    (output / "notes.tmp").write_text("notes")
    (output / "cache.tmp").mkdir()
    (output / ".job" / "notes.tmp").write_text("notes")
    before = snapshot(output)
    assert embed(*job, "--output", output).status == 0
    assert {name: content for name, content in snapshot(output).items() if "tmp" in name} == {
        name: content for name, content in before.items() if "tmp" in name
    }


def test_another_jobs_folder_is_refused_unchanged(embed: Embed, job: list[object], tmp_path: Path) -> None:
    output = tmp_path / "out"
    embed(*job, "--output", output)
    before = snapshot(output)
    for other in (["--pooling", "max"], ["--normalize"], ["--part-records", 4]):
        assert "holds another job" in embed(*job, *other, "--output", output).stderr
    assert snapshot(output) == before


def test_a_job_that_wrote_nothing_claims_nothing(embed: Embed, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The advice of its own error, followed, is taken."""
    table, output = tmp_path / "t.csv", tmp_path / "out"
    table.write_text("name,letters\na,MKTAYIAKQR\nb,MKTAYIAKQRQISFVK\n")
    job = ["--model", tiny_checkpoint, "--input", table, "--output", output]
    outcome = embed(*job)
    assert outcome.status == 1
    assert "name one with --sequence-column" in outcome.stderr
    assert embed(*job, "--sequence-column", "letters", "--level", "L1").status == 0
    manifest = json.loads((output / "_manifest.json").read_text())
    assert manifest["job"]["sequence_column"] == "letters"
    assert list(manifest["columns"].values()) == [{"level": "L1", "width": 48}]


@pytest.mark.parametrize(
    "left", ["embeddings-000000.parquet", ".job/000000.json", ".job/staged/shared-0/block-000000.npy"]
)
def test_a_job_that_computed_anything_claims_its_folder(
    left: str, embed: Embed, job: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    embed(*job, "--output", output)
    kept = (output / left).read_bytes() if (output / left).exists() else b"computed by a worker of Ray"
    for path in (*output.glob("*.parquet"), *output.glob(".job/0*.json"), output / "_rejects.tsv"):
        path.unlink()
    (output / left).parent.mkdir(parents=True, exist_ok=True)
    (output / left).write_bytes(kept)
    assert "holds another job" in embed(*job, "--pooling", "max", "--output", output).stderr


@pytest.mark.parametrize("name", ["embeddings-000001.parquet", "_rejects.tsv"])
def test_a_file_put_where_the_job_will_write_is_not_replaced(
    name: str, embed: Embed, job: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    embed(*job, "--output", output)
    (output / ".job" / "000001.json").unlink()
    (output / name).unlink()
    if name.endswith("parquet"):
        pd.DataFrame({"a": [1]}).to_parquet(output / name)
    else:
        (output / name).write_text("somebody's")
    own = (output / name).read_bytes()
    outcome = embed(*job, "--output", output)
    assert outcome.status == 1
    assert f"{output / name} would be replaced, and is no embedding job's: move it elsewhere" in outcome.stderr
    assert (output / name).read_bytes() == own
    (output / name).unlink()
    assert embed(*job, "--output", output).status == 0


# --- Readers ---------------------------------------------------------------------------------------------------

READERS: dict[str, Callable[[str], int]] = {
    "pandas.read_parquet(folder)": lambda folder: len(pd.read_parquet(folder)),
    "pyarrow.parquet.read_table(folder)": lambda folder: pq.read_table(folder).num_rows,
    "pyarrow.dataset(folder)": lambda folder: pds.dataset(folder, format="parquet").count_rows(),
    # Polars passes over no file of a folder, whatever its name: it needs the pattern.
    "polars.read_parquet(pattern)": lambda folder: len(pl.read_parquet(f"{folder}/*.parquet")),
    "polars.scan_parquet(pattern)": lambda folder: len(pl.scan_parquet(f"{folder}/*.parquet").collect()),
    "duckdb.sql(folder)": lambda folder: len(duckdb.sql(f"from read_parquet('{folder}')").fetchall()),
    "duckdb.sql(pattern)": lambda folder: len(duckdb.sql(f"from '{folder}/**/*.parquet'").fetchall()),
    "load_dataset(folder)": lambda folder: len(load_dataset(folder, split="train", cache_dir=f"{folder}-cache")),
    "load_dataset(pattern)": lambda folder: len(
        load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", cache_dir=f"{folder}-cache")
    ),
}


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three parts, of whose records the last part's are all rejected."""
    from rd_hf.commands.embed import main

    folder = tmp_path_factory.mktemp("readers")
    (folder / "p.fasta").write_text(">a\nMKT\n>b\nMKTA\n>c\nMKTAY\n>d\nMK*T\n>e\nM*K\n")
    options = ["--model", str(tiny_checkpoint), "--input", str(folder / "p.fasta"), "--part-records", "2"]
    assert main([*options, "--output", str(folder / "out")]) == 0
    assert [pq.read_metadata(path).num_rows for path in parts(folder / "out")] == [2, 1, 0]
    return folder / "out"


@pytest.mark.parametrize("reader", READERS)
def test_readers_of_parquet_folders_read_ours(reader: str, finished: Path) -> None:
    assert READERS[reader](str(finished)) == 3


def test_folders_from_before_are_taken_up_under_their_old_names(
    embed: Embed, job: list[object], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    embed(*job, "--output", output)
    expected = content_hashes(output)
    for name in ("manifest.json", "rejects.tsv"):
        (output / f"_{name}").rename(output / name)
    (output / ".job" / "rd_hf.json").unlink()
    (output / ".job" / "000002.json").unlink()
    outcome = embed(*job, "--output", output)
    assert outcome.status == 0, outcome.stderr
    assert "3 parts, 2 of them from an earlier run" in outcome.stdout
    assert not list(output.glob("_*"))
    (output / "rejects.tsv").rename(output / "_rejects.tsv")
    assert content_hashes(output) == expected
    assert json.loads((output / "manifest.json").read_text())["status"] == "complete"


def test_every_file_has_the_umasks_permissions(embed: Embed, job: list[object], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        embed(*job, "--output", tmp_path / "out")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "lock"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
