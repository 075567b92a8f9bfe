"""A folder's manifest and journal may come from anybody: every reader checks what they say, or ends in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rd_hf.commands import embed, export, info, map, search
from rd_hf.embedding.fields import ENTRY, MANIFEST, misfit, unfinished
from tests.embedding.conftest import random_fasta

Main = Callable[[list[str]], int]
# Readers of a finished folder, with what each asks for.
READERS: dict[str, tuple[Main, list[str]]] = {
    "search": (search.main, ["--queries", "DIR", "--database", "DIR", "--output", "OUT.tsv", "--whiten", "none"]),
    "map": (map.main, ["DIR", "--output", "OUT.html"]),
    "export": (export.main, ["DIR", "--output", "OUT.h5"]),
    "export by hash": (export.main, ["DIR", "--output", "OUT.h5", "--key", "hash"]),
    "info": (info.main, ["DIR"]),
    "embed": (embed.main, ["--model", "MODEL", "--input", "FASTA", "--part-records", "3", "--output", "DIR"]),
    "embed --extend": (embed.main, ["--extend", "DIR", "--output", "OUT"]),
}


@pytest.fixture(scope="module")
def finished(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three parts at the smallest level, beside what it was made of."""
    home = tmp_path_factory.mktemp("finished")
    fasta = random_fasta(home / "p.fasta", 9, longest=20)
    job = ["--model", tiny_checkpoint, "--input", fasta, "--part-records", 3, "--level", "L0", "--output", home / "db"]
    assert embed.main([str(each) for each in [*job, "--quiet"]]) == 0
    return home


@pytest.fixture
def read(
    finished: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, Callable[[Path], object]], str]:
    """Spoil a copy of the folder and read it; what the reader said. An exception is one that a user would see."""

    def run(reader: str, spoil: Callable[[Path], object]) -> str:
        copy = tmp_path / "db"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(finished / "db", copy)
        spoil(copy)
        main, arguments = READERS[reader]
        places = {"DIR": str(copy), "MODEL": str(tiny_checkpoint), "FASTA": str(finished / "p.fasta")}
        if reader == "embed":
            arguments = [*arguments, "--level", "L0"]
        capsys.readouterr()
        status = main([places.get(each, each).replace("OUT", str(tmp_path / "out")) for each in arguments])
        said = capsys.readouterr()
        assert (status == 0) == ("error: " not in said.err), said.err
        return said.err

    return run


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every field in a JSON value, and in the first item of each list."""
    for name, one in value.items() if isinstance(value, dict) else list(enumerate(value))[:1]:
        yield (*above, name)
        if isinstance(one, dict | list):
            yield from paths(one, (*above, name))


def change(path: Path, field: tuple[Any, ...], value: Any) -> None:
    """Replace one field of a JSON file."""
    content = json.loads(path.read_text())
    place = content
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("reader", READERS)
def test_a_manifest_of_other_types_is_a_sentence(
    reader: str, finished: Path, read: Callable[[str, Callable[[Path], object]], str]
) -> None:
    manifest = json.loads((finished / "db" / "_manifest.json").read_text())
    wrong: list[Any] = [17, "text", None, [1], {"a": 1}, 10**400]
    fields = list(paths(manifest))
    assert len(fields) >= 60
    refused = 0
    for number, field in enumerate(fields):
        value = wrong[number % len(wrong)]
        said = read(reader, lambda copy, at=field, to=value: change(copy / "_manifest.json", at, to))  # type: ignore[misc]
        refused += "error: " in said
        assert said.count("error: ") <= 1
    # The others say what nobody reads, or are of the type by chance.
    assert refused > len(fields) // 2


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name", ["../../secret.parquet", "/etc/passwd", "sub/part.parquet", ".job/lock", "..", "", "a\0b", "\ud800", 3]
)
def test_no_file_outside_the_folder_is_read(
    reader: str, name: Any, finished: Path, read: Callable[[str, Callable[[Path], object]], str]
) -> None:
    said = read(reader, lambda copy: change(copy / "_manifest.json", ("parts", 0, "file"), name))
    assert "parts.0.file is" in said
    assert "and not the plain name of a file in the folder" in said


def test_what_is_exported_is_the_file_that_the_journal_tells_of(
    read: Callable[[str, Callable[[Path], object]], str],
) -> None:
    """The journal's file was verified, and the manifest's read."""

    def swap(copy: Path) -> None:
        (copy / "embeddings-000000.parquet").rename(copy / "other.parquet")
        shutil.copy(copy / "other.parquet", copy / "embeddings-000000.parquet")
        change(copy / "_manifest.json", ("parts", 0, "file"), "other.parquet")

    assert "other.parquet is not as it was written" in read("export", swap)


@pytest.mark.parametrize("reader", ["export", "embed"])
def test_a_journal_of_other_types_is_no_entry(
    reader: str, finished: Path, read: Callable[[str, Callable[[Path], object]], str]
) -> None:
    """A part without an entry is done again by the job, and not exported."""
    entry = json.loads((finished / "db" / ".job" / "000000.json").read_text())
    for number, field in enumerate(paths(entry)):
        value = ["text", None, {"a": [1]}, 10**400, "../other"][number % 5]
        if field[-1] in ("digest", "sha256", "id", "reason", "source") and isinstance(value, str):
            continue  # A text is what it may be; that it is another one is looked at by what it is of.
        said = read(reader, lambda copy, at=field, to=value: change(copy / ".job" / "000000.json", at, to))  # type: ignore[misc]
        assert ("is not as it was written" in said) == (reader == "export"), (field, said)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"format": 2}', "[" * 100_000, "9" * 5000, '"\\ud800"', "\x00"])
def test_a_manifest_that_is_none_is_a_sentence(
    reader: str, text: str, read: Callable[[str, Callable[[Path], object]], str]
) -> None:
    said = read(reader, lambda copy: (copy / "_manifest.json").write_text(text))
    assert "_manifest.json" in said


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (("model", "nested_dims"), {}, "model.nested_dims is {}"),
        (("model", "nested_dims"), {"L0": 64, "L1": 48, "L2": 32}, "not one level wider than the other"),
        (("columns",), {}, "columns is empty"),
        (("columns", "embedding", "width"), 10**15, "no level of the model"),
        (("columns", "embedding", "level"), "L9", "no level of the model"),
        (("parts", 1, "first_record"), 3, "parts.1 does not count the records that follow"),
        (("parts", 1, "written"), 10**15, "parts.1 does not count the records that follow"),
        (("job", "pooling"), "none", "pooling must be one of"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_a_sentence(
    field: tuple[Any, ...], value: Any, says: str, read: Callable[[str, Callable[[Path], object]], str]
) -> None:
    for reader in ("search", "map", "export"):
        assert says in read(reader, lambda copy: change(copy / "_manifest.json", field, value))


def test_what_a_job_writes_fits(finished: Path) -> None:
    folder = finished / "db"
    manifest = json.loads((folder / "_manifest.json").read_text())
    assert misfit(manifest, MANIFEST) is None
    assert unfinished(manifest) is None
    assert misfit(json.loads((folder / ".job" / "000001.json").read_text()), ENTRY) is None
    assert misfit({"parts": [{"file": "a.parquet", "later": [1]}], "later": {}}, MANIFEST) is None
    assert misfit({"parts": [{"bytes": True}]}, MANIFEST) == "parts.0.bytes is True and not a whole number"
