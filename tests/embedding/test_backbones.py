"""Backbones whose revision a model leaves open: what was loaded is noted, and is what a job goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

from rd_hf.data.records import InputError
from rd_hf.embedding.checkpoint import load_model, resolve
from rd_hf.embedding.embedder import Embedder
from rd_hf.embedding.folder import OutputFolder
from rd_hf.hub import save_checkpoint
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, random_model
from tests.embedding.conftest import Outcome, content_hashes, parts, random_fasta, read

Embed = Callable[..., Outcome]
REPOS = ("lab/small", "lab/large")


class Cache:
    """The Hub's cache with two backbones, whose repos move on when told to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.moves = 0
        for repo in REPOS:
            self.move(repo)

    def move(self, repo: str, branch: str = "main") -> str:
        """A new commit of other weights; returns it."""
        self.moves += 1
        commit = f"{self.moves:040x}"
        place = self.path / f"models--{repo.replace('/', '--')}"
        snapshot = place / "snapshots" / commit
        width = 32 if repo == REPOS[0] else 48
        random_model([width], seed=self.moves, layers=1).backbones[0].save_pretrained(snapshot)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / branch).write_text(commit)
        load_model.cache_clear()
        return commit


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    return Cache(tmp_path / "hub")


def save_bases(folder: Path, revisions: tuple[str | None, str | None]) -> Path:
    """A model of bases alone that leans on both repos."""
    levels = [
        {"name": f"L{number}", "backbone": backbone_settings(width, 1), "repo_id": repo, "revision": revision}
        for number, (width, repo, revision) in enumerate(zip((32, 48), REPOS, revisions, strict=True))
    ]
    model = RDEsmModel(RDEsmConfig(levels=levels, backbones_in_checkpoint=False))
    with torch.no_grad():
        for buffer in model.projections.buffers():
            buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)) / 7)
    model.load_backbones()
    save_checkpoint(model, folder, backbones=False)
    return folder


@pytest.fixture(params=[(None, None), ("main", "main")], ids=["no revision", "a branch"])
def bases(request: pytest.FixtureRequest, cache: Cache, tmp_path: Path) -> Path:
    return save_bases(tmp_path / "bases", request.param)


@pytest.fixture
def job(bases: Path, tmp_path: Path) -> list[object]:
    """A command of four parts, all but its --output."""
    fasta = random_fasta(tmp_path / "in.fasta", 12)
    return ["--model", bases, "--input", fasta, "--part-records", 3, "--device", "cpu", "--output"]


def noted(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "_manifest.json").read_text())["model"]


def test_what_was_loaded_is_noted_and_a_job_goes_on_with_it(
    embed: Embed, cache: Cache, job: list[object], tmp_path: Path
) -> None:
    assert embed(*job, tmp_path / "out").status == 0
    model, whole = noted(tmp_path / "out"), content_hashes(tmp_path / "out")
    assert sorted(model["backbones"].values()) == [f"{1:040x}", f"{2:040x}"]
    assert all(commit in model["fingerprint"] for commit in model["backbones"].values())
    for part in parts(tmp_path / "out")[2:]:
        part.unlink()
    for repo in REPOS:
        cache.move(repo)
    outcome = embed(*job, tmp_path / "out")
    assert outcome.status == 0, outcome.stderr
    assert content_hashes(tmp_path / "out") == whole
    assert noted(tmp_path / "out") == model
    assert embed(*job, tmp_path / "later").status == 0
    assert noted(tmp_path / "later")["fingerprint"] != model["fingerprint"]
    assert not np.array_equal(*(read(tmp_path / name)["embedding"][0].values for name in ("out", "later")))


def test_a_folder_is_extended_and_searched_with_the_commits_it_was_made_with(
    embed: Embed, cache: Cache, job: list[object], tmp_path: Path
) -> None:
    from rd_hf.search import SearchSettings, run_search

    assert embed(*job, tmp_path / "whole").status == 0
    assert embed(*job, tmp_path / "small", "--level", "L0").status == 0
    for repo in REPOS:
        cache.move(repo)
    outcome = embed("--extend", tmp_path / "small", "--level", "L1", "--output", tmp_path / "wide")
    assert outcome.status == 0, outcome.stderr
    assert noted(tmp_path / "wide") == noted(tmp_path / "whole")
    one, other = (torch.tensor(read(tmp_path / name)["embedding"].to_pylist()) for name in ("wide", "whole"))
    # A mean through the bases in place of the mean of what went through them: a float32 rounding each.
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    asked = SearchSettings(
        str(job[3]), str(tmp_path / "whole"), str(tmp_path / "hits.tsv"), k=1, metric="euclidean", whiten="none"
    )
    run_search(asked, show_progress=False)
    distances = [float(row.split("\t")[5]) for row in (tmp_path / "hits.tsv").read_text().splitlines()[1:]]
    # Each protein finds itself: other weights would have put it elsewhere.
    assert max(distances) < 1e-3


def test_an_embedder_keeps_the_commits_of_its_making(cache: Cache, bases: Path) -> None:
    embedder = Embedder(bases, device="cpu")
    for repo in REPOS:
        cache.move(repo)
    later = Embedder(bases, device="cpu")
    as_noted = Embedder(bases, device="cpu", backbones=embedder.checkpoint.backbones)
    one, other, again = (each.embed(["MKTAYIAKQR"])["embedding"][0] for each in (embedder, later, as_noted))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_a_folder_of_a_version_that_noted_nothing_is_not_gone_on_with_but_used(
    embed: Embed, job: list[object], tmp_path: Path
) -> None:
    """Which commits its parts are of cannot be known any more."""
    assert embed(*job, tmp_path / "out").status == 0
    folder = OutputFolder(tmp_path / "out")
    content = folder.manifest() or {}
    commits = content["model"].pop("backbones")
    content["model"]["fingerprint"] = content["model"]["fingerprint"].partition("+at:")[0]
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps(content))
    assert embed(*job, tmp_path / "out").status == 0, "nothing is left to do"
    del content["model"]["nested_dims"]["L1"]
    content = {**content, "status": "running", "model": {**content["model"], "nested_dims": {"L0": 32, "L1": 48}}}
    (tmp_path / "out" / "_manifest.json").write_text(json.dumps(content))
    outcome = embed(*job, tmp_path / "out")
    assert outcome.status == 1
    assert f"did not note which commits it loaded of {', '.join(commits)}" in outcome.stderr


def test_a_commit_in_the_config_is_all_there_is_to_say(cache: Cache, tmp_path: Path) -> None:
    pinned = resolve(save_bases(tmp_path / "pinned", (f"{1:040x}", f"{2:040x}")))
    assert pinned.backbones == {}
    assert "+at:" not in pinned.fingerprint
    assert pinned.is_of(pinned.fingerprint, {})
    assert not pinned.is_of("sha256:0", {})


def test_a_level_whose_larger_backbones_cannot_be_had_still_runs(cache: Cache, bases: Path) -> None:
    """Only what is loaded has to be there; the rest is named once it is asked for."""
    os.rename(cache.path / "models--lab--large", cache.path / "gone")
    found = resolve(bases)
    assert len(found.backbones) == 1
    Embedder(bases, level="L0", device="cpu").embed(["MKT"])
    with pytest.raises(InputError, match="lab/large"):
        Embedder(bases, device="cpu").embed(["MKT"])
    os.rename(cache.path / "gone", cache.path / "models--lab--large")
    assert resolve(bases).is_of(found.fingerprint, found.backbones)
    assert isinstance(RDEsmModel.from_pretrained(bases), RDEsmModel)
