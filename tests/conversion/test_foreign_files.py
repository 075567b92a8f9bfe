"""``raw.py``: files of others that lie, lead elsewhere, or hold what are no hidden states."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rd_hf.conversion.raw import Raw, open_raw, refuse_more_than_is_there
from rd_hf.data.records import InputError

WIDTH = 32
ROWS = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)


def opened(path: Path, pooling: str = "mean", ids: str | None = None) -> list[Raw]:
    """All sources of a file, each value read once."""
    sources = open_raw(str(path), pooling, {WIDTH: 2}, None, ids)
    for source in sources:
        source.take(range(len(source.ids)))
    return sources


def refused(path: Path, *words: str, **how: Any) -> None:
    """The file is refused in one sentence that names it and has these words."""
    with pytest.raises(InputError) as caught:
        opened(path, **how)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    assert all(word in said for word in words), said


@pytest.fixture
def h5(tmp_path: Path) -> Callable[[Callable[[h5py.File], object]], Path]:
    """A file with a good dataset, ``good``, and whatever else is put into it."""

    number = count()

    def make(fill: Callable[[h5py.File], object]) -> Path:
        path = tmp_path / f"f{next(number)}.h5"
        with h5py.File(path, "w") as file:
            file["good"] = ROWS[0]
            fill(file)
        return path

    return make


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Two files that nobody asked for."""
    (tmp_path / "secret.bin").write_bytes(ROWS[1].tobytes())
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["there"] = ROWS[1]
    return tmp_path / "secret"


def external(file: h5py.File, secret: Path) -> None:
    file.create_dataset("odd", (WIDTH,), "f4", external=[(str(secret.with_suffix(".bin")), 0, 4 * WIDTH)])


def virtual(file: h5py.File, secret: Path) -> None:
    layout = h5py.VirtualLayout((WIDTH,), "f4")
    layout[:] = h5py.VirtualSource(str(secret.with_suffix(".h5")), "there", (WIDTH,))
    file.create_virtual_dataset("odd", layout)


def external_link(file: h5py.File, secret: Path) -> None:
    file["odd"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/there")


def soft_link_through_an_external_one(file: h5py.File, secret: Path) -> None:
    file["zz"] = h5py.ExternalLink(str(secret.with_suffix(".h5")), "/")
    file["odd"] = h5py.SoftLink("/zz/there")


@pytest.mark.parametrize("lead", [external, virtual, external_link, soft_link_through_an_external_one])
def test_an_h5_file_leads_to_no_other(
    h5: Callable[..., Path], secret: Path, lead: Callable[[h5py.File, Path], None]
) -> None:
    """Whoever sends a file would otherwise have bytes of the reader's own files in what comes back."""
    path = h5(lambda file: lead(file, secret))
    refused(path, "another file")


def test_links_within_an_h5_file_are_names(h5: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        file["group/soft"] = h5py.SoftLink("/good")
        file["hard"] = file["good"]
        file["group/loop"] = file["/"]

    (source,) = opened(h5(fill))
    assert source.ids == ["good", "group/soft", "hard"]
    assert all(np.array_equal(value, ROWS[0]) for value in source.take([0, 1, 2]))
    refused(h5(lambda file: file.__setitem__("odd", h5py.SoftLink("/none"))), "odd is a link to nothing")


@pytest.mark.parametrize("dtype", ["c8", "i4", "u1", "?", "S4"])
def test_what_are_no_floating_point_numbers_is_no_state(tmp_path: Path, h5: Callable[..., Path], dtype: str) -> None:
    values = np.zeros(WIDTH, dtype)
    path = h5(lambda file: file.__setitem__("odd", values))
    refused(path, f"odd holds {values.dtype} where hidden states are wanted")
    np.save(tmp_path / "f.npy", values[None])
    (tmp_path / "f.ids.txt").write_text("a\n")
    refused(tmp_path / "f.npy", f"holds {values.dtype} where hidden states are wanted")


def write_pt(path: Path, value: object, layer: object = 2) -> Path:
    torch.save({"mean_representations": {layer: value}}, path)
    return path


ODD_TENSORS = {
    "complex64": torch.zeros(WIDTH, dtype=torch.complex64),
    "int64": torch.zeros(WIDTH, dtype=torch.int64),
    "sparse_coo": torch.ones(WIDTH).to_sparse(),
    "sparse_csr": torch.ones(2, WIDTH).to_sparse_csr(),
    "quantised": torch.quantize_per_tensor(torch.ones(WIDTH), 0.1, 0, torch.qint8),
    "a list": [0.0] * WIDTH,
    "float32": torch.empty(WIDTH, device="meta"),
}


@pytest.mark.parametrize("word", ODD_TENSORS)
def test_odd_tensors_are_no_states(tmp_path: Path, word: str) -> None:
    refused(write_pt(tmp_path / "a.pt", ODD_TENSORS[word]), "layer 2 holds", word, "where hidden states are wanted")


def test_tensors_as_training_code_leaves_them_are_states(tmp_path: Path) -> None:
    for value in (torch.nn.Parameter(torch.from_numpy(ROWS[0])), torch.from_numpy(ROWS[0]).bfloat16()):
        (source,) = opened(write_pt(tmp_path / "a.pt", value))
        assert np.allclose(source.take([0])[0], ROWS[0], atol=0.02)
    refused(write_pt(tmp_path / "a.pt", torch.tensor(1.0)), "is a single number")
    refused(write_pt(tmp_path / "a.pt", torch.ones(WIDTH), layer="last"), "by layer")


def test_files_that_say_they_are_huge_are_refused_before_memory_is_asked_for(
    tmp_path: Path, h5: Callable[..., Path]
) -> None:
    rows = 954 * 2**30 // (4 * WIDTH)
    for chunks in ((1024, WIDTH), None):  # the fill value is what a reader would find there
        path = h5(lambda file, chunks=chunks: file.create_dataset("big", (rows, WIDTH), "f4", chunks=chunks))
        refused(path, f"big is of shape ({rows}, {WIDTH}), and not all of it was written")

    def packed(file: h5py.File) -> None:
        """Whole numbers that are all equal take no room at all; a float dataset says so of chunks of zeros."""
        big = file.create_dataset("big", (1 << 25, WIDTH), "f4", chunks=(1 << 25, WIDTH), compression="gzip")
        big.id.write_direct_chunk((0, 0), b"x\x9c")

    try:
        big = h5(packed)
    except ValueError:  # h5py up to 3.11 writes no chunk of that size
        big = None
    if big is not None:
        refused(big, "big says that it holds 4.0 GB of numbers in 2 bytes")
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {WIDTH}), }}"
    (tmp_path / "f.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
    refused(tmp_path / "f.npy", "is no readable .npy file")
    refused(write_pt(tmp_path / "a.pt", torch.zeros(1, WIDTH).expand(rows, WIDTH)), "says that it holds 954.0 GB")
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(1 << 25, np.float32)), 1 << 22)
    pq.write_table(pa.table({"id": [str(number) for number in range(8)], "raw": column}), tmp_path / "f.parquet")
    assert (tmp_path / "f.parquet").stat().st_size < 50_000
    refused(tmp_path / "f.parquet", "says that it holds 0.1 GB of numbers")
    np.savez(tmp_path / "z.npz", ROWS)
    (tmp_path / "z.npz").rename(tmp_path / "z.npy")
    refused(tmp_path / "z.npy", "is no readable .npy file")
    refuse_more_than_is_there("gzip at its best", 1032 << 30, 1 << 30)


def nested(rows: list[Any]) -> pa.Array:
    return pa.array([[[0.0] * 64] * 3, rows], pa.list_(pa.list_(pa.float32())))


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([[0.0] * 63, [0.0] * 65, [0.0] * 64], "63, 65, 64"),
        ([[0.0] * 64, None, [0.0] * 64], "64, none"),
        ([], "no residue"),
    ],
)
def test_residues_of_different_widths_are_not_cut_anew(tmp_path: Path, rows: list[Any], found: str) -> None:
    """32, 64 and 96 numbers would make three residues of 64."""
    pq.write_table(pa.table({"id": ["ok", "ragged"], "emb": nested(rows)}), tmp_path / "r.parquet")
    refused(tmp_path / "r.parquet", f"ragged has residues of different widths ({found})", pooling="residue")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.string())])
def test_ids_are_text_and_missing_ones_the_record_number(tmp_path: Path, kind: pa.DataType) -> None:
    text = pa.types.is_dictionary(kind)
    ids = pa.array(["sp|P1|X", "ä", None] if text else [b"sp|P1|X", b"\xff", None], pa.string() if text else kind)
    rows = pa.array(ROWS.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ids.cast(kind), "raw": rows}), tmp_path / "f.parquet")
    (source,) = opened(tmp_path / "f.parquet")
    assert source.ids == ["sp|P1|X", "ä" if text else "\\xff", "3"]
    pq.write_table(pa.table({"id": [["a"]] * 3, "raw": rows}), tmp_path / "f.parquet")
    refused(tmp_path / "f.parquet", "record 1: the id is a value of type list, no text")


def test_ids_of_h5_attributes_are_text(h5: Callable[..., Path]) -> None:
    def fill(file: h5py.File) -> None:
        odd = (np.bytes_(b"sp|P1|X"), np.array(["one"], dtype=h5py.string_dtype()), 7, h5py.Empty("S1"), b"\xff")
        for number, value in enumerate(odd):
            file.create_dataset(f"h{number}", data=ROWS[0]).attrs["original_id"] = value

    (source,) = opened(h5(fill))
    assert source.ids == ["good", "sp|P1|X", "one", "7", "5", "\\xff"]
    assert all(type(one) is str for one in source.ids)
    path = h5(lambda file: file["good"].attrs.__setitem__("original_id", ["a", "b"]))
    refused(path, "record 1: the id is a value of type ndarray, no text")


def test_damage_is_one_sentence_wherever_it_is_found(tmp_path: Path, h5: Callable[..., Path]) -> None:
    """A file may open well and break where its values are read."""

    def fill(file: h5py.File) -> None:
        file.create_dataset("odd", data=ROWS, chunks=(1, WIDTH), compression="gzip", fletcher32=True)

    path = h5(fill)
    with h5py.File(path) as file:
        place, size = (chunk := file["odd"].id.get_chunk_info(1)).byte_offset, chunk.size
    data = bytearray(path.read_bytes())
    data[place : place + size] = bytes(size)
    path.write_bytes(data)
    refused(path, "is no readable h5 file")
    rows = pa.array(ROWS.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": ["a", "b", "c"], "raw": rows}), tmp_path / "f.parquet", compression="zstd")
    start = pq.ParquetFile(tmp_path / "f.parquet").metadata.row_group(0).column(1).data_page_offset
    data = bytearray((tmp_path / "f.parquet").read_bytes())
    data[start + 40 : start + 80] = bytes(40)
    (tmp_path / "f.parquet").write_bytes(data)
    refused(tmp_path / "f.parquet", "is no readable Parquet file")
    pq.write_table(pa.table([["a"], [[0.0]], [[1.0]]], ["id", "raw", "raw"]), tmp_path / "f.parquet")
    refused(tmp_path / "f.parquet", "more than one column 'raw'")
    (tmp_path / "f.parquet").write_text(json.dumps({}))
    refused(tmp_path / "f.parquet", "is no readable Parquet file")
