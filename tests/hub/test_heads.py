"""Checkpoints with heads on the Hub: pushed with the command, loaded without the package, level by level."""

from __future__ import annotations

from typing import Any

import pytest

from rd_hf.hub.push import PushedModelDiffersError, compare_with_hub
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification
from tests.hub.conftest import WIDTHS, World
from tests.hub.server import repos_asked, weights_sent
from tests.model.heads import LEVELS, save_family, with_heads

OF = pytest.mark.parametrize("of", ["sequences", "residues"])


@pytest.fixture(scope="module")
def pushed(world: World) -> dict[str, Any]:
    return world.run("push_heads", "home-heads", package=True, result=str(world.work / "heads.safetensors"))


@pytest.fixture(scope="module")
def used(world: World, pushed: dict[str, Any]) -> dict[str, Any]:
    assert pushed
    return world.run("use_heads", "home-heads-user", result=str(world.work / "heads.safetensors"))


@OF
def test_push_and_info_say_which_heads_there_are(world: World, pushed: dict[str, Any], of: str) -> None:
    said = pushed[of]
    assert "loaded back and equal bit for bit: L0, L1, L2" in said
    assert f"heads of {of}: levels L0, L1, L2, L1 answers; single label classification (2): out, in" in said
    repo = world.hub.repos[f"me/{of}"]
    card = repo.commits[repo.refs["main"]]["README.md"].decode()
    task = "text-classification" if of == "sequences" else "token-classification"
    assert f"pipeline_tag: {task}" in card
    assert f'predict = pipeline("{task}", model="me/{of}", trust_remote_code=True)' in card
    assert "out, in (single label classification). Levels with a head:\nL0, L1, L2. L1 answers" in card


@OF
@pytest.mark.parametrize("level", ["chosen", *WIDTHS])
def test_it_answers_without_the_package_from_the_backbones_up_to_the_level(
    world: World, used: dict[str, Any], of: str, level: str
) -> None:
    """Counted from an empty cache, in requests by repo and in bytes of weights."""
    assert used[f"{of}-{level}"]
    requests = world.hub.between(f"{of}-{level}", f"{of}-{level}-loaded")
    names = list(WIDTHS)[: list(WIDTHS).index("L1" if level == "chosen" else level) + 1]
    repo = world.hub.repos[f"me/{of}"]
    wanted = len(repo.commits[repo.refs["main"]]["model.safetensors"])
    for name, commit in zip(names, world.pinned, strict=False):
        wanted += len(world.hub.repos[f"lab/esm-{name}"].commits[commit]["model.safetensors"])
    print(f"{of}, {level}: {len(requests)} requests, {weights_sent(requests):,} bytes of weights")
    assert repos_asked(requests) == {f"me/{of}", *(f"lab/esm-{name}" for name in names)}
    assert weights_sent(requests) == wanted


def test_a_pipeline_opens_the_repo_by_its_name(used: dict[str, Any]) -> None:
    assert used["pipeline"] == [["in", "out"], 2]


def test_a_push_that_brings_other_heads_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The "Hub" here is a folder, which the loaders take as well."""
    folder = tmp_path_factory.mktemp("heads")
    family = save_family(folder)
    with_heads(family[True], "sequences").save_pretrained(folder / "here")
    with_heads(family[True], "sequences").save_pretrained(folder / "there")
    monkeypatch.setattr("rd_hf.hub.push.snapshot_download", lambda repo_id, **_: repo_id)
    assert compare_with_hub(folder / "here", str(folder / "there"), "main") == LEVELS
    other = RDEsmForSequenceClassification.from_pretrained(folder / "there", level="L2")
    other.classifier[0].bias.data += 1
    other.save_pretrained(folder / "there")
    with pytest.raises(PushedModelDiffersError, match=r"the heads of .* are not those of .*sequences\.0\.bias"):
        compare_with_hub(folder / "here", str(folder / "there"), "main")


def test_what_is_trained_on_a_published_family_holds_its_bases_alone(world: World) -> None:
    done = world.run("train_heads", "home-train", package=True)
    assert not [name for name in done["files"] if name.startswith("model.backbone")]
    assert {"model.safetensors", "training.json", "report.md"} <= set(done["files"])
    for name in ("training.json", "out_of_fold.parquet", "training_levels.png", "report.md"):
        assert f"  {name}\n" in done["pushed"]
    # Pushing loads both, with their heads, and compares.
    assert "loaded back and equal bit for bit: L0, L1" in done["pushed"]
