"""What extending a folder and converting raw embeddings download: bases, and larger backbones where any must run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hub.conftest import World
from tests.hub.server import repos_asked, weights_sent

# As in tests/embedding/test_extension.py.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def upgraded(world: World) -> dict[str, Any]:
    return world.run("upgrade", "home-upgrade", package=True)


@pytest.mark.parametrize(("step", "backbones"), [("extend", ["L1", "L2"]), ("convert", [])])
def test_no_byte_of_a_backbone_that_need_not_run(
    world: World, upgraded: dict[str, Any], step: str, backbones: list[str]
) -> None:
    requests = world.hub.between(step, f"{step}-done")
    bases = world.hub.repos["me/nested"]
    wanted = len(bases.commits[bases.refs["main"]]["model.safetensors"])
    spared = 0
    for number, commit in enumerate(world.pinned):
        size = len(world.hub.repos[f"lab/esm-L{number}"].commits[commit]["model.safetensors"])
        if f"L{number}" in backbones:
            wanted += size
        else:
            spared += size
    print(f"{step}: {weights_sent(requests):,} bytes of weights, {spared:,} spared; differs by {upgraded[step]:.1e}")
    assert repos_asked(requests) == {"me/nested", *(f"lab/esm-{name}" for name in backbones)}
    assert weights_sent(requests) == wanted
    assert upgraded[step] <= TOLERANCE
