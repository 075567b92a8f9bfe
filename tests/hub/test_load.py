"""Loading what was pushed, in fresh processes without the package, over HTTP."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import WIDTHS, World
from tests.hub.server import Fault, Repo, repos_asked, weights_sent


def test_it_loads_without_the_package_and_computes_the_same(used: dict[str, Any]) -> None:
    assert used["importable"].startswith("ModuleNotFoundError")
    assert used["equal"]


def test_a_good_load_says_nothing(used: dict[str, Any]) -> None:
    assert used["heard"] == []


@pytest.mark.parametrize("repo", ["me/nested", "me/full"])
@pytest.mark.parametrize("level", WIDTHS)
def test_a_level_is_the_prefix_of_the_whole(used: dict[str, Any], repo: str, level: str) -> None:
    equal, backbones, names = used[f"{repo}-{level}"]
    wanted = list(WIDTHS)[: list(WIDTHS).index(level) + 1]
    assert (equal, backbones, names) == (True, len(wanted), wanted)


@pytest.mark.parametrize("level", WIDTHS)
def test_what_blocks_are_whitened_by_comes_along_with_every_level(used: dict[str, Any], level: str) -> None:
    assert used[f"whitened-{level}"]


@pytest.mark.usefixtures("used")
def test_a_level_downloads_its_backbones_only(world: World) -> None:
    """Counted from an empty cache, in requests by repo and in bytes of weights."""
    bases = len(world.hub.repos["me/nested"].commits[world.hub.repos["me/nested"].refs["main"]]["model.safetensors"])
    for count, level in enumerate(WIDTHS, start=1):
        requests = world.hub.between(f"me/nested-{level}", f"me/nested-{level}-loaded")
        names = [f"lab/esm-{name}" for name in list(WIDTHS)[:count]]
        backbones = sum(
            len(world.hub.repos[name].commits[commit]["model.safetensors"])
            for name, commit in zip(names, world.pinned, strict=False)
        )
        print(f"bases only, {level}: {len(requests)} requests, {weights_sent(requests):,} bytes of weights")
        assert repos_asked(requests) == {"me/nested", *names}
        # The first level has no basis.
        assert weights_sent(requests) == (bases if count > 1 else 0) + backbones


@pytest.mark.usefixtures("used")
def test_a_level_of_the_full_form_downloads_its_files_only(world: World) -> None:
    repo = world.hub.repos["me/full"]
    files = repo.commits[repo.refs["main"]]
    for count, level in enumerate(WIDTHS, start=1):
        requests = world.hub.between(f"me/full-{level}", f"me/full-{level}-loaded")
        parts = ["model.projections"] if count > 1 else []  # the first level has no basis
        parts += [f"model.backbone-{name}" for name in list(WIDTHS)[:count]]
        wanted = sum(
            len(content)
            for name, content in files.items()
            if name.endswith(".safetensors") and any(name.startswith(part) for part in parts)
        )
        print(f"full, {level}: {len(requests)} requests, {weights_sent(requests):,} bytes of weights")
        assert repos_asked(requests) == {"me/full"}
        assert weights_sent(requests) == wanted


@pytest.mark.parametrize("repo", ["me/nested", "me/full"])
def test_one_pass_fetches_and_holds_the_largest_backbone_only(world: World, used: dict[str, Any], repo: str) -> None:
    """Whichever level is wanted: counted from an empty cache, in requests by repo and in bytes of weights."""
    equal, held = used[f"{repo}-one-pass"]
    assert (equal, held) == (True, [WIDTHS["L2"]])
    requests = world.hub.between(f"{repo}-one-pass", f"{repo}-one-pass-loaded")

    def content(repo_id: str, commit: str, prefix: str) -> int:
        files = world.hub.repos[repo_id].commits[commit]
        return sum(len(c) for name, c in files.items() if name.startswith(prefix) and name.endswith(".safetensors"))

    main = world.hub.repos[repo].refs["main"]
    if repo == "me/full":
        assert repos_asked(requests) == {repo}
        largest = content(repo, main, "model.backbone-L2")
        bases = content(repo, main, "model.projections")
    else:
        assert repos_asked(requests) == {repo, "lab/esm-L2"}
        largest = content("lab/esm-L2", world.pinned[-1], "model")
        bases = content(repo, main, "model")
    assert weights_sent(requests) == bases + largest


def test_dtype_and_attention_reach_the_backbones(used: dict[str, Any]) -> None:
    assert used["other_dtype"] == "torch.bfloat16"
    assert used["attention"] == "eager"


def test_after_one_load_it_works_offline(world: World, used: dict[str, Any]) -> None:
    assert used["equal"]
    before = len(world.hub.log)
    found = world.run("offline", "home-use", offline=True)
    assert found["equal"]
    assert found["absent"].startswith("OSError")
    assert len(world.hub.log) == before


def test_two_processes_load_into_one_empty_cache_at_once(world: World) -> None:
    both = [world.start("concurrent", "home-both") for _ in range(2)]
    assert [world.finish(process)["equal"] for process in both] == [True, True]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def troubled(world: World) -> dict[str, Any]:
    hub = world.hub
    repo = hub.repos["me/nested"]
    files = repo.commits[repo.refs["main"]]

    def variation(repo_id: str, changed: dict[str, bytes]) -> None:
        hub.repos[repo_id] = Repo()
        hub.repos[repo_id].commit({**files, **changed})

    wrong_pin = json.loads(files["config.json"])
    wrong_pin["levels"][1]["revision"] = "0" * 40
    variation("me/wrong-pin", {"config.json": json.dumps(wrong_pin).encode()})
    swapped = json.loads(files["config.json"])
    first, second = swapped["levels"][:2]
    for field in ("repo_id", "revision"):
        first[field], second[field] = second[field], first[field]
    variation("me/swapped", {"config.json": json.dumps(swapped).encode()})
    bomb = pickle.dumps(Bomb(world.work / "unpickled"))
    variation("me/pickled", {"model.safetensors": bomb, "pytorch_model.bin": bomb})
    hub.objects[hashlib.sha256(bomb).hexdigest()] = bomb
    hub.planned = {
        "cut-once": [Fault("GET", "/cdn/", "cut")],
        "busy": [Fault("GET", "/cdn/", "status", status=503)],
        "slow": [Fault("GET", "/cdn/", "slow", times=2, seconds=2.0)],
        "down": [Fault("GET", "/cdn/", "cut", times=10**6)],
    }
    return world.run("trouble", "home-trouble")


def test_a_download_that_breaks_half_way_is_taken_up_again(troubled: dict[str, Any]) -> None:
    # Clients since 1.0 go on by themselves; the one of 4.57's day says what broke, and the next try goes on.
    assert troubled["cut_once"] == "no error" or troubled["cut_once"].startswith("OSError: the bases of me/nested")
    assert troubled["cut_no_more"]


def test_a_slow_connection_is_waited_for(troubled: dict[str, Any]) -> None:
    assert troubled["slow"]


def test_an_error_of_the_server_is_survived_or_named_and_the_next_try_goes_on(troubled: dict[str, Any]) -> None:
    # The client of 4.57's day tries again by itself; those since 1.0 do not, for a file.
    said = troubled["busy"]
    assert said == "no error" or (said.startswith("OSError: the bases of me/nested cannot be loaded") and "503" in said)
    assert troubled["busy_no_more"]


def test_a_connection_that_stays_broken_is_an_error_and_leaves_nothing_half(troubled: dict[str, Any]) -> None:
    assert "me/nested" in troubled["down"]
    assert troubled["down"] != "no error"
    assert troubled["up_again"]


def test_private_missing_and_unknown_are_named(troubled: dict[str, Any]) -> None:
    for case in ("private", "no_repo"):
        assert troubled[case].startswith("OSError")
    assert "me/secret" in troubled["private"]
    assert "me/none" in troubled["no_repo"]
    assert "nowhere" in troubled["no_revision"]
    assert troubled["private_with_token"]


def test_branches_and_pull_requests_load(troubled: dict[str, Any]) -> None:
    assert troubled["branch"]
    assert troubled["pull"]


def test_a_pinned_commit_that_is_not_there_is_named_with_its_level(troubled: dict[str, Any]) -> None:
    assert "lab/esm-L1, the backbone of L1" in troubled["wrong_pin"]
    assert "0" * 40 in troubled["wrong_pin"]


def test_swapped_backbones_are_one_error_that_names_the_level(troubled: dict[str, Any]) -> None:
    assert troubled["swapped"].startswith("ValueError")
    assert "the backbone of L0" in troubled["swapped"]
    assert "another shape" in troubled["swapped"]


def test_a_pickle_in_place_of_safetensors_is_refused_and_not_opened(world: World, troubled: dict[str, Any]) -> None:
    assert "is no safetensors file" in troubled["pickled"]
    assert not (world.work / "unpickled").exists()
