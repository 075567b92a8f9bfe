"""Connections that break, and files of the Hub's cache that are damaged: one sentence that names the file to delete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from rd_hf.__main__ import main
from rd_hf.embedding.checkpoint import load_model
from rd_hf.hub.checkpoint import save_checkpoint
from rd_hf.model.files_rd_esm import fetch_again, read_bin
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model
from tests.hub.server import FakeHub, Fault

BACKBONE = "model.backbone-L1.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    folder = tmp_path_factory.mktemp("published") / "model"
    save_checkpoint(random_model([32, 48]), folder, backbones=True)
    (folder / "fit_report.json").write_text("[]\n")
    with FakeHub() as hub:
        hub.add("me/model", folder)
        yield hub


@pytest.fixture
def hub(published: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The Hub of this process, with an empty cache."""
    published.faults = []
    load_model.cache_clear()
    template = published.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": published.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    # Earlier releases of the client have a copy of it.
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    for name, value in {"_is_offline_mode": False, "TRANSFORMERS_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(f"transformers.utils.hub.{name}", value, raising=False)
    (tmp_path / "p.fasta").write_text(">a\nMKTAYIAKQR\n")
    return published


def words_of(command: str, tmp_path: Path) -> list[str]:
    data, output = str(tmp_path / "p.fasta"), str(tmp_path / "out")
    return {
        "info": ["info", "me/model"],
        "embed": ["embed", "--model", "me/model", "--input", data, "--output", output],
        "fit": ["fit", "--config", "me/model", "--input", data, "--output", output],
        "fit on levels": ["fit", "--backbones", "me/model", "--input", data, "--output", output],
    }[command]


@pytest.mark.parametrize(
    ("command", "file"),
    [("embed", "config.json"), ("fit on levels", "config.json"), ("info", "fit_report.json"), ("embed", "/cdn/")],
)
def test_a_connection_that_breaks_within_a_file_is_a_sentence(
    command: str,
    file: str,
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own tries
    hub.faults = [Fault("GET", file, "cut", times=99)]
    assert main(words_of(command, tmp_path)) == 1
    complaint = capfd.readouterr().err.splitlines()[-1]
    assert complaint.startswith(f"rd-hf {command.split()[0]}: error: ")
    assert "peer closed connection" in complaint or "Connection broken" in complaint
    hub.faults = []
    if command in ("info", "embed"):
        assert main(words_of(command, tmp_path)) == 0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"}",
    "empty": lambda _: b"",
}


@pytest.mark.parametrize(
    ("command", "file", "damage"),
    [
        *(("embed", "config.json", damage) for damage in DAMAGE),
        *(("embed", BACKBONE, damage) for damage in ("cut", "longer")),
        ("embed", "model.projections.safetensors", "zeros"),
        *(("info", file, "cut") for file in ("config.json", "fit_report.json")),
        *(("fit", file, "empty") for file in ("config.json", BACKBONE)),
    ],
)
def test_a_damaged_file_of_the_cache_is_named_and_once_deleted_fetched_again(
    command: str, file: str, damage: str, hub: FakeHub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The cache keeps what it has under its content's name and looks at no byte of it again."""
    link = Path(hf_hub_download("me/model", file))
    blob = link.resolve()
    assert blob.parent.name == "blobs"
    blob.write_bytes(DAMAGE[damage](blob.read_bytes()))
    words = words_of(command, tmp_path)
    assert main(words) == 1
    complaint = capfd.readouterr().err.splitlines()[-1]
    assert complaint.endswith(f"delete {blob}, so that it is fetched again")
    # The link alone would be made again, to the same blob.
    Path(re.findall(r"delete (\S+), so", complaint)[-1]).unlink()
    if command != "fit":
        assert main(words) == 0


@pytest.mark.parametrize("file", [BACKBONE, "model.safetensors.index.backbone-L1.json", "config.json"])
def test_in_a_folder_there_is_nothing_to_delete(file: str, tmp_path: Path) -> None:
    assert fetch_again(str(tmp_path / file)) == "fetch it again, or save the model again"


def test_the_same_holds_of_bin_files_and_caches_without_links(tmp_path: Path) -> None:
    """Where links cannot be made, the cache keeps the files themselves in its snapshots."""
    path = tmp_path / "models--me--model" / "snapshots" / ("0" * 40) / "pytorch_model.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PK no more")
    with pytest.raises(
        ValueError, match=rf"is damaged or was never weights .*: delete {re.escape(str(path))}, so that"
    ):
        read_bin(str(path))


def test_the_loader_by_itself_says_so_too(hub: FakeHub) -> None:
    blob = Path(hf_hub_download("me/model", BACKBONE)).resolve()
    os.truncate(blob, 100)
    with pytest.raises(ValueError, match=rf"the backbone of L1 in me/model: .* delete {re.escape(str(blob))}, so that"):
        RDEsmModel.from_pretrained("me/model")
    assert RDEsmModel.from_pretrained("me/model", level="L0").config.nested_dims == {"L0": 32}
