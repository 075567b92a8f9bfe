"""ESM-2 as its large members lie on the Hub, `.bin` shards alone: fit, push, load, and who is asked meanwhile."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import EXAMPLE_FASTA
from tests.hub.conftest import WIDTHS, World
from tests.hub.layouts import ESM2_SAFETENSORS, ESM2_SHARDS, Size, write_repo
from tests.hub.server import Repo, repos_asked, weights_sent

LAYOUTS = {"L0": ESM2_SAFETENSORS, "L1": ESM2_SHARDS, "L2": ESM2_SHARDS}
SIZES = {name: Size(width, layers=3) for name, width in WIDTHS.items()}


@pytest.fixture(scope="module")
def fitted(world: World) -> dict[str, Any]:
    """Backbones published; one pinned to a commit that its repo has left since; a chain of them fitted and pushed."""
    words = []
    for seed, (name, layout) in enumerate(LAYOUTS.items()):
        folder = write_repo(world.work / "layouts" / name, layout, SIZES[name], seed)
        commit = world.hub.add(f"lab/bin-{name}", folder)
        words.append(f"{name}=lab/bin-{name}" + (f"@{commit}" if name == "L1" else ""))
    moved = write_repo(world.work / "layouts" / "moved", ESM2_SHARDS, SIZES["L1"], seed=99)
    world.hub.add("lab/bin-L1", moved)
    result = str(world.work / "bin-output.safetensors")
    return world.run("fit_bin", "home-fit-bin", package=True, backbones=words, data=str(EXAMPLE_FASTA), result=result)


@pytest.fixture(scope="module")
def used(world: World, fitted: dict[str, Any]) -> dict[str, Any]:
    assert fitted["codes"] == [0, 0]
    return world.run("use_bin", "home-use-bin", logged_in=True, result=str(world.work / "bin-output.safetensors"))


def test_a_chain_of_bin_shards_is_fitted_and_pinned(world: World, fitted: dict[str, Any]) -> None:
    assert fitted["codes"] == [0, 0]
    assert [row["heldout"] is not None for row in fitted["report"]] == [False, True, True]
    repos = [world.hub.repos[f"lab/bin-{name}"] for name in LAYOUTS]
    assert fitted["pins"] == [next(iter(repo.commits)) for repo in repos]


def test_each_level_loads_in_a_fresh_process_and_computes_the_same(used: dict[str, Any]) -> None:
    assert {name: used[name] for name in (*WIDTHS, "again", "sequential")} == dict.fromkeys(
        (*WIDTHS, "again", "sequential"), True
    )


@pytest.mark.usefixtures("used")
def test_a_level_fetches_its_own_shards_only(world: World, fitted: dict[str, Any]) -> None:
    for count, level in enumerate(WIDTHS, start=1):
        requests = world.hub.between(f"bin-{level}", f"bin-{level}-loaded")
        names = list(WIDTHS)[:count]
        # Of the first level too: its block's whitening lies with the bases.
        wanted = [world.hub.repos["me/bin"].commits[world.hub.repos["me/bin"].refs["main"]]]
        wanted += [world.hub.repos[f"lab/bin-{name}"].commits[fitted["pins"][i]] for i, name in enumerate(names)]
        size = sum(len(f) for files in wanted for name, f in files.items() if name.endswith((".safetensors", ".bin")))
        print(f"{level}: {len(requests)} requests, {weights_sent(requests):,} bytes of weights")
        assert repos_asked(requests) == {"me/bin", *(f"lab/bin-{name}" for name in names)}
        assert weights_sent(requests) == size
    again = world.hub.between("bin-again", "bin-again-loaded")
    print(f"a second start: {len(again)} requests, {weights_sent(again):,} bytes of weights")
    assert weights_sent(again) == 0


def test_nobody_else_is_asked_and_the_token_goes_to_the_repos_only(
    world: World, fitted: dict[str, Any], used: dict[str, Any]
) -> None:
    """Given a Hub id with `.bin` files alone, transformers starts a thread that tells a conversion service of it."""
    assert fitted["reached"] == used["reached"] == ["127.0.0.1"]
    assert not [name for name in used["threads"] if "conversion" in name]
    requests = [r for r in world.hub.log[world.hub.marked("bin-fit") :] if not r.path.startswith("/mark/")]
    files = ("/lab/bin-L", "/me/bin/resolve/")
    writing = ("/api/models/me/bin", "/api/repos/create", "/api/validate-yaml", "/api/whoami", "/me/bin.git/")
    for request in requests:
        if (request.method, request.path, request.token) == ("HEAD", "/", False):
            continue  # whether the Hub can be reached
        stored = request.path.startswith(("/cdn/", "/upload/"))
        assert stored or request.path.startswith(files + writing), request.path
        assert not (stored and request.token), request.path
    assert any(request.token for request in requests)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_spoilt_repos_are_a_sentence_each_that_names_repo_and_level(world: World, fitted: dict[str, Any]) -> None:
    shards = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")
    index = "pytorch_model.bin.index.json"
    published = world.hub.repos["lab/bin-L1"].commits[fitted["pins"][1]]
    nested = world.hub.repos["me/bin"].commits[world.hub.repos["me/bin"].refs["main"]]

    def saved(content: Any) -> bytes:
        path = world.work / "spoilt.bin"
        torch.save(content, path)
        return path.read_bytes()

    def repo(repo_id: str, files: dict[str, bytes]) -> str:
        world.work.joinpath("spoilt").mkdir(exist_ok=True)
        world.hub.repos[repo_id] = Repo()
        folder = world.work / "spoilt" / repo_id.replace("/", "-")
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return world.hub.add(repo_id, folder)

    gone = {name: content for name, content in published.items() if name != shards[1]}
    weight_map = json.loads(published[index])["weight_map"]
    tensors = torch.load(world.work / "layouts" / "L1" / shards[1], weights_only=True)
    other = {f"bert.{key}": value for key, value in tensors.items()}
    cases = {
        "code": ({shards[0]: saved({**tensors, "x": Bomb(world.work / "ran")})}, "posix.mkdir beside tensors"),
        "number": ({shards[0]: saved({**tensors, "epoch": 3})}, "('epoch' is of type int)"),
        "cut": ({shards[0]: published[shards[0]][:-1000]}, "it is cut short"),
        "unknown": (
            {
                index: json.dumps(
                    {"metadata": {}, "weight_map": {**weight_map, "x": "pytorch_model-00009-of-00002.bin"}}
                ).encode()
            },
            "has no file pytorch_model-00009-of-00002.bin, which pytorch_model.bin.index.json names",
        ),
        "outside": (
            {index: json.dumps({"metadata": {}, "weight_map": {**weight_map, "x": "../../config.bin"}}).encode()},
            "which is no .bin file beside it",
        ),
        "architecture": (
            {
                **dict.fromkeys(shards, saved(other)),
                index: json.dumps({"metadata": {}, "weight_map": dict.fromkeys(other, shards[0])}).encode(),
            },
            "are missing",
        ),
        "lying": (dict.fromkeys(shards, saved(other)), f"says that {shards[0]} holds esm."),
        "tensorflow": (None, "holds none of model.safetensors, "),
        "missing": (None, f"has no file {shards[1]}, which {index} names"),
    }
    commits: dict[str, str] = {}
    for name, (changed, _) in cases.items():
        files = {**published, **(changed or {})}
        if name == "tensorflow":
            files = {"config.json": published["config.json"], "tf_model.h5": b"weights"}
        elif name == "missing":
            files = gone
        commits[name] = repo(f"lab/spoilt-{name}", files)
        config = json.loads(nested["config.json"])
        config["levels"][1].update(repo_id=f"lab/spoilt-{name}", revision=commits[name])
        repo(f"me/{name}", {**nested, "config.json": json.dumps(config).encode()})
    said = world.run("refuse_bin", "home-refuse-bin", repos=list(cases))
    for name, (_, expected) in cases.items():
        print(f"{name}: {said[name]}")
        assert expected in said[name], name
        assert f"lab/spoilt-{name}" in said[name]
        assert "L1" in said[name]
        if name in ("tensorflow", "missing"):
            assert commits[name] in said[name]
    assert not (world.work / "ran").exists()
