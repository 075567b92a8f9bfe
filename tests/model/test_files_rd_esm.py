"""Weight files: what is found in which order, and what is refused before anything is loaded or run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rd_hf.model.files_rd_esm import find_weights, read_bin
from tests.hub.layouts import ESM2_BIN, ESM2_SAFETENSORS, ESM2_SHARDS, INDEX, LAYOUTS, Layout, Size, shapes, write_repo

SIZE = Size(32)
SHARDS = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_all_layouts_are_found_with_their_rotary_frequencies(tmp_path: Path, layout: Layout) -> None:
    found = find_weights(write_repo(tmp_path, layout, SIZE))
    wanted = {"safetensors": ("model.safetensors",), "bin": ("pytorch_model.bin",), "shards": SHARDS}
    assert (found.names, found.folder) == (wanted[layout.container], str(tmp_path))
    assert found.safetensors == (layout.container == "safetensors")
    frequencies = found.rotary_frequencies()
    assert (frequencies is not None) == layout.rotary
    if frequencies is not None:
        computed = 1.0 / 10000 ** (torch.arange(0, 8, 2).float() / 8)
        assert torch.equal(frequencies, computed.half().float())


def test_safetensors_go_before_bin_and_whole_files_before_shards(tmp_path: Path) -> None:
    for layout in (ESM2_SHARDS, ESM2_BIN, ESM2_SAFETENSORS):
        write_repo(tmp_path, layout, SIZE)
    assert find_weights(tmp_path).names == ("model.safetensors",)
    (tmp_path / "model.safetensors").unlink()
    assert find_weights(tmp_path).names == ("pytorch_model.bin",)
    (tmp_path / "pytorch_model.bin").unlink()
    assert find_weights(tmp_path).names == SHARDS


def test_a_bin_holds_what_was_written_and_is_mapped(tmp_path: Path) -> None:
    folder = write_repo(tmp_path, ESM2_SHARDS, SIZE)
    tensors = {key: value for name in SHARDS for key, value in read_bin(str(folder / name)).items()}
    assert {key: tuple(value.shape) for key, value in tensors.items()} == dict(shapes(ESM2_SHARDS, SIZE))
    write_repo(tmp_path / "safe", ESM2_SAFETENSORS, SIZE)
    for key, value in load_file(tmp_path / "safe" / "model.safetensors").items():
        assert torch.equal(tensors[key], value)
    with open("/proc/self/maps") as maps:
        assert str(folder / SHARDS[0]) in maps.read()


def test_files_of_older_torch_are_read(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.arange(3)}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_bin(str(path))["a"], torch.arange(3))


def _cut(share: float) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return spoil


def _save(make: Callable[[Path], Any], **how: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(make(path), path, **how)


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "code in it": (
        _save(lambda path: {"weight": torch.zeros(2), "x": Bomb(path.parent / "ran")}),
        r"holds posix\.mkdir beside tensors, and unpickling that could run code: it is not read; save",
    ),
    "code in an old file": (
        _save(lambda path: {"x": Bomb(path.parent / "ran")}, _use_new_zipfile_serialization=False),
        r"holds posix\.mkdir beside tensors",
    ),
    "a bare pickle with code": (
        lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "ran"), protocol=2)) and None,
        r"is damaged or was never weights|holds posix\.mkdir",
    ),
    "an object of a class": (
        _save(lambda _: {"weight": torch.zeros(2), "args": argparse.Namespace(lr=1)}),
        r"holds argparse\.Namespace beside tensors",
    ),
    "a number": (
        _save(lambda _: {"weight": torch.zeros(2), "epoch": 3}),
        r"holds more than tensors \('epoch' is of type int\)",
    ),
    "a training checkpoint": (
        _save(lambda _: {"state_dict": {"weight": torch.zeros(2)}}),
        r"holds more than tensors \('state_dict' is of type dict\): save the model's state_dict\(\) alone",
    ),
    "no names": (_save(lambda _: [torch.zeros(2)]), "holds one list, not tensors by name"),
    "cut short": (_cut(0.5), r"is damaged or was never weights \(it is cut short\): fetch it again"),
    "cut at its very end": (_cut(0.9999), "it is cut short"),
    "empty": (_cut(0), "is damaged or was never weights"),
    "a page of text": (lambda path: path.write_text("<html>" * 99) and None, "is damaged or was never weights"),
}


@pytest.mark.parametrize("file", ["pytorch_model.bin", SHARDS[1]])
@pytest.mark.parametrize("case", SPOILT)
def test_a_bin_of_anything_but_tensors_is_refused_by_name_and_runs_nothing(
    tmp_path: Path, case: str, file: str
) -> None:
    folder = write_repo(tmp_path / "repo", ESM2_SHARDS if file in SHARDS else ESM2_BIN, SIZE)
    spoil, said = SPOILT[case]
    spoil(folder / file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=said) as caught:
        find_weights(folder)
    assert str(folder / file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"a": "pytorch_model-00003-of-00002.bin"}, "has no file pytorch_model-00003-of-00002.bin, which"),
        ({"a": "../outside.bin"}, r"names '\.\./outside\.bin', which is no \.bin file beside it"),
        ({"a": "/etc/passwd"}, "its files are not read"),
        ({"a": r"..\outside.bin"}, "its files are not read"),
        ({"a": "model.safetensors"}, "its files are not read"),
        ({"a": 3}, "its files are not read"),
        ({}, "names no weight files"),
        ([], "is no index of weight files"),
    ],
    ids=str,
)
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, names: Any, said: str) -> None:
    folder = write_repo(tmp_path / "repo", ESM2_SHARDS, SIZE)
    (tmp_path / "outside.bin").write_bytes((folder / SHARDS[0]).read_bytes())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises((OSError, ValueError), match=said) as caught:
        find_weights(folder)
    assert INDEX in str(caught.value)
    for content in ('{"weight_map"', '{"weight_map": {"a": "b.bin"}}', "[]"):
        (folder / INDEX).write_text(content)
        with pytest.raises(ValueError, match=f"{INDEX} is no index"):
            find_weights(folder)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = write_repo(tmp_path, ESM2_SHARDS, SIZE)
    (folder / SHARDS[1]).unlink()
    with pytest.raises(OSError, match=f"has no file {SHARDS[1]}, which {INDEX} names: fetch or save"):
        find_weights(folder)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_an_index_that_promises_what_no_shard_holds_is_refused(tmp_path: Path, kind: str) -> None:
    """transformers 4.57 believes it, and leaves those weights random without a word."""
    if kind == "bin":
        write_repo(tmp_path, ESM2_SHARDS, SIZE)
        index, shard = tmp_path / INDEX, SHARDS[1]
    else:
        index, shard = tmp_path / "model.safetensors.index.json", "model-00001-of-00001.safetensors"
        save_file({"a": torch.zeros(2)}, tmp_path / shard)
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"a": shard}}))
    find_weights(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["esm.more"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{index.name} says that {shard} holds esm\.more, and it does not: fetch"):
        find_weights(tmp_path)


def test_a_folder_without_weights_says_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(OSError, match=r"holds none of model\.safetensors, .*\.bin.*: name a revision or folder"):
        find_weights(tmp_path)
    write_repo(tmp_path, ESM2_BIN, SIZE)
    with pytest.raises(OSError, match=r"holds none of model\.safetensors, model\.safetensors\.index\.json:"):
        find_weights(tmp_path, allow_bin=False)
