"""A test Hub with three published backbones, and fresh client processes against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import EsmConfig, EsmForMaskedLM

from rd_hf.model.configuration_rd_esm import RDEsmConfig
from tests.conftest import REPOSITORY, backbone_settings
from tests.hub.server import FakeHub

WIDTHS = {"L0": 64, "L1": 96, "L2": 128}
SHARD = 200_000


def publish_backbone(folder: Path, width: int, seed: int) -> None:
    """Write a masked language model as ESM-2's were published: keys of 2022, rotary frequencies in float16.

    Beside the encoder there are the head, an absolute position table that nothing uses, and the frequencies
    once a layer.
    """
    torch.manual_seed(seed)
    config = EsmConfig(**backbone_settings(width))
    model = EsmForMaskedLM(config)
    state = {
        key: value.clone()
        for key, value in model.state_dict().items()
        if "inv_freq" not in key and key != "lm_head.decoder.weight"
    }
    head_width = width // config.num_attention_heads
    frequencies = (1.0 / 10000 ** (torch.arange(0, head_width, 2).float() / head_width)).half().float()
    for layer in range(config.num_hidden_layers):
        key = f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"
        state[key] = frequencies.clone()
    state["esm.embeddings.position_embeddings.weight"] = torch.randn(1026, width)
    folder.mkdir(parents=True)
    config.architectures = ["EsmForMaskedLM"]
    config.save_pretrained(folder)
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})


@dataclass
class World:
    """The Hub and what was done to it.

    Attributes:
        hub: the server.
        work: scratch folder.
        config: folder with a config.json only, as in hub_configs/.
        pinned: commit of each backbone when the bases were made; the repos have moved on since.
        pushed: what the pushing process said.
    """

    hub: FakeHub
    work: Path
    config: Path
    pinned: list[str]
    pushed: dict[str, Any]

    @property
    def expected(self) -> str:
        return str(self.work / "expected.safetensors")

    def start(
        self,
        step: str,
        home: str,
        package: bool = False,
        offline: bool = False,
        logged_in: bool | None = None,
        **arguments: Any,
    ) -> Any:
        """Start a client process with its own HF_HOME; with the package it is logged in unless told otherwise."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONPATH"))},
            "HF_ENDPOINT": self.hub.endpoint,
            "HF_HOME": str(self.work / home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "1" if offline else "0",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        if os.environ.get("RD_HF_OVERLAY"):  # another release of transformers, see scripts/test_versions.sh
            environment["PYTHONPATH"] = os.environ["RD_HF_OVERLAY"]
        if package if logged_in is None else logged_in:
            environment["HF_TOKEN"] = self.hub.token
        if package:
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, (environment.get("PYTHONPATH"), str(REPOSITORY))))
        given = {
            "package": package,
            "work": str(self.work / home),
            "expected": self.expected,
            "widths": WIDTHS,
            "token": self.hub.token,
            **arguments,
        }
        (self.work / home).mkdir(exist_ok=True)
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "client.py"), step, json.dumps(given)],
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: Any) -> dict[str, Any]:
        """Its result; fails with what it said."""
        said, complained = process.communicate(timeout=600)
        assert process.returncode == 0, f"{said}\n{complained}"
        result = json.loads(said.rsplit("RESULT ", 1)[1])
        assert isinstance(result, dict)
        return result

    def run(self, step: str, home: str, **settings: Any) -> dict[str, Any]:
        return self.finish(self.start(step, home, **settings))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Backbones published, bases pushed, backbones moved on."""
    work = tmp_path_factory.mktemp("hub")
    with FakeHub() as hub:
        levels = []
        pinned = []
        for seed, (name, width) in enumerate(WIDTHS.items()):
            publish_backbone(work / "published" / name, width, seed)
            pinned.append(hub.add(f"lab/esm-{name}", work / "published" / name))
            levels.append({"name": name, "backbone": backbone_settings(width), "repo_id": f"lab/esm-{name}"})
        config = work / "config"
        RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(config)
        world = World(hub, work, config, pinned, {})
        world.pushed = world.run("push", "home-push", package=True, config=str(config), work=str(work), shard=SHARD)
        for seed, (name, width) in enumerate(WIDTHS.items()):
            publish_backbone(work / "moved" / name, width, seed + 10)
            hub.add(f"lab/esm-{name}", work / "moved" / name)
        yield world


@pytest.fixture(scope="session")
def used(world: World) -> dict[str, Any]:
    """A new user's process: empty cache, no package."""
    return world.run("use", "home-use")
