"""A folder of embeddings is published as a dataset: interrupted, it goes on; others read it by the card's lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import metadata_load

from rd_hf.__main__ import main
from rd_hf.embedding import JobSettings, run_job
from rd_hf.embedding.options import EmbeddingOptions
from tests.conftest import Outcome, run_here
from tests.hub.local import hub_here
from tests.hub.server import FakeHub, Fault, Repo

PARTS = [f"embeddings-{number:06d}.parquet" for number in range(4)]
SMALL = {"README.md", "_manifest.json", "_rejects.tsv"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A folder to work in, with a job that has four files and a reject, in blocks."""
    desk = tmp_path_factory.mktemp("desk")
    letters = "LAGVSERTIDPKQNFYMHWC"
    records = [f">p{number}\n{(letters * 3)[number : number + 30]}\n" for number in range(30)]
    (desk / "p.fasta").write_text("".join([*records, ">bad\nMK*T\n"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        embed(tiny_checkpoint, "p.fasta", "embeddings")
    return desk


def embed(model: Path, fasta: str, output: str) -> None:
    options = EmbeddingOptions(layout="blocks")
    settings = JobSettings(str(model), (fasta,), output, options=options, part_records=8)
    run_job(settings, report=lambda _: None, show_progress=False)


@pytest.fixture
def hub(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(desk)
    with hub_here(tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def push(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def call(*words: object) -> Outcome:
        return run_here(lambda given: main(["push", *given]), capsys, *words)

    return call


def files_of(hub: FakeHub, name: str = "datasets/me/proteins") -> dict[str, bytes]:
    repo = hub.repos[name]
    return {one: content for one, content in repo.commits[repo.refs["main"]].items() if one != ".gitattributes"}


def uploads(hub: FakeHub) -> int:
    return sum(request.method == "PUT" and request.status == 200 for request in hub.log)


def test_a_dry_run_says_what_would_go_up_and_asks_the_hub_nothing(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path
) -> None:
    (desk / "embeddings" / "notes.txt").write_text("mine")
    (desk / "embeddings" / ".search").mkdir(exist_ok=True)
    done = push("embeddings", "--repo-id", "me/proteins", "--dry-run")
    assert done.status == 0, done.stderr
    assert all(name in done.stdout for name in [*PARTS, *SMALL])
    assert "left out: .job, .search, notes.txt" in done.stdout
    assert 'load_dataset("me/proteins", split="train", columns=["id", "block_L0"])' in done.stdout
    assert hub.log == []


def test_what_is_published_is_the_folder_and_its_card_and_nothing_of_the_machine(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path
) -> None:
    done = push("embeddings", "--repo-id", "me/proteins", "--license", "cc-by-4.0", "--private")
    assert done.status == 0, done.stderr
    files = files_of(hub)
    assert set(files) == {*PARTS, *SMALL}
    assert all(files[name] == (desk / "embeddings" / name).read_bytes() for name in PARTS)
    manifest = json.loads(files["_manifest.json"])
    assert manifest == json.loads((desk / "embeddings" / "_manifest.json").read_text()) | {"files": [None]}
    assert str(desk) not in files["_manifest.json"].decode()
    assert hub.repos["datasets/me/proteins"].private
    assert not (desk / "embeddings" / "README.md").exists()


def test_the_card_says_what_is_in_the_folder_and_the_hub_takes_its_metadata(
    hub: FakeHub, push: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert push("embeddings", "--repo-id", "me/proteins", "--license", "cc-by-4.0").status == 0
    (tmp_path / "README.md").write_bytes(files_of(hub)["README.md"])
    data = metadata_load(tmp_path / "README.md")
    assert data is not None
    assert (data["license"], data["size_categories"]) == ("cc-by-4.0", ["n<1K"])
    text = (tmp_path / "README.md").read_text()
    for words in (
        "30 nested protein",
        "31 records in 4 files",
        "| L1 | 48 | `block_L0`, `block_L1` |",
        "float32",
        "blocks",
    ):
        assert words in text
    assert any(request.path == "/api/validate-yaml" and request.status == 200 for request in hub.log)
    done = push("embeddings", "--repo-id", "me/others", "--license", "my-own")
    assert done.status == 1
    assert 'the Hub does not take the card: "license" must be one of' in done.stderr
    assert "datasets/me/others" not in hub.repos


def test_an_interrupted_push_goes_on_and_is_no_folder_before_its_end(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path
) -> None:
    hub.faults = [Fault("PUT", "/upload/", "status", status=400, times=1)]
    assert push("embeddings", "--repo-id", "me/proteins").status == 1
    sent = uploads(hub)
    assert 0 < sent < 4
    assert "_manifest.json" not in files_of(hub)
    # And once more, when all parts are there and the rest is not.
    hub.faults = [Fault("GET", "/tree/main.recursive=[Tt]rue", "status", status=403)]
    assert push("embeddings", "--repo-id", "me/proteins").status == 1
    assert uploads(hub) == 4
    assert not SMALL & set(files_of(hub))
    assert push("embeddings", "--repo-id", "me/proteins").status == 0
    assert uploads(hub) == 4
    assert set(files_of(hub)) == {*PARTS, *SMALL}
    assert push("embeddings", "--repo-id", "me/proteins").status == 0
    assert uploads(hub) == 4


def test_a_file_of_a_model_that_does_not_arrive_is_a_sentence_too(
    hub: FakeHub, push: Callable[..., Outcome], tiny_checkpoint: Path
) -> None:
    hub.faults = [Fault("PUT", "/upload/", "status", status=400, times=1)]
    outcome = push("--model", tiny_checkpoint, "--repo-id", "me/model", "--no-check")
    assert outcome.status == 1
    assert "give the same command again, what arrived is not sent again" in outcome.stderr
    assert push("--model", tiny_checkpoint, "--repo-id", "me/model", "--no-check").status == 0


def test_many_parts_go_up_in_several_commits_each_of_which_is_kept(
    hub: FakeHub, push: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rd_hf.hub.embeddings._TOGETHER", 3)
    assert push("embeddings", "--repo-id", "me/proteins").status == 0
    commits = [set(files) - {".gitattributes"} for files in hub.repos["datasets/me/proteins"].commits.values()]
    assert commits == [set(), set(PARTS[:3]), set(PARTS), {*PARTS, *SMALL}]


def test_another_push_replaces_what_was_there(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path, tiny_checkpoint: Path
) -> None:
    assert push("embeddings", "--repo-id", "me/proteins").status == 0
    (desk / "few.fasta").write_text(">a\nMKTAYIAKQR\n")
    embed(tiny_checkpoint, "few.fasta", "few")
    assert push("few", "--repo-id", "me/proteins").status == 0
    files = files_of(hub)
    assert set(files) == {PARTS[0], *SMALL}
    assert files[PARTS[0]] == (desk / "few" / PARTS[0]).read_bytes()


def test_damage_is_found_before_there_is_a_manifest(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path, tiny_checkpoint: Path
) -> None:
    embed(tiny_checkpoint, "p.fasta", "damaged")
    part = desk / "damaged" / PARTS[1]
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 1
    part.write_bytes(content)
    done = push("damaged", "--repo-id", "me/damaged")
    assert done.status == 1
    assert f"damaged/{PARTS[1]} is not as it was written" in done.stderr
    assert "_manifest.json" not in files_of(hub, "datasets/me/damaged")


def test_rejects_that_name_paths_of_this_machine_stay_here(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path, tiny_checkpoint: Path
) -> None:
    embed(tiny_checkpoint, str(desk / "p.fasta"), "absolute")
    done = push("absolute", "--repo-id", "me/proteins")
    assert done.status == 0
    assert f"_rejects.tsv stays here: it names {desk / 'p.fasta'}" in done.stdout
    assert set(files_of(hub)) == {*PARTS, *SMALL} - {"_rejects.tsv"}


def test_a_card_of_ones_own_goes_up_as_it_is(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path, tiny_checkpoint: Path
) -> None:
    embed(tiny_checkpoint, "few.fasta" if (desk / "few.fasta").exists() else "p.fasta", "own")
    (desk / "own" / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    assert "is your own" in push("own", "--repo-id", "me/proteins").stdout
    assert files_of(hub)["README.md"] == (desk / "own" / "README.md").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("p.fasta", "--repo-id", "me/x"), "is no folder of embeddings"),
        (("embeddings", "--repo-id", "name"), "write it as owner/name"),
        (("embeddings", "--repo-id", "me/x", "--create-pr"), "are for models"),
        (("hf://datasets/me/x", "--repo-id", "me/x"), "is published already"),
    ],
)
def test_a_mistake_is_a_sentence(hub: FakeHub, push: Callable[..., Outcome], words: tuple[str, ...], said: str) -> None:
    done = push(*words)
    assert done.status == 1
    assert said in done.stderr
    assert hub.repos == {}


def lines_of(card: str, library: str) -> str:
    """The lines of a card that read a level by a library."""
    (found,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", card, re.S)
        if f"import {library}" in block or f"from {library}" in block
    )
    return found


def stored(folder: Path) -> tuple[list[str], np.ndarray]:
    """Ids and the smallest level's vectors, in order, as pyarrow has them."""
    tables = [pq.read_table(folder / name, columns=["id", "block_L0"]) for name in PARTS]
    ids = [one for table in tables for one in table["id"].to_pylist()]
    return ids, np.concatenate([np.array(table["block_L0"].to_pylist(), np.float32) for table in tables])


AFTER = {
    "datasets": "ids, rows = list(dataset['id']), list(dataset['block_L0'])",
    "polars": "ids, rows = table['id'].to_list(), table['block_L0'].to_list()",
    "duckdb": "ids, rows = map(list, zip(*table.fetchall()))",
}
# How each comes to the test's Hub, and not to the one of the world.
BEFORE = {
    "datasets": "",
    "polars": "",
    # Its own reader of hf:// is an extension that it fetches.
    "duckdb": """
import datetime, duckdb, huggingface_hub
class Hub(huggingface_hub.HfFileSystem):
    modified = lambda self, path: datetime.datetime(2026, 1, 1)
duckdb.register_filesystem(Hub())
""",
}


@pytest.mark.parametrize("library", list(AFTER))
def test_the_lines_of_the_card_read_a_level_from_the_hub(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path, tmp_path: Path, library: str
) -> None:
    pytest.importorskip(library)
    assert push("embeddings", "--repo-id", "me/proteins").status == 0
    code = lines_of(files_of(hub)["README.md"].decode(), library)
    if library == "polars":
        # It knows the address of the world's Hub alone.
        urls = [f"{hub.endpoint}/datasets/me/proteins/resolve/main/{name}" for name in PARTS]
        code = code.replace('"hf://datasets/me/proteins/*.parquet"', repr(urls))
        assert "127.0.0.1" in code
    code = f"{BEFORE[library]}{code}\n{AFTER[library]}\nimport json\nprint('RESULT', json.dumps([list(ids), rows]))"
    environment: dict[str, Any] = {
        **os.environ,
        **dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS", "OMP_NUM_THREADS"), "1"),
        **{"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"},
    }
    start = len(hub.log)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    ids, rows = json.loads(done.stdout.split("RESULT ")[1])
    expected = stored(desk / "embeddings")
    assert ids == expected[0]
    assert np.array_equal(np.array(rows, np.float32), expected[1])
    assert any("/cdn/" in request.path or "parquet" in request.path for request in hub.log[start:])


def test_commands_read_what_was_published_as_they_read_the_folder(
    hub: FakeHub, push: Callable[..., Outcome], desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push("embeddings", "--repo-id", "me/proteins").status == 0
    found: dict[str, list[str]] = {}
    for place in ("embeddings", "hf://datasets/me/proteins"):
        hits, page, table = (str(tmp_path / name) for name in ("hits.tsv", "map.html", "map.tsv"))
        # Against itself, and by the queries' sequences, wherever they lie.
        for words in (
            ["search", place, "--input", place, "--output", hits],
            ["map", place, "--output", page, "--table", table],
            ["info", place, "--verify", "--json"],
        ):
            done = run_here(main, capsys, *words)
            assert done.status == 0, done.stderr
        found[place] = [Path(hits).read_text(), Path(table).read_text(), done.stdout]
    here, there = found.values()
    assert here[:2] == there[:2]
    assert json.loads(there[2]) == json.loads(here[2]) | {"files": [None]}
    for words in (["export", "hf://datasets/me/proteins", "--output", str(tmp_path / "e.h5")],):
        done = run_here(main, capsys, *words)
        assert done.status == 1
        assert "was published without its journal" in done.stderr


def test_a_fit_and_a_search_take_sequences_from_the_hub(
    hub: FakeHub, desk: Path, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proteins").mkdir()
    (tmp_path / "proteins" / "p.fasta").write_text((desk / "p.fasta").read_text())
    hub.add("datasets/me/fasta", tmp_path / "proteins")
    found = []
    for number, place in enumerate(("p.fasta", "hf://datasets/me/fasta/p.fasta")):
        out, hits = tmp_path / f"fit{number}", tmp_path / "hits.tsv"
        words = ["fit", "--config", tiny_checkpoint, "--input", place, "--output", out, "--quiet"]
        done = run_here(main, capsys, *words)
        assert done.status == 0, done.stderr
        words = ["search", "embeddings", "--input", place, "--output", hits, "--quiet"]
        done = run_here(main, capsys, *words)
        assert done.status == 0, done.stderr
        weights = sorted(out.glob("*.safetensors"))
        found.append(([path.read_bytes() for path in weights], hits.read_text()))
    assert found[0] == found[1]


def test_a_repo_of_another_kind_of_privacy_is_left_alone(hub: FakeHub, push: Callable[..., Outcome]) -> None:
    hub.repos["datasets/me/proteins"] = Repo()
    hub.repos["datasets/me/proteins"].commit({".gitattributes": b""})
    done = push("embeddings", "--repo-id", "me/proteins", "--private")
    assert (done.status, "nothing was pushed" in done.stderr) == (1, True)
    assert files_of(hub) == {}
