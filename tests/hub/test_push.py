"""Pushing: the command and the method, against the test Hub over HTTP."""

from __future__ import annotations

import json

import pytest

from tests.conftest import REPOSITORY
from tests.hub.conftest import World

BASES_ONLY = {
    *("README.md", "config.json", "modules.json", "sentence_bert_config.json"),
    *(path.name for path in (REPOSITORY / "rd_hf" / "model").glob("*_rd_esm.py")),
    *("model.safetensors", "tokenizer.json", "vocab.txt", "tokenizer_config.json", "fit_report.json", "fit_report.png"),
}


def files_of(world: World, repo_id: str, ref: str = "main") -> dict[str, bytes]:
    repo = world.hub.repos[repo_id]
    return repo.commits[repo.refs[ref]]


def test_a_dry_run_lists_files_and_card_and_asks_the_hub_nothing(world: World) -> None:
    said = world.pushed["dry"]
    assert "model.safetensors" in said
    assert "left out: notes.txt" in said
    assert 'name = "me/nested"' in said  # the card, with the repo's own name in the code
    assert world.hub.between("dry", "dry-done") == []


def test_the_repo_holds_bases_code_tokenizer_report_figure_and_card_and_nothing_else(world: World) -> None:
    files = files_of(world, "me/nested")
    # 4.57 also writes special_tokens_map.json.
    assert set(files) - {".gitattributes", "special_tokens_map.json"} == BASES_ONLY
    assert len(files["model.safetensors"]) < 0.2 * sum(
        len(files_of(world, f"lab/esm-{name}")["model.safetensors"]) for name in ("L0", "L1", "L2")
    )


def test_the_commit_that_was_used_is_pinned(world: World) -> None:
    levels = json.loads(files_of(world, "me/nested")["config.json"])["levels"]
    assert world.pushed["revisions"] == world.pinned
    assert [(entry["repo_id"], entry["revision"]) for entry in levels] == [
        (f"lab/esm-{name}", commit) for name, commit in zip(("L0", "L1", "L2"), world.pinned, strict=True)
    ]
    # The repos have moved on, so that loading "main" instead would show below.
    assert all(world.hub.repos[entry["repo_id"]].refs["main"] != entry["revision"] for entry in levels)


def test_what_was_pushed_is_loaded_back_and_compared(world: World) -> None:
    assert "loaded back and equal bit for bit: L0, L1, L2" in world.pushed["pushed"]
    assert "loaded back and equal bit for bit: L0, L1\n" in world.pushed["pull"]


def test_private_repos_branches_and_pull_requests(world: World) -> None:
    assert world.hub.repos["me/secret"].private
    assert not world.hub.repos["me/nested"].private
    repo = world.hub.repos["me/nested"]
    assert {"main", "trial", "refs/pr/1"} <= set(repo.refs)
    assert "refs/pr/1" in world.pushed["pull"]
    for ref in ("trial", "refs/pr/1"):
        assert set(files_of(world, "me/nested", ref)) >= BASES_ONLY


def test_pushing_the_other_form_leaves_no_weights_of_the_first(world: World) -> None:
    names = set(files_of(world, "me/full"))
    assert world.pushed["full"][1] == ["L0"]
    assert "model.safetensors" not in names
    assert "model.safetensors.index.json" in names
    for part in ("model.projections", "model.backbone-L2"):
        assert any(name.startswith(part) for name in names)


@pytest.mark.usefixtures("used")
def test_the_method_of_a_model_loaded_without_the_package_pushes_the_same_files(world: World) -> None:
    again, first = files_of(world, "me/again"), files_of(world, "me/nested")
    assert set(again) == set(first)
    assert again["README.md"].decode() == first["README.md"].decode().replace("me/nested", "me/again")
    same = ("model.safetensors", "vocab.txt", "fit_report.json", "fit_report.png", "modeling_rd_esm.py")
    assert [name for name in same if again[name] != first[name]] == []
