"""This process's own Hub client, pointed at a test Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub.server import FakeHub


@contextmanager
def hub_here(home: Path, token: bool = True) -> Iterator[FakeHub]:
    """A Hub that the client of this process takes for the only one, with a cache of its own; logged in, or not."""
    with FakeHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HOME", str(home))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("rd_hf.network._hub.reached", True)
        patch.setattr("rd_hf.data.remote._PAUSES", (0.0, 0.0))
        patch.setenv("HF_TOKEN", hub.token) if token else patch.delenv("HF_TOKEN", raising=False)
        yield hub
