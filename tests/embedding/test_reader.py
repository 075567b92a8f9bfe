"""A folder may come from anybody, and bytes may change: every reader checks what it reads, or ends in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rd_hf.commands import embed, export, info, map, search
from rd_hf.data.records import InputError
from rd_hf.embedding.fields import ENTRY, MANIFEST, misfit, unfinished
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.files import file_sha256
from tests.embedding.conftest import content_hashes, parts, random_fasta

Main = Callable[[list[str]], int]
# Readers of a finished folder, with what each asks for.
READERS: dict[str, tuple[Main, list[str]]] = {
    "search": (search.main, ["--input", "DIR", "DIR", "--output", "OUT.tsv", "--whiten", "none"]),
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


def spoil(file: str, field: tuple[Any, ...], value: Any, folder: Path) -> None:
    """Replace one field of a folder's file."""
    change(folder / file, field, value)


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
        said = read(reader, partial(spoil, "_manifest.json", field, value))
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
        said = read(reader, partial(spoil, ".job/000000.json", field, value))
        assert ("is not as it was written" in said) == (reader == "export"), (field, said)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"format": 2}', "[" * 100_000, "9" * 5000, '"\\ud800"', "\x00"]
)
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


def flip_byte(folder: Path, column: str = "embedding", number: int = 1) -> None:
    """Change the lowest bit of a byte in the middle of a column's page in one of the files."""
    path = folder / f"embeddings-{number:06d}.parquet"
    group = pq.read_metadata(path).row_group(0)
    chunks = {group.column(leaf).path_in_schema.split(".")[0]: group.column(leaf) for leaf in range(group.num_columns)}
    chunk = chunks[column]
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
    path.write_bytes(content)


def drop_checksums(folder: Path) -> None:
    """Make a folder's files what versions up to 0.2 wrote: the same rows, without checksums of pages."""
    for index, path in enumerate(parts(folder)):
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"rd_hf"])
        del about["page_checksums"]
        table = table.replace_schema_metadata({"rd_hf": json.dumps(about)})
        pq.write_table(table, path, compression={"id": "zstd"}, use_dictionary=["source"])
        noted = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for name, value in noted.items():
            change(folder / ".job" / f"{index:06d}.json", (name,), value)
            change(folder / "_manifest.json", ("parts", index, name), value)


@pytest.mark.parametrize("reader", ["search", "map", "export", "export by hash", "embed --extend"])
@pytest.mark.parametrize("older", [False, True])
def test_a_flipped_byte_is_a_sentence(
    reader: str, older: bool, read: Callable[[str, Callable[[Path], object]], str], tmp_path: Path
) -> None:
    """A changed number in a page would be another hit, another point of a map, another embedding, without a word."""

    def spoil(folder: Path, damage: bool) -> None:
        if older:
            drop_checksums(folder)
        if damage:
            flip_byte(folder)

    assert "error: " not in read(reader, partial(spoil, damage=False))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    said = read(reader, partial(spoil, damage=True))
    assert "embeddings-000001.parquet is not as it was written: give the command that wrote it again" in said


def test_info_verifies_every_file_when_it_is_asked(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(finished / "db", tmp_path / "db"))
    assert info.main([str(folder), "--verify"]) == 0
    flip_byte(folder, number=2)
    assert info.main([str(folder)]) == 0, "the manifest alone"
    assert info.main([str(folder), "--verify"]) == 1
    assert "embeddings-000002.parquet is not as it was written" in capsys.readouterr().err


def test_checksums_of_pages_are_verified_where_some_rows_are_read(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished / "db", tmp_path / "db"))
    before = EmbeddingFolder(folder).rows_of(4, 3)
    flip_byte(folder)
    with pytest.raises(InputError, match=r"embeddings-000001.parquet is not as it was written"):
        EmbeddingFolder(folder).rows_of(4, 3)
    assert EmbeddingFolder(folder).rows_of(1, 3).keys() | EmbeddingFolder(folder).rows_of(7, 3).keys() <= set(range(10))
    assert before.keys() <= {4, 5, 6}


def test_a_job_of_an_older_version_is_gone_on_with(finished: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Parts without checksums of pages are kept, those done now have them, and every reader reads both."""
    folder = Path(shutil.copytree(finished / "db", tmp_path / "db"))
    drop_checksums(folder)
    kept = content_hashes(folder)
    change(folder / "_manifest.json", ("status",), "running")
    (folder / "embeddings-000002.parquet").unlink()
    (folder / ".job" / "000002.json").unlink()
    job = ["--model", tiny_checkpoint, "--input", finished / "p.fasta", "--part-records", 3, "--level", "L0"]
    assert embed.main([str(each) for each in [*job, "--output", folder]]) == 0
    now = content_hashes(folder)
    assert [name for name in kept if kept[name] != now[name]] == ["embeddings-000002.parquet"]
    assert now["embeddings-000002.parquet"] == content_hashes(finished / "db")["embeddings-000002.parquet"]
    assert export.main([str(folder), "--output", str(tmp_path / "out.h5")]) == 0
    flip_byte(folder, number=2)
    assert export.main([str(folder), "--output", str(tmp_path / "out.h5")]) == 1
