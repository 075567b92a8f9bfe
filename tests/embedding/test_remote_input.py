"""A job whose input lies elsewhere goes on with what it began with, and says what has changed since."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rd_hf.embedding import JobSettings, run_job
from rd_hf.embedding.folder import JobError
from rd_hf.embedding.options import EmbeddingOptions
from tests.hub.local import hub_here
from tests.hub.server import FakeHub

URL = "hf://datasets/me/proteins/p.fasta"
LETTERS = "LAGVSERTIDPKQNFYMHWC" * 3


def fasta(count: int, shift: int = 0) -> str:
    return "".join(f">p{number}\n{LETTERS[shift + number : shift + number + 25]}\n" for number in range(count))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    with hub_here(tmp_path / "home") as hub:
        publish(hub, fasta(30))
        yield hub


def publish(hub: FakeHub, text: str) -> str:
    folder = Path("published")
    folder.mkdir(exist_ok=True)
    (folder / "p.fasta").write_text(text)
    return hub.add("datasets/me/proteins", folder)


def embed(model: Path, source: str, output: str = "out") -> list[str]:
    """Run a job; what it said."""
    said: list[str] = []
    settings = JobSettings(str(model), (source,), output, options=EmbeddingOptions(), part_records=8)
    run_job(settings, report=said.append, show_progress=False)
    return said


def undo(folder: str) -> None:
    """As a kill before the last part leaves it."""
    path = Path(folder, "_manifest.json")
    manifest = {name: one for name, one in json.loads(path.read_text()).items() if name not in ("parts", "counts")}
    path.write_text(json.dumps(manifest | {"status": "running"}))
    for name in ("embeddings-000003.parquet", ".job/000003.json"):
        Path(folder, name).unlink()


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.parquet"))}


def test_what_is_written_is_what_a_file_here_gives(hub: FakeHub, tiny_checkpoint: Path) -> None:
    embed(tiny_checkpoint, URL)
    manifest = json.loads(Path("out/_manifest.json").read_text())
    commit = hub.repos["datasets/me/proteins"].refs["main"]
    assert manifest["job"]["inputs"] == [URL]
    assert manifest["files"] == [{"path": f"hf://datasets/me/proteins@{commit}/p.fasta", "bytes": len(fasta(30))}]
    # Given again, the finished job is found finished.
    before = contents("out")
    assert embed(tiny_checkpoint, URL) == []
    assert contents("out") == before


def test_a_job_goes_on_at_the_commit_that_it_began_with_and_says_so(hub: FakeHub, tiny_checkpoint: Path) -> None:
    embed(tiny_checkpoint, URL)
    expected = contents("out")
    undo("out")
    moved = publish(hub, fasta(30, shift=7))
    said = embed(tiny_checkpoint, URL)
    assert contents("out") == expected
    assert any("has moved on" in one and moved in one for one in said)
    # Another folder begins with what is there now.
    embed(tiny_checkpoint, URL, "other")
    assert contents("other") != expected


def test_a_job_without_work_begins_with_what_is_there_now(hub: FakeHub, tiny_checkpoint: Path) -> None:
    embed(tiny_checkpoint, URL)
    for path in [*Path("out").glob("*.parquet"), *Path("out/.job").glob("0*.json"), Path("out/_rejects.tsv")]:
        path.unlink()
    manifest = json.loads(Path("out/_manifest.json").read_text())
    Path("out/_manifest.json").write_text(json.dumps(manifest | {"status": "running"}))
    moved = publish(hub, fasta(30, shift=7))
    embed(tiny_checkpoint, URL)
    assert moved in Path("out/_manifest.json").read_text()
    embed(tiny_checkpoint, "published/p.fasta", "here")
    ids = [json.loads(Path(folder, "_manifest.json").read_text())["counts"] for folder in ("out", "here")]
    assert ids[0] == ids[1]


def test_a_file_of_the_web_that_changed_is_said_and_never_mixed(hub: FakeHub, tiny_checkpoint: Path) -> None:
    pytest.importorskip("aiohttp")
    url = f"{hub.endpoint}/datasets/me/proteins/resolve/main/p.fasta"
    embed(tiny_checkpoint, url)
    expected = contents("out")
    undo("out")
    # The last record alone is another, and the file is as long as before.
    publish(hub, fasta(30)[:-26] + "A" * 25 + "\n")
    said = embed(tiny_checkpoint, url)
    assert any("has changed since" in one for one in said)
    assert {name: content == expected[name] for name, content in contents("out").items()} == {
        **dict.fromkeys(list(expected)[:3], True),
        "embeddings-000003.parquet": False,
    }
    undo("out")
    publish(hub, fasta(30, shift=3))
    with pytest.raises(JobError, match="the input has changed"):
        embed(tiny_checkpoint, url)
