"""``rd-hf export``: what biotrainer and protspace find in the file, read by their documented layout."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from rd_hf.commands.embed import main as embed
from rd_hf.commands.export import main
from tests.embedding.conftest import read, small_disk

__all__ = ["small_disk"]
Export = Callable[..., str]


def fasta(path: Path, records: dict[str, str] | list[tuple[str, str]]) -> Path:
    pairs = records.items() if isinstance(records, dict) else records
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in pairs))
    return path


@pytest.fixture
def folder(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Embed records into a folder."""

    def run(records: dict[str, str] | list[tuple[str, str]], *options: str, name: str = "out") -> Path:
        path = fasta(tmp_path / f"{name}.fasta", records)
        job = ["--model", str(tiny_checkpoint), "--input", str(path), "--quiet", "--output", str(tmp_path / name)]
        assert embed([*job, *options]) == 0
        return tmp_path / name

    return run


@pytest.fixture
def export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Export:
    """Run the command; what it said, or the sentence that it ended with."""

    def run(source: Path, *options: object) -> str:
        capsys.readouterr()
        status = main([str(source), "--output", str(tmp_path / "e.h5"), *map(str, options)])
        said = capsys.readouterr()
        assert not status or said.err.count("\n") == 1
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
        return said.err if status else said.out

    return run


def contents(path: Path) -> dict[str, tuple[str, np.ndarray]]:
    with h5py.File(path) as file:
        return {key: (dataset.attrs["original_id"], np.array(dataset)) for key, dataset in file.items()}


RECORDS = {"a": "MKTAYI", "sp|P1|X": "ACDEFGH", "ä b.c": "GAVLIM"}


def test_ids_name_datasets(export: Export, folder: Callable[..., Path], tmp_path: Path) -> None:
    source = folder(RECORDS, "--part-records", "2")
    assert "3 datasets named by id, level L2, 64 dimensions" in export(source)
    found = contents(tmp_path / "e.h5")
    table = read(source)
    assert set(found) == {"a", "sp|P1|X", "ä"}
    for one, value in zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True):
        assert found[one][0] == one
        assert found[one][1].dtype == np.float32
        assert np.array_equal(found[one][1], np.array(value, np.float32))
    with h5py.File(tmp_path / "e.h5") as file:
        assert file.attrs["model_name"].endswith(" L2"), "protspace names the embedding by it"
    assert "level L0, 32 dimensions" in export(source, "--level", "L0")
    small = contents(tmp_path / "e.h5")
    assert all(np.array_equal(small[key][1], value[:32]) for key, (_, value) in found.items())


@pytest.mark.parametrize(
    ("records", "key"),
    [
        ([("a", "MKTAYI"), ("a", "ACDEF")], "the id 'a' more than once"),
        ([("a/b", "MKTAYI")], "the id 'a/b', which cannot be the name of an h5 dataset"),
        ([("", "MKTAYI")], "the id '', which cannot be"),
        ([(".", "MKTAYI")], "the id '.', which cannot be"),
    ],
)
def test_hashes_do_where_ids_do_not(
    export: Export, folder: Callable[..., Path], tmp_path: Path, records: list[tuple[str, str]], key: str
) -> None:
    source = folder(records)
    assert "named by hash" in export(source)
    table = read(source)
    expected = {
        hashlib.sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest(): (one, np.array(value, np.float32))
        for (one, sequence), value in zip(records, table["embedding"].to_pylist(), strict=True)
    }
    found = contents(tmp_path / "e.h5")
    assert set(found) == set(expected)
    for name, (one, value) in expected.items():
        assert found[name][0] == one
        assert np.array_equal(found[name][1], value)
    before = (tmp_path / "e.h5").read_bytes()
    assert f"has {key}" in export(source, "--key", "id")
    assert (tmp_path / "e.h5").read_bytes() == before, "what was there stays until the new file is whole"


def test_a_sequence_that_comes_twice_has_one_dataset_and_rejects_none(
    export: Export, folder: Callable[..., Path], tmp_path: Path
) -> None:
    source = folder([("x/1", "MKTAYI"), ("bad", "M*K"), ("x/2", "mktayi"), ("x/3", "ACDEF")])
    assert "2 datasets (1 rows repeat a sequence: original_ids) named by hash" in export(source)
    assert sorted(one for one, _ in contents(tmp_path / "e.h5").values()) == ["x/1", "x/3"]


@pytest.mark.parametrize("option", [(), ("--key", "hash")])
def test_every_id_of_a_shared_sequence_is_in_the_file(
    export: Export, folder: Callable[..., Path], tmp_path: Path, option: tuple[str, ...]
) -> None:
    """Two more than an array in an attribute has room for."""
    names = [f"x/{number}-{'y' * 40}" for number in range(2000)]
    export(folder([("a/1", "ACDEF"), *((name, "MKTAYI") for name in names)]), *option)
    with h5py.File(tmp_path / "e.h5") as file:
        ids = {
            one
            for dataset in file.values()
            for one in json.loads(dataset.attrs.get("original_ids", json.dumps([dataset.attrs["original_id"]])))
        }
        assert len(file) == 2
    assert ids == {"a/1", *names}


@contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file may be longer than ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("option", [(), ("--key", "hash")])
def test_a_disk_that_fills_is_one_sentence_and_the_old_file_stays(
    export: Export, folder: Callable[..., Path], tmp_path: Path, option: tuple[str, ...]
) -> None:
    source = folder([(f"p{number}", "MKTAYI" + "A" * number) for number in range(100)])
    export(source, *option)
    whole = (tmp_path / "e.h5").read_bytes()
    # Room for nothing, for the first words of the file, for some datasets, for all but what is written as it closes.
    for missing in (1.0, 0.97, 0.5, 0.02, 0.0001):
        with limited_files(int(len(whole) * (1 - missing))):
            said = export(source, *option)
        assert f"{tmp_path} is full (File too large): free some space and give the same command again" in said
        assert (tmp_path / "e.h5").read_bytes() == whole


def test_a_disk_that_fills_is_one_sentence_on_a_file_system_too(
    folder: Callable[..., Path], small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder([(f"p{number}", "MKTAYI" + "A" * number) for number in range(200)])
    disk = small_disk("size=64k")
    assert main([str(source), "--output", str(disk / "e.h5")]) == 1
    assert f"{disk} is full (No space left on device)" in capsys.readouterr().err
    assert not list(disk.iterdir())


def test_rows_a_residue_and_inputs_that_moved(export: Export, folder: Callable[..., Path], tmp_path: Path) -> None:
    source = folder(RECORDS, "--pooling", "residue")
    moved = (tmp_path / "out.fasta").rename(tmp_path / "moved.fasta")
    assert "no such file" in export(source, "--key", "hash")
    export(source, "--key", "hash", "--input", moved)
    assert sorted(value.shape for _, value in contents(tmp_path / "e.h5").values()) == [(6, 64), (6, 64), (7, 64)]
    moved.write_text(moved.read_text().replace("MKTAYI", "MKTAYL"))
    assert "the input is not what" in export(source, "--key", "hash", "--input", moved)


def test_wrong_things_are_one_sentence(
    export: Export, folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = folder(RECORDS, "--level", "L0")
    assert "holds level L0, which does not have level L2 within it" in export(source, "--level", "L2")
    normal = folder(RECORDS, "--normalize", name="normal")
    assert "holds level L2 normalised: embed with --level L0 L2" in export(normal, "--level", "L0")
    assert "holds no _manifest.json" in export(tmp_path)
    manifest = json.loads((source / "_manifest.json").read_text())
    (source / "_manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert "is not finished" in export(source)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert 'pip install "rd_hf[h5]"' in export(normal)
    assert not (tmp_path / "e.h5").exists()
